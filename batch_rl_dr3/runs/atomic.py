"""Files and folders that are written whole or not at all.

They are written under a temporary name that no other process has, and renamed:
nobody reads half of one, even after a kill or on a full disk.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from typing import IO, Any

from batch_rl_dr3.config import errors

_Path = str | os.PathLike[str]
# Asked before something is published; raises if it must not be.
Check = Callable[[], None]


def unchecked() -> None:
  """Lets everything be published: for files that no other worker writes."""


class FileError(errors.WriteError):
  """Names the path that could not be written, and the system's reason."""

  def __init__(self, path: _Path, error: OSError):
    super().__init__(
      f'cannot write {path}: {error.strerror or error}. Choose a place that '
      'can be written and has room.'
    )


@contextlib.contextmanager
def file_errors(path: _Path, check: Check = unchecked) -> Iterator[None]:
  """Turns an OSError into a FileError that names `path`.

  `check` is asked first: who has taken over has removed what was temporary.
  """
  try:
    yield
  except OSError as error:
    with contextlib.suppress(OSError, FileError):
      check()
    raise FileError(path, error) from error


def make_directory(path: _Path) -> pathlib.Path:
  """Returns a directory that exists and can be written; FileError if not.

  Raises:
    ConfigError: if it is a URL.
    UsageError: if its name is not UTF-8, which TensorFlow cannot open.
  """
  if '://' in os.fspath(path):
    raise errors.ConfigError(
      f'{path} is a URL, and only `train` writes to one. Choose a folder.'
    )
  directory = pathlib.Path(path)
  try:
    os.path.abspath(directory).encode()
  except UnicodeEncodeError as error:
    raise errors.UsageError(
      f'the name of the folder {os.fspath(path)!a} is not UTF-8. Choose '
      'another name, or rename the folder that it is in.'
    ) from error
  with file_errors(directory):
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f'.write_probe_{os.getpid()}'
    probe.touch()
    probe.unlink(missing_ok=True)
  return directory


@contextlib.contextmanager
def replaced(
  path: _Path,
  check: Check = unchecked,
  durable: bool = True,
  ending: str = '.tmp',
) -> Iterator[pathlib.Path]:
  """Yields a temporary path whose file becomes `path` when the block ends.

  `check` is called before the rename. A `durable` file outlives a power cut.
  The temporary name has the `ending`, for writers that go by it. If an OSError
  is raised, what was at `path` is kept.
  """
  target = pathlib.Path(path)
  temporary = target.with_name(f'.{target.name}.{secrets.token_hex(8)}{ending}')
  try:
    yield temporary
    if durable:
      sync(temporary)
    check()
    os.replace(temporary, target)
    if durable:
      sync(target.parent)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_path(
  path: _Path,
  check: Check = unchecked,
  durable: bool = True,
  ending: str = '.tmp',
) -> Iterator[pathlib.Path]:
  """Yields a temporary path as `replaced` does; FileError if that fails."""
  with (
    file_errors(path, check),
    replaced(path, check, durable, ending) as temporary,
  ):
    yield temporary


@contextlib.contextmanager
def whole_file(
  path: _Path, check: Check = unchecked, durable: bool = True
) -> Iterator[IO[bytes]]:
  """Yields a binary file that becomes `path`; see `whole_path`."""
  with (
    whole_path(path, check, durable) as temporary,
    open(temporary, 'wb') as file,
  ):
    yield file


def write_text(path: _Path, content: str, check: Check = unchecked) -> None:
  """Writes a text file in UTF-8, whole or not at all."""
  with whole_file(path, check) as file:
    file.write(content.encode())


def write_json(path: _Path, value: Any, check: Check = unchecked) -> None:
  """Writes `value` as indented JSON, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n', check)


@contextlib.contextmanager
def whole_folder(path: _Path) -> Iterator[pathlib.Path]:
  """Yields a new folder that takes the place of `path` when the block ends.

  What was there is kept if the file system refuses, which raises FileError.
  """
  target = pathlib.Path(path)
  mark = secrets.token_hex(8)
  staging = make_directory(target.with_name(f'.{target.name}.{mark}.partial'))
  before = target.with_name(f'.{target.name}.{mark}.replaced')
  try:
    with file_errors(target):
      yield staging
      if target.exists():
        os.replace(target, before)
      try:
        os.replace(staging, target)
      except OSError:
        if before.exists():
          os.replace(before, target)
        raise
  finally:
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def name_folder(temporary: _Path, path: _Path) -> None:
  """Gives a whole folder its name; OSError if another is there already."""
  os.rename(temporary, path)
  sync(pathlib.Path(path).parent)


def remove_file(path: _Path) -> None:
  """Removes a file, if there is one, and never a folder."""
  with file_errors(path):
    pathlib.Path(path).unlink(missing_ok=True)


def remove_tree(path: _Path) -> None:
  """Removes a file, or a folder and all in it: never by a foreign name."""
  target = pathlib.Path(path)
  with file_errors(target):
    if target.is_dir() and not target.is_symlink():
      shutil.rmtree(target)
    else:
      target.unlink(missing_ok=True)


def sha256_of(path: _Path) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def sync(path: _Path) -> None:
  """Waits until a file or folder is on its disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
