"""Shards: files that each hold up to 65,536 frames of one file of a log.

Both codecs are lossless:

* 'raw': an .npy array. A frame lies at a known place and is read by itself.
* 'zstd': chunks of 16 frames, each one Zstandard frame.

Beside a shard lies its index, an .npy file: of 'raw', the CRC32C of each frame,
uint32 [num_rows]; of 'zstd', where each chunk ends and its CRC32C, int64
[num_chunks, 2]. A raw frame is checked when it is first read, a chunk always.
Whole files are checked as they are loaded, by the CRC32C in the manifest, which
is several times as fast to compute as its SHA-256.

`store.open_store` says when which codec is the default, and why.
"""

import abc
from collections.abc import Iterable, Iterator
from concurrent import futures
import hashlib
import io
import itertools
import math
import os
import pathlib
import resource
import threading
from typing import Any, Self

import cv2
import google_crc32c
import numpy as np
import numpy.typing as npt
import zstandard

from batch_rl_dr3.config import errors

_Array = npt.NDArray[Any]
_Rows = npt.NDArray[np.int64]
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

Records = dict[str, dict[str, Any]]


def _file_names(codec: str, number: int) -> tuple[str, str]:
  """Returns the names of one shard's frames and index."""
  stem = f'observation-{number:04d}'
  return f'{stem}.{"npy" if codec == RAW else "zst"}', f'{stem}.index.npy'


def damaged_file(path: pathlib.Path, problem: object) -> errors.DataError:
  """Returns the error that a file of a store is not what was written."""
  return errors.DataError(
    f'{path} is damaged ({problem}), and with it the store {path.parents[1]}. '
    'Delete that folder; it is built again from the log.'
  )


class HashedFile:
  """A new file written in order, known by its checksums, synced if whole."""

  def __init__(self, path: pathlib.Path):
    self.num_bytes = 0
    self._digest = hashlib.sha256()
    self._crc = 0
    self._file = open(path, 'xb')  # noqa: SIM115

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
    with self._file:
      if kind is None:
        self._file.flush()
        os.fsync(self._file.fileno())

  def reserve(self, size: int) -> None:
    """Takes the space of the file, so that a full disk is found out early."""
    os.posix_fallocate(self._file.fileno(), 0, size)

  def write(self, content: Any) -> None:
    """Appends bytes, or an array of them."""
    self._file.write(content)
    self._digest.update(content)
    self._crc = google_crc32c.extend(self._crc, content)
    self.num_bytes += len(content)

  def record(self) -> dict[str, Any]:
    """Returns its length, SHA-256 and CRC32C, as manifests have them."""
    return {
      'num_bytes': self.num_bytes,
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
  """Raises a DataError if what was read of a file is not as its record says."""
  if google_crc32c.value(content) != record['crc32c']:
    raise damaged_file(path, 'its content is not what was written')


def array_bytes(array: _Array) -> Any:
  """Returns the bytes of a contiguous array, uint8 [n], without a copy."""
  return array.reshape(-1).view(np.uint8)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
  stream = io.BytesIO()
  header = {
    'descr': np.lib.format.dtype_to_descr(dtype),  # type: ignore[no-untyped-call]
    'fortran_order': False,
    'shape': shape,
  }
  np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
  return stream.getvalue()


def write_array(path: pathlib.Path, array: _Array) -> Records:
  """Writes an .npy file; returns its record by its name."""
  header = _npy_header(array.shape, array.dtype)
  with HashedFile(path) as file:
    file.reserve(len(header) + array.nbytes)
    file.write(header)
    file.write(array_bytes(np.ascontiguousarray(array)))
  return {path.name: file.record()}


def read_array(path: pathlib.Path, record: dict[str, Any]) -> _Array:
  """Returns the array of an .npy file, checked whole."""
  content = path.read_bytes()
  check_content(path, content, record)
  array: _Array = np.load(io.BytesIO(content), allow_pickle=False)
  return array


def write_frames(
  folder: pathlib.Path,
  codec: str,
  shape: tuple[int, ...],
  dtype: np.dtype[Any],
  blocks: Iterable[_Array],
) -> tuple[Records, str]:
  """Writes all frames of one file of a log, block by block, to shards.

  Returns the files' records by name, and the SHA-256 of all frames. `blocks`
  are read to their end.
  """
  content = hashlib.sha256()
  starts = range(0, SHARD_ROWS, CHUNK_ROWS)  # A shard's end ends a chunk.
  sizes = [min(CHUNK_ROWS, SHARD_ROWS - start) for start in starts]
  chunks = regroup(blocks, itertools.cycle(sizes))
  records: Records = {}
  for number, row in enumerate(range(0, shape[0], SHARD_ROWS)):
    num_rows = min(SHARD_ROWS, shape[0] - row)
    own = itertools.islice(chunks, math.ceil(num_rows / CHUNK_ROWS))
    own_shape = (num_rows, *shape[1:])
    records |= _write_shard(
      folder, codec, number, own_shape, dtype, own, content
    )
  if next(chunks, None) is not None:  # Asking reads `blocks` to its end.
    raise ValueError(f'there are more frames than {shape[0]}')
  return records, content.hexdigest()


def regroup(blocks: Iterable[_Array], sizes: Iterator[int]) -> Iterator[_Array]:
  """Yields the rows of blocks anew, as many at a time as `sizes` says."""
  held: _Array | None = None
  size = next(sizes)
  for block in blocks:
    held = block if held is None else np.concatenate([held, block])
    while len(held) >= size:
      yield held[:size]
      held, size = held[size:], next(sizes)
  if held is not None and len(held):
    yield held


def _write_shard(
  folder: pathlib.Path,
  codec: str,
  number: int,
  shape: tuple[int, ...],
  dtype: np.dtype[Any],
  chunks: Iterable[_Array],
  content: Any,
) -> Records:
  name, index_name = _file_names(codec, number)
  compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
  index: list[Any] = []
  with HashedFile(folder / name) as file:
    if codec == RAW:
      header = _npy_header(shape, dtype)
      file.reserve(len(header) + math.prod(shape) * dtype.itemsize)
      file.write(header)
    for chunk in chunks:
      content.update(array_bytes(chunk))
      if codec == RAW:
        file.write(array_bytes(chunk))
        index += [google_crc32c.value(frame) for frame in chunk]
      else:
        packed = compressor.compress(array_bytes(chunk))
        file.write(packed)
        index.append((file.num_bytes, google_crc32c.value(packed)))
  array = np.array(index, np.uint32 if codec == RAW else np.int64)
  return {name: file.record(), **write_array(folder / index_name, array)}


class _Shard(abc.ABC):
  """One shard, read at random places: the kernel is told not to read ahead."""

  def __init__(self, path: pathlib.Path, num_rows: int):
    self.num_rows = num_rows
    self._path = path
    self._file = open(path, 'rb', buffering=0)  # noqa: SIM115
    os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

  def _read_into(self, view: memoryview, offset: int) -> None:
    while view:
      count = os.preadv(self._file.fileno(), [view], offset)
      if not count:
        raise damaged_file(self._path, 'it is cut short')
      view, offset = view[count:], offset + count

  @abc.abstractmethod
  def read(self, start: int, frames: _Array) -> None:
    """Fills frames, [n, num_pixels], from the shard's row `start` on."""


class _RawShard(_Shard):
  def __init__(
    self,
    path: pathlib.Path,
    crcs: _Array,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
  ):
    super().__init__(path, shape[0])
    header = _npy_header(shape, dtype)
    self._offset = len(header)
    found = bytearray(self._offset)
    self._read_into(memoryview(found), 0)
    if found != header:
      raise damaged_file(path, 'its header is not what was written')
    self._crcs = crcs
    self._is_checked = np.zeros(self.num_rows, np.bool_)

  def read(self, start: int, frames: _Array) -> None:
    self._read_into(
      frames.data.cast('B'), self._offset + start * frames[0].nbytes
    )
    self._check(start, frames)

  def _check(self, start: int, frames: _Array) -> None:
    is_checked = self._is_checked[start:][: len(frames)]
    if not is_checked.all():
      crcs = self._crcs[start:][: len(frames)].tolist()
      for row, (frame, crc) in enumerate(zip(frames, crcs, strict=True), start):
        if google_crc32c.value(frame) != crc:
          raise damaged_file(self._path, f'frame {row} is not what was written')
      is_checked[:] = True


class _ZstdShard(_Shard):
  _local = threading.local()

  def __init__(self, path: pathlib.Path, index: _Rows, num_rows: int):
    super().__init__(path, num_rows)
    self._places, self._crcs = np.append(0, index[:, 0]), index[:, 1]

  def read(self, start: int, frames: _Array) -> None:
    while len(frames):
      number, inside = divmod(start, CHUNK_ROWS)
      chunk = self._decode(number).view(frames.dtype)
      chunk = chunk.reshape(-1, frames.shape[1])[inside:][: len(frames)]
      frames[: len(chunk)] = chunk
      start, frames = start + len(chunk), frames[len(chunk) :]

  def _decode(self, number: int) -> npt.NDArray[np.uint8]:
    first, last = map(int, self._places[number : number + 2])
    content = np.empty(last - first, np.uint8)
    self._read_into(content.data, first)
    if google_crc32c.value(content) != self._crcs[number]:
      raise damaged_file(self._path, f'chunk {number} is not what was written')
    if not hasattr(self._local, 'decompressor'):  # It serves one thread.
      self._local.decompressor = zstandard.ZstdDecompressor()
    try:
      decoded = self._local.decompressor.decompress(content)
    except zstandard.ZstdError as error:
      raise damaged_file(self._path, error) from error
    return np.frombuffer(decoded, np.uint8)


class Frames:
  """Frames by row, each flat: read from shards as needed, or held in memory."""

  def __init__(
    self,
    codec: str,
    parts: Iterable[tuple[pathlib.Path, int, Records]],
    shard_rows: int,
    frame_shape: tuple[int, ...],
    dtype: np.dtype[Any],
  ):
    """Opens the shards of a store's parts: (folder, number of rows, records).

    A DataError if an index or header is damaged, OSError if it is not read.
    """
    places = [
      (folder, number, min(shard_rows, num_rows - row), records)
      for folder, num_rows, records in parts
      for number, row in enumerate(range(0, num_rows, shard_rows))
    ]
    _allow_files(len(places) + _SPARE_FILES)
    self._shards: list[_Shard] = []
    for folder, number, num_rows, records in places:
      name, index_name = _file_names(codec, number)
      path = folder / name
      index = read_array(folder / index_name, records[index_name])
      self._shards.append(
        _RawShard(path, index, (num_rows, *frame_shape), dtype)
        if codec == RAW
        else _ZstdShard(path, index, num_rows)
      )
    self._first_rows = np.cumsum([0] + [s.num_rows for s in self._shards])
    self._num_pixels = math.prod(frame_shape)
    self._dtype = dtype
    self._held: _Array | None = None

  def hold(self) -> _Array:
    """Reads all frames into memory once; returns [num_rows, num_pixels]."""
    if self._held is None:
      shape = (int(self._first_rows[-1]), self._num_pixels)
      frames = _aligned(shape, self._dtype)
      own = np.split(frames, self._first_rows[1:-1])
      with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(
          pool.map(lambda shard, part: shard.read(0, part), self._shards, own)
        )
      self._held = frames
    return self._held

  def rows(self, rows: _Rows) -> _Array:
    """Returns the frames at some rows, [n, num_pixels]."""
    if self._held is not None:
      return self._held[rows]
    frames = np.empty((len(rows), self._num_pixels), self._dtype)
    numbers = np.searchsorted(self._first_rows, rows, side='right') - 1
    firsts = (rows - self._first_rows[numbers]).tolist()
    # Rows of one shard that follow each other are read at once.
    is_break = (np.diff(rows) != 1) | (np.diff(numbers) != 0)
    breaks = (np.flatnonzero(is_break) + 1).tolist()
    for start, end in itertools.pairwise([0, *breaks, len(rows)]):
      if end > start:
        self._shards[numbers[start]].read(firsts[start], frames[start:end])
    return frames

  def stacks(self, rows: _Rows) -> _Array:
    """Returns the stacks of frames at rows [S, B, K], [S, B, num_pixels, K]."""
    offsets = rows - rows[:1, :, :1]
    num_frames = int(offsets.max()) + 1
    is_run = offsets.min() == 0 and num_frames <= rows.shape[0] + rows.shape[2]
    if is_run and (offsets == offsets[:, :1]).all():
      # Mostly the stacks of an example share one run of frames.
      runs = rows[0, :, :1] + np.arange(num_frames)
      windows = self.rows(runs.reshape(-1)).reshape(*runs.shape, -1)
      planes = [[windows[:, i] for i in own] for own in offsets[:, 0]]
    else:  # An episode or a file ends.
      planes = [[self.rows(age) for age in own.T] for own in rows]
    shape = (rows.shape[1], self._num_pixels, rows.shape[2])
    stacks = np.empty((len(rows), *shape), self._dtype)
    for into, own in zip(stacks, planes, strict=True):
      if into.dtype == np.uint8 and len(own) > 1:
        # 5 times as fast as copying plane by plane.
        cv2.merge(own, dst=into)
      else:
        np.stack(own, axis=-1, out=into)
    return stacks


def _aligned(shape: tuple[int, int], dtype: np.dtype[Any]) -> _Array:
  """Returns an array, not filled, that TensorFlow can use without a copy."""
  num_bytes = math.prod(shape) * dtype.itemsize
  buffer = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def _allow_files(count: int) -> None:
  """Raises the limit of open files where it is below the number needed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < count:
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
