"""What `data` says of a log: what is in it, what is wrong, what it would cost.

Unless all frames are asked for, only a file's first few thousand are read; the
rest of a file, 9 MB a million rows, is read whole. Every fault and trait is a
known trap of the DQN Replay format, or damage that no checksum shows. An
estimate takes a file as equally compressible from its beginning to its end.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import math
import time
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, rlu
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import shards, store
from batch_rl_dr3.replay.store.subset import Segment, Subset

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


class FrameChange(NamedTuple):
  """How much frames of one stretch of a file differ, blank ones left out."""

  first_row: int
  near: float  # Mean absolute difference of consecutive frames.
  far: float  # That of frames half the stretch apart.


@dataclasses.dataclass(frozen=True)
class FileSummary:
  """One file of a log, in numbers."""

  segment: Segment
  num_bytes: int
  num_padding_rows: int
  num_valid: int  # Rows where a transition may start.
  episode_lengths: npt.NDArray[np.int64]  # Of whole ones, in agent steps.
  episode_returns: npt.NDArray[np.float64]  # Their sums of clipped rewards.
  max_action: int
  reward_range: tuple[float, float]
  ends_in_episode: bool  # Whether the last row's episode goes on.
  starts_with_padding: bool
  digest: str  # Of the first stretch of frames.
  changes: list[FrameChange]  # Of each stretch that was looked at.
  num_unpadded: int  # Episodes looked at that do not begin with blank frames.
  last_change: float | None  # Of the file's last two frames, if looked at.


def summarise(
  source: Source,
  stack_size: int = 4,
  all_frames: bool = False,
  on_rows: Callable[[int], object] = lambda num_rows: None,
) -> Iterator[FileSummary]:
  """Yields the summary of each file of a log, in time order.

  `on_rows` gets the number of frames just looked at: all, or the first ones.
  """
  for suffix in source.suffixes():
    segment = source.segment(suffix)
    if not segment.num_rows:
      raise errors.DataError(
        f'file {suffix} of {source.name} holds no rows: its buffer was empty. '
        'Move it away.'
      )
    windows = _windows(source, segment, all_frames)
    yield _summarise_file(source, segment, stack_size - 1, windows, on_rows)


def _summarise_file(
  source: Source,
  segment: Segment,
  num_padding: int,
  windows: Iterator[npt.NDArray[Any]],
  on_rows: Callable[[int], object],
) -> FileSummary:
  num_rows = segment.num_rows
  actions, rewards, terminals = (
    source.column(name, segment.suffix)[:num_rows]
    for name in checkpoint_format.ELEMENT_DTYPES
  )
  digest = ''
  changes: list[FrameChange] = []
  is_blank, last_two = np.zeros(0, np.bool_), np.zeros((0, 0), np.uint8)
  for frames in windows:
    row, blank = len(is_blank), ~frames.any(axis=1)
    digest = digest or hashlib.sha256(frames.tobytes()).hexdigest()
    if not row or len(frames) > _WINDOW_ROWS // 2:  # A short rest says little.
      pictures = frames[~blank]
      near = _mean_difference(pictures, 1)
      far = _mean_difference(pictures, max(len(pictures) // 2, 1))
      changes.append(FrameChange(row, near, far))
    is_blank = np.concatenate([is_blank, blank])
    last_two = np.concatenate([last_two, frames[-2:]] if row else [frames])[-2:]
    on_rows(len(frames))
  is_end = len(is_blank) == num_rows and len(last_two) == 2
  starts_with_padding = bool(len(is_blank) and is_blank[:num_padding].all())
  ends = np.flatnonzero(terminals)
  starts = [0] * starts_with_padding + (ends + 1).tolist()
  padding = np.clip(num_rows - np.array(starts, np.int64), 0, num_padding)
  return FileSummary(
    segment=segment,
    num_bytes=source.num_bytes(segment.suffix),
    num_padding_rows=int(padding.sum()),
    num_valid=len(segment.valid_rows(terminals, num_padding + 1, 1)),
    episode_lengths=np.diff(ends) - num_padding,
    episode_returns=np.diff(np.cumsum(rewards, dtype=np.float64)[ends]),
    max_action=int(actions.max()),
    reward_range=(float(rewards.min()), float(rewards.max())),
    ends_in_episode=not terminals[-1],
    starts_with_padding=starts_with_padding,
    digest=digest,
    changes=changes,
    num_unpadded=sum(not is_blank[s:][:num_padding].all() for s in ends + 1),
    last_change=_mean_difference(last_two, 1) if is_end else None,
  )


def _windows(
  source: Source, segment: Segment, all_frames: bool
) -> Iterator[npt.NDArray[Any]]:
  """Yields the frames of a file, each flat, _WINDOW_ROWS at a time."""
  length, *shape = source.header('observation', segment.suffix).shape
  wanted = None if all_frames else min(length, _WINDOW_ROWS)
  left = segment.num_rows
  blocks = source.rows('observation', segment.suffix, wanted)
  flat = (block.reshape(len(block), math.prod(shape)) for block in blocks)
  for frames in shards.regroup(flat, itertools.repeat(_WINDOW_ROWS)):
    if left > 0:
      yield frames[:left]
      left -= len(frames)


def _mean_difference(frames: npt.NDArray[Any], distance: int) -> float:
  """Returns the mean absolute difference of frames so many rows apart."""
  if len(frames) <= distance:
    return 0.0
  return float(cv2.absdiff(frames[distance:], frames[:-distance]).mean())


def table(summaries: Iterable[FileSummary]) -> Iterator[str]:
  """Yields a table of a log by line: a head, the files, the sum.

  Returns are sums of clipped rewards, of episodes that lie within one file.
  """
  yield (
    f'{"file":>5}{"rows":>12}{"sampleable":>12}{"episodes":>10}'
    f'{"length":>9}{"return":>9}{"lowest":>9}{"highest":>9}{"MB":>9}'
  )
  seen = []
  for summary in summaries:
    seen.append(summary)
    yield _line(str(summary.segment.suffix), [summary])
  yield _line('all', seen)


def _line(name: str, files: Sequence[FileSummary]) -> str:
  num_rows = sum(file.segment.num_rows for file in files)
  num_valid = sum(file.num_valid for file in files)
  lengths = np.concatenate([file.episode_lengths for file in files])
  returns = np.concatenate([file.episode_returns for file in files])
  episodes = ''
  if len(lengths):
    episodes = (
      f'{lengths.mean():>9.1f}{returns.mean():>9.2f}'
      f'{returns.min():>9.2f}{returns.max():>9.2f}'
    )
  return (
    f'{name:>5}{num_rows:>12,}{num_valid / num_rows:>12.2%}{len(lengths):>10,}'
    f'{episodes:>36}{sum(file.num_bytes for file in files) / 1e6:>9,.1f}'
  )


def faults(
  summaries: Sequence[FileSummary], num_actions: int | None = None
) -> Iterator[str]:
  """Yields why training on a log as it is would be wrong, a sentence each."""
  for summary in summaries:
    yield from _file_faults(summary, num_actions)
  first: dict[str, int] = {}
  for summary in summaries:
    suffix = summary.segment.suffix
    if (other := first.setdefault(summary.digest, suffix)) != suffix:
      yield f'file {suffix} begins with the frames of file {other}.'


def _file_faults(
  summary: FileSummary, num_actions: int | None
) -> Iterator[str]:
  file, changes = f'file {summary.segment.suffix}', summary.changes
  low, high = summary.reward_range
  if low < -1 or high > 1:
    yield f'{file}: rewards are not clipped: {low:g} to {high:g}.'
  if num_actions is not None and summary.max_action >= num_actions:
    yield (
      f'{file}: action {summary.max_action} in a game of {num_actions} '
      'actions: data of another game?'
    )
  if summary.segment.num_rows < _FEW_ROWS:
    return
  if all(change.far == 0 for change in changes):
    yield f'{file}: its frames are all the same.'
    return
  shuffled = [c for c in changes if c.near > _SHUFFLED_RATIO * c.far > 0]
  if shuffled:
    row, near, far = shuffled[0]
    yield (
      f'{file}: from row {row} on, consecutive frames differ as much as '
      f'distant ones ({near:.3g} and {far:.3g}): its rows are not in time '
      f'order, in {len(shuffled)} of {len(changes)} stretches looked at.'
    )
  if summary.num_unpadded:
    yield (
      f'{file}: {summary.num_unpadded} episodes do not begin with blank frames '
      'of padding. Were states of another --stack_size logged?'
    )


def traits(
  summaries: Sequence[FileSummary], max_agent_steps_per_episode: int = 27_000
) -> Iterator[str]:
  """Yields what a reader of a log has to allow for, a sentence each."""
  crossing = [
    f'{first.segment.suffix}-{second.segment.suffix}'
    for first, second in itertools.pairwise(summaries)
    if first.segment.is_followed_by(second.segment)
    and first.ends_in_episode
    and not second.starts_with_padding
  ]
  if crossing:
    yield f'episodes go on from file to file at {", ".join(crossing)}.'
  num_cut = sum(
    int((s.episode_lengths >= max_agent_steps_per_episode).sum())
    for s in summaries
  )
  if num_cut:
    yield (
      f'{num_cut} episodes last the {max_agent_steps_per_episode:,} agent '
      'steps of the time limit and are logged as ending in a terminal.'
    )
  for segment in (summary.segment for summary in summaries):
    if segment.is_circular and segment.cursor:
      yield (
        f'file {segment.suffix}: its buffer was saved with the cursor at row '
        f'{segment.cursor}; rows from there on are older than those before.'
      )
  stale = [str(s.segment.suffix) for s in summaries if _is_stale(s)]
  if stale:
    yield (
      f'the last frame does not go on from the one before it in files '
      f'{", ".join(stale)}: it is stale, or a cut in the picture. The last '
      'transition of these files may have a wrong next state.'
    )
  num_padding = sum(summary.num_padding_rows for summary in summaries)
  if num_padding:
    yield f'{num_padding:,} rows are the zero padding that begins episodes.'


def _is_stale(summary: FileSummary) -> bool:
  if summary.last_change is None or not summary.ends_in_episode:
    return False
  _, near, far = np.mean(summary.changes, axis=0)
  return bool(
    summary.last_change > max(_STALE_RATIO * near, _SHUFFLED_RATIO * far)
  )


@dataclasses.dataclass(frozen=True)
class FetchEstimate:
  """What a store will cost."""

  num_files: int  # Of the log, to be read.
  num_log_rows: int
  num_rows: int  # Of the store; of a draw, an expectation.
  frame_bytes: int  # Of a row.
  num_log_bytes: int
  num_download_bytes: int
  num_spool_bytes: int
  # At the rate of the first rows; None of RL Unplugged, of which no row is read
  # before all of its file, and which states no number of rows.
  seconds: float | None


def estimate(source: Source, subset: Subset, stack_size: int) -> FetchEstimate:
  """Returns what a store costs, by the headers and the first rows of a log."""
  is_rlu = isinstance(source, rlu.RluSource)
  suffixes = source.suffixes()
  sizes = {suffix: source.num_bytes(suffix) for suffix in suffixes}
  lengths = dict.fromkeys(suffixes, _RLU_ROWS)
  frame_shape: tuple[int, ...] = _FRAME_SHAPE
  if not is_rlu:
    lengths = {s: source.header('terminal', s).shape[0] for s in suffixes}
    frame_shape = source.header('observation', suffixes[0]).shape[1:]
  rows = subset.rows_per_file(lengths, stack_size)
  num_log_rows, num_read_rows = sum(lengths.values()), sum(rows.values())
  num_rows = num_read_rows
  if subset.rule == 'episodes':
    num_rows = math.ceil(subset.fraction * num_log_rows)
  elif subset.is_drawn:
    # Each transition needs its stack and the next frame.
    share = 1 - (1 - subset.fraction) ** (stack_size + 1)
    num_rows = math.ceil(share * num_log_rows)
  spooled = [sizes[s] for s, n in rows.items() if is_rlu or n == lengths[s]]
  return FetchEstimate(
    num_files=len(rows),
    num_log_rows=num_log_rows,
    num_rows=num_rows,
    frame_bytes=math.prod(frame_shape),
    num_log_bytes=sum(sizes.values()),
    # RL Unplugged's files are read whole once, to count their rows.
    num_download_bytes=sum(
      is_rlu * sizes[suffix] + math.ceil(sizes[suffix] * n / lengths[suffix])
      for suffix, n in rows.items()
    ),
    num_spool_bytes=max(spooled, default=0),
    seconds=None if is_rlu else _probe(source, suffixes[0]) * num_read_rows,
  )


def _probe(source: Source, suffix: int) -> float:
  """Returns the seconds that reading and decompressing one row took."""
  count = min(source.header('observation', suffix).shape[0], _PROBE_ROWS)
  start = time.perf_counter()
  for _ in source.rows('observation', suffix, count):
    pass
  return (time.perf_counter() - start) / count


def describe(
  plan: FetchEstimate, max_resident_bytes: int, free_bytes: int
) -> list[str]:
  """Returns an estimate in words, a line each."""
  known = ' (not stated; as the log had them)' if plan.seconds is None else ''
  num_frame_bytes = plan.num_rows * plan.frame_bytes
  # Beside frames there are the rows' tables, and in memory the valid rows.
  num_table_bytes = plan.num_rows * checkpoint_format.TABLE_BYTES
  memory = _size(num_table_bytes + plan.num_rows * 8)
  spool = 'nothing'
  if plan.num_spool_bytes:
    spool = f'up to {_size(plan.num_spool_bytes)} a file being fetched'
  packed = '; zstd is the default at this size, and was 20 to 80 times smaller'
  if store.default_codec(num_frame_bytes) == shards.RAW:
    packed = ''
  frames = f'held, {_size(num_frame_bytes)}'
  if num_frame_bytes > max_resident_bytes:
    frames = (
      'read from the disk as they are needed (open_store.max_resident_bytes = '
      f'{max_resident_bytes})'
    )
  time_left = 'not known before it is fetched'
  if plan.seconds is not None:
    duration = f'{math.ceil(plan.seconds)} s'
    if plan.seconds >= 120:
      duration = f'{plan.seconds / 60:,.0f} minutes'
    time_left = f'about {duration}, at the rate that one stream has just had'
  raw = _size(num_frame_bytes + num_table_bytes)
  lines = {
    'log': f'{plan.num_log_rows:,} rows{known}, {_size(plan.num_log_bytes)}',
    'taken': f'{plan.num_rows:,} rows of {plan.num_files} files',
    'download': f'about {_size(plan.num_download_bytes)}',
    'temporary': spool,
    'disk': f'{raw} raw{packed}; {_size(free_bytes)} are free',
    'memory': f'{memory} of tables in training; frames {frames}',
    'time': time_left,
  }
  return [f'{name:<10} {line}' for name, line in lines.items()]


def _size(num_bytes: float) -> str:
  for unit in ('B', 'kB', 'MB', 'GB'):
    if num_bytes < 1000:
      return f'{num_bytes:.3g} {unit}'
    num_bytes /= 1000
  return f'{num_bytes:.3g} TB'
