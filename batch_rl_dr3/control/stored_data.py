"""Where data files are: here, behind a URL, or in Minari's store."""

import hashlib
import os
import pathlib
import shutil
from typing import Any

from batch_rl_dr3.config import errors, progress
from batch_rl_dr3.runs import retry, run_directory, storage

_MINARI = 'minari:'
_CHUNK = 1 << 20
# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0


def locate(path: str, cache_dir: str) -> pathlib.Path:
  """Returns a file or folder of this machine.

  Args:
    path: a path, a URL that fsspec reads, or minari:ID.
    cache_dir: what is fetched is kept there.

  Raises:
    DataError: if it is not there or cannot be fetched, after as many attempts
      as `Retry` has.
    WriteError: if there is no room for it.
  """
  if path.startswith(_MINARI):
    return _minari(path.removeprefix(_MINARI))
  if '://' in path:
    return _fetch(path, pathlib.Path(cache_dir))
  if not os.path.exists(path):
    raise errors.DataError(f'no data at {path}.')
  return pathlib.Path(path)


def _fetch(url: str, cache_dir: pathlib.Path) -> pathlib.Path:
  """Returns the cached copy of a URL, fetched whole or not at all."""
  key = hashlib.sha256(url.encode()).hexdigest()[:16]
  folder = run_directory.make_directory(cache_dir / 'd4rl' / key)
  parent, _, name = url.rstrip('/').rpartition('/')
  target = folder / name
  if target.exists():
    return target
  source = storage.open_storage(parent, None, None, _TIMEOUT, retry.Retry())
  info = source.info(name)
  temporary = folder / f'.{name}.{os.getpid()}.tmp'
  try:
    with (
      source.open(info) as stream,
      open(temporary, 'wb') as copy,
      progress.bar(
        info['size'], name, 'B', unit_scale=True, leave=False
      ) as bar,
    ):
      while chunk := stream.read(_CHUNK):
        copy.write(chunk)
        bar.update(len(chunk))
    os.replace(temporary, target)
  except OSError as error:  # Of the disk; the storage raises a DataError.
    raise run_directory.WriteError(target, error) from error
  finally:
    temporary.unlink(missing_ok=True)
  return target


def _minari(dataset_id: str) -> pathlib.Path:
  import minari
  from minari.storage import get_dataset_path

  folder = pathlib.Path(get_dataset_path(dataset_id))
  if not folder.is_dir():
    try:
      minari.download_dataset(dataset_id)
    except Exception as error:  # Any client library's.
      shutil.rmtree(folder, ignore_errors=True)
      raise errors.DataError(
        f'cannot fetch Minari data set {dataset_id}: {error}.'
      ) from error
  return folder


def describe(path: str, file: pathlib.Path) -> dict[str, Any]:
  """Returns the source, size and sha256 of a data file.

  Args:
    path: as it was given.
    file: the file on this machine.
  """
  with open(file, 'rb') as opened:
    digest = hashlib.file_digest(opened, 'sha256').hexdigest()
  return {
    'source': path if '://' in path or ':' in path else os.path.abspath(path),
    'bytes': file.stat().st_size,
    'sha256': digest,
  }
