"""What others have published, and whether a run repeats it."""

import dataclasses

from matplotlib.collections import PathCollection
import numpy as np
import pytest

from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
)
from batch_rl_dr3.reporting import study as study_lib

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


def _panels(tmp_path, setting):
  """Returns the panel of returns, the legend's texts, and the caption."""
  collection = run_reader.load([str(tmp_path / 'runs' / '*')])
  (legend,) = (drawn := figures.draw(collection, setting, False)).legends
  texts = [text.get_text() for text in legend.get_texts()]
  return drawn.axes[0], texts, figures.caption(collection, setting)


def test_public_seeds_are_drawn_beside_ones_own(make_run, tmp_path):
  setting = run_reader.Setting('atari', 'Breakout', '1pct')
  returns = {62_500: [3.0], 6_500_000: [40.0]}
  make_run('cql_dr3', returns=returns, **setting._asdict())
  axes, texts, caption = _panels(tmp_path, setting)
  assert texts == ['CQL + DR3', 'QR-CQL, 10 public seeds']
  assert 'the public seeds of QR-CQL' in caption
  diamond, band, line, bar = sorted(
    axes.collections,
    key=lambda artist: type(artist).__name__ != 'PathCollection',
  )
  average = seeds('QR-CQL', 'Breakout', 'average', 6_500_000)
  score = seeds('QR-CQL', 'Breakout', 'score', 6_500_000)
  # 37.485 to 41.723 over the whole training; 21.9 to 51.7 at its end.
  corners = band.get_paths()[0].vertices
  np.testing.assert_allclose(corners.min(axis=0), [0, average.min()])
  np.testing.assert_allclose(corners.max(axis=0), [6_500_000, average.max()])
  np.testing.assert_allclose(
    line.get_segments()[0], [[0, average.mean()], [6_500_000, average.mean()]]
  )
  np.testing.assert_allclose(
    bar.get_segments()[0], [[6_500_000, score.min()], [6_500_000, score.max()]]
  )
  np.testing.assert_allclose(diamond.get_offsets(), [[6_500_000, score.mean()]])


def test_a_short_run_is_beside_the_average_alone(make_run, tmp_path):
  setting = run_reader.Setting('atari', 'Pong', '1pct')
  make_run('cql', returns={62_500: [3.0]}, **setting._asdict())
  axes, texts, _ = _panels(tmp_path, setting)
  assert texts == ['CQL', 'QR-CQL, 10 public seeds']
  assert len(axes.collections) == 2
  assert axes.get_xlim()[1] < 65_000


@pytest.mark.parametrize(
  ('method', 'game', 'dataset'),
  [
    ('rem', 'Breakout', '1pct'),
    ('cql', 'Breakout', '5pct'),
    ('cql', 'Zaxxon', '1pct'),
  ],
)
def test_nothing_public_is_drawn_beside_other_settings(
  make_run, tmp_path, method, game, dataset
):
  setting = run_reader.Setting('atari', game, dataset)
  make_run(method, returns={6_500_000: [40.0]}, **setting._asdict())
  axes, texts, caption = _panels(tmp_path, setting)
  assert len(texts) == 1
  assert len(axes.collections) == 0
  assert 'public' not in caption


def test_each_game_of_a_study_has_its_public_seeds(make_collection, in_points):
  preset = dataclasses.replace(
    study_lib.PRESETS['dr3_atari17'],
    games=('Breakout', 'Zaxxon'),
    datasets={'1pct': 6_500_000},
  )
  points = in_points(np.full((1, 2, 3), 0.5), preset.games)
  study = study_lib.select_runs(
    preset, make_collection({('1pct', 'cql'): points}, preset)
  )
  drawn = figures.draw_per_game(study, run_reader.RETURN, '1pct', narrow=False)
  breakout, zaxxon = (
    [type(artist) for artist in axes.collections] for axes in drawn.axes
  )
  assert PathCollection in breakout
  assert PathCollection not in zaxxon
  made = figures.per_game(study, run_reader.RETURN, '1pct')
  assert 'the public seeds of QR-CQL' in made.caption
