"""What the files of a log hold, in numbers.

Of the frames only a file's first few thousand are read, unless all are asked
for; the rest of a file, 9 MB a million rows, is read whole.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import hashlib
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store.segment import Segment

# Frames that are compared with each other: 14 MB of Atari's.
_WINDOW_ROWS = 2_000


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
