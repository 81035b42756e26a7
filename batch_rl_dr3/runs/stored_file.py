"""A file of a log, wherever it is: its name, its size, and how to open it."""

from collections.abc import Callable
import contextlib
import dataclasses
import io
import os
import pathlib
import threading
from typing import Any, BinaryIO

from batch_rl_dr3.config import errors

_BUFFER_BYTES = 256 << 10


@dataclasses.dataclass(frozen=True)
class StoredFile:
  """A file somewhere, that can be opened from its start.

  Attributes:
    name: str, what messages call it: a path or an address.
    num_bytes: int, its size as stored, compressed.
    open: makes a context manager of a binary stream of its bytes.
  """

  name: str
  num_bytes: int
  open: Callable[[], contextlib.AbstractContextManager[BinaryIO]]


class ByteCount:
  """How many bytes came out of a storage, counted by several threads.

  Attributes:
    total: int.
  """

  def __init__(self) -> None:
    self.total = 0
    self._lock = threading.Lock()

  def add(self, count: int) -> None:
    """Adds bytes that have just come."""
    with self._lock:
      self.total += count


class _CountedFile(io.FileIO):
  def __init__(self, path: pathlib.Path, count: ByteCount):
    super().__init__(path)
    self._count = count

  def readinto(self, buffer: Any) -> int | None:
    count = super().readinto(buffer)
    self._count.add(count or 0)
    return count


def local_file(
  path: str | os.PathLike[str], count: ByteCount | None = None
) -> StoredFile:
  """Returns the file at a path of this machine.

  Args:
    path: where it is.
    count: what counts the bytes that are read of it.

  Raises:
    DataError: if there is none.
  """
  path = pathlib.Path(path)
  try:
    num_bytes = path.stat().st_size
  except OSError as error:
    raise errors.DataError(f'cannot read {path}: {error.strerror}.') from error
  if count is None:
    return StoredFile(str(path), num_bytes, lambda: open(path, 'rb'))
  return StoredFile(
    str(path),
    num_bytes,
    lambda: io.BufferedReader(_CountedFile(path, count), _BUFFER_BYTES),
  )
