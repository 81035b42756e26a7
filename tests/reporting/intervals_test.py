import numpy as np
import pytest
from rliable import library, metrics

from batch_rl_dr3.reporting import statistics

_SCORES = np.random.default_rng(0).normal(1, 0.5, (5, 17))


def _directly(scores, statistic, seed, reps):
  np.random.seed(seed)
  points, ends = library.get_interval_estimates(
    {'': scores}, statistic, reps=reps
  )
  return points[''], ends['']


@pytest.mark.parametrize('seed', [0, 7])
def test_an_interval_is_that_of_rliable(seed):
  found = statistics.Bootstrap(200, seed)(statistics.iqm, _SCORES)
  point, ends = _directly(
    _SCORES, lambda x: np.array([metrics.aggregate_iqm(x)]), seed, 200
  )
  np.testing.assert_allclose(found.value, point, rtol=1e-12)
  np.testing.assert_allclose([found.low, found.high], ends, rtol=1e-12)


def test_an_interval_of_two_methods_is_that_of_rliable():
  others = _SCORES[:4] + 0.1
  found = statistics.Bootstrap(200)(
    statistics.probability_of_improvement, _SCORES, others
  )
  point, ends = _directly(
    [_SCORES, others],
    lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
    0,
    200,
  )
  np.testing.assert_allclose(found.value, point, rtol=1e-12)
  np.testing.assert_allclose([found.low, found.high], ends, rtol=1e-12)


def test_the_seed_is_all_that_decides():
  def interval(seed):
    found = statistics.Bootstrap(100, seed)(statistics.iqm, _SCORES)
    return found.low.item(), found.high.item()

  np.random.seed(3)
  first = interval(0)
  np.random.seed(4)
  np.random.random(5)
  assert interval(0) == first
  assert interval(1) != first


def test_the_global_generator_is_left_as_it_was():
  np.random.seed(3)
  expected = np.random.random(3)
  np.random.seed(3)
  statistics.Bootstrap(100)(statistics.iqm, _SCORES)
  np.testing.assert_array_equal(np.random.random(3), expected)


def test_the_generator_is_put_back_after_an_error():
  def fail(_):
    raise ZeroDivisionError

  np.random.seed(3)
  expected = np.random.random(3)
  np.random.seed(3)
  with pytest.raises(ZeroDivisionError):
    statistics.Bootstrap(100)(fail, _SCORES)
  np.testing.assert_array_equal(np.random.random(3), expected)


def test_a_run_is_drawn_whole():
  # Second and first entry of a run agree, so they do in every resample.
  pairs = np.stack([_SCORES, _SCORES], axis=-1)

  def differ(drawn):
    return np.array([np.abs(drawn[..., 0] - drawn[..., 1]).max()])

  found = statistics.Bootstrap(100)(differ, pairs)
  assert (found.value, found.low, found.high) == (0, 0, 0)


def test_games_are_not_resampled():
  # Runs of a game are equal, so there is nothing to draw.
  scores = np.tile(np.arange(6.0), (5, 1))
  found = statistics.Bootstrap(100)(statistics.mean, scores)
  assert (found.value, found.low, found.high) == (2.5, 2.5, 2.5)


@pytest.mark.slow
def test_intervals_cover_the_truth_at_their_rate():
  # 200 studies of 5 runs x 17 games with a mean of 0. A bootstrap of 5 runs
  # is too narrow by sqrt(4 / 5), so that 95% intervals of a normal mean hold
  # it in 2 * Phi(1.96 * 0.894) - 1 = 92% of cases; the standard error of that
  # over 200 is 1.9%. Accepted: three of them to both sides.
  rng = np.random.default_rng(0)
  bootstrap = statistics.Bootstrap(1_000)
  covered = 0
  for _ in range(200):
    found = bootstrap(statistics.iqm, rng.normal(size=(5, 17)))
    covered += bool(found.low <= 0 <= found.high)
  assert 0.92 - 0.06 <= covered / 200 <= 0.92 + 0.06
