"""Decides which rows of which files of a log make up a local store."""

from collections.abc import Callable
from concurrent import futures
import dataclasses
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log import source as replay_source
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import uniform_draw
from batch_rl_dr3.replay.store.segment import Segment
from batch_rl_dr3.replay.store.subset import HeldOut, Subset

_T = TypeVar('_T')
# Requests for small things at the same time.
_NUM_THREADS = 8
# Keeps the draw of held-out rows apart from the subset's of the same seed.
_HELD_OUT_STREAM = 1


@dataclasses.dataclass(frozen=True)
class FilePlan:
  """What one file of the log gives to the store.

  Attributes:
    segment: dict, the fields of its Segment, as in the manifest.
    num_held: int, its rows that are read; those behind them are ignored.
    drawn: of a uniform subset, whether a transition was drawn at each of
      these rows, as bits (`np.packbits`); None of another.
    stack_size: int, frames in a state.
  """

  segment: dict[str, Any]
  num_held: int
  drawn: npt.NDArray[np.uint8] | None
  stack_size: int

  def kept_rows(self) -> npt.NDArray[np.int64] | None:
    """Returns the rows of the file that are kept, ascending; None is all."""
    if self.drawn is None:
      return None
    return uniform_draw.rows_needed(
      self.drawn_rows(), self.num_held, self.stack_size
    )

  def drawn_rows(self) -> npt.NDArray[np.int64]:
    """Returns the rows of the file where transitions were drawn."""
    assert self.drawn is not None
    return np.flatnonzero(np.unpackbits(self.drawn, count=self.num_held))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What makes up a store.

  Attributes:
    files: one FilePlan per file used, in time order.
    unused: suffixes of files that are there and give nothing.
  """

  files: tuple[FilePlan, ...]
  unused: list[int]

  @property
  def num_rows(self) -> int:
    """The number of rows that the store will have."""
    return sum(int(file.segment['num_rows']) for file in self.files)


def plan_files(source: Source, subset: Subset, stack_size: int) -> Plan:
  """Returns which rows of which files make up the store.

  A file's rows are counted as its arrays are long. A buffer that was not full
  when it was saved (add_count below the length) holds only its first
  add_count rows; what lies behind them is never used.

  Args:
    source: the log.
    subset: the part that is used.
    stack_size: int, frames in a state.

  Raises:
    DataError: if files are missing, damaged, or disagree with each other.
    ConfigError: if the subset is too small.
  """
  suffixes = source.suffixes()
  lengths = dict(
    zip(
      suffixes,
      _of_each(replay_source.count_rows, source, suffixes),
      strict=True,
    )
  )
  wanted = subset.rows_per_file(list(lengths.items()), stack_size)
  files: list[FilePlan] = []
  wholes = _of_each(replay_source.whole_segment, source, list(wanted))
  for whole, (suffix, rows) in zip(wholes, wanted.items(), strict=True):
    num_rows = min(rows, whole.num_rows)
    segment = {
      **dataclasses.asdict(whole),
      'num_rows': num_rows,
      'read_to_end': rows == lengths[suffix],
    }
    del segment['num_drawn']
    if not whole.cut_rows:  # As in stores that were made before it was known.
      del segment['cut_rows']
    files.append(FilePlan(segment, num_rows, None, stack_size))
  files = [file for file in files if file.num_held]
  if not files:
    raise errors.DataError(
      f'{source.name} holds no rows: its buffers are empty.'
    )
  if subset.is_uniform:
    files = _draw(source, files, subset, lengths)
  files = _in_rows(files)
  used = {file.segment['suffix'] for file in files}
  return Plan(
    tuple(files), [suffix for suffix in lengths if suffix not in used]
  )


def _of_each(
  read: Callable[[Source, int], _T], source: Source, suffixes: list[int]
) -> list[_T]:
  """Returns what is read of each file, many at a time: storages are far."""
  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    return list(pool.map(lambda suffix: read(source, suffix), suffixes))


def _in_rows(files: list[FilePlan]) -> list[FilePlan]:
  """Returns the files that give rows, each with its first row of the store."""
  placed: list[FilePlan] = []
  first_row = 0
  for file in files:
    if file.segment['num_rows']:
      segment = {**file.segment, 'first_row': first_row}
      placed.append(dataclasses.replace(file, segment=segment))
      first_row += segment['num_rows']
  return placed


def _draw(
  source: Source,
  files: list[FilePlan],
  subset: Subset,
  lengths: dict[int, int],
) -> list[FilePlan]:
  """Returns the files with what is drawn from each."""
  valid = []
  for file in files:
    mask = np.zeros(file.num_held, np.bool_)
    mask[
      Segment(**file.segment).valid_rows(
        _read_terminals(source, file),
        file.stack_size,
        uniform_draw.UPDATE_HORIZON,
      )
    ] = True
    valid.append(np.packbits(mask))
  planned = []
  if isinstance(subset, HeldOut):
    drawn = _draw_held_out(files, valid, subset, lengths)
  else:
    drawn = _draw_uniform(files, valid, subset)
  for file, rows in zip(files, drawn, strict=True):
    mask = np.zeros(file.num_held, np.bool_)
    mask[rows] = True
    kept = uniform_draw.rows_needed(rows, file.num_held, file.stack_size)
    segment = {
      **file.segment,
      'num_rows': len(kept),
      'num_drawn': len(rows),
    }
    planned.append(
      dataclasses.replace(file, segment=segment, drawn=np.packbits(mask))
    )
  return planned


def _draw_uniform(
  files: list[FilePlan], valid: list[npt.NDArray[np.uint8]], subset: Subset
) -> list[npt.NDArray[np.int64]]:
  assert not isinstance(subset.seed, str)
  count = subset.num_drawn(sum(file.num_held for file in files))
  return uniform_draw.draw_rows(valid, _count_bits(valid), count, [subset.seed])


def _draw_held_out(
  files: list[FilePlan],
  valid: list[npt.NDArray[np.uint8]],
  held_out: HeldOut,
  lengths: dict[int, int],
) -> list[npt.NDArray[np.int64]]:
  """Returns rows of each file whose states the subset does not hold."""
  subset = held_out.subset
  assert not isinstance(subset.seed, str)
  if subset.is_uniform:
    learnt = [
      np.concatenate([rows, rows + uniform_draw.UPDATE_HORIZON])
      for rows in _draw_uniform(files, valid, subset)
    ]
  else:
    counts = subset.rows_per_file(list(lengths.items()), files[0].stack_size)
    learnt = [
      np.arange(min(counts.get(file.segment['suffix'], 0), file.num_held))
      for file in files
    ]
  others = []
  for file, bits, rows in zip(files, valid, learnt, strict=True):
    mask = np.unpackbits(bits, count=file.num_held)
    mask[rows % file.num_held] = 0
    others.append(np.packbits(mask))
  numbers = _count_bits(others)
  if not sum(numbers):
    raise errors.ConfigError(
      'the subset leaves no transition of the log to hold out. Use a smaller '
      'Subset.fraction, or hold out 0.'
    )
  count = min(held_out.count, sum(numbers))
  return uniform_draw.draw_rows(
    others, numbers, count, [subset.seed, _HELD_OUT_STREAM]
  )


def _count_bits(masks: list[npt.NDArray[np.uint8]]) -> list[int]:
  return [int(np.unpackbits(mask).sum()) for mask in masks]


def _read_terminals(source: Source, file: FilePlan) -> npt.NDArray[np.uint8]:
  dtype = checkpoint_format.ELEMENT_DTYPES['terminal']
  blocks = source.rows('terminal', file.segment['suffix'], dtype, ())
  terminals: npt.NDArray[np.uint8] = np.concatenate(list(blocks))
  return terminals[: file.num_held]
