"""Shards: files that each hold up to 65,536 frames of one file of a log.

Two codecs. Frames read back are the same, bit for bit.

* 'raw': an .npy array. A frame lies at a known place and is read by itself.
* 'zstd': chunks of 16 frames, each one Zstandard frame.

Beside a shard lies its index, an .npy file: of 'raw', the CRC32C of each frame,
uint32 [num_rows]; of 'zstd', where each chunk ends and its CRC32C, int64
[num_chunks, 2]. So what is read as needed is checked as it is read: a raw frame
when it is first touched, a chunk always. Whole files are checked as they are
loaded, by the CRC32C in the manifest, which is several times as fast to compute
as its SHA-256.

`store.open_store` says when which codec is the default, and why.
"""

import abc
import bisect
from concurrent import futures
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import resource
import threading
from types import TracebackType
from typing import Any, Self

import cv2
import google_crc32c
import numpy as np
import numpy.typing as npt
import zstandard

from batch_rl_dr3.config import errors

# Rows of a shard: 462 MB of Atari frames.
SHARD_ROWS = 65_536
CHUNK_ROWS = 16
RAW = 'raw'
ZSTD = 'zstd'
CODECS = (RAW, ZSTD)
# Higher levels gain under 10% on Atari frames and compress 5 times slower.
_LEVEL = 1
# Files that the process may open beside the shards.
_SPARE_FILES = 512
# Bytes; TensorFlow copies arrays that lie otherwise.
_ALIGNMENT = 64


def file_names(codec: str, number: int) -> tuple[str, str]:
  """Returns the names of one shard's files: of its frames, and its index."""
  stem = f'observation-{number:04d}'
  return f'{stem}.{"npy" if codec == RAW else "zst"}', f'{stem}.index.npy'


def damaged_file(path: pathlib.Path, problem: object) -> errors.DataError:
  """Returns the error that a file of a store is not what was written."""
  return errors.DataError(
    f'{path} is damaged ({problem}), and with it the store {path.parents[1]}. '
    'Delete that folder; it is built again from the log.'
  )


class HashedFile:
  """A file that is written once, in order, and known by its checksums.

  Its space is reserved before anything is written, so that a full disk is
  found out at once.
  """

  def __init__(self, path: pathlib.Path, num_bytes: int = 0):
    """Makes the file, which must not exist.

    Args:
      path: the file.
      num_bytes: int, how long it will be; 0 where that is not known.
    """
    self.name = path.name
    self._file = open(path, 'xb')  # noqa: SIM115
    self._digest = hashlib.sha256()
    self._crc = 0
    self._num_bytes = 0
    try:
      if num_bytes:
        os.posix_fallocate(self._file.fileno(), 0, num_bytes)
    except OSError:
      self._file.close()
      raise

  def close(self, is_whole: bool) -> None:
    """Ends the file; one that is whole is on the disk then."""
    if is_whole:
      self._file.flush()
      os.fsync(self._file.fileno())
    self._file.close()

  def write(self, content: Any) -> None:
    """Appends bytes, or an array of them."""
    self._file.write(content)
    self._digest.update(content)
    self._crc = google_crc32c.extend(self._crc, content)
    self._num_bytes += len(content)

  def record(self) -> dict[str, Any]:
    """Returns its length, SHA-256 and CRC32C, as manifests have them."""
    return {
      'num_bytes': self._num_bytes,
      'sha256': self._digest.hexdigest(),
      'crc32c': self._crc,
    }


def content_record(content: bytes) -> dict[str, Any]:
  """Returns the record of a file that holds these bytes."""
  return {
    'num_bytes': len(content),
    'sha256': hashlib.sha256(content).hexdigest(),
    'crc32c': google_crc32c.value(content),
  }


def check_content(
  path: pathlib.Path, content: bytes, record: dict[str, Any]
) -> None:
  """Checks what was read of a file against its record.

  Raises:
    DataError: if it differs.
  """
  if 'crc32c' in record:
    is_right = google_crc32c.value(content) == record['crc32c']
  else:  # Written before CRC32C was.
    is_right = hashlib.sha256(content).hexdigest() == record['sha256']
  if not is_right:
    raise damaged_file(path, 'its content is not what was written')


def array_bytes(array: npt.NDArray[Any]) -> Any:
  """Returns the bytes of a contiguous array, uint8 [n], without a copy."""
  return array.reshape(-1).view(np.uint8)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
  """Returns what an .npy file of such an array starts with."""
  stream = io.BytesIO()
  header = {
    'descr': np.lib.format.dtype_to_descr(dtype),  # type: ignore[no-untyped-call]
    'fortran_order': False,
    'shape': shape,
  }
  np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
  return stream.getvalue()


def write_array(
  path: pathlib.Path, array: npt.NDArray[Any]
) -> dict[str, dict[str, Any]]:
  """Writes an .npy file; returns its record by its name."""
  header = _npy_header(array.shape, array.dtype)
  file = HashedFile(path, len(header) + array.nbytes)
  is_whole = False
  try:
    file.write(header)
    file.write(array_bytes(np.ascontiguousarray(array)))
    is_whole = True
  finally:
    file.close(is_whole)
  return {file.name: file.record()}


def read_array(path: pathlib.Path, record: dict[str, Any]) -> npt.NDArray[Any]:
  """Returns the array of an .npy file, checked whole.

  Raises:
    DataError: if it is not what its record says.
    OSError: if it cannot be read.
  """
  content = path.read_bytes()
  check_content(path, content, record)
  array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
  return array


class ShardWriter:
  """Writes the frames of one file of a log to shards.

  Attributes:
    records: dict, see HashedFile.record, of every file written, by name.
    content: SHA-256 over all frames, whatever the codec and the shards.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    codec: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
  ):
    """Starts.

    Args:
      folder: where the shards go.
      codec: str, one of CODECS.
      shape: [num_rows, *frame_shape] of all frames to come.
      dtype: the dtype of frames.
    """
    self.records: dict[str, dict[str, Any]] = {}
    self.content = hashlib.sha256()
    self._folder = folder
    self._codec = codec
    self._shape = shape
    self._dtype = dtype
    self._row = 0
    self._file: HashedFile | None = None
    self._index: list[Any] = []
    self._compressor = zstandard.ZstdCompressor(
      level=_LEVEL, write_checksum=True
    )
    self._pending = np.empty((CHUNK_ROWS, *shape[1:]), dtype)
    self._num_pending = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._end_shard(is_whole=kind is None)

  def write(self, frames: npt.NDArray[Any]) -> None:
    """Appends frames, [n, *frame_shape]."""
    self.content.update(array_bytes(frames))
    while len(frames):
      left = SHARD_ROWS - self._row % SHARD_ROWS
      if self._file is None:
        self._file = self._start_shard()
      some, frames = frames[:left], frames[left:]
      if self._codec == RAW:
        self._file.write(array_bytes(some))
        self._index += [google_crc32c.value(frame) for frame in some]
      else:
        self._write_chunks(self._file, some)
      self._row += len(some)
      if len(some) == left:
        self._end_shard(is_whole=True)

  def _start_shard(self) -> HashedFile:
    name, _ = file_names(self._codec, self._row // SHARD_ROWS)
    if self._codec == ZSTD:
      return HashedFile(self._folder / name)
    num_rows = min(self._shape[0] - self._row, SHARD_ROWS)
    shape = (num_rows, *self._shape[1:])
    header = _npy_header(shape, self._dtype)
    num_bytes = len(header) + int(np.prod(shape)) * self._dtype.itemsize
    file = HashedFile(self._folder / name, num_bytes)
    file.write(header)
    return file

  def _write_chunks(self, file: HashedFile, frames: npt.NDArray[Any]) -> None:
    while len(frames):
      room = CHUNK_ROWS - self._num_pending
      some, frames = frames[:room], frames[room:]
      self._pending[self._num_pending :][: len(some)] = some
      self._num_pending += len(some)
      if self._num_pending == CHUNK_ROWS:
        self._write_chunk(file)

  def _write_chunk(self, file: HashedFile) -> None:
    chunk = self._compressor.compress(
      array_bytes(self._pending[: self._num_pending])
    )
    file.write(chunk)
    start = self._index[-1][0] if self._index else 0
    self._index.append((start + len(chunk), google_crc32c.value(chunk)))
    self._num_pending = 0

  def _end_shard(self, is_whole: bool) -> None:
    file, self._file = self._file, None
    if file is None:
      return
    if is_whole and self._num_pending:
      self._write_chunk(file)
    file.close(is_whole)
    if is_whole:
      self.records[file.name] = file.record()
      _, name = file_names(self._codec, (self._row - 1) // SHARD_ROWS)
      dtype = np.uint32 if self._codec == RAW else np.int64
      index = np.array(self._index, dtype)
      self.records |= write_array(self._folder / name, index)
    self._index = []


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
        raise damaged_file(self.path, 'it is cut short')
      view, offset = view[count:], offset + count


class _RawFile:
  def __init__(
    self,
    path: pathlib.Path,
    index: npt.NDArray[Any] | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
  ):
    self.num_rows = shape[0]
    self._row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    self._file = _RandomAccess(path)
    header = _npy_header(shape, dtype)
    self._offset = len(header)
    found = bytearray(self._offset)
    self._file.read_into(memoryview(found), 0)
    if found != header:
      raise damaged_file(path, 'its header is not what was written')
    self._crcs = index
    self._is_checked = bytearray(self.num_rows)

  def read(self, start: int, frames: npt.NDArray[Any]) -> None:
    """Fills frames, [n, num_pixels], from the shard's row `start` on."""
    self._file.read_into(
      frames.data.cast('B'), self._offset + start * self._row_bytes
    )
    end = start + len(frames)
    if self._crcs is not None and 0 in self._is_checked[start:end]:
      self._check(self._crcs[start:end], start, frames)
      self._is_checked[start:end] = b'\1' * len(frames)

  def _check(
    self, crcs: npt.NDArray[Any], start: int, frames: npt.NDArray[Any]
  ) -> None:
    for row, (frame, crc) in enumerate(
      zip(frames, crcs.tolist(), strict=True), start
    ):
      if google_crc32c.value(frame) != crc:
        raise damaged_file(
          self._file.path, f'frame {row} is not what was written'
        )


class _ZstdFile:
  _local = threading.local()

  def __init__(
    self, path: pathlib.Path, index: npt.NDArray[Any], num_rows: int
  ):
    self.num_rows = num_rows
    self._crcs = None
    if index.ndim == 2:
      self._crcs = index[:, 1]
      index = np.concatenate([[0], index[:, 0]])
    self._places = index
    self._file = _RandomAccess(path)

  def read(self, start: int, frames: npt.NDArray[Any]) -> None:
    """Fills frames, [n, num_pixels], from the shard's row `start` on."""
    while len(frames):
      number, inside = divmod(start, CHUNK_ROWS)
      chunk = self._decode(number).view(frames.dtype)
      chunk = chunk.reshape(-1, frames.shape[1])[inside : inside + len(frames)]
      frames[: len(chunk)] = chunk
      start, frames = start + len(chunk), frames[len(chunk) :]

  def _decode(self, number: int) -> npt.NDArray[np.uint8]:
    first, last = map(int, self._places[number : number + 2])
    content = np.empty(last - first, np.uint8)
    self._file.read_into(content.data, first)
    if self._crcs is not None and (
      google_crc32c.value(content) != self._crcs[number]
    ):
      raise damaged_file(
        self._file.path, f'chunk {number} is not what was written'
      )
    if not hasattr(self._local, 'decompressor'):  # It serves one thread.
      self._local.decompressor = zstandard.ZstdDecompressor()
    try:
      decoded = self._local.decompressor.decompress(content)
    except zstandard.ZstdError as error:
      raise damaged_file(self._file.path, error) from error
    return np.frombuffer(decoded, np.uint8)


@dataclasses.dataclass(frozen=True)
class ShardPath:
  """Where a shard is.

  Attributes:
    codec: str, one of CODECS.
    folder: of its part.
    number: int, among the shards of the part.
    num_rows: int, its frames.
    records: dict, those of the part's files, by name.
  """

  codec: str
  folder: pathlib.Path
  number: int
  num_rows: int
  records: dict[str, dict[str, Any]]

  def open(
    self, frame_shape: tuple[int, ...], dtype: np.dtype[Any]
  ) -> '_RawFile | _ZstdFile':
    """Returns it, open for reading.

    Raises:
      DataError: if its index or header is damaged.
      OSError: if it cannot be read.
    """
    name, index_name = file_names(self.codec, self.number)
    path, index = self.folder / name, None
    if index_name in self.records:
      index = read_array(self.folder / index_name, self.records[index_name])
    if self.codec == RAW:
      shape = (self.num_rows, *frame_shape)
      return _RawFile(path, index, shape, dtype)
    if index is None:
      raise damaged_file(path, 'it has no index')
    return _ZstdFile(path, index, self.num_rows)


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
    opened: list[_RawFile | _ZstdFile],
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
  paths: list[ShardPath], frame_shape: tuple[int, ...], dtype: np.dtype[Any]
) -> ShardFrames:
  """Returns the frames of some shards, in the order of their rows.

  Raises:
    DataError: if a shard's index or header is damaged.
    OSError: if one cannot be read.
  """
  _allow_files(len(paths) + _SPARE_FILES)
  opened = [path.open(frame_shape, dtype) for path in paths]
  return ShardFrames(opened, int(np.prod(frame_shape)), dtype)


def _allow_files(count: int) -> None:
  """Raises the limit of open files where it is below the number needed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < count:
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
