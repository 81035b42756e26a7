"""Frames of a store: in memory, or read from its shards when needed.

Frames that fit in memory are held there. Of others, every transition's frames
are read by themselves with pread: through a memory map, the kernel's readahead
would read 20 times as much.
"""

import abc
from collections.abc import Iterable
from concurrent import futures
import dataclasses
import os
import pathlib
import resource
import threading
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import zstandard

from batch_rl_dr3 import errors
from batch_rl_dr3.replay import shards

# Files that the process may open beside the shards.
_SPARE_FILES = 512


class Frames(abc.ABC):
  """Rows of frames, each flat.

  Attributes:
    num_pixels: int, numbers in a frame.
    dtype: their dtype.
  """

  num_pixels: int
  dtype: np.dtype[Any]

  @abc.abstractmethod
  def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Returns the frames at some rows, [n, num_pixels]."""

  @abc.abstractmethod
  def stacks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Returns stacks of frames, oldest first.

    Args:
      rows: int64 [S, B, K], the rows of S stacks of K frames for each of B
        examples.

    Returns:
      [S, B, num_pixels, K].
    """

  def _empty(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    num_stacks, num_examples, stack_size = rows.shape
    return np.empty(
      (num_stacks, num_examples, self.num_pixels, stack_size), self.dtype
    )


class ResidentFrames(Frames):
  """Frames that are all in memory."""

  def __init__(self, frames: npt.NDArray[Any]):
    """Takes frames, [num_rows, num_pixels]."""
    self._frames = frames
    self.num_pixels = frames.shape[1]
    self.dtype = frames.dtype

  def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """See Frames."""
    frames: npt.NDArray[Any] = self._frames[rows]
    return frames

  def stacks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """See Frames."""
    # Frame by frame, which is 3 times as fast as one gather and a transpose:
    # a frame and its stack stay in the processor's cache.
    stacks = self._empty(rows)
    for into, of_stack in zip(stacks, rows, strict=True):
      for example, ages in enumerate(of_stack):
        for age, row in enumerate(ages):
          into[example, :, age] = self._frames[row]
    return stacks


class ShardFrames(Frames):
  """Frames that are read from shards whenever they are asked for."""

  def __init__(
    self,
    shard_files: list['ShardFile'],
    num_pixels: int,
    dtype: np.dtype[Any],
  ):
    """Takes the shards in the order of their rows."""
    self.num_pixels = num_pixels
    self.dtype = dtype
    self._shards = shard_files
    self._ends = np.cumsum([shard.num_rows for shard in shard_files])

  def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """See Frames."""
    frames = np.empty((len(rows), self.num_pixels), self.dtype)
    for frame, row in zip(frames, rows, strict=True):
      self._read(int(row), frame[np.newaxis])
    return frames

  def stacks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """See Frames."""
    stacks = self._empty(rows)
    num_frames = rows.shape[0] * rows.shape[2]
    for example in range(rows.shape[1]):
      wanted = rows[:, example]
      first, last = int(wanted.min()), int(wanted.max())
      if last - first < num_frames:
        window = np.empty((last - first + 1, self.num_pixels), self.dtype)
        self._read(first, window)
        places = wanted - first
      else:  # The stack wraps around the end of a file.
        unique, places = np.unique(wanted, return_inverse=True)
        window = self.rows(unique)
        places = places.reshape(wanted.shape)
      for into, ages in zip(stacks[:, example], places, strict=True):
        for age, place in enumerate(ages):
          into[:, age] = window[place]
    return stacks

  def _read(self, row: int, frames: npt.NDArray[Any]) -> None:
    """Reads consecutive rows, which may lie in several shards."""
    while len(frames):
      shard = int(np.searchsorted(self._ends, row, side='right'))
      count = min(int(self._ends[shard]) - row, len(frames))
      start = row - int(self._ends[shard]) + self._shards[shard].num_rows
      self._shards[shard].read(start, frames[:count])
      row, frames = row + count, frames[count:]


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
    os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

  def read_into(self, view: memoryview, offset: int) -> None:
    while view:
      count = os.preadv(self._file.fileno(), [view], offset)
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
      shards.array_bytes(frames), self._offset + start * self._row_bytes
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


def open_frames(
  paths: list[ShardPath],
  num_pixels: int,
  dtype: np.dtype[Any],
  max_resident_bytes: int,
) -> Frames:
  """Returns the frames of some shards.

  Args:
    paths: the shards, in the order of their rows.
    num_pixels: int, numbers in a frame.
    dtype: their dtype.
    max_resident_bytes: int; frames are held in memory up to so many bytes.

  Raises:
    ValueError: if a shard is damaged.
    OSError: if one cannot be read.
  """
  num_rows = sum(path.num_rows for path in paths)
  is_resident = num_rows * num_pixels * dtype.itemsize <= max_resident_bytes
  if not is_resident:
    _allow_files(len(paths) + _SPARE_FILES)
    return ShardFrames([path.open() for path in paths], num_pixels, dtype)
  frames = np.empty((num_rows, num_pixels), dtype)
  starts = np.cumsum([0, *(path.num_rows for path in paths)])
  with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    _wait(
      pool.submit(_load, path, frames[start:][: path.num_rows])
      for path, start in zip(paths, starts[:-1], strict=True)
    )
  return ResidentFrames(frames)


def _load(path: ShardPath, frames: npt.NDArray[Any]) -> None:
  path.open().read(0, frames)


def _wait(running: Iterable['futures.Future[None]']) -> None:
  for future in list(running):
    future.result()


def _allow_files(count: int) -> None:
  """Raises the limit of open files where it is below the number needed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < count:
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
