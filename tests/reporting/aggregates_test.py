import numpy as np
import pytest
from rliable import metrics

from batch_rl_dr3.reporting import statistics


@pytest.mark.parametrize('shape', [(5, 17), (1, 1), (2, 3), (3, 4), (1, 5)])
@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    (statistics.iqm, metrics.aggregate_iqm),
    (statistics.median, metrics.aggregate_median),
    (statistics.mean, metrics.aggregate_mean),
    (statistics.optimality_gap, metrics.aggregate_optimality_gap),
  ],
)
def test_statistics_are_those_of_rliable(shape, ours, theirs):
  scores = np.random.default_rng(0).normal(0.5, 1, (*shape, 3))
  expected = [theirs(scores[..., step]) for step in range(3)]
  np.testing.assert_allclose(ours(scores), expected, rtol=1e-12)
  np.testing.assert_allclose(ours(scores[..., 0]), expected[0], rtol=1e-12)


def test_iqm_by_hand():
  # Of 8 scores the lowest and the highest 2 go: (3 + 4 + 5 + 9) / 4.
  scores = np.array([[1.0, 90, 3, 4], [5, 70, 2, 9]])
  assert statistics.iqm(scores) == 5.25


def test_probability_of_improvement_is_that_of_rliable():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 4, (5, 6)).astype(float)
  y = rng.integers(0, 4, (4, 6)).astype(float)
  np.testing.assert_allclose(
    statistics.probability_of_improvement(x, y),
    metrics.probability_of_improvement(x, y),
    rtol=1e-12,
  )


def test_probability_of_improvement_by_hand():
  # Game 1: 3 beats 1 and 2, 1 ties with 1 and loses: 2.5 of 4. Game 2: 0.
  x = np.array([[3.0, 0.0], [1.0, 0.0]])
  y = np.array([[1.0, 1.0], [2.0, 1.0]])
  assert statistics.probability_of_improvement(x, y) == 2.5 / 8


def test_performance_profile_by_hand():
  scores = np.array([[0.0, 0.5], [1.0, 2.0]])
  profile = statistics.performance_profile(scores, np.array([-1.0, 0.5, 2.0]))
  np.testing.assert_array_equal(profile, [1.0, 0.5, 0.0])


def test_area_lost_by_hand():
  # The best is 4 at the second of four steps; after it 1 and 3 are lost.
  curves = np.array([[[2.0, 4.0, 3.0, 1.0], [1.0, 2.0, 3.0, 4.0]]])
  np.testing.assert_array_equal(statistics.area_lost(curves), [[1.0, 0.0]])
