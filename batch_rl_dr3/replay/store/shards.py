"""Shards: files that each hold up to 65,536 frames of one file of a log.

Two codecs. Frames read back are the same, bit for bit.

* 'raw': an .npy array. A frame lies at a known place and is read by itself.
* 'zstd': chunks of 16 frames, each one Zstandard frame with a checksum of its
  own, so that damage is an error whenever it is read. Their places are in an
  index, int64 [num_chunks + 1], an .npy file beside the shard.

`store.open_store` says when which is the default, and why.
"""

import hashlib
import io
import os
import pathlib
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import zstandard

# Rows of a shard: 462 MB of Atari frames.
SHARD_ROWS = 65_536
CHUNK_ROWS = 16
RAW = 'raw'
ZSTD = 'zstd'
CODECS = (RAW, ZSTD)
# Higher levels gain under 10% on Atari frames and compress 5 times slower.
_LEVEL = 1


def file_names(codec: str, number: int) -> tuple[str, ...]:
  """Returns the names of the files of one shard, the frames' first."""
  if codec == RAW:
    return (f'observation-{number:04d}.npy',)
  return (
    f'observation-{number:04d}.zst',
    f'observation-{number:04d}.index.npy',
  )


class HashedFile:
  """A file that is written once, in order, and known by its checksum.

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
    self._num_bytes = 0
    try:
      if num_bytes:
        os.posix_fallocate(self._file.fileno(), 0, num_bytes)
    except OSError:
      self._file.close()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close(is_whole=kind is None)

  def close(self, is_whole: bool) -> None:
    """Ends the file; one that is whole is on the disk then."""
    if is_whole:
      self._file.flush()
      os.fsync(self._file.fileno())
    self._file.close()

  def write(self, content: bytes | memoryview) -> None:
    """Appends bytes."""
    self._file.write(content)
    self._digest.update(content)
    self._num_bytes += len(content)

  def record(self) -> dict[str, Any]:
    """Returns its length and SHA-256."""
    return {'num_bytes': self._num_bytes, 'sha256': self._digest.hexdigest()}


def array_bytes(array: npt.NDArray[Any]) -> memoryview:
  """Returns the bytes of a contiguous array, without a copy."""
  return array.reshape(-1).view(np.uint8).data


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
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
  header = npy_header(array.shape, array.dtype)
  with HashedFile(path, len(header) + array.nbytes) as file:
    file.write(header)
    file.write(array_bytes(np.ascontiguousarray(array)))
  return {file.name: file.record()}


class _Shard(Protocol):
  """One shard in the making."""

  def write(self, frames: npt.NDArray[Any]) -> None:
    """Appends frames, [n, *frame_shape]."""

  def close(self, is_whole: bool) -> dict[str, dict[str, Any]]:
    """Ends the files; returns their records by name."""


class _RawShard:
  def __init__(
    self,
    folder: pathlib.Path,
    number: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
  ):
    header = npy_header(shape, dtype)
    num_bytes = len(header) + int(np.prod(shape)) * dtype.itemsize
    (name,) = file_names(RAW, number)
    self._file = HashedFile(folder / name, num_bytes)
    self._file.write(header)

  def write(self, frames: npt.NDArray[Any]) -> None:
    self._file.write(array_bytes(frames))

  def close(self, is_whole: bool) -> dict[str, dict[str, Any]]:
    self._file.close(is_whole)
    return {self._file.name: self._file.record()}


class _ZstdShard:
  def __init__(
    self,
    folder: pathlib.Path,
    number: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
  ):
    name, index_name = file_names(ZSTD, number)
    self._file = HashedFile(folder / name)
    self._index_path = folder / index_name
    self._compressor = zstandard.ZstdCompressor(
      level=_LEVEL, write_checksum=True
    )
    self._ends = [0]
    self._pending = np.empty((CHUNK_ROWS, *shape[1:]), dtype)
    self._num_pending = 0

  def write(self, frames: npt.NDArray[Any]) -> None:
    while len(frames):
      room = CHUNK_ROWS - self._num_pending
      some, frames = frames[:room], frames[room:]
      self._pending[self._num_pending :][: len(some)] = some
      self._num_pending += len(some)
      if self._num_pending == CHUNK_ROWS:
        self._flush()

  def _flush(self) -> None:
    chunk = self._compressor.compress(
      array_bytes(self._pending[: self._num_pending])
    )
    self._file.write(chunk)
    self._ends.append(self._ends[-1] + len(chunk))
    self._num_pending = 0

  def close(self, is_whole: bool) -> dict[str, dict[str, Any]]:
    if is_whole and self._num_pending:
      self._flush()
    self._file.close(is_whole)
    records = {self._file.name: self._file.record()}
    if is_whole:
      records |= write_array(self._index_path, np.array(self._ends, np.int64))
    return records


class ShardWriter:
  """Writes the frames of one file of a log to shards.

  Attributes:
    records: dict, length and SHA-256 of every file written, by name.
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
    self._kind: Any = _RawShard if codec == RAW else _ZstdShard
    self._shape = shape
    self._dtype = dtype
    self._shard: _Shard | None = None
    self._row = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._shard is not None:
      self.records |= self._shard.close(is_whole=kind is None)

  def write(self, frames: npt.NDArray[Any]) -> None:
    """Appends frames, [n, *frame_shape]."""
    self.content.update(array_bytes(frames))
    while len(frames):
      number, inside = divmod(self._row, SHARD_ROWS)
      if self._shard is None:
        left = self._shape[0] - self._row
        shape = (min(left, SHARD_ROWS), *self._shape[1:])
        self._shard = self._kind(self._folder, number, shape, self._dtype)
      some, frames = (
        frames[: SHARD_ROWS - inside],
        frames[SHARD_ROWS - inside :],
      )
      self._shard.write(some)
      self._row += len(some)
      if inside + len(some) == SHARD_ROWS:
        self.records |= self._shard.close(is_whole=True)
        self._shard = None
