"""Objects fetched whole from afar, and checked before a byte of them is used.

What is fetched is checked against the size and the checksum that the storage
states: gcsfs does not do it unless told to.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import pathlib
import re
import shutil
import tempfile
from typing import IO, Any

from absl import logging

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checksum
from batch_rl_dr3.runs import run_directory, stored_file
from batch_rl_dr3.runs.retry import RefusedError
from batch_rl_dr3.runs.storage import Storage

_CHUNK_BYTES = 8 << 20
_QUARANTINE = 'batch_rl_dr3_quarantine'


@contextlib.contextmanager
def fetched(
  storage: Storage,
  info: dict[str, Any],
  spool_dir: str | None,
  check: Callable[[stored_file.StoredFile], None],
) -> Iterator[stored_file.StoredFile]:
  """Fetches an object whole into a temporary file, checked before use.

  A damaged object goes to quarantine and is fetched once more. The temporary
  file has no name, so that it vanishes with the process.

  Args:
    storage: the folder that it is in.
    info: what `list` says of it.
    spool_dir: str, where the temporary file is, None for the system's; and
      where the folder batch_rl_dr3_quarantine is made.
    check: raises a DataError if the bytes are damaged; used where the
      storage states no checksum.

  Yields:
    The file, under the object's name.

  Raises:
    DataError: if it is damaged both times.
    WriteError: if there is no room for the temporary file.
  """
  name = storage.file(info).name
  folder = pathlib.Path(spool_dir or tempfile.gettempdir())
  try:
    spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
  except OSError as error:
    raise run_directory.WriteError(folder, error) from error
  with spool:
    path = f'/proc/self/fd/{spool.fileno()}'
    file = dataclasses.replace(
      stored_file.local_file(path), name=name, num_bytes=info['size']
    )
    for is_last in (False, True):
      try:
        _fetch(storage, info, file, spool, folder, check)
        break
      except RefusedError:
        raise
      except errors.DataError as error:
        kept = _quarantine(name, path, folder)
        if is_last:
          raise errors.DataError(f'{error} It was so twice.{kept}') from error
        logging.warning('%s%s It is fetched once more.', error, kept)
    yield file


def _fetch(
  storage: Storage,
  info: dict[str, Any],
  file: stored_file.StoredFile,
  spool: IO[bytes],
  folder: pathlib.Path,
  check: Callable[[stored_file.StoredFile], None],
) -> None:
  stated = checksum.stated_in(info)
  with storage.open(info) as stream:
    try:
      spool.seek(0)
      spool.truncate()
      while data := stream.read(_CHUNK_BYTES):
        spool.write(data)
        if stated is not None:
          stated[0].update(data)
      spool.flush()
    except OSError as error:
      raise run_directory.WriteError(folder, error) from error
  if stated is None:
    check(file)
  elif stated[0].digest() != stated[1]:
    raise errors.DataError(
      f'{file.name} is damaged: its bytes do not have the checksum that the '
      'storage states.'
    )


def _quarantine(name: str, path: str, folder: pathlib.Path) -> str:
  """Keeps a damaged object for whoever wants to look; returns what to say."""
  target = folder / _QUARANTINE / re.sub(r'[^\w.$-]+', '_', name)
  try:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, target)
  except OSError:  # A full disk, say. The damage is what has to be told.
    return ''
  return f' What came is kept in {target}.'
