"""The file format of logged replay data: the DQN Replay Dataset's.

A log is a folder that holds six files per suffix N, each the gzip of an array
in .npy format, as Dopamine's `OutOfGraphReplayBuffer.save` writes them:

    $store$_observation_ckpt.N.gz   uint8 [num_rows, *observation_shape]
    $store$_action_ckpt.N.gz        int32 [num_rows]
    $store$_reward_ckpt.N.gz        float32 [num_rows]
    $store$_terminal_ckpt.N.gz      uint8 [num_rows]
    add_count_ckpt.N.gz             int64 [], rows ever added to the buffer
    invalid_range_ckpt.N.gz         int64 [any], rows that are not sampleable

Newer versions of Dopamine add a seventh, episode_end_indices, which is a
pickle. It is never opened: only arrays are read here, and anything else in
place of an array is refused.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
import re
from typing import Any
import zlib

import numpy as np
import numpy.typing as npt

from batch_rl_dr3 import errors

ELEMENTS = ('observation', 'action', 'reward', 'terminal')
ATTRIBUTES = ('add_count', 'invalid_range')
# The dtypes that Dopamine writes; observations may have others.
ELEMENT_DTYPES: dict[str, np.dtype[Any]] = {
  'action': np.dtype(np.int32),
  'reward': np.dtype(np.float32),
  'terminal': np.dtype(np.uint8),
}
_STORE_PREFIX = '$store$_'
_FILE_NAME = re.compile(r'(.+)_ckpt\.(\d+)\.gz')
_BLOCK_BYTES = 8 << 20
_MAX_ATTRIBUTE_SIZE = 1 << 16
# Deflate shrinks no more than 1032 times (zlib.net/zlib_tech.html), so a header
# that claims more than that has lied, and nothing is allocated for it.
_MAX_COMPRESSION = 1032
_SMALL_FILE_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Header:
  """What the header of an array file says.

  Attributes:
    shape: tuple of ints.
    dtype: np.dtype, never object.
  """

  shape: tuple[int, ...]
  dtype: np.dtype[Any]


def file_path(
  folder: str | os.PathLike[str], name: str, suffix: int
) -> pathlib.Path:
  """Returns the path of one array of a log.

  Args:
    folder: the folder of the log.
    name: one of ELEMENTS or ATTRIBUTES.
    suffix: int, the file's number.
  """
  prefix = _STORE_PREFIX if name in ELEMENTS else ''
  return pathlib.Path(folder) / f'{prefix}{name}_ckpt.{suffix}.gz'


def _found_suffixes(folder: pathlib.Path) -> set[int]:
  names = {
    file_path('', name, 0).name[: -len('_ckpt.0.gz')]
    for name in ELEMENTS + ATTRIBUTES
  }
  matches = map(_FILE_NAME.fullmatch, os.listdir(folder))
  return {int(match[2]) for match in matches if match and match[1] in names}


def find_replay_logs(replay_dir: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder that holds the log's files.

  Args:
    replay_dir: that folder, or its parent where it is named `replay_logs`.

  Raises:
    DataError: if neither folder holds any file of a log.
  """
  given = pathlib.Path(replay_dir)
  for folder in (given, given / 'replay_logs'):
    try:
      if folder.is_dir() and _found_suffixes(folder):
        return folder
    except OSError as error:
      raise errors.DataError(
        f'cannot read {folder}: {error.strerror}.'
      ) from error
  state = 'holds no replay logs' if given.is_dir() else 'is not a folder'
  raise errors.DataError(
    f'{given} {state}. It must hold files such as '
    f'{file_path("", "observation", 0)}, itself or in a folder replay_logs '
    'within it; download or collect a log there, or correct the path.'
  )


def list_suffixes(folder: str | os.PathLike[str]) -> list[int]:
  """Returns the suffixes of a log in numeric order.

  Raises:
    DataError: if one of the six files of a suffix is missing.
  """
  suffixes = sorted(_found_suffixes(pathlib.Path(folder)))
  for suffix in suffixes:
    paths = [file_path(folder, n, suffix) for n in ELEMENTS + ATTRIBUTES]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
      raise errors.DataError(
        f'{folder} lacks {", ".join(missing)}, though other files of suffix '
        f'{suffix} are there. Fetch it again, or move the others away to do '
        'without this suffix.'
      )
  return suffixes


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[gzip.GzipFile]:
  """Opens a gzip file; what goes wrong inside becomes a DataError."""
  try:
    with gzip.open(path, 'rb') as stream:
      yield stream
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    raise errors.DataError(
      f'{path} is damaged or cut short ({error}). Fetch it again.'
    ) from error
  except OSError as error:
    raise errors.DataError(f'cannot read {path}: {error.strerror}.') from error


def _parse_header(stream: gzip.GzipFile, path: pathlib.Path) -> Header:
  magic = stream.read(np.lib.format.MAGIC_LEN)
  # Version 1.0 is what np.save writes for every plain array; its header is at
  # most 64 KiB long.
  if magic != np.lib.format.MAGIC_PREFIX + bytes([1, 0]):
    raise errors.DataError(
      f'{path} holds no array in .npy format 1.0; only arrays are read, never '
      'pickles.'
    )
  try:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(  # type: ignore[no-untyped-call]
      stream
    )
  except (EOFError, zlib.error, OSError):
    raise
  except Exception as error:  # NumPy raises many kinds for a wrong header.
    raise errors.DataError(
      f'{path} has a damaged array header. Fetch it again.'
    ) from error
  if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
    raise errors.DataError(
      f'{path} holds {dtype}, which is refused: only plain numbers are read.'
    )
  if fortran and len(shape) > 1:
    raise errors.DataError(f'{path} is in Fortran order; C order is needed.')
  if any(size < 0 for size in shape):
    raise errors.DataError(f'{path} has a damaged array header: {shape}.')
  num_bytes = math.prod(shape) * dtype.itemsize
  bound = _MAX_COMPRESSION * path.stat().st_size + _SMALL_FILE_BYTES
  if num_bytes > bound:
    raise errors.DataError(
      f'{path} claims an array of shape {shape}, more than a file of its size '
      'can hold: it is damaged or cut short. Fetch it again.'
    )
  return Header(shape, dtype)


def read_header(path: str | os.PathLike[str]) -> Header:
  """Returns the shape and dtype of the array in a file, without its rows.

  Raises:
    DataError: if the file is damaged, or holds anything but a plain array.
  """
  path = pathlib.Path(path)
  with _reading(path) as stream:
    return _parse_header(stream, path)


def _fill(
  block: npt.NDArray[Any], stream: gzip.GzipFile, path: pathlib.Path
) -> None:
  view = block.reshape(-1).view(np.uint8).data
  while view:
    count = stream.readinto(view)
    if not count:
      raise errors.DataError(
        f'{path} ends before its last row: it is cut short. Fetch it again.'
      )
    view = view[count:]


def read_rows(
  path: str | os.PathLike[str],
  dtype: npt.DTypeLike,
  row_shape: Sequence[int],
  num_rows: int | None = None,
) -> Iterator[npt.NDArray[Any]]:
  """Yields the first rows of an array file, block by block.

  Memory is bounded by one block, about 8 MiB. When all rows are asked for,
  the stream is read to its end, so that gzip's checksum vouches for them; a
  proper prefix stops early and is vouched for only by its structure.

  Args:
    path: the file.
    dtype: the dtype that the array must have.
    row_shape: the shape that each row must have.
    num_rows: int, how many rows to read; all if None.

  Yields:
    Arrays of shape [block_rows, *row_shape], in order.

  Raises:
    DataError: if the file is damaged, is no such array, or has fewer rows.
  """
  path = pathlib.Path(path)
  dtype = np.dtype(dtype)
  row_shape = tuple(row_shape)
  with _reading(path) as stream:
    header = _parse_header(stream, path)
    if (
      header.dtype != dtype
      or header.shape[1:] != row_shape
      or (not header.shape)
    ):
      raise errors.DataError(
        f'{path} holds {header.dtype} of shape {header.shape}; rows of '
        f'{dtype} of shape {row_shape} are needed.'
      )
    total = header.shape[0]
    wanted = total if num_rows is None else num_rows
    if wanted > total:
      raise errors.DataError(f'{path} has {total} rows; {wanted} are needed.')
    row_bytes = max(1, math.prod(row_shape) * dtype.itemsize)
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, wanted, block_rows):
      count = min(block_rows, wanted - start)
      block = np.empty((count, *row_shape), dtype)
      _fill(block, stream, path)
      yield block
    if wanted == total and stream.read(1):
      raise errors.DataError(
        f'{path} goes on after its last row: it is damaged. Fetch it again.'
      )


def read_attribute(
  folder: str | os.PathLike[str], name: str, suffix: int
) -> npt.NDArray[np.int64]:
  """Returns add_count (int64 []) or invalid_range (int64 [any]) of a suffix.

  Raises:
    DataError: if the file is damaged or is not a small array of integers.
  """
  path = file_path(folder, name, suffix)
  ndim = 0 if name == 'add_count' else 1
  with _reading(path) as stream:
    header = _parse_header(stream, path)
    is_integer = np.issubdtype(header.dtype, np.integer)
    if (
      not is_integer
      or len(header.shape) != ndim
      or math.prod(header.shape) > _MAX_ATTRIBUTE_SIZE
    ):
      raise errors.DataError(
        f'{path} holds {header.dtype} of shape {header.shape}; {name} is a '
        f'small array of integers with {ndim} dimensions.'
      )
    values = np.empty(header.shape, header.dtype)
    _fill(values, stream, path)
    if stream.read(1):
      raise errors.DataError(f'{path} goes on after its array: it is damaged.')
  return values.astype(np.int64)
