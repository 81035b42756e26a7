import dataclasses

import numpy as np
import pytest

from batch_rl_dr3.reporting import findings, reference, statistics
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
    found = findings.findings(
      study_lib.select_runs(chosen, collection),
      reference.Normalisation(),
      statistics.Bootstrap(100, 0),
    )
    return found, {
      (row['method'], row['claim']): row
      for row in found.frame.to_dict('records')
    }

  return find


def _curves(levels, num_runs=2, noise=0.0):
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
    assert row['low'] == row['high'] == pytest.approx(number)
    assert row['verdict'] == 'supported', claim
    assert (row['games'], row['runs']) == (4, 2)


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
  assert verdicts['DR3 keeps the effective rank higher'] == 'open'


def test_single_runs_have_no_interval_and_decide_nothing(find):
  table, rows = find(
    {'rem': _curves([1, 1, 1], 1)},
    {'rem': {DOT: _curves([1, 2, 9], 1), RANK: _curves([9, 8, 3], 1)}},
  )
  assert len(rows) == 2
  for row in rows.values():
    assert row['verdict'] == 'open'
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
  found = {key: row['number'] for key, row in rows.items() if than in key[1]}
  assert found == pytest.approx(
    {
      ('q_learning', f'{than} Offline SARSA'): 4,
      ('q_learning', f'{than} Regression on returns'): 8,
      ('td', f'{than} Offline SARSA'): 2,
      ('td', f'{than} Regression on returns'): 4,
    }
  )
