import numpy as np
import pytest

from batch_rl_dr3.analysis import returns


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    # A six-digit score that wrapped: 16,500 - 1,000,000.
    ([21_000.0, -983_500.0, 19_500.0], [False, True, False]),
    # A four-digit one: 700 - 10,000, where the others are positive.
    ([650.0, -9_300.0, 800.0], [False, True, False]),
    ([-983_500.0], [True]),
    # Skiing's, Pong's and Private Eye's own.
    ([-30_000.0, -17_098.0, -9_000.0], [False, False, False]),
    ([-21.0, -20.0], [False, False]),
    ([100.0, -1_000.0, 25.0], [False, False, False]),
    ([], []),
  ],
)
def test_only_what_no_game_can_give_is_a_wrapped_score(values, expected):
  np.testing.assert_array_equal(returns.is_wrapped(values), expected)
