"""Which rows of a replay file can be sampled, and the returns that follow them.

`Segment.valid_rows` are the rows for which `is_valid_transition` of Dopamine's
`OutOfGraphReplayBuffer` holds, which answers for one index at a time.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors

# No run ever adds so many rows.
_MAX_ADD_COUNT = 10**12


def cursor_range(
  cursor: int, capacity: int, stack_size: int, update_horizon: int
) -> npt.NDArray[np.int64]:
  """Returns the rows that the write cursor makes unsampleable.

  For horizon N and stacks of K: cursor - N, ..., cursor + K - 1 modulo the
  capacity. With cursor 0, capacity 10, K = 4 and N = 1 it is [9, 0, 1, 2, 3].
  """
  offsets = np.arange(-update_horizon, stack_size, dtype=np.int64)
  return (cursor + offsets) % capacity


def returns_to_go(
  rewards: npt.NDArray[np.float32],
  terminals: npt.NDArray[np.uint8],
  gamma: float,
  is_cut: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
  """Returns the discounted sum of rewards from each row to its episode's end.

  G_t = r_t + gamma * (1 - terminal_t) * G_{t+1} of rows in time order, NaN
  where the episode does not end within them, or was cut. With rewards [1, 0, 2,
  5], terminals [0, 0, 1, 0] and gamma 0.5 it is [1.5, 1, 2, NaN]. Padding rows,
  which are never valid, get a discounted copy of their episode's return.
  """
  # Imported here because it takes a second and few runs need it.
  from scipy import signal

  returns = np.full(rewards.shape, np.nan, dtype=np.float32)
  start = 0
  for end in np.flatnonzero(terminals) + 1:
    if is_cut is None or not is_cut[end - 1]:
      backwards = rewards[start:end][::-1].astype(np.float64)
      summed = signal.lfilter([1.0], [1.0, -gamma], backwards)
      returns[start:end] = summed[::-1]
    start = end
  return returns


@dataclasses.dataclass(frozen=True)
class Segment:
  """The rows that one file of the log gave to the store."""

  suffix: int
  num_rows: int  # From the file's row 0 on, or what drawn transitions need.
  num_rows_in_source: int  # The length of the file's arrays.
  add_count: int
  invalid_range: Sequence[int]  # Rows of the file, as it says.
  first_row: int = 0  # Of the store.
  # Whether the file was read whole, with its checksum.
  read_to_end: bool = True
  num_drawn: int | None = None  # Of a draw: all that can be sampled.
  # Rows marked as terminals although their episodes were cut by time.
  cut_rows: Sequence[int] = ()

  def record(self) -> dict[str, Any]:
    """Returns its fields as manifests have them, without what is not known."""
    optional = ('num_drawn', 'cut_rows')
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if v or k not in optional}

  @property
  def is_whole(self) -> bool:
    """Whether it holds all rows that the file's buffer held."""
    num_held = min(self.num_rows_in_source, self.add_count)
    return self.num_drawn is None and self.num_rows == num_held

  @property
  def is_circular(self) -> bool:
    """Whether the oldest row follows the newest: a full buffer, used whole."""
    return self.is_whole and self.num_rows == self.num_rows_in_source

  @property
  def cursor(self) -> int:
    """The file's row that its buffer would have written next."""
    return self.add_count % self.num_rows_in_source

  def rows_in_time(self) -> npt.NDArray[np.int64]:
    """Returns its rows of the store, oldest first, int64 [num_rows]."""
    rows = np.arange(self.num_rows, dtype=np.int64)
    if self.is_circular:
      rows = np.roll(rows, -self.cursor)
    return self.first_row + rows

  def valid_rows(
    self, terminals: npt.NDArray[np.uint8], stack_size: int, update_horizon: int
  ) -> npt.NDArray[np.int64]:
    """Returns the rows of the store where a transition may start.

    A full buffer is circular, and stacks wrap around its end; one that is not,
    or of which a prefix is used, was stopped after its last row.
    """
    size = self.num_rows_in_source
    if size < stack_size + update_horizon:
      return np.zeros(0, np.int64)  # Dopamine refuses to make such a buffer.
    valid = np.ones(self.num_rows, np.bool_)
    if not self.is_circular:
      valid[max(self.num_rows - update_horizon, 0) :] = False
      valid[: stack_size - 1] = False
    cut = np.array(self.cut_rows, np.int64)
    invalid = [
      np.array(self.invalid_range, np.int64),
      cursor_range(self.cursor, size, stack_size, update_horizon),
      *(cut - step for step in range(update_horizon)),
    ]
    rows = np.concatenate(invalid)
    valid[rows[(rows >= 0) & (rows < self.num_rows)]] = False
    # A terminal may stand in a stack only in its last frame.
    no_end = terminals == 0
    for age in range(1, stack_size):
      valid &= np.roll(no_end, age)
    return self.first_row + np.flatnonzero(valid)

  def is_followed_by(self, other: 'Segment') -> bool:
    """Whether `other` starts in time where this segment ends.

    A full file covers the rows of the run from add_count - num_rows to
    add_count. The count of a short last file starts again at 0; it follows a
    file that ended with its cursor back at 0.
    """
    is_next = other.suffix == self.suffix + 1
    if not (is_next and self.is_whole and other.is_whole):
      return False
    if other.add_count - other.num_rows == self.add_count:
      return True
    is_short = other.num_rows < self.num_rows
    return is_short and other.add_count == other.num_rows and self.cursor == 0

  def check_counts(self, name: object) -> None:
    """Raises a DataError that calls it `name` if its counts cannot be."""
    if not 0 <= self.add_count <= _MAX_ADD_COUNT:
      raise self._damaged(name, 'no run adds so many rows')
    if not 0 <= self.num_rows <= min(self.num_rows_in_source, self.add_count):
      raise self._damaged(name, f'{self.num_rows:,} rows are used')

  def check_cursor(self, name: object) -> None:
    """Raises a DataError if invalid_range does not lie around the cursor.

    Dopamine saves the N rows before add_count and the K from there on.
    """
    invalid, count = set(self.invalid_range), len(self.invalid_range)
    if not any(invalid):  # A buffer that was never written to.
      return
    # In a buffer that is not full, no row lies before the first.
    for horizon in range(1, min(count, self.add_count + 1)):
      around = cursor_range(
        self.cursor, self.num_rows_in_source, count - horizon, horizon
      )
      if invalid == set(around.tolist()):
        return
    raise self._damaged(name, f'invalid_range is {list(self.invalid_range)}')

  def _damaged(self, name: object, contradiction: str) -> errors.DataError:
    return errors.DataError(
      f'{name}: add_count_ckpt.{self.suffix} is damaged: it says '
      f'{self.add_count:,} of {self.num_rows_in_source:,} rows, but '
      f'{contradiction}. Fetch add_count and invalid_range of suffix '
      f'{self.suffix} again.'
    )


def episode_returns(
  segments: Sequence[Segment],
  rewards: npt.NDArray[np.float32],
  terminals: npt.NDArray[np.uint8],
  gamma: float,
) -> npt.NDArray[np.float32]:
  """Returns the `returns_to_go` of the rows of segments, in the rows' order.

  Episodes continue across whole files that follow each other in time.
  """
  ends, is_cut = terminals.copy(), np.zeros(len(rewards), np.bool_)
  order = [segment.rows_in_time() for segment in segments]
  for number, segment in enumerate(segments):
    cut = np.array(segment.cut_rows, np.int64)
    is_cut[segment.first_row + cut[cut < segment.num_rows]] = True
    following = segments[number + 1 : number + 2]
    last = order[number][-1]
    if not any(map(segment.is_followed_by, following)) and not ends[last]:
      ends[last], is_cut[last] = 1, True
  rows = np.concatenate(order)
  returns = np.empty(len(rewards), dtype=np.float32)
  returns[rows] = returns_to_go(rewards[rows], ends[rows], gamma, is_cut[rows])
  return returns
