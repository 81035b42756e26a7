"""Folders for small files that several machines share, and where they are."""

import contextlib
import os
import pathlib
import secrets
from typing import Protocol

_FILE_SCHEME = 'file://'


def local_path(place: str) -> str | None:
  """Returns the path that a path or a file:// URL is; None for other URLs."""
  if place.startswith(_FILE_SCHEME):
    return place.removeprefix(_FILE_SCHEME)
  return None if '://' in place else place


class Folder(Protocol):
  """A folder for small files, shared by all who may work on a run."""

  def create(self, name: str, content: bytes) -> bool:
    """Writes a file unless it exists; returns whether it did not."""

  def write(self, name: str, content: bytes) -> None:
    """Writes a file, whole or not at all."""

  def read(self, name: str) -> bytes | None:
    """Returns the content of a file; None if there is none."""

  def names(self) -> list[str]:
    """Returns the names of the files."""


class LocalFolder:
  """A folder of a local or shared disk. It needs no locks of the system."""

  def __init__(self, folder: str | os.PathLike[str]):
    """Takes note of the folder, which is made when something is written."""
    self._folder = pathlib.Path(folder)

  def create(self, name: str, content: bytes) -> bool:
    """See `Folder`. A kill can leave the file empty."""
    self._folder.mkdir(exist_ok=True)
    try:
      with open(self._folder / name, 'xb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except FileExistsError:
      return False
    return True

  def write(self, name: str, content: bytes) -> None:
    """See `Folder`."""
    temporary = self._folder / f'.{name}.{secrets.token_hex(4)}.tmp'
    try:
      temporary.write_bytes(content)
      os.replace(temporary, self._folder / name)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise

  def read(self, name: str) -> bytes | None:
    """See `Folder`."""
    with contextlib.suppress(OSError):
      os.utime(self._folder)  # A network file system then looks anew.
    try:
      return (self._folder / name).read_bytes()
    except FileNotFoundError:
      return None

  def names(self) -> list[str]:
    """See `Folder`."""
    with contextlib.suppress(FileNotFoundError):
      return os.listdir(self._folder)
    return []
