"""Reads gzip'ed .npy arrays from opened binary streams, whatever the storage.

Only plain arrays are read, never pickles; the header is believed only within
what a file of its size can hold; memory is bounded by one block of rows.

Decompression, which decides the time of reading, is ISA-L's (package isal): one
core gives 6.0 GB/s of 84x84 Atari frames from gzip level 9 in blocks of 2 MiB
(5.1 in 8 MiB, 1.4 in 32 MiB, which fall out of the processor's cache), where
Python's gzip gives 1.6. ISA-L in a thread of its own is no faster.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import gzip
import math
import threading
from typing import Any
import zlib

from isal import igzip, igzip_lib
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs.stored_file import StoredFile

_PARSING = threading.Lock()
_BLOCK_BYTES = 2 << 20
_MAX_ATTRIBUTE_SIZE = 1 << 16
# Deflate shrinks no more than 1032 times (zlib.net/zlib_tech.html), so a header
# that claims more than that has lied, and nothing is allocated for it.
_MAX_COMPRESSION = 1032
_SMALL_FILE_BYTES = 1 << 16
# isal's type stub does not say that its error is an exception.
_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
_DAMAGED = (EOFError, zlib.error, _IsalError, gzip.BadGzipFile)


@dataclasses.dataclass(frozen=True)
class Header:
  """What the header of an array file says.

  Attributes:
    shape: tuple of ints.
    dtype: np.dtype, never object.
  """

  shape: tuple[int, ...]
  dtype: np.dtype[Any]


@contextlib.contextmanager
def decompressed(file: StoredFile) -> Iterator[gzip.GzipFile]:
  """Opens a gzip file; what goes wrong inside becomes a DataError."""
  try:
    with (
      file.open() as raw,
      igzip.GzipFile(fileobj=raw) as stream,  # type: ignore[no-untyped-call]
    ):
      yield stream
  except _DAMAGED as error:
    raise errors.DataError(
      f'{file.name} is damaged or cut short ({error}). Fetch it again.'
    ) from error
  except OSError as error:
    raise errors.DataError(
      f'cannot read {file.name}: {error.strerror or error}.'
    ) from error


def check_gzip(file: StoredFile) -> None:
  """Reads a gzip file to its end, for the sake of its own checksum.

  Raises:
    DataError: if the file is damaged.
  """
  buffer = bytearray(_BLOCK_BYTES)
  with decompressed(file) as stream:
    while stream.readinto(buffer):
      pass


def _parse_header(stream: gzip.GzipFile, file: StoredFile) -> Header:
  magic = stream.read(np.lib.format.MAGIC_LEN)
  # Version 1.0 is what np.save writes for every plain array; its header is at
  # most 64 KiB long.
  if magic != np.lib.format.MAGIC_PREFIX + bytes([1, 0]):
    raise errors.DataError(
      f'{file.name} holds no array in .npy format 1.0; only arrays are read, '
      'never pickles.'
    )
  try:
    # Python 3.11's parser fails now and then where two threads use it at the
    # same time (SystemError: AST constructor recursion depth mismatch).
    with _PARSING:
      shape, fortran, dtype = np.lib.format.read_array_header_1_0(  # type: ignore[no-untyped-call]
        stream
      )
  except (*_DAMAGED, OSError, errors.BatchRLError):
    raise
  except Exception as error:  # NumPy raises many kinds for a wrong header.
    raise errors.DataError(
      f'{file.name} has a damaged array header. Fetch it again.'
    ) from error
  if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
    raise errors.DataError(
      f'{file.name} holds {dtype}, which is refused: only plain numbers are '
      'read.'
    )
  if fortran and len(shape) > 1:
    raise errors.DataError(
      f'{file.name} is in Fortran order; C order is needed.'
    )
  if any(size < 0 for size in shape):
    raise errors.DataError(f'{file.name} has a damaged array header: {shape}.')
  num_bytes = math.prod(shape) * dtype.itemsize
  if num_bytes > _MAX_COMPRESSION * file.num_bytes + _SMALL_FILE_BYTES:
    raise errors.DataError(
      f'{file.name} claims an array of shape {shape}, more than a file of its '
      'size can hold: it is damaged or cut short. Fetch it again.'
    )
  return Header(shape, dtype)


def read_header(file: StoredFile) -> Header:
  """Returns the shape and dtype of the array in a file, without its rows.

  Raises:
    DataError: if the file is damaged, or holds anything but a plain array.
  """
  with decompressed(file) as stream:
    return _parse_header(stream, file)


def _fill(
  block: npt.NDArray[Any], stream: gzip.GzipFile, file: StoredFile
) -> None:
  view = block.reshape(-1).view(np.uint8).data
  while view:
    count = stream.readinto(view)
    if not count:
      raise errors.DataError(
        f'{file.name} ends before its last row: it is cut short. Fetch it '
        'again.'
      )
    view = view[count:]


def read_rows(
  file: StoredFile,
  dtype: npt.DTypeLike,
  row_shape: Sequence[int],
  num_rows: int | None = None,
) -> Iterator[npt.NDArray[Any]]:
  """Yields the first rows of an array file, block by block.

  Memory is bounded by one block, about 2 MiB. When all rows are asked for,
  the stream is read to its end, so that gzip's checksum vouches for them; a
  proper prefix stops early and is vouched for only by its structure. So no
  row can be trusted before the iterator has ended without an error.

  Args:
    file: the file.
    dtype: the dtype that the array must have.
    row_shape: the shape that each row must have.
    num_rows: int, how many rows to read; all if None.

  Yields:
    Arrays of shape [block_rows, *row_shape], in order.

  Raises:
    DataError: if the file is damaged, is no such array, or has fewer rows.
  """
  dtype = np.dtype(dtype)
  row_shape = tuple(row_shape)
  with decompressed(file) as stream:
    header = _parse_header(stream, file)
    check_rows(file.name, header, dtype, row_shape, num_rows)
    total = header.shape[0]
    wanted = total if num_rows is None else num_rows
    row_bytes = max(1, math.prod(row_shape) * dtype.itemsize)
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, wanted, block_rows):
      count = min(block_rows, wanted - start)
      block = np.empty((count, *row_shape), dtype)
      _fill(block, stream, file)
      yield block
    if wanted == total and stream.read(1):
      raise errors.DataError(
        f'{file.name} goes on after its last row: it is damaged. Fetch it '
        'again.'
      )


def check_rows(
  name: str,
  header: Header,
  dtype: npt.DTypeLike,
  row_shape: tuple[int, ...],
  num_rows: int | None,
) -> None:
  """Checks that an array has the rows that are asked for.

  Raises:
    DataError: if they are of another dtype or shape, or fewer.
  """
  if (
    header.dtype != np.dtype(dtype)
    or not header.shape
    or header.shape[1:] != row_shape
  ):
    raise errors.DataError(
      f'{name} holds {header.dtype} of shape {header.shape}; rows of '
      f'{np.dtype(dtype)} of shape {row_shape} are needed.'
    )
  if num_rows is not None and num_rows > header.shape[0]:
    raise errors.DataError(
      f'{name} has {header.shape[0]} rows; {num_rows} are needed.'
    )


def read_integers(file: StoredFile, ndim: int) -> npt.NDArray[np.int64]:
  """Returns a small array of int64 with `ndim` dimensions.

  Raises:
    DataError: if the file is damaged or holds anything else.
  """
  with decompressed(file) as stream:
    header = _parse_header(stream, file)
    if (
      header.dtype != np.dtype(np.int64)
      or len(header.shape) != ndim
      or math.prod(header.shape) > _MAX_ATTRIBUTE_SIZE
    ):
      raise errors.DataError(
        f'{file.name} holds {header.dtype} of shape {header.shape}; a small '
        f'array of int64 with {ndim} dimensions is needed.'
      )
    values = np.empty(header.shape, header.dtype)
    _fill(values, stream, file)
    if stream.read(1):
      raise errors.DataError(
        f'{file.name} goes on after its array: it is damaged.'
      )
  return values
