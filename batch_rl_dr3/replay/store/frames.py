"""Frames of a store: in memory, or read from its shards when needed.

Frames that fit in memory are held there. Of others, every transition's frames
are read by themselves with pread: through a memory map, the kernel's readahead
would read 20 times as much.
"""

import abc
import bisect
from concurrent import futures
import itertools
import os
import resource
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.replay.store import shard_files

# Files that the process may open beside the shards.
_SPARE_FILES = 512
# Bytes; TensorFlow copies arrays that lie otherwise.
_ALIGNMENT = 64


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
  def windows(
    self, first_rows: npt.NDArray[np.int64], num_frames: int
  ) -> npt.NDArray[Any]:
    """Returns runs of consecutive frames, [B, num_frames, num_pixels].

    Args:
      first_rows: int64 [B], where each starts.
      num_frames: int, frames of each.
    """

  def stacks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Returns stacks of frames, oldest first.

    Args:
      rows: int64 [S, B, K], the rows of S stacks of K frames for each of B
        examples.

    Returns:
      [S, B, num_pixels, K].
    """
    num_stacks, num_examples, stack_size = rows.shape
    stacks = np.empty(
      (num_stacks, num_examples, self.num_pixels, stack_size), self.dtype
    )
    # The stacks of an example are mostly one run of frames, shared, and all
    # examples are alike; not where an episode or a file ends.
    offsets = rows - rows[:1, :, :1]
    if (offsets == offsets[:, :1]).all():
      self._fill(stacks, rows, offsets[:, 0])
      return stacks
    _, firsts, kinds = np.unique(
      offsets.swapaxes(0, 1).reshape(num_examples, -1),
      axis=0,
      return_index=True,
      return_inverse=True,
    )
    for kind, first in enumerate(firsts):
      chosen = np.flatnonzero(kinds.reshape(-1) == kind)
      some = np.empty_like(stacks[:, chosen])
      self._fill(some, rows[:, chosen], offsets[:, first])
      stacks[:, chosen] = some
    return stacks

  def _fill(
    self,
    stacks: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
  ) -> None:
    """Fills the stacks of examples that are alike.

    Args:
      stacks: [S, B, num_pixels, K].
      rows: int64 [S, B, K].
      places: int64 [S, K], where an example's frames are, from the first on.
    """
    num_frames = int(places.max()) + 1
    if places.min() < 0 or num_frames > places.size:
      # A stack that wraps around the end of a file.
      for into, own in zip(stacks, rows, strict=True):
        _interleave([self.rows(age) for age in own.T], into)
      return
    windows = self.windows(rows[0, :, 0], num_frames)
    for into, ages in zip(stacks, places, strict=True):
      _interleave([windows[:, age] for age in ages], into)


def _interleave(planes: list[npt.NDArray[Any]], into: npt.NDArray[Any]) -> None:
  """Fills `into`, [B, num_pixels, K], from K planes of it."""
  if into.dtype == np.uint8 and len(planes) > 1:
    # 5 times as fast as copying plane by plane.
    cv2.merge(planes, dst=into)
  else:
    for age, plane in enumerate(planes):
      into[..., age] = plane


class ResidentFrames(Frames):
  """Frames that are all in memory.

  Attributes:
    array: [num_rows, num_pixels], the frames.
  """

  def __init__(self, frames: npt.NDArray[Any]):
    """Takes frames, [num_rows, num_pixels]."""
    self.array = frames
    self.num_pixels = frames.shape[1]
    self.dtype = frames.dtype

  def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """See Frames."""
    frames: npt.NDArray[Any] = self.array[rows]
    return frames

  def windows(
    self, first_rows: npt.NDArray[np.int64], num_frames: int
  ) -> npt.NDArray[Any]:
    """See Frames; one gather from all windows there are, which overlap."""
    num_rows, num_pixels = self.array.shape
    of_row, of_pixel = self.array.strides
    overlapping = np.lib.stride_tricks.as_strided(
      self.array,
      (num_rows - num_frames + 1, num_frames, num_pixels),
      (of_row, of_row, of_pixel),
      writeable=False,
    )
    windows: npt.NDArray[Any] = overlapping[first_rows]
    return windows


class ShardFrames(Frames):
  """Frames that are read from shards whenever they are asked for."""

  def __init__(
    self,
    opened: list[shard_files.ShardFile],
    num_pixels: int,
    dtype: np.dtype[Any],
  ):
    """Takes the shards in the order of their rows."""
    self.num_pixels = num_pixels
    self.dtype = dtype
    self._shards = opened
    self._ends = list(itertools.accumulate(s.num_rows for s in opened))
    self._starts = [0, *self._ends[:-1]]

  def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """See Frames."""
    return self.windows(rows, 1)[:, 0]

  def held(self) -> ResidentFrames:
    """Returns the same frames, all read into memory."""
    frames = _aligned((self._ends[-1], self.num_pixels), self.dtype)
    with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
      running = [
        pool.submit(shard.read, 0, frames[start:end])
        for shard, start, end in zip(
          self._shards, self._starts, self._ends, strict=True
        )
      ]
      for future in running:
        future.result()
    return ResidentFrames(frames)

  def windows(
    self, first_rows: npt.NDArray[np.int64], num_frames: int
  ) -> npt.NDArray[Any]:
    """See Frames."""
    shape = (len(first_rows), num_frames, self.num_pixels)
    windows = np.empty(shape, self.dtype)
    for window, row in zip(windows, first_rows.tolist(), strict=True):
      self._read(row, window)
    return windows

  def _read(self, row: int, frames: npt.NDArray[Any]) -> None:
    """Fills `frames` with those from a row on, of one or several shards."""
    while len(frames):
      shard = bisect.bisect_right(self._ends, row)
      count = self._ends[shard] - row
      self._shards[shard].read(row - self._starts[shard], frames[:count])
      row, frames = row + count, frames[count:]


def _aligned(shape: tuple[int, int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
  """Returns an array, not filled, that TensorFlow can use without a copy."""
  num_bytes = int(np.prod(shape)) * dtype.itemsize
  buffer = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def open_frames(
  paths: list[shard_files.ShardPath], num_pixels: int, dtype: np.dtype[Any]
) -> ShardFrames:
  """Returns the frames of some shards, opened for reading.

  Args:
    paths: the shards, in the order of their rows.
    num_pixels: int, numbers in a frame.
    dtype: their dtype.

  Raises:
    ValueError: if a shard is damaged.
    OSError: if one cannot be read.
  """
  _allow_files(len(paths) + _SPARE_FILES)
  opened = [path.open() for path in paths]
  return ShardFrames(opened, num_pixels, dtype)


def _allow_files(count: int) -> None:
  """Raises the limit of open files where it is below the number needed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < count:
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
