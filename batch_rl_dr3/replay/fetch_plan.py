"""What making a store of a log will cost, before anything is fetched.

Known are the sizes of the log's files and the rows in them; how small a store
gets in the codec 'zstd' is not. A file is taken to be as compressible from its
beginning to its end, so the bytes of a prefix are an estimate.
"""

import dataclasses
import math
import time

from batch_rl_dr3.replay.log import checkpoint_format, rlu
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import shards, store_build
from batch_rl_dr3.replay.store.subset import Subset

# RL Unplugged does not state the rows of a checkpoint; the log's had so many.
_RLU_ROWS = 1_000_000
_FRAME_SHAPE = (84, 84)
# Of the first file, read to measure the rate.
_PROBE_ROWS = 2_000
# In memory beside the frames: action, reward, terminal, and the table of valid
# rows.
_TABLE_BYTES = 4 + 4 + 1 + 8


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What a store will cost.

  Attributes:
    num_files: int, files of the log that are read.
    num_log_rows: int, rows of all files of the log.
    are_rows_known: whether these were read, or taken as usual.
    num_rows: int, rows of the store; an expectation for a uniform subset.
    num_log_bytes: int, of all files of the log.
    num_download_bytes: int, of what is read.
    num_spool_bytes: int, of temporary files.
    num_store_bytes: int, of the store in the codec 'raw'.
    codec: str, which codec is used unless told otherwise.
    num_table_bytes: int, memory of a run beside the frames.
    num_frame_bytes: int, memory of the frames, if they are held.
    seconds: float, at the rate measured on the first rows of the first file;
      None where they cannot be read without fetching all of it.
  """

  num_files: int
  num_log_rows: int
  are_rows_known: bool
  num_rows: int
  num_log_bytes: int
  num_download_bytes: int
  num_spool_bytes: int
  num_store_bytes: int
  codec: str
  num_table_bytes: int
  num_frame_bytes: int
  seconds: float | None


def estimate(source: Source, subset: Subset, stack_size: int) -> Estimate:
  """Returns what a store of a subset of a log will cost.

  Reads the list of files, their headers and the first rows of one.

  Args:
    source: the log.
    subset: the part that is used.
    stack_size: int, frames in a state.

  Raises:
    DataError: if the log cannot be read.
    ConfigError: if the subset is too small.
  """
  is_rlu = isinstance(source, rlu.RluSource)
  suffixes = source.suffixes()
  lengths = {
    suffix: _RLU_ROWS if is_rlu else source.header('terminal', suffix).shape[0]
    for suffix in suffixes
  }
  sizes = {suffix: source.num_bytes(suffix) for suffix in suffixes}
  rows = subset.rows_per_file(list(lengths.items()), stack_size)
  read = {
    suffix: math.ceil(sizes[suffix] * count / lengths[suffix])
    for suffix, count in rows.items()
  }
  if is_rlu:  # Its files are read whole once, to count their rows.
    read = {suffix: sizes[suffix] + part for suffix, part in read.items()}
  num_log_rows = sum(lengths.values())
  num_rows = sum(rows.values())
  if subset.is_uniform:
    # Each transition needs its stack and the next frame.
    share = 1 - (1 - subset.fraction) ** (stack_size + 1)
    num_rows = math.ceil(share * num_log_rows)
  frame_shape = (
    _FRAME_SHAPE
    if is_rlu
    else source.header('observation', suffixes[0]).shape[1:]
  )
  frame_bytes = num_rows * math.prod(frame_shape)
  element_bytes = num_rows * sum(
    dtype.itemsize for dtype in checkpoint_format.ELEMENT_DTYPES.values()
  )
  whole = [sizes[s] for s, count in rows.items() if count == lengths[s]]
  is_raw = frame_bytes <= store_build.MAX_RAW_BYTES
  return Estimate(
    num_files=len(rows),
    num_log_rows=num_log_rows,
    are_rows_known=not is_rlu,
    num_rows=num_rows,
    num_log_bytes=sum(sizes.values()),
    num_download_bytes=sum(read.values()),
    num_spool_bytes=max(sizes.values() if is_rlu else whole, default=0),
    num_store_bytes=frame_bytes + element_bytes,
    codec=shards.RAW if is_raw else shards.ZSTD,
    num_table_bytes=num_rows * _TABLE_BYTES,
    num_frame_bytes=frame_bytes,
    seconds=None
    if is_rlu
    else _probe(source, suffixes[0]) * sum(rows.values()),
  )


def _probe(source: Source, suffix: int) -> float:
  """Returns the seconds that reading and decompressing one row took."""
  length, *frame_shape = source.header('observation', suffix).shape
  count = min(length, _PROBE_ROWS)
  start = time.perf_counter()
  for _ in source.rows(
    'observation', suffix, 'uint8', tuple(frame_shape), count
  ):
    pass
  return (time.perf_counter() - start) / count


def describe(
  plan: Estimate, max_resident_bytes: int, free_bytes: int
) -> list[str]:
  """Returns an estimate in words, a line each.

  Args:
    plan: the estimate.
    max_resident_bytes: int, see store.open_store.
    free_bytes: int, room where the store goes.
  """
  known = '' if plan.are_rows_known else ' (not stated; as the log had them)'
  is_held = plan.num_frame_bytes <= max_resident_bytes
  lines = {
    'log': f'{plan.num_log_rows:,} rows{known}, {_size(plan.num_log_bytes)}',
    'taken': f'{plan.num_rows:,} rows of {plan.num_files} files',
    'download': f'about {_size(plan.num_download_bytes)}',
    'temporary': f'up to {_size(plan.num_spool_bytes)} a file being fetched'
    if plan.num_spool_bytes
    else 'nothing',
    'disk': f'{_size(plan.num_store_bytes)} raw'
    + (
      ''
      if plan.codec == shards.RAW
      else '; zstd is the default at this size, and was 20 to 80 times smaller'
    )
    + f'; {_size(free_bytes)} are free',
    'memory': f'{_size(plan.num_table_bytes)} of tables in training; frames '
    + (
      f'held, {_size(plan.num_frame_bytes)}'
      if is_held
      else 'read from the disk as they are needed (open_store.'
      f'max_resident_bytes = {max_resident_bytes})'
    ),
    'time': 'not known before it is fetched'
    if plan.seconds is None
    else f'about {_duration(plan.seconds)}, at the rate that one stream has '
    'just had',
  }
  return [f'{name:<10} {line}' for name, line in lines.items()]


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f'{math.ceil(seconds)} s'
  return f'{seconds / 60:,.0f} minutes'


def _size(num_bytes: float) -> str:
  for unit in ('B', 'kB', 'MB', 'GB'):
    if num_bytes < 1000:
      return f'{num_bytes:.3g} {unit}'
    num_bytes /= 1000
  return f'{num_bytes:.3g} TB'
