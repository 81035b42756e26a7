"""Shards opened for reading, at any of their frames."""

import dataclasses
import os
import pathlib
import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import shards


class ShardFile(Protocol):
  """One shard, open for reading."""

  num_rows: int

  def read(self, start: int, frames: npt.NDArray[Any]) -> None:
    """Fills frames, [n, num_pixels], from the shard's row `start` on."""


@dataclasses.dataclass(frozen=True)
class ShardPath:
  """Where a shard is.

  Attributes:
    codec: str, one of shards.CODECS.
    folder: of its part.
    number: int, among the shards of the part.
    num_rows: int, its frames.
  """

  codec: str
  folder: pathlib.Path
  number: int
  num_rows: int

  def open(self) -> ShardFile:
    """Returns it, open for reading.

    Raises:
      ValueError: if it is damaged.
    """
    names = shards.file_names(self.codec, self.number)
    paths = [self.folder / name for name in names]
    if self.codec == shards.RAW:
      return _RawFile(paths, self.num_rows)
    return _ZstdFile(paths, self.num_rows)


class _RandomAccess:
  """A file read at random places; the kernel is told not to read ahead."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._file = open(path, 'rb', buffering=0)  # noqa: SIM115
    self._descriptor = self._file.fileno()
    os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

  def read_into(self, view: memoryview, offset: int) -> None:
    while True:
      count = os.preadv(self._descriptor, [view], offset)
      if count == len(view):
        return
      if not count:
        raise errors.DataError(f'{self.path} is cut short; it is damaged.')
      view, offset = view[count:], offset + count


class _RawFile:
  def __init__(self, paths: list[pathlib.Path], num_rows: int):
    array = np.load(paths[0], 'r', allow_pickle=False)
    if len(array) != num_rows:
      raise ValueError(f'{paths[0]} has {len(array)} frames, not {num_rows}')
    self.num_rows = num_rows
    self._offset = int(array.offset)
    self._row_bytes = array[:1].nbytes
    self._file = _RandomAccess(paths[0])

  def read(self, start: int, frames: npt.NDArray[Any]) -> None:
    self._file.read_into(
      frames.data.cast('B'), self._offset + start * self._row_bytes
    )


class _ZstdFile:
  _local = threading.local()

  def __init__(self, paths: list[pathlib.Path], num_rows: int):
    self.num_rows = num_rows
    self._index = np.load(paths[1], allow_pickle=False)
    if len(self._index) != -(-num_rows // shards.CHUNK_ROWS) + 1:
      raise ValueError(f'{paths[1]} does not index {num_rows} frames')
    self._file = _RandomAccess(paths[0])

  def read(self, start: int, frames: npt.NDArray[Any]) -> None:
    while len(frames):
      number, inside = divmod(start, shards.CHUNK_ROWS)
      chunk = self._decode(number).view(frames.dtype)
      chunk = chunk.reshape(-1, frames.shape[1])[inside : inside + len(frames)]
      frames[: len(chunk)] = chunk
      start, frames = start + len(chunk), frames[len(chunk) :]

  def _decode(self, number: int) -> npt.NDArray[np.uint8]:
    first, last = map(int, self._index[number : number + 2])
    content = bytearray(last - first)
    self._file.read_into(memoryview(content), first)
    if not hasattr(self._local, 'decompressor'):  # It serves one thread.
      self._local.decompressor = zstandard.ZstdDecompressor()
    try:
      decoded = self._local.decompressor.decompress(content)
    except zstandard.ZstdError as error:
      raise errors.DataError(
        f'{self._file.path} is damaged ({error}). Delete the store; it is '
        'built again from the log.'
      ) from error
    return np.frombuffer(decoded, np.uint8)
