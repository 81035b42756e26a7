import pathlib

import numpy as np
import pytest
from rliable import library, metrics
from scipy import stats

from batch_rl_dr3.reporting import reference, run_reader, statistics
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.runs import results

_RESULTS = pathlib.Path(__file__).parents[2] / 'results' / 'minatar'

_SCORES = np.random.default_rng(0).normal(1, 0.5, (5, 17))


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


def test_a_comparison_of_one_game_is_welchs_test():
  rng = np.random.default_rng(0)
  scores, others = rng.normal(1, 1, (4, 1)), rng.normal(0, 3, (6, 1))
  found = statistics.compare(scores, others)
  expected = stats.ttest_ind(scores, others, equal_var=False)
  ends = expected.confidence_interval(0.95)
  assert found.value == pytest.approx(scores.mean() - others.mean())
  assert (found.low, found.high) == pytest.approx(
    (ends.low.item(), ends.high.item())
  )


def test_a_comparison_with_zero_is_students_test():
  scores = np.random.default_rng(0).normal(1, 1, (5, 1))
  found = statistics.compare(scores)
  ends = stats.ttest_1samp(scores[:, 0], 0).confidence_interval(0.95)
  assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_games_are_averaged_and_their_variances_added():
  # Differences 2 and 4: mean 3. Variances of the means: 1 / 3 and 4 / 3 on one
  # side, none on the other, over 2 games squared: (1 / 3 + 4 / 3) / 4 = 5 / 12.
  scores = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
  found = statistics.compare(scores, np.zeros((3, 2)))
  # Satterthwaite: (5 / 12)^2 / ((1 / 12)^2 / 2 + (4 / 12)^2 / 2) = 50 / 17.
  half = stats.t.ppf(0.975, 50 / 17) * np.sqrt(5 / 12)
  assert (found.value, found.low, found.high) == pytest.approx(
    (3, 3 - half, 3 + half)
  )


def test_the_permutation_test_is_that_of_scipy():
  rng = np.random.default_rng(0)
  scores, others = rng.normal(0.8, 1, (4, 1)), rng.normal(0, 1, (4, 1))
  exact = stats.permutation_test(
    (scores[:, 0], others[:, 0]), lambda a, b: a.mean() - b.mean()
  )
  found = statistics.compare(scores, others, num_permutations=50_000)
  assert found.p_value == pytest.approx(exact.pvalue, abs=0.01)
  one = stats.permutation_test(
    (scores[:, 0],), np.mean, permutation_type='samples'
  )
  found = statistics.compare(scores, num_permutations=50_000)
  assert found.p_value == pytest.approx(one.pvalue, abs=0.01)


def test_runs_change_places_within_their_game_alone():
  # Two games 100 points apart: across games the difference of 1 would drown.
  scores = np.array([[1.0, 101.0]] * 4) + np.arange(4)[:, np.newaxis] / 10
  assert statistics.compare(scores + 1, scores).p_value < 0.001


@pytest.mark.parametrize(('effect', 'count'), [(1.0, 17), (0.8, 26), (0.5, 64)])
def test_seeds_for_a_power_of_80_percent_are_cohens(effect, count):
  # Two groups of standard deviation 1: Cohen (1988), table 2.4.1, alpha 5%.
  group = np.array([[-1.0], [1.0]]) / np.sqrt(2)
  assert statistics.num_seeds_for_power(group, group, effect) == count
  # Four games alike have a fourth of the variance.
  games = np.tile(group, 4)
  found = statistics.num_seeds_for_power(games, games, effect / 2)
  assert count - 2 <= found <= count


def test_holm_adjusts_for_the_number_of_tests():
  # Sorted 0.01, 0.02, 0.04: x 3, x 2, x 1, and never falling.
  assert statistics.holm([0.04, 0.01, np.nan, 0.02]) == pytest.approx(
    [0.04, 0.03, np.nan, 0.04], nan_ok=True
  )


@pytest.mark.parametrize('name', [study_lib.AVERAGE, study_lib.FINAL])
def test_verdicts_hold_in_studies_without_an_effect(name, tmp_path):
  """Null studies drawn from the kept runs: 3 + 3 runs of each of 5 games.

  Both methods of a study have the same distribution: a game's spread, and
  deviations drawn from those of all 60 kept runs, in units of that spread.
  """
  chosen = study_lib.PRESETS['dr3_minatar']
  view = results.RunGlobs([str(_RESULTS)], tmp_path, run_reader.CONTENTS)
  view.refresh()
  study = study_lib.select_runs(chosen, run_reader.load(view.patterns))
  scale = reference.Normalisation()
  residuals = []
  for method in chosen.methods:
    cell = study.scores('10pct', method)
    scores = 100 * scale(study_lib.measure(cell, name), cell.games)
    # Three runs deviate from their own mean by sqrt(2 / 3) of their spread.
    residuals.append((scores - scores.mean(axis=0)) * np.sqrt(3 / 2))
  spread = np.std(residuals, axis=(0, 1))
  pool = (np.array(residuals) / spread).ravel()
  rng = np.random.default_rng(0)
  covered = supported = 0
  num_studies = 1_000
  for _ in range(num_studies):
    drawn = spread * rng.choice(pool, (2, 3, len(spread)))
    found = statistics.compare(*drawn, num_permutations=199)
    covered += found.low <= 0 <= found.high
    supported += found.low > 0 and found.p_value <= 0.05
  assert covered >= 0.92 * num_studies
  assert supported <= 0.05 * num_studies
