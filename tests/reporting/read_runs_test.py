"""Runs as pandas frames, and into rliable."""

import pathlib

import numpy as np
import pytest
from rliable import library, metrics

import batch_rl_dr3
from batch_rl_dr3.config import errors

RESULTS = pathlib.Path(__file__).parent.parent.parent / 'results' / 'minatar'


@pytest.fixture(scope='module')
def frames():
  return batch_rl_dr3.read_runs(str(RESULTS))


def test_each_row_says_which_run_it_is_of(frames):
  assert len(frames.scores) == 60 * 20
  run = frames.scores.query("game == 'breakout' and method == 'rem_dr3'")
  assert sorted(set(run['seed'])) == ['0', '1', '2']
  assert run.groupby('seed')['gradient_steps'].max().tolist() == [100_000] * 3
  assert {'feature_dot_product', 'effective_rank'} <= set(frames.metrics)


def test_they_go_into_rliable_in_one_call(frames):
  matrices = frames.score_matrices(num_last=5)
  assert {m: s.shape for m, s in matrices.items()} == dict.fromkeys(
    ('cql', 'cql_dr3', 'rem', 'rem_dr3'), (3, 5)
  )
  rows = frames.scores.query(
    "game == 'asterix' and method == 'cql' and seed == '0'"
  )
  last = rows.sort_values('gradient_steps')['return'].iloc[-5:].mean()
  assert matrices['cql'][0, 0] == pytest.approx(last)
  points, _ = library.get_interval_estimates(
    matrices, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=50
  )
  assert set(points) == set(matrices)


def test_rliable_needs_as_many_runs_on_each_game(frames):
  scores = frames.scores
  one_less = scores[~((scores.game == 'asterix') & (scores.seed == '2'))]
  with pytest.raises(errors.DataError, match=r'cql has \[2, 3\] runs a game'):
    frames._replace(scores=one_less).score_matrices()
