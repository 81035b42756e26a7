"""What the files of a log hold, in numbers.

Of the frames only a file's first few thousand are read; the rest of a file, 9
MB a million rows, is read whole.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.replay import validity
from batch_rl_dr3.replay.source import Source

# Frames that the checks of frames look at, from a file's beginning.
_NUM_FRAMES_CHECKED = 2_000


@dataclasses.dataclass(frozen=True)
class FileSummary:
  """One file of a log, in numbers.

  Attributes:
    suffix: int, the file's number.
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
    cursor: int, the row that the buffer would have written next.
    frames_digest: str, of the frames that are looked at.
    frame_change: float, mean absolute difference of consecutive frames that
      are not blank.
    frame_spread: float, that of frames far apart.
  """

  suffix: int
  num_rows: int
  num_padding_rows: int
  num_valid: int
  episode_lengths: npt.NDArray[np.int64]
  episode_returns: npt.NDArray[np.float64]
  max_action: int
  reward_range: tuple[float, float]
  ends_in_episode: bool
  starts_with_padding: bool
  cursor: int
  frames_digest: str
  frame_change: float
  frame_spread: float


def summarise(source: Source, stack_size: int = 4) -> Iterator[FileSummary]:
  """Yields the summary of each file of a log, in time order.

  Args:
    source: the log.
    stack_size: int, frames in a state; an episode begins with stack_size - 1
      rows of padding.

  Raises:
    DataError: if a file is damaged.
  """
  for suffix in source.suffixes():
    yield _summarise_file(source, suffix, stack_size)


def _summarise_file(
  source: Source, suffix: int, stack_size: int
) -> FileSummary:
  add_count = int(source.attribute('add_count', suffix))
  length = source.header('terminal', suffix).shape[0]
  num_rows = min(length, add_count)
  actions, rewards, terminals = (
    np.concatenate([*source.rows(name, suffix, dtype, ())])[:num_rows]
    for name, dtype in (
      ('action', np.int32),
      ('reward', np.float32),
      ('terminal', np.uint8),
    )
  )
  valid = validity.valid_indices(
    terminals,
    add_count,
    source.attribute('invalid_range', suffix),
    stack_size,
    update_horizon=1,
    capacity=length,
  )
  frames = _first_frames(source, suffix)[:num_rows]
  pictures = frames[frames.any(axis=tuple(range(1, frames.ndim)))]
  lengths, returns = _episodes(rewards, terminals, stack_size)
  padding = frames[: stack_size - 1]
  starts_with_padding = bool(len(padding) and (padding == 0).all())
  return FileSummary(
    suffix=suffix,
    num_rows=num_rows,
    num_padding_rows=_count_padding(terminals, starts_with_padding, stack_size),
    num_valid=int(valid.sum()),
    episode_lengths=lengths,
    episode_returns=returns,
    max_action=int(actions.max()),
    reward_range=(float(rewards.min()), float(rewards.max())),
    ends_in_episode=not terminals[-1],
    starts_with_padding=starts_with_padding,
    cursor=add_count % length,
    frames_digest=hashlib.sha256(frames.tobytes()).hexdigest(),
    frame_change=_mean_difference(pictures, 1),
    frame_spread=_mean_difference(pictures, max(len(pictures) // 2, 1)),
  )


def _first_frames(source: Source, suffix: int) -> npt.NDArray[np.uint8]:
  length, *frame_shape = source.header('observation', suffix).shape
  return np.concatenate(
    [
      *source.rows(
        'observation',
        suffix,
        np.uint8,
        tuple(frame_shape),
        min(length, _NUM_FRAMES_CHECKED),
      )
    ]
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
  wide = frames.astype(np.int16)
  return float(np.abs(wide[distance:] - wide[:-distance]).mean())


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
    f'{"length":>9}{"return":>9}{"lowest":>9}{"highest":>9}'
  )
  num_rows = num_valid = 0
  lengths, returns = [], []
  for summary in summaries:
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
    )
  yield _line(
    'all', num_rows, num_valid, np.concatenate(lengths), np.concatenate(returns)
  )


def _line(
  name: str,
  num_rows: int,
  num_valid: int,
  lengths: npt.NDArray[np.int64],
  returns: npt.NDArray[np.float64],
) -> str:
  start = (
    f'{name:>5}{num_rows:>12,}{num_valid / num_rows:>12.2%}{len(lengths):>10,}'
  )
  if not len(lengths):
    return start
  return start + (
    f'{lengths.mean():>9.1f}{returns.mean():>9.2f}'
    f'{returns.min():>9.2f}{returns.max():>9.2f}'
  )
