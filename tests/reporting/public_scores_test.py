"""What others have published, and whether a run repeats it."""

import numpy as np
import pytest

from batch_rl_dr3.reporting import reference

GAMES = ('Asterix', 'Breakout', 'Pong', 'Qbert', 'Seaquest')


def seeds(method, game, measure, steps):
  table = reference.references()
  rows = table[
    (table['method'] == method)
    & (table['game'] == game)
    & (table['measure'] == measure)
    & (table['gradient_steps'] == steps)
  ]
  return rows.set_index('seed')['value']


def test_every_number_says_where_it_is_from():
  table = reference.references()
  assert not table[['source', 'dataset', 'method', 'game']].isna().any().any()
  assert set(table['measure']) == {'average', 'score'}
  assert set(table['normalisation']) == {'none', 'dqn', 'human'}
  qbert = table[(table['method'] == 'CQL') & (table['game'] == 'Qbert')]
  assert qbert['value'].item() == 104.2  # arXiv:2106.01345, Table 1.


def test_the_interval_of_one_more_draw():
  # Mean 2, s 1, n 3: t(0.995, 2) = 9.924843, times sqrt(4 / 3) = 11.460222.
  low, high = reference.prediction_interval([1.0, 2.0, 3.0])
  np.testing.assert_allclose([low, high], [2 - 11.460222, 2 + 11.460222], 1e-6)


def test_a_public_seed_that_is_held_out_is_rarely_outside():
  outside = []
  for method in ('QR-CQL', 'QR-DQN', 'DQN (NFQ)', 'BCQ'):
    for game in GAMES:
      for measure in ('average', 'score'):
        values = seeds(method, game, measure, 6_500_000).to_numpy()
        assert len(values) == 10
        for k, value in enumerate(values):
          low, high = reference.prediction_interval(np.delete(values, k))
          outside.append(not low <= value <= high)
  assert np.mean(outside) <= 0.05


@pytest.mark.parametrize('game', GAMES)
def test_another_method_under_the_name_of_cql_is_outside(game):
  average = seeds('QR-DQN', game, 'average', 6_500_000)
  score = seeds('QR-DQN', game, 'score', 6_500_000)
  steps = np.arange(125_000, 6_500_001, 125_000)
  fires = []
  for seed in range(1, 11):
    # A curve with this seed's average and its last score.
    returns = np.full(52, (52 * average[seed] - score[seed]) / 51)
    returns[-1] = score[seed]
    found = reference.compare('QR-CQL', game, steps, returns)
    assert [c.measure for c in found] == ['average', 'score']
    assert found[0].value == pytest.approx(average[seed])
    assert found[1].value == score[seed]
    fires.append(any(comparison.is_outside for comparison in found))
  # One of QR-DQN's seeds on Seaquest is as good as CQL's worst.
  assert sum(fires) >= 10 - (game == 'Seaquest')


def test_what_a_run_has_not_reached_is_not_compared():
  steps, returns = np.asarray([62_500, 6_375_000]), np.asarray([30.0, 40.0])
  assert not reference.compare('QR-CQL', 'Breakout', steps, returns)
  assert not reference.compare('QR-CQL', 'Zaxxon', steps + 125_000, returns)
