import math

import numpy as np

from batch_rl_dr3.reporting import run_reader, statistics

SETTING = run_reader.Setting('minatar', 'breakout', '10pct')


def _rows(values):
  return [{'gradient_steps': s, 'mean_q': v} for s, v in values.items()]


def _curve(tmp_path, **kwargs):
  collection = run_reader.load([str(tmp_path / 'runs' / '*')])
  return collection.curve(SETTING, 'rem', run_reader.MEAN_Q, **kwargs)


def test_a_curve_has_the_steps_that_every_seed_has(make_run, tmp_path):
  make_run('rem', name='a', seed=0, metrics=_rows({100: 1, 200: 2, 300: 9}))
  make_run('rem', name='b', seed=1, metrics=_rows({100: 3, 200: 6}))
  curve = _curve(tmp_path)
  np.testing.assert_array_equal(curve.steps, [100, 200])
  np.testing.assert_array_equal(curve.values, [[1, 2], [3, 6]])
  np.testing.assert_array_equal(curve.mean, [2, 4])
  assert (curve.num_seeds, curve.last, curve.last_step) == (2, 4.0, 200)


def test_a_seed_without_any_value_is_no_seed_of_the_curve(make_run, tmp_path):
  make_run('rem', name='a', seed=0, metrics=_rows({100: 1}))
  make_run('rem', name='b', seed=1, metrics=[])
  curve = _curve(tmp_path)
  assert curve.replicates == (('1', '0'),)


def test_only_the_replicates_asked_for(make_run, tmp_path):
  make_run('rem', name='a', seed=0, metrics=_rows({100: 1}))
  make_run('rem', name='b', seed=1, metrics=_rows({100: 3}))
  assert _curve(tmp_path, replicates={('1', '1')}).last == 3.0


def test_what_is_not_finite_is_a_gap(make_run, tmp_path):
  make_run('rem', metrics=_rows({100: 1, 200: 'nan', 300: 'inf', 400: 2}))
  curve = _curve(tmp_path)
  np.testing.assert_array_equal(curve.steps, [100, 200, 300, 400])
  np.testing.assert_array_equal(curve.mean, [1, np.nan, np.nan, 2])


def test_no_runs_no_curve(make_run, tmp_path):
  make_run('cql')
  curve = _curve(tmp_path)
  assert (curve.steps.size, curve.num_seeds, curve.last_step) == (0, 0, None)
  assert math.isnan(curve.last)


def test_last_common_step():
  a = run_reader.Curve(np.array([1, 2, 4]), np.array([[5.0, 6.0, 7.0]]), ())
  b = run_reader.Curve(np.array([2, 3]), np.array([[8.0, 9.0]]), ())
  c = run_reader.Curve(np.array([9]), np.array([[0.0]]), ())
  assert run_reader.at_last_common_step(a, b) == (2, 6.0, 8.0)
  assert run_reader.at_last_common_step(a, c) is None


def test_one_seed_has_no_interval():
  assert statistics.mean_interval(np.array([1.0])) is None
  assert statistics.mean_interval(np.array([1.0, np.nan])) is None


def test_interval_of_equal_seeds_is_a_point():
  assert statistics.mean_interval(np.array([2.0, 2.0])) == (2.0, 2.0)


def test_interval_of_two_seeds_reaches_from_one_to_the_other():
  # A quarter of the resamples is (0, 0), a quarter (1, 1): more than 2.5%.
  assert statistics.mean_interval(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_interval_is_reproducible_and_holds_the_mean():
  values = np.arange(10.0)
  low, high = statistics.mean_interval(values)
  assert statistics.mean_interval(values) == (low, high)
  # Mean 4.5, standard error of the bootstrap 2.87 / sqrt(10) = 0.908;
  # 4.5 -+ 1.96 * 0.908 = 2.72 and 6.28.
  np.testing.assert_allclose([low, high], [2.72, 6.28], atol=0.15)
