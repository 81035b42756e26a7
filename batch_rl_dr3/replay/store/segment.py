"""The rows of one file of a log, as they lie in the local store."""

from collections.abc import Sequence
import dataclasses

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.replay.store import validity


@dataclasses.dataclass(frozen=True)
class Segment:
  """The rows that one file of the log gave to the store.

  Attributes:
    suffix: int, the file's number.
    first_row: int, where its rows start in the store.
    num_rows: int, how many rows it gave: from its own row 0 on, or, of a
      uniform subset, those that the transitions drawn from it need.
    num_rows_in_source: int, the length of the file's arrays.
    add_count: int, as the file says.
    invalid_range: ints, as the file says, rows of the file.
    read_to_end: whether the file was read whole, checksum included.
    num_drawn: int, transitions drawn from it for a uniform subset, which are
      then all that can be sampled; None of another subset.
    cut_rows: ints, rows of the file that are marked as terminals although
      their episodes were cut by time.
  """

  suffix: int
  first_row: int
  num_rows: int
  num_rows_in_source: int
  add_count: int
  invalid_range: Sequence[int]
  read_to_end: bool
  num_drawn: int | None = None
  cut_rows: Sequence[int] = ()

  @property
  def is_whole(self) -> bool:
    """Whether it holds all rows that the file's buffer held."""
    if self.num_drawn is not None:
      return False
    return self.num_rows == min(self.num_rows_in_source, self.add_count)

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
    self,
    terminals: npt.NDArray[np.uint8],
    stack_size: int,
    update_horizon: int,
  ) -> npt.NDArray[np.int64]:
    """Returns the rows of the store where a transition may start.

    Args:
      terminals: uint8 [num_rows], this segment's.
      stack_size: int, frames in a state.
      update_horizon: int, steps in a transition.
    """
    around_cursor = validity.cursor_range(
      self.cursor, self.num_rows_in_source, stack_size, update_horizon
    )
    cut = np.array(self.cut_rows, np.int64)
    past_cut = (cut[:, np.newaxis] - np.arange(update_horizon)).reshape(-1)
    valid = validity.valid_indices(
      terminals,
      self.add_count if self.is_circular else self.num_rows,
      np.concatenate(
        [np.array(self.invalid_range, np.int64), around_cursor, past_cut]
      ),
      stack_size,
      update_horizon,
      capacity=self.num_rows_in_source,
    )
    return self.first_row + np.flatnonzero(valid)

  def is_followed_by(self, other: 'Segment') -> bool:
    """Whether `other` starts in time where this segment ends.

    Their add_counts tell: a full file covers the rows of the run from
    add_count - num_rows to add_count. The count of a short last file starts
    again at 0; it follows a file that ended with its cursor back at 0.
    """
    if other.suffix != self.suffix + 1:
      return False
    if not (self.is_whole and other.is_whole):
      return False
    if other.add_count - other.num_rows == self.add_count:
      return True
    is_short = other.num_rows < self.num_rows
    return is_short and other.add_count == other.num_rows and self.cursor == 0
