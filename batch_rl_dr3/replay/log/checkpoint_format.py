"""The file format of logged replay data: the DQN Replay Dataset's.

A log is a folder that holds six files per suffix N, each the gzip of an array
in .npy format, as Dopamine's `OutOfGraphReplayBuffer.save` writes them:

    $store$_observation_ckpt.N.gz   uint8 [num_rows, *observation_shape]
    $store$_action_ckpt.N.gz        int32 [num_rows]
    $store$_reward_ckpt.N.gz        float32 [num_rows]
    $store$_terminal_ckpt.N.gz      uint8 [num_rows]
    add_count_ckpt.N.gz             int64 [], rows ever added to the buffer
    invalid_range_ckpt.N.gz         int64 [any], rows that are not sampleable

A seventh of newer Dopamine versions, episode_end_indices, is a pickle and is
never opened: anything but an array is refused. Logs of data of one's own may
have cut_rows_ckpt.N.gz, int64 [any]: see `log_writer.LogWriter.cut`.

A header is believed only within what a file of its size can hold, and memory is
bounded by one block of rows. Decompression is ISA-L's (package isal): one core
gives 6.0 GB/s of 84x84 Atari frames from gzip level 9 in blocks of 2 MiB (1.4
in 32 MiB, beyond the processor's cache), where Python's gzip gives 1.6.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import gzip
import math
import os
import pathlib
import re
import threading
from typing import Any, NamedTuple
import zlib

from isal import igzip, igzip_lib
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import place, records
from batch_rl_dr3.runs.place import StoredFile

# What `collect` writes beside a log.
COLLECTION = 'collection.json'
_COLLECTION_SCHEMA = {
  'num_rows': 'count',
  # Of continuous control a name.
  'game!': (
    'text',
    {
      'stack_size': 'positive',
      'num_actions': 'positive',
      'observation_shape': ['positive'],
    },
  ),
}
ELEMENTS = ('observation', 'action', 'reward', 'terminal')
ATTRIBUTES = ('add_count', 'invalid_range')
CUT_ROWS = 'cut_rows'
# The dtypes that Dopamine writes; observations may have others.
ELEMENT_DTYPES: dict[str, np.dtype[Any]] = {
  'action': np.dtype(np.int32),
  'reward': np.dtype(np.float32),
  'terminal': np.dtype(np.uint8),
}
# Of a row, without its frame.
TABLE_BYTES = sum(dtype.itemsize for dtype in ELEMENT_DTYPES.values())
# The number of dimensions of each attribute.
_ATTRIBUTE_NDIM = {'add_count': 0, 'invalid_range': 1, CUT_ROWS: 1}
_STORE_PREFIX = '$store$_'
# Longer numbers are no suffix: all below the largest are looked for.
_FILE_NAME = re.compile(r'(.+)_ckpt\.(\d{1,6})\.gz')
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


def file_name(name: str, suffix: int) -> str:
  """Returns the name of one array's file."""
  prefix = _STORE_PREFIX if name in ELEMENTS else ''
  return f'{prefix}{name}_ckpt.{suffix}.gz'


def file_path(
  folder: str | os.PathLike[str], name: str, suffix: int
) -> pathlib.Path:
  """Returns the path of one array of a log."""
  return pathlib.Path(folder) / file_name(name, suffix)


def file_names(suffix: int) -> list[str]:
  """Returns the names of the six files of a suffix."""
  return [file_name(name, suffix) for name in ELEMENTS + ATTRIBUTES]


def found_suffixes(names: Iterable[str]) -> set[int]:
  """Returns the suffixes of which at least one file is among the names."""
  names_of_0 = [*file_names(0), file_name(CUT_ROWS, 0)]
  known = {name[: -len('_ckpt.0.gz')] for name in names_of_0}
  matches = map(_FILE_NAME.fullmatch, names)
  return {int(match[2]) for match in matches if match and match[1] in known}


def read_collection(
  replay_dir: str | os.PathLike[str],
) -> dict[str, Any] | None:
  """Returns what `collect` says of the log in a folder, None if nothing.

  The folder may be the one above `replay_logs`. `game` is an object for Atari
  or MinAtar, and a name for continuous control.
  """
  location = os.fspath(replay_dir)
  folder = pathlib.Path(place.local_path(location) or location)
  if folder.name == 'replay_logs':
    folder = folder.parent
  if not folder.is_dir():
    return None
  return records.read(
    folder / COLLECTION, _COLLECTION_SCHEMA, 'Collect the log again.'
  )


def format_suffixes(suffixes: Iterable[int]) -> str:
  """Returns ascending suffixes in words: [0, 1, 2, 5] as '0-2, 5'."""
  runs: list[list[int]] = []
  for suffix in suffixes:
    if runs and suffix == runs[-1][-1] + 1:
      runs[-1][1:] = [suffix]
    else:
      runs.append([suffix])
  return ', '.join('-'.join(map(str, run)) for run in runs)


def complete_suffixes(location: object, names: Iterable[str]) -> list[int]:
  """Returns the suffixes among names in order; of each, all files are there."""
  present = set(names)
  suffixes = sorted(found_suffixes(present))
  for suffix in suffixes:
    missing = [name for name in file_names(suffix) if name not in present]
    if missing:
      raise errors.DataError(
        f'{location} lacks {", ".join(missing)}, though other files of suffix '
        f'{suffix} are there. Fetch it again, or move the others away to do '
        'without this suffix.'
      )
  return suffixes


class Header(NamedTuple):
  """What the header of an array file says; dtype is never object."""

  shape: tuple[int, ...]
  dtype: np.dtype[Any]


def check_frames(
  name: object, found: Header, shape: Sequence[int] | None, dtype: npt.DTypeLike
) -> None:
  """Raises a DataError if frames are of another shape (None: any) or dtype."""
  if shape is None:
    return
  if (found.shape[1:], found.dtype) != (tuple(shape), np.dtype(dtype)):
    raise errors.DataError(
      f'{name} has frames of {found.dtype} {found.shape[1:]}; '
      f'{np.dtype(dtype)} {tuple(shape)} is needed. Is it the data of another '
      'game?'
    )


class Damage(Exception):
  """What is wrong with a file, to be said after its name."""


@contextlib.contextmanager
def damage_of(name: object) -> Iterator[None]:
  """Turns a Damage inside into a DataError that names what is damaged."""
  try:
    yield
  except Damage as damage:
    raise errors.DataError(f'{name} {damage}') from damage.__cause__


@contextlib.contextmanager
def decompressed(file: StoredFile) -> Iterator[gzip.GzipFile]:
  """Opens a gzip file; what goes wrong inside becomes a DataError."""
  try:
    with (
      damage_of(file.name),
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
  """Reads a gzip file to its end, for the sake of its own checksum."""
  buffer = bytearray(_BLOCK_BYTES)
  with decompressed(file) as stream:
    while stream.readinto(buffer):
      pass


def _parse_header(stream: gzip.GzipFile, file: StoredFile) -> Header:
  magic = stream.read(np.lib.format.MAGIC_LEN)
  # Version 1.0 is what np.save writes for every plain array; its header is at
  # most 64 KiB long.
  if magic != np.lib.format.MAGIC_PREFIX + bytes([1, 0]):
    raise Damage(
      'holds no array in .npy format 1.0; only arrays are read, never pickles.'
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
    raise Damage('has a damaged array header. Fetch it again.') from error
  if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
    raise Damage(
      f'holds {dtype}, which is refused: only plain numbers are read.'
    )
  if fortran and len(shape) > 1:
    raise Damage('is in Fortran order; C order is needed.')
  if any(size < 0 for size in shape):
    raise Damage(f'has a damaged array header: {shape}.')
  num_bytes = math.prod(shape) * dtype.itemsize
  if num_bytes > _MAX_COMPRESSION * file.num_bytes + _SMALL_FILE_BYTES:
    raise Damage(
      f'claims an array of shape {shape}, more than a file of its size can '
      'hold: it is damaged or cut short. Fetch it again.'
    )
  return Header(shape, dtype)


def read_header(file: StoredFile) -> Header:
  """Returns the shape and dtype of the array in a file, without its rows."""
  with decompressed(file) as stream:
    return _parse_header(stream, file)


def _read_array(
  stream: gzip.GzipFile, header: Header, is_last: bool
) -> npt.NDArray[Any]:
  """Returns the next values of a stream, which ends there if `is_last`."""
  array = np.empty(*header)
  view = array.reshape(-1).view(np.uint8).data
  while view:
    count = stream.readinto(view)
    if not count:
      raise Damage('ends before its last row: it is cut short. Fetch it again.')
    view = view[count:]
  if is_last and stream.read(1):
    raise Damage('goes on after its last row: it is damaged. Fetch it again.')
  return array


def read_rows(
  file: StoredFile,
  dtype: npt.DTypeLike,
  row_shape: Sequence[int],
  num_rows: int | None = None,
) -> Iterator[npt.NDArray[Any]]:
  """Yields the first rows of an array file in blocks of 2 MiB, [n, *row_shape].

  Only when all rows are asked for (None) does gzip's checksum vouch for them,
  and not before the iterator has ended without an error.
  """
  dtype, row_shape = np.dtype(dtype), tuple(row_shape)
  with decompressed(file) as stream:
    shape, found = _parse_header(stream, file)
    if found != dtype or not shape or shape[1:] != row_shape:
      raise Damage(
        f'holds {found} of shape {shape}; rows of {dtype} of shape {row_shape} '
        'are needed.'
      )
    total = shape[0]
    if num_rows is not None and num_rows > total:
      raise Damage(f'has {total} rows; {num_rows} are needed.')
    wanted = total if num_rows is None else num_rows
    row_bytes = max(1, math.prod(row_shape) * dtype.itemsize)
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, max(1, wanted), block_rows):
      count = min(block_rows, wanted - start)
      block = Header((count, *row_shape), dtype)
      yield _read_array(stream, block, is_last=start + count == total)


def read_attribute(file: StoredFile, name: str) -> npt.NDArray[np.int64]:
  """Returns add_count (int64 []) or another's rows (int64 [any]) in a file."""
  ndim = _ATTRIBUTE_NDIM[name]
  with decompressed(file) as stream:
    header = _parse_header(stream, file)
    shape, dtype = header
    is_small = math.prod(shape) <= _MAX_ATTRIBUTE_SIZE
    if dtype != np.dtype(np.int64) or len(shape) != ndim or not is_small:
      raise Damage(
        f'holds {dtype} of shape {shape}; a small array of int64 with {ndim} '
        'dimensions is needed.'
      )
    return _read_array(stream, header, is_last=True)
