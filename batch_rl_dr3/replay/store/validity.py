"""Which rows of a replay file can be sampled, and the returns that follow them.

Both functions work on whole arrays. The first equals, index for index, the
`is_valid_transition` of Dopamine's `OutOfGraphReplayBuffer`
(dopamine/tf/replay_memory/circular_replay_buffer.py), which answers for one
index at a time.
"""

import numpy as np
import numpy.typing as npt


def cursor_range(
  cursor: int, capacity: int, stack_size: int, update_horizon: int
) -> npt.NDArray[np.int64]:
  """Returns the rows that are not sampleable because of the write cursor.

  They are cursor - N, ..., cursor + K - 1 modulo the capacity, for update
  horizon N and stack size K: the transitions that would run past the newest
  row, and the stacks that would mix the newest and the oldest rows. With
  cursor 0, capacity 10, K = 4 and N = 1 they are [9, 0, 1, 2, 3].

  The same as Dopamine's `invalid_range`, without importing TensorFlow.

  Args:
    cursor: int, the row that would be written next.
    capacity: int, the number of rows of the circular buffer.
    stack_size: int, frames in a state.
    update_horizon: int, steps in a transition.

  Returns:
    int64 [update_horizon + stack_size], row numbers.
  """
  offsets = np.arange(-update_horizon, stack_size, dtype=np.int64)
  return (cursor + offsets) % capacity


def valid_indices(
  terminals: npt.NDArray[np.uint8],
  add_count: int,
  invalid_range: npt.NDArray[np.int64],
  stack_size: int,
  update_horizon: int,
  capacity: int | None = None,
) -> npt.NDArray[np.bool_]:
  """Returns, for each row, whether a transition may start there.

  A buffer is full when it has been given at least `capacity` rows; it is then
  circular, and stacks wrap around its end. Otherwise it holds rows
  0 ... add_count - 1, which must all be present in `terminals`.

  Args:
    terminals: uint8 [num_rows], 1 where an episode ends.
    add_count: int, the number of rows ever added to the buffer.
    invalid_range: int64 [any], rows that the file itself declares invalid.
    stack_size: int, frames in a state.
    update_horizon: int, steps in a transition.
    capacity: int, the rows of the buffer that wrote the file; num_rows if
      None. Larger than num_rows when only a prefix of the file is used.

  Returns:
    bool [num_rows].

  Raises:
    ValueError: if `terminals` lacks rows that the buffer holds.
  """
  num_rows = terminals.shape[0]
  capacity = num_rows if capacity is None else capacity
  if num_rows < min(add_count, capacity):
    raise ValueError(
      f'{num_rows} rows given, but the buffer holds {min(add_count, capacity)}.'
    )
  valid = np.ones(num_rows, dtype=np.bool_)
  if capacity < stack_size + update_horizon:
    return ~valid  # Dopamine refuses to make such a buffer.
  if add_count < capacity:
    valid[max(add_count - update_horizon, 0) :] = False
    valid[: stack_size - 1] = False
  inside = (invalid_range >= 0) & (invalid_range < num_rows)
  valid[invalid_range[inside]] = False
  # A terminal may stand in a stack only in its last frame.
  no_end = terminals == 0
  for age in range(1, stack_size):
    valid &= np.roll(no_end, age)
  return valid


def returns_to_go(
  rewards: npt.NDArray[np.float32],
  terminals: npt.NDArray[np.uint8],
  gamma: float,
  is_cut: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
  """Returns the discounted sum of rewards from each row to its episode's end.

  G_t = r_t + gamma * (1 - terminal_t) * G_{t+1}. With rewards [1, 0, 2, 5],
  terminals [0, 0, 1, 0] and gamma 0.5 it is [1.5, 1, 2, NaN]. Padding rows
  carry no reward and stand before an episode's first row, so they get a
  discounted copy of its return; they are never valid rows.

  Args:
    rewards: float32 [num_rows], in time order.
    terminals: uint8 [num_rows], 1 where an episode ends.
    gamma: float, the discount of one step.
    is_cut: bool [num_rows], terminals that are none: the episode was cut there.

  Returns:
    float32 [num_rows]; NaN where the episode does not end within the data.
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
