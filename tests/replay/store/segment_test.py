import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from batch_rl_dr3.config import dopamine_compat
from batch_rl_dr3.replay.store import subset


@pytest.mark.parametrize('cursor', [0, 1, 3, 9])
@pytest.mark.parametrize('update_horizon', [1, 3])
def test_cursor_range_equals_dopamine(cursor, update_horizon):
  np.testing.assert_array_equal(
    subset.cursor_range(cursor, 10, 4, update_horizon),
    dopamine_compat.invalid_range(cursor, 10, 4, update_horizon),
  )


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  capacity=st.integers(8, 40),
  add_count=st.integers(0, 100),
  stack_size=st.integers(1, 4),
  update_horizon=st.sampled_from([1, 3]),
  other_range=st.none() | st.lists(st.integers(-2, 60), max_size=5),
  seed=st.integers(0, 1000),
)
def test_valid_rows_equal_dopamine(
  capacity, add_count, stack_size, update_horizon, other_range, seed
):
  buffer = dopamine_compat.OutOfGraphReplayBuffer(
    (1,), stack_size, capacity, 2, update_horizon
  )
  rng = np.random.default_rng(seed)
  terminals = (rng.random(capacity) < 0.1).astype(np.uint8)
  buffer._store['terminal'] = terminals
  buffer.add_count = np.array(add_count)
  own = subset.cursor_range(
    add_count % capacity, capacity, stack_size, update_horizon
  )
  # What a file says comes on top of what the cursor says.
  said = other_range or []
  buffer.invalid_range = np.array([*said, *own], np.int64)
  num_rows = min(add_count, capacity)
  segment = _segment(num_rows, capacity, add_count, said, 100)
  valid = segment.valid_rows(terminals[:num_rows], stack_size, update_horizon)
  expected = [i for i in range(capacity) if buffer.is_valid_transition(i)]
  assert (valid - 100).tolist() == expected


def _segment(num_rows, size, add_count, invalid_range=(), first_row=0):
  return subset.Segment(0, num_rows, size, add_count, invalid_range, first_row)


def test_a_prefix_is_a_buffer_that_was_stopped():
  terminals = np.zeros(10, np.uint8)
  terminals[5] = 1
  # Rows 0-2 lack a full stack, 6-8 have the terminal within theirs, and row 9
  # has no next row. The cursor of the whole file is at row 0: 11, 0, 1, 2, 3.
  valid = _segment(10, 12, 12).valid_rows(terminals, 4, 1)
  assert valid.tolist() == [4, 5]
  # At row 11 it is around the rows 10, 11, 0, 1, 2.
  assert _segment(10, 12, 11).valid_rows(terminals, 4, 1).tolist() == [3, 4, 5]


def test_a_file_shorter_than_a_transition_has_no_valid_row():
  assert not len(_segment(4, 4, 4).valid_rows(np.zeros(4, np.uint8), 4, 1))


def test_returns_to_go():
  # Second episode: 2 + 0.5 * (0 + 0.5 * 5) = 3.25; the third has no end.
  returns = subset.returns_to_go(
    np.array([1, 0, 2, 2, 0, 5, 7], np.float32),
    np.array([0, 0, 1, 0, 0, 1, 0], np.uint8),
    gamma=0.5,
  )
  np.testing.assert_array_equal(
    returns, np.array([1.5, 1, 2, 3.25, 2.5, 5, np.nan], np.float32)
  )
  assert returns.dtype == np.float32


def test_returns_to_go_without_discount_and_without_rows():
  rewards = np.ones(5, np.float32)
  terminals = np.array([0, 0, 0, 0, 1], np.uint8)
  np.testing.assert_array_equal(
    subset.returns_to_go(rewards, terminals, 1.0), [5, 4, 3, 2, 1]
  )
  assert subset.returns_to_go(rewards[:0], terminals[:0], 0.9).shape == (0,)
