"""Where data files are: here, behind a URL, or in Minari's store."""

import hashlib
import os
import pathlib
import shutil
from typing import Any

import fsspec

from batch_rl_dr3 import errors, progress, run_directory

_MINARI = 'minari:'
_CHUNK = 1 << 20


def locate(path: str, cache_dir: str) -> pathlib.Path:
  """Returns a file or folder of this machine.

  Args:
    path: a path, a URL that fsspec reads, or minari:ID.
    cache_dir: what is fetched is kept there.

  Raises:
    DataError: if it is not there or cannot be fetched.
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
  target = folder / url.rstrip('/').rsplit('/', 1)[-1]
  if target.exists():
    return target
  temporary = folder / f'.{target.name}.{os.getpid()}.tmp'
  try:
    with fsspec.open(url, 'rb') as source, open(temporary, 'wb') as copy:
      size = getattr(source, 'size', None)
      with progress.bar(
        size, target.name, 'B', unit_scale=True, leave=False
      ) as bar:
        while chunk := source.read(_CHUNK):
          copy.write(chunk)
          bar.update(len(chunk))
    if size is not None and temporary.stat().st_size != size:
      raise errors.DataError(
        f'{url} broke off after {temporary.stat().st_size} of {size} bytes.'
      )
    os.replace(temporary, target)
  except (OSError, ValueError, ImportError) as error:
    raise errors.DataError(f'cannot fetch {url}: {error}.') from error
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
