"""What `data` says of a log: what is in it, what is wrong, what it would cost.

Of the frames only a file's first few thousand are read, unless all are asked
for; the rest of a file, 9 MB a million rows, is read whole. Every check of
`diagnose` is a trap that the DQN Replay format is known for, or a kind of
damage that no checksum shows.

An estimate is made before anything is fetched, from the sizes of the files and
the rows in them. How small a store gets in the codec 'zstd' is not known. A
file is taken to be as compressible from its beginning to its end, so the bytes
of a prefix are an estimate.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import time
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, rlu, source_chain
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import build, shards
from batch_rl_dr3.replay.store.subset import Subset
from batch_rl_dr3.replay.store.validity import Segment

# What `collect` writes beside a log.
_COLLECTION = 'collection.json'
# Frames that are compared with each other: 14 MB of Atari's.
_WINDOW_ROWS = 2_000
# Consecutive frames differ less than distant ones. Where the ratio of the two
# is above this, the rows are not in time order.
_SHUFFLED_RATIO = 0.9
# The last frame of a file is stale where it differs so many times as much from
# the one before as frames do on average.
_STALE_RATIO = 5
# A file with fewer rows than this says nothing about how frames change.
_FEW_ROWS = 20
# RL Unplugged does not state the rows of a checkpoint; the log's had so many.
_RLU_ROWS = 1_000_000
_FRAME_SHAPE = (84, 84)
# Of the first file, read to measure the rate.
_PROBE_ROWS = 2_000
# In memory beside the frames: action, reward, terminal, and the table of valid
# rows.
_TABLE_BYTES = 4 + 4 + 1 + 8


class FrameChange(NamedTuple):
  """How much frames of one stretch of a file differ, blank ones left out.

  Attributes:
    first_row: int, where the stretch begins.
    near: float, mean absolute difference of consecutive frames.
    far: float, that of frames half the stretch apart.
  """

  first_row: int
  near: float
  far: float


@dataclasses.dataclass(frozen=True)
class FrameChecks:
  """What frames of one file show.

  Attributes:
    digest: str, of the first stretch.
    changes: FrameChange of each stretch that was looked at.
    num_unpadded: int, episodes that begin in what was looked at and not with
      blank frames.
    last_change: float, mean absolute difference of the file's last two frames;
      None if they were not looked at.
  """

  digest: str
  changes: tuple[FrameChange, ...]
  num_unpadded: int
  last_change: float | None


@dataclasses.dataclass(frozen=True)
class FileSummary:
  """One file of a log, in numbers.

  Attributes:
    suffix: int, the file's number.
    num_bytes: int, its size in the storage.
    num_rows: int, padding included.
    num_padding_rows: int, the zero rows that begin episodes.
    num_valid: int, rows where a transition may start.
    episode_lengths: int64 [E], agent steps of the episodes that begin and end
      in the file.
    episode_returns: float64 [E], their sums of clipped rewards.
    max_action: int.
    reward_range: (smallest, largest) reward.
    ends_in_episode: bool, whether the last row's episode goes on.
    starts_with_padding: bool, whether the first row begins an episode.
    follows_before: bool, whether the file goes on from the one before.
    cursor: int, the row that the buffer would have written next; 0 if it was
      not full.
    frames: what its frames show.
  """

  suffix: int
  num_bytes: int
  num_rows: int
  num_padding_rows: int
  num_valid: int
  episode_lengths: npt.NDArray[np.int64]
  episode_returns: npt.NDArray[np.float64]
  max_action: int
  reward_range: tuple[float, float]
  ends_in_episode: bool
  starts_with_padding: bool
  follows_before: bool
  cursor: int
  frames: FrameChecks


def read_collection(
  replay_dir: str | os.PathLike[str], field: str
) -> int | None:
  """Returns what `collect` noted of the game whose log a folder holds.

  Args:
    replay_dir: the log's folder, or its parent; a path or a file:// URL.
    field: stack_size or num_actions.

  Returns:
    None if there is no collection.json.

  Raises:
    DataError: if the file says no such number.
  """
  folder = pathlib.Path(source_chain.local_path(os.fspath(replay_dir)))
  if folder.name == 'replay_logs':
    folder = folder.parent
  path = folder / _COLLECTION
  try:
    value: int = json.loads(path.read_bytes())['game'][field]
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise errors.DataError(f'cannot read {path}: {error.strerror}.') from error
  except (ValueError, KeyError, TypeError, RecursionError):
    value = 0
  if type(value) is not int or value < 1:
    raise errors.DataError(
      f'{path} does not state game.{field} as a positive number. Give '
      f'--{field}, or collect the log again.'
    )
  return value


def summarise(
  source: Source,
  stack_size: int = 4,
  all_frames: bool = False,
  on_rows: Callable[[int], None] | None = None,
) -> Iterator[FileSummary]:
  """Yields the summary of each file of a log, in time order.

  Args:
    source: the log.
    stack_size: int, frames in a state; an episode begins with stack_size - 1
      rows of padding.
    all_frames: whether to look at all frames, not only at a file's first.
    on_rows: called with the number of frames just looked at.

  Raises:
    DataError: if a file is damaged.
  """
  before = None
  for suffix in source.suffixes():
    segment = source.segment(suffix)
    yield _summarise_file(
      source, segment, before, stack_size, all_frames, on_rows
    )
    before = segment


def _summarise_file(
  source: Source,
  segment: Segment,
  before: Segment | None,
  stack_size: int,
  all_frames: bool,
  on_rows: Callable[[int], None] | None,
) -> FileSummary:
  suffix = segment.suffix
  if not segment.num_rows:
    raise errors.DataError(
      f'file {suffix} of {source.name} holds no rows: its buffer was empty. '
      'Move it away.'
    )
  actions, rewards, terminals = (
    np.concatenate([*source.rows(name, suffix, dtype, ())])[: segment.num_rows]
    for name, dtype in checkpoint_format.ELEMENT_DTYPES.items()
  )
  windows = _windows(source, segment, all_frames)
  frames, is_blank = _check_frames(windows, segment.num_rows, on_rows)
  starts = np.flatnonzero(terminals) + 1
  num_padding = stack_size - 1
  starts_with_padding = bool(len(is_blank) and is_blank[:num_padding].all())
  lengths, returns = _episodes(rewards, terminals, stack_size)
  return FileSummary(
    suffix=suffix,
    num_bytes=source.num_bytes(suffix),
    num_rows=segment.num_rows,
    num_padding_rows=_count_padding(terminals, starts_with_padding, stack_size),
    num_valid=len(segment.valid_rows(terminals, stack_size, update_horizon=1)),
    episode_lengths=lengths,
    episode_returns=returns,
    max_action=int(actions.max()),
    reward_range=(float(rewards.min()), float(rewards.max())),
    ends_in_episode=not terminals[-1],
    starts_with_padding=starts_with_padding,
    follows_before=before is not None and before.is_followed_by(segment),
    cursor=segment.cursor if segment.is_circular else 0,
    frames=dataclasses.replace(
      frames,
      num_unpadded=sum(
        not is_blank[start:][:num_padding].all() for start in starts
      ),
    ),
  )


def _windows(
  source: Source, segment: Segment, all_frames: bool
) -> Iterator[npt.NDArray[np.uint8]]:
  """Yields frames of a file, _WINDOW_ROWS at a time."""
  length, *frame_shape = source.header('observation', segment.suffix).shape
  wanted = None if all_frames else min(length, _WINDOW_ROWS)
  left = segment.num_rows
  held: list[npt.NDArray[np.uint8]] = []
  num_held = 0
  for frames in source.rows(
    'observation', segment.suffix, np.uint8, tuple(frame_shape), wanted
  ):
    rows = frames[:left].reshape(-1, int(np.prod(frame_shape)))
    left -= len(rows)
    held.append(rows)
    num_held += len(rows)
    while num_held >= _WINDOW_ROWS:
      joined = np.concatenate(held)
      yield joined[:_WINDOW_ROWS]
      held, num_held = [joined[_WINDOW_ROWS:]], num_held - _WINDOW_ROWS
  if num_held:
    yield np.concatenate(held)


def _check_frames(
  windows: Iterator[npt.NDArray[np.uint8]],
  num_rows: int,
  on_rows: Callable[[int], None] | None,
) -> tuple[FrameChecks, npt.NDArray[np.bool_]]:
  """Returns what frames show, and whether each one looked at is blank."""
  digest = hashlib.sha256().hexdigest()
  changes: list[FrameChange] = []
  blank: list[npt.NDArray[np.bool_]] = []
  last_two: list[npt.NDArray[np.uint8]] = []
  row = 0
  for frames in windows:
    if not row:
      digest = hashlib.sha256(frames.tobytes()).hexdigest()
    blank.append(~frames.any(axis=1))
    if not row or len(frames) > _WINDOW_ROWS // 2:  # A short rest says little.
      changes.append(_frame_change(row, frames[~blank[-1]]))
    last_two = [*last_two, *frames[-2:]][-2:]
    row += len(frames)
    if on_rows is not None:
      on_rows(len(frames))
  is_end = row == num_rows and len(last_two) == 2
  last_change = _mean_difference(np.stack(last_two), 1) if is_end else None
  is_blank = np.concatenate(blank) if blank else np.zeros(0, np.bool_)
  return FrameChecks(digest, tuple(changes), 0, last_change), is_blank


def _frame_change(row: int, pictures: npt.NDArray[np.uint8]) -> FrameChange:
  half = max(len(pictures) // 2, 1)
  return FrameChange(
    row, _mean_difference(pictures, 1), _mean_difference(pictures, half)
  )


def _count_padding(
  terminals: npt.NDArray[np.uint8], starts_with_padding: bool, stack_size: int
) -> int:
  """Returns how many rows follow a terminal, or begin the file, as padding."""
  starts = np.flatnonzero(terminals) + 1
  if starts_with_padding:
    starts = np.concatenate([[0], starts])
  return int(np.clip(len(terminals) - starts, 0, stack_size - 1).sum())


def _mean_difference(frames: npt.NDArray[np.uint8], distance: int) -> float:
  """Returns the mean absolute difference of frames so many rows apart."""
  if len(frames) <= distance:
    return 0.0
  return float(cv2.absdiff(frames[distance:], frames[:-distance]).mean())


def _episodes(
  rewards: npt.NDArray[np.float32],
  terminals: npt.NDArray[np.uint8],
  stack_size: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
  """Returns lengths and returns of the episodes between two terminals."""
  ends = np.flatnonzero(terminals)
  sums = np.cumsum(rewards, dtype=np.float64)[ends]
  return np.diff(ends) - (stack_size - 1), np.diff(sums)


def table(summaries: Iterable[FileSummary]) -> Iterator[str]:
  """Yields a table of a log, a line at a time: a head, the files, the sum.

  Returns are sums of clipped rewards, of the episodes that begin and end in
  one file.
  """
  yield (
    f'{"file":>5}{"rows":>12}{"sampleable":>12}{"episodes":>10}'
    f'{"length":>9}{"return":>9}{"lowest":>9}{"highest":>9}{"MB":>9}'
  )
  num_bytes = num_rows = num_valid = 0
  lengths, returns = [], []
  for summary in summaries:
    num_bytes += summary.num_bytes
    num_rows += summary.num_rows
    num_valid += summary.num_valid
    lengths.append(summary.episode_lengths)
    returns.append(summary.episode_returns)
    yield _line(
      str(summary.suffix),
      summary.num_rows,
      summary.num_valid,
      summary.episode_lengths,
      summary.episode_returns,
      summary.num_bytes,
    )
  yield _line(
    'all',
    num_rows,
    num_valid,
    np.concatenate(lengths),
    np.concatenate(returns),
    num_bytes,
  )


def _line(
  name: str,
  num_rows: int,
  num_valid: int,
  lengths: npt.NDArray[np.int64],
  returns: npt.NDArray[np.float64],
  num_bytes: int,
) -> str:
  start = (
    f'{name:>5}{num_rows:>12,}{num_valid / num_rows:>12.2%}{len(lengths):>10,}'
  )
  size = f'{num_bytes / 1e6:>9,.1f}'
  if not len(lengths):
    return f'{start}{"":>36}{size}'
  return start + (
    f'{lengths.mean():>9.1f}{returns.mean():>9.2f}'
    f'{returns.min():>9.2f}{returns.max():>9.2f}{size}'
  )


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something about a log that a user should know.

  Attributes:
    is_fault: whether training on the log as it is would be wrong; else it is
      a property of the format that a reader has to allow for.
    message: one sentence.
  """

  is_fault: bool
  message: str


def diagnose(
  summaries: Sequence[FileSummary],
  num_actions: int | None = None,
  max_agent_steps_per_episode: int = 27_000,
) -> list[Finding]:
  """Returns what a log shows of the format's traps, faults first."""
  findings = [
    *_file_faults(summaries, num_actions),
    *_duplicates(summaries),
    *_traits(summaries, max_agent_steps_per_episode),
  ]
  return sorted(findings, key=lambda finding: not finding.is_fault)


def _file_faults(
  summaries: Sequence[FileSummary], num_actions: int | None
) -> Iterator[Finding]:
  for summary in summaries:
    file = f'file {summary.suffix}'
    low, high = summary.reward_range
    if low < -1 or high > 1:
      yield Finding(
        True, f'{file}: rewards are not clipped: {low:g} to {high:g}.'
      )
    if num_actions is not None and summary.max_action >= num_actions:
      yield Finding(
        True,
        f'{file}: action {summary.max_action} in a game of {num_actions} '
        'actions: data of another game?',
      )
    if summary.num_rows < _FEW_ROWS:
      continue
    yield from _frame_faults(summary)


def _frame_faults(summary: FileSummary) -> Iterator[Finding]:
  file, frames = f'file {summary.suffix}', summary.frames
  if all(change.far == 0 for change in frames.changes):
    yield Finding(True, f'{file}: its frames are all the same.')
    return
  shuffled = [
    change
    for change in frames.changes
    if change.near > _SHUFFLED_RATIO * change.far > 0
  ]
  if shuffled:
    first = shuffled[0]
    yield Finding(
      True,
      f'{file}: from row {first.first_row} on, consecutive frames differ as '
      f'much as distant ones ({first.near:.3g} and {first.far:.3g}): its rows '
      f'are not in time order, in {len(shuffled)} of {len(frames.changes)} '
      'stretches looked at.',
    )
  if frames.num_unpadded:
    yield Finding(
      True,
      f'{file}: {frames.num_unpadded} episodes do not begin with blank frames '
      'of padding. Were states of another --stack_size logged?',
    )


def _duplicates(summaries: Sequence[FileSummary]) -> Iterator[Finding]:
  first: dict[str, int] = {}
  for summary in summaries:
    other = first.setdefault(summary.frames.digest, summary.suffix)
    if other != summary.suffix:
      yield Finding(
        True, f'file {summary.suffix} begins with the frames of file {other}.'
      )


def _traits(
  summaries: Sequence[FileSummary], max_agent_steps_per_episode: int
) -> Iterator[Finding]:
  crossing = [
    f'{first.suffix}-{second.suffix}'
    for first, second in itertools.pairwise(summaries)
    if second.follows_before
    and first.ends_in_episode
    and not second.starts_with_padding
  ]
  if crossing:
    yield Finding(
      False,
      f'episodes go on from file to file at {", ".join(crossing)}.',
    )
  num_cut = sum(
    int((s.episode_lengths >= max_agent_steps_per_episode).sum())
    for s in summaries
  )
  if num_cut:
    yield Finding(
      False,
      f'{num_cut} episodes last the {max_agent_steps_per_episode:,} agent '
      'steps of the time limit and are logged as ending in a terminal.',
    )
  for summary in summaries:
    if summary.cursor:
      yield Finding(
        False,
        f'file {summary.suffix}: its buffer was saved with the cursor at row '
        f'{summary.cursor}; rows from there on are older than those before.',
      )
  yield from _stale_rows(summaries)
  num_padding = sum(summary.num_padding_rows for summary in summaries)
  if num_padding:
    yield Finding(
      False, f'{num_padding:,} rows are the zero padding that begins episodes.'
    )


def _stale_rows(summaries: Sequence[FileSummary]) -> Iterator[Finding]:
  """Yields the files whose last frame does not go on from the one before."""
  stale = []
  for summary in summaries:
    change, frames = summary.frames.last_change, summary.frames.changes
    if change is None or not summary.ends_in_episode:
      continue
    near = sum(stretch.near for stretch in frames) / len(frames)
    far = sum(stretch.far for stretch in frames) / len(frames)
    if change > max(_STALE_RATIO * near, _SHUFFLED_RATIO * far):
      stale.append(str(summary.suffix))
  if stale:
    yield Finding(
      False,
      f'the last frame does not go on from the one before it in files '
      f'{", ".join(stale)}: it is stale, or a cut in the picture. The last '
      'transition of these files may have a wrong next state.',
    )


@dataclasses.dataclass(frozen=True)
class FetchEstimate:
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


def estimate(source: Source, subset: Subset, stack_size: int) -> FetchEstimate:
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
  if subset.rule == 'episodes':
    num_rows = math.ceil(subset.fraction * num_log_rows)
  elif subset.is_drawn:
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
  is_raw = frame_bytes <= build.MAX_RAW_BYTES
  return FetchEstimate(
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
  plan: FetchEstimate, max_resident_bytes: int, free_bytes: int
) -> list[str]:
  """Returns an estimate in words, a line each."""
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
