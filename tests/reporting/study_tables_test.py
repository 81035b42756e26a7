import csv
import io

import numpy as np
import pytest
from rliable import library, metrics

from batch_rl_dr3.reporting import reference, statistics, study_tables, tables
from batch_rl_dr3.reporting import study as study_lib

_BOOTSTRAP = statistics.Bootstrap(100, seed=3)


def _rows(made, *keys):
  rows = csv.DictReader(io.StringIO(made.to_csv()))
  return {tuple(row[key] for key in keys): row for row in rows}


def _numbers(row, name):
  ends = [f'{name}{end}_percent' for end in ('', '_low', '_high')]
  return [float(row[end]) for end in ends]


def _study(collection, chosen, scale='dqn'):
  return study_lib.select_runs(
    chosen, collection, reference.Normalisation(scale), _BOOTSTRAP
  )


@pytest.fixture(scope='module')
def known():
  """Normalised scores of 17 games x 5 runs x 4 methods, 3 evaluations each."""
  rng = np.random.default_rng(0)
  return {
    ('5pct', method): level + rng.normal(0, 0.4, (5, 17, 3))
    for level, method in enumerate(study_lib.PRESETS['dr3_atari17'].methods)
  }


@pytest.fixture
def whole(known, make_collection, in_points):
  chosen = study_lib.PRESETS['dr3_atari17']
  points = {k: in_points(v, chosen.games) for k, v in known.items()}
  return _study(make_collection(points, chosen), chosen)


def _directly(statistic, *matrices):
  """Returns what rliable makes of matrices, in percent."""
  np.random.seed(3)
  points, ends = library.get_interval_estimates(
    {'': matrices[0] if len(matrices) == 1 else list(matrices)},
    lambda *drawn: np.array([statistic(*drawn)]),
    reps=100,
  )
  return 100 * np.array([points[''][0], *ends[''][:, 0]])


_MEASURES = {
  'average': lambda curves: curves.mean(axis=2),
  'final': lambda curves: curves[..., -1],
}


def test_table_1_is_rliables(whole, known):
  rows = _rows(study_tables.table_1(whole), 'dataset', 'method')
  assert list(rows) == list(known)
  for key, curves in known.items():
    for measure, of_runs in _MEASURES.items():
      np.testing.assert_allclose(
        _numbers(rows[key], measure),
        _directly(metrics.aggregate_iqm, of_runs(curves)),
        rtol=1e-9,
      )


def test_other_statistics_are_rliables(whole, known):
  rows = _rows(
    study_tables.statistics_table(whole), 'dataset', 'method', 'measure'
  )
  assert len(rows) == 8
  for key, curves in known.items():
    for measure, of_runs in _MEASURES.items():
      for name, statistic in (
        ('iqm', metrics.aggregate_iqm),
        ('median', metrics.aggregate_median),
        ('mean', metrics.aggregate_mean),
        ('optimality_gap', metrics.aggregate_optimality_gap),
      ):
        np.testing.assert_allclose(
          _numbers(rows[*key, measure], name),
          _directly(statistic, of_runs(curves)),
          rtol=1e-9,
          atol=1e-9,
        )


def test_probability_of_improvement_is_rliables(whole, known):
  rows = _rows(study_tables.improvement(whole), 'method')
  assert list(rows) == [('rem',), ('cql',)]
  for base in ('rem', 'cql'):
    pair = [known['5pct', method] for method in (f'{base}_dr3', base)]
    for measure, of_runs in _MEASURES.items():
      np.testing.assert_allclose(
        _numbers(rows[base,], measure),
        _directly(metrics.probability_of_improvement, *map(of_runs, pair)),
        rtol=1e-9,
      )


def test_numbers_are_set_beside_the_papers(
  make_collection, small_study, in_points
):
  def published(level):
    # Of equal runs the IQM is their level.
    points = in_points(np.full((2, 4, 3), level), small_study.games)
    made = _study(make_collection({('5pct', 'rem'): points}), small_study)
    return study_tables.table_1(made)

  # The paper has 25.9 (23.4, 28.8) for REM on 5%.
  for level, verdict in ((0.25, 'inside'), (0.2, 'below'), (0.3, 'above')):
    made = published(level)
    row = _rows(made, 'method')['rem',]
    assert float(row['average_percent']) == pytest.approx(100 * level)
    assert float(row['paper_average_percent']) == 25.9
    assert row['average_to_paper'] == verdict
    assert (row['paper_final_percent'], row['final_to_paper']) == ('', '')
    text = f'{100 * level:.1f} ({100 * level:.1f}, {100 * level:.1f})'
    assert made.cells[0] == [
      'REM, 5%',
      text,
      '25.9 (23.4, 28.8)',
      verdict,
      text,
      'unknown',
    ]


def test_on_another_scale_nothing_is_inside_the_papers_interval(
  make_collection, small_study
):
  points = np.full((2, 4, 3), 10.0)
  collection = make_collection({('5pct', 'rem'): points})
  row = _rows(
    study_tables.table_1(_study(collection, small_study, 'human')), 'method'
  )
  assert row['rem',]['average_to_paper'] == ''


def test_what_is_incomplete_is_marked(make_collection, small_study, in_points):
  points = in_points(np.full((2, 3, 3), 0.5), small_study.games[:3])
  returns = {('5pct', 'rem'): points, ('5pct', 'rem_dr3'): points[:1]}
  made = _study(make_collection(returns), small_study)
  for rows in (
    study_tables.table_1(made).cells,
    study_tables.statistics_table(made).cells,
    study_tables.improvement(made).cells,
    study_tables.stability(made).cells,
  ):
    for row in rows:
      assert any(tables.INCOMPLETE in cell for cell in row)
      assert '3 of 4 games' in row[-1]
  assert '1 of 2 runs of each' in study_tables.table_1(made).cells[1][-1]
  assert '1 of 2 runs of each' in study_tables.improvement(made).cells[0][-1]


def test_improvement_is_over_the_games_that_both_have(
  make_collection, small_study, in_points
):
  low, high = (
    in_points(np.full((2, n, 3), level), small_study.games[:n])
    for level, n in ((0.5, 4), (0.9, 2))
  )
  returns = {('5pct', 'rem'): low, ('5pct', 'rem_dr3'): high}
  made = study_tables.improvement(_study(make_collection(returns), small_study))
  row = _rows(made, 'method')['rem',]
  assert (row['games'], row['average_percent']) == ('2', '100.0')


def test_no_finished_run_makes_empty_study(make_collection, small_study):
  collection = make_collection(
    {('5pct', 'rem'): np.full((2, 4, 3), np.nan)}, finished=False
  )
  made = _study(collection, small_study)
  for empty in (
    study_tables.table_1(made),
    study_tables.statistics_table(made),
    study_tables.improvement(made),
    study_tables.stability(made),
  ):
    assert empty.cells == []
    assert empty.empty.endswith('.')


def test_stability_by_hand(make_collection, small_study, in_points):
  # Every run goes 0.2, 0.8, 0.4: final over best 50%, (0.8 - 0.4) / 3 lost.
  curves = np.tile([0.2, 0.8, 0.4], (2, 4, 1))
  points = in_points(curves, small_study.games)
  made = _study(make_collection({('5pct', 'rem'): points}), small_study)
  row = _rows(study_tables.stability(made), 'method')['rem',]
  np.testing.assert_allclose(_numbers(row, 'final_over_best'), [50.0] * 3)
  np.testing.assert_allclose(_numbers(row, 'area_lost'), [40 / 3] * 3)


def test_scores_of_each_game(make_collection, small_study):
  # Pong: -20.7 is random play and 15.9 the online DQN, 36.6 points apart.
  points = np.zeros((2, 3, 2))
  points[:, 2] = [[-20.7, -2.4], [-2.4, 15.9]]
  made = study_lib.select_runs(
    small_study, make_collection({('5pct', 'rem'): points})
  )
  final, average = (
    _rows(
      study_tables.game_scores(made, '5pct', measure),
      'game',
    )
    for measure in ('final', 'average')
  )
  assert list(final) == [('Asterix',), ('Breakout',), ('Pong',)]
  pong = final['Pong',]
  assert float(pong['rem_mean']) == pytest.approx(6.75)
  # Two values 18.3 apart: standard deviation 18.3 / sqrt(2).
  assert float(pong['rem_sd']) == pytest.approx(18.3 / 2**0.5)
  assert float(pong['rem_percent']) == pytest.approx(75.0)
  assert (pong['rem_runs'], pong['rem_complete']) == ('2', 'True')
  assert (pong['random'], pong['online_dqn']) == ('-20.7', '15.9')
  assert float(average['Pong',]['rem_mean']) == pytest.approx(-2.4)
  assert float(average['Pong',]['rem_percent']) == pytest.approx(50.0)


def test_cells_of_games(make_collection, small_study):
  points = np.full((1, 2, 2), 20.0)
  returns = {('5pct', 'rem'): points, ('5pct', 'rem_dr3'): points[:, :1]}
  made = study_lib.select_runs(small_study, make_collection(returns))
  found = study_tables.game_scores(made, '5pct', 'final')
  # Breakout: (20 - 1.7) / (93.9 - 1.7) = 19.8%; one run of two.
  assert found.cells[1] == ['Breakout', '20.00 (19.8) †', '–', '1.70', '93.90']  # noqa: RUF001


def test_which_runs_there_are(make_collection, small_study):
  collection = make_collection({('5pct', 'rem'): np.zeros((1, 2, 2))})
  made = study_lib.select_runs(small_study, collection)
  found = study_tables.presence(made, '5pct')
  assert found.cells == [
    ['Asterix', '●○', '○○'],
    ['Breakout', '●○', '○○'],
    ['Pong', '○○', '○○'],
    ['Qbert', '○○', '○○'],
  ]
  assert r'$\bullet$$\circ$' in found.to_latex()
