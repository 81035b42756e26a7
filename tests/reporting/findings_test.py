import dataclasses

import numpy as np
import pytest

from batch_rl_dr3.reporting import statistics, study_tables
from batch_rl_dr3.reporting import study as study_lib


@pytest.fixture
def find(make_collection, in_points, small_study):
  """Makes findings of normalised scores and metrics by method."""

  def find(normalised, metrics, chosen=small_study):
    runs = []
    for method, values in normalised.items():
      made = make_collection(
        {('5pct', method): in_points(values, chosen.games)},
        chosen,
        metrics[method],
      )
      runs += made.runs
    collection = dataclasses.replace(made, runs=tuple(runs))
    found = study_tables.findings(
      study_lib.select_runs(
        chosen, collection, bootstrap=statistics.Bootstrap(100, 0)
      )
    )
    return found, {
      (row['method'], row['claim']): row
      for row in found.frame.to_dict('records')
    }

  return find


def _curves(levels, num_runs=3, noise=0.0):
  """Returns float64 [runs, 4 games, 3 steps] at three levels."""
  rng = np.random.default_rng(0)
  values = np.tile(np.array(levels, float), (num_runs, 4, 1))
  return values * np.exp(noise * rng.normal(size=values.shape))


DOT, RANK = 'feature_dot_product', 'effective_rank'


def test_numbers_by_hand(find):
  _, rows = find(
    {'rem': _curves([0.2, 0.8, 0.4]), 'rem_dr3': _curves([0.3, 0.5, 0.7])},
    {
      'rem': {DOT: _curves([2, 5, 8]), RANK: _curves([100, 90, 50])},
      'rem_dr3': {DOT: _curves([2, 1, 0.5]), RANK: _curves([100, 100, 75])},
    },
  )
  found = {claim: row for (_, claim), row in rows.items()}
  # The end over the first step beyond 5% of training, which is the first here.
  expected = {
    'features co-adapt: their dot product grows in training': 8 / 2,
    'the effective rank falls in training': 50 / 100,
    'DR3 lowers the dot product': 0.5 / 8,
    'DR3 keeps the effective rank higher': 75 / 50,
    'DR3 raises the average score': 100 * (0.5 - 1.4 / 3),
    'DR3 raises the final score': 100 * (0.7 - 0.4),
    # 0.8 - 0.4 at one of three steps; nothing.
    'with DR3 less is lost after the best evaluation': 100 * (0 - 0.4 / 3),
  }
  assert set(found) == set(expected)
  for claim, number in expected.items():
    row = found[claim]
    assert row['number'] == pytest.approx(number), claim
    # Runs that are all the same leave no doubt.
    assert row['low'] == pytest.approx(number)
    assert row['high'] == pytest.approx(number)
    assert row['verdict'] == 'supported', claim
    assert (row['games'], row['runs']) == (4, 3)


def test_a_claim_can_be_contradicted_and_left_open(find):
  metrics = {
    'rem': {DOT: _curves([2, 2, 1], 3, noise=0.01), RANK: _curves([9] * 3, 3)},
    'rem_dr3': {DOT: _curves([2, 2, 2], 3, 0.01), RANK: _curves([9] * 3, 3)},
  }
  _, rows = find(
    {
      'rem': _curves([0.5] * 3, 3, noise=0.5),
      'rem_dr3': _curves([0.5] * 3, 3, noise=0.5)[::-1],
    },
    metrics,
  )
  verdicts = {claim: row['verdict'] for (_, claim), row in rows.items()}
  assert (
    verdicts['features co-adapt: their dot product grows in training']
    == verdicts['DR3 lowers the dot product']
    == 'contradicted'
  )
  row = rows['rem_dr3', 'DR3 raises the average score']
  assert row['low'] < 0 < row['high']
  assert row['verdict'] == 'open'
  # No difference at all is no support.
  assert verdicts['DR3 keeps the effective rank higher'] == 'equivalent'


@pytest.mark.parametrize('num_runs', [1, 2])
def test_fewer_than_three_runs_have_no_verdict(find, num_runs):
  _, rows = find(
    {
      'rem': _curves([0.5] * 3, num_runs),
      'rem_dr3': _curves([1] * 3, num_runs),
    },
    {
      name: {
        DOT: _curves([1, 2, 9], num_runs),
        RANK: _curves([9] * 3, num_runs),
      }
      for name in ('rem', 'rem_dr3')
    },
  )
  assert {row['verdict'] for row in rows.values()} == {'no verdict'}


def test_a_small_interval_around_no_effect_is_equivalent(find):
  # 49, 50 and 51 on a scale of 100, with DR3 and without.
  runs = np.broadcast_to([[[0.49]], [[0.5]], [[0.51]]], (3, 4, 3))
  returns = {'rem': runs, 'rem_dr3': runs}
  _, rows = find(
    returns,
    {name: {DOT: _curves([1] * 3), RANK: _curves([9] * 3)} for name in returns},
  )
  assert (
    rows['rem_dr3', 'DR3 raises the final score']['verdict'] == 'equivalent'
  )
  assert (
    rows['rem_dr3', 'DR3 lowers the dot product']['verdict'] == 'equivalent'
  )


def test_a_growth_that_its_start_turns_over_has_no_verdict(find, small_study):
  # From 5% of 100 steps on it doubles; from the first measurement it halves.
  chosen = dataclasses.replace(small_study, datasets={'5pct': 100})
  levels = np.full(100, 1.0)
  levels[0], levels[-1] = 4.0, 2.0
  curves = _curves(levels)
  _, rows = find(
    {'rem': curves}, {'rem': {DOT: curves, RANK: curves[..., ::-1]}}, chosen
  )
  row = rows['rem', 'features co-adapt: their dot product grows in training']
  assert (row['number'], row['start_number']) == pytest.approx((2.0, 0.5))
  assert row['verdict'] == 'depends on the start'


def test_growth_is_measured_on_the_raw_curve(find, small_study):
  # 1,000 rows, of which a figure draws 50: the value at 5% is in none of them.
  chosen = dataclasses.replace(small_study, datasets={'5pct': 1000})
  levels = np.full(1000, 8.0)
  # Row i is gradient step i + 1; 5% are 50 steps.
  levels[49] = 2.0
  _, rows = find(
    {'rem': _curves(levels)},
    {'rem': {DOT: _curves(levels), RANK: _curves(levels)}},
    chosen,
  )
  row = rows['rem', 'features co-adapt: their dot product grows in training']
  assert row['number'] == pytest.approx(8 / 2)


def test_the_final_score_is_the_mean_that_the_preset_says(find, small_study):
  chosen = dataclasses.replace(small_study, num_final_evaluations=2)
  metrics = {DOT: _curves([1, 1, 1]), RANK: _curves([9, 9, 9])}
  _, rows = find(
    {'rem': _curves([0.1, 0.1, 0.1]), 'rem_dr3': _curves([0.1, 0.5, 0.7])},
    {'rem': metrics, 'rem_dr3': metrics},
    chosen,
  )
  numbers = {claim: row['number'] for (_, claim), row in rows.items()}
  assert numbers['DR3 raises the final score'] == pytest.approx(50)
  assert numbers['DR3 raises the last evaluation'] == pytest.approx(60)


def test_p_values_are_adjusted_for_the_claims_of_the_page(find):
  _, rows = find(
    {'rem': _curves([1, 1, 1], noise=0.1)},
    {'rem': {DOT: _curves([1, 2, 9]), RANK: _curves([9, 8, 3])}},
  )
  # Two claims; 12 runs of one sign: the same two of 2^12 draws for each.
  for row in rows.values():
    assert row['p_holm'] == pytest.approx(2 * row['p_value'])
    assert row['p_value'] < 0.002


def test_single_runs_have_no_interval_and_decide_nothing(find):
  table, rows = find(
    {'rem': _curves([1, 1, 1], 1)},
    {'rem': {DOT: _curves([1, 2, 9], 1), RANK: _curves([9, 8, 3], 1)}},
  )
  assert len(rows) == 2
  for row in rows.values():
    assert row['verdict'] == 'no verdict'
    assert np.isnan(row['low'])
  assert [row[2] for row in table.cells] == ['x 9.00', 'x 0.3333']


def test_backups_are_compared_with_those_of_logged_actions(find):
  growth = {'q_learning': 8, 'td': 4, 'sarsa': 2, 'regression': 1}
  _, rows = find(
    {name: _curves([1, 1, 1]) for name in growth},
    {
      name: {DOT: _curves([1, 1, end]), RANK: _curves([9, 9, 8])}
      for name, end in growth.items()
    },
  )
  than = 'the dot product grows more than under'
  flat = 'the dot product stays flat in training'
  assert rows['regression', flat]['verdict'] == 'supported'
  assert rows['sarsa', flat]['verdict'] == 'contradicted'
  found = {key: row['number'] for key, row in rows.items() if than in key[1]}
  assert found == pytest.approx(
    {
      ('q_learning', f'{than} Offline SARSA'): 4,
      ('q_learning', f'{than} Regression on returns'): 8,
      ('td', f'{than} Offline SARSA'): 2,
      ('td', f'{than} Regression on returns'): 4,
    }
  )
