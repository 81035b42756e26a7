import dataclasses
import itertools

import numpy as np
import pytest

from batch_rl_dr3.reporting import (
  figures,
  run_reader,
  statistics,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.figures import (
  draw_over_games,
  draw_per_game,
  draw_profiles,
  over_games,
  per_game,
  profiles,
)
from batch_rl_dr3.reporting.run_reader import DOT_PRODUCT, RETURN
from batch_rl_dr3.reporting.run_reader import EFFECTIVE_RANK as RANK

_BOOTSTRAP = statistics.Bootstrap(50)
_CURVES = np.random.default_rng(0).normal(0.5, 0.2, (2, 4, 3))


@pytest.fixture
def make_study(make_collection, small_study, in_points):
  def make(returns, **kwargs):
    points = {
      key: in_points(values, small_study.games[: values.shape[1]])
      for key, values in returns.items()
    }
    return study_lib.select_runs(
      small_study, make_collection(points, **kwargs), bootstrap=_BOOTSTRAP
    )

  return make


@pytest.fixture
def whole(make_study):
  rank = 100 + 10 * _CURVES
  dots = np.exp(_CURVES)
  return make_study(
    {('5pct', 'rem'): _CURVES, ('5pct', 'rem_dr3'): _CURVES + 1},
    metrics={run_reader.EFFECTIVE_RANK: rank, run_reader.DOT_PRODUCT: dots},
  )


def _lines(axes):
  return {line.get_label(): line.get_data() for line in axes.lines}


def _band(axes, index):
  """Returns the lower and upper ends of a band, by horizontal position."""
  corners = axes.collections[index].get_paths()[0].vertices
  ends = {}
  for x, y in corners:
    ends.setdefault(float(x), []).append(float(y))
  return {x: (min(ys), max(ys)) for x, ys in ends.items()}


def test_figure_4_is_the_iqm_and_its_interval(whole):
  (axes,) = draw_over_games(whole, RETURN, narrow=False).axes
  lines = _lines(axes)
  assert list(lines) == ['REM', 'REM + DR3']
  for index, shift in enumerate((0, 1)):
    expected = _BOOTSTRAP(statistics.iqm, 100 * (_CURVES + shift))
    x, y = list(lines.values())[index]
    np.testing.assert_array_equal(x, [100, 200, 300])
    np.testing.assert_allclose(y, expected.value, rtol=1e-9)
    ends = _band(axes, index)
    for step, low, high in zip(x, expected.low, expected.high, strict=True):
      np.testing.assert_allclose(ends[step], [low, high], rtol=1e-9)
  assert axes.get_title() == 'REM, 5%'
  assert axes.get_xlabel() == 'gradient steps'
  assert axes.get_ylabel() == 'DQN-normalised score, IQM, %'


def test_figure_5_and_dot_product(whole):
  (axes,) = draw_over_games(whole, RANK, narrow=True).axes
  _, y = _lines(axes)['REM']
  np.testing.assert_allclose(y, statistics.iqm(100 + 10 * _CURVES))
  (axes,) = draw_over_games(whole, DOT_PRODUCT, False).axes
  _, y = _lines(axes)['REM + DR3']
  np.testing.assert_allclose(y, statistics.iqm(np.exp(_CURVES)))
  assert axes.get_yscale() == 'log'


@pytest.mark.parametrize(
  ('num_games', 'narrow', 'rows'),
  [
    (3, False, [3]),
    (5, False, [3, 2]),
    (17, False, [4, 4, 4, 4, 1]),
    (5, True, [2, 2, 1]),
  ],
)
def test_games_fill_rows_evenly(
  make_collection, small_study, num_games, narrow, rows
):
  wide = dataclasses.replace(
    small_study, games=tuple(f'game_{index}' for index in range(num_games))
  )
  returns = {('5pct', 'rem'): np.ones((1, num_games, 3))}
  drawn = draw_per_game(
    study_lib.select_runs(wide, make_collection(returns, wide)),
    RETURN,
    '5pct',
    narrow,
  )
  tops = [round(axes.get_position().y1, 3) for axes in drawn.axes]
  found = [len(list(row)) for _, row in itertools.groupby(tops)]
  assert found == rows


def test_each_game_is_mean_and_range_in_points(whole, in_points, small_study):
  drawn = draw_per_game(whole, RETURN, '5pct', narrow=False)
  assert [axes.get_title() for axes in drawn.axes] == list(small_study.games)
  points = in_points(_CURVES, small_study.games)
  for game, axes in enumerate(drawn.axes):
    _, y = _lines(axes)['REM']
    np.testing.assert_allclose(y, points[:, game].mean(axis=0), rtol=1e-9)
    for step, low, high in zip(
      (100, 200, 300),
      points[:, game].min(axis=0),
      points[:, game].max(axis=0),
      strict=True,
    ):
      np.testing.assert_allclose(_band(axes, 0)[step], [low, high])


def test_numbers_stand_under_each_panel(whole):
  for narrow in (False, True):
    drawn = draw_per_game(whole, RETURN, '5pct', narrow)
    for axes in drawn.axes:
      labels = axes.get_xticklabels()
      assert [label.get_text() for label in labels] == ['100', '200', '300']
      assert all(label.get_visible() for label in labels)


def test_profiles_are_shares_of_final_scores(whole):
  (axes,) = draw_profiles(whole, narrow=False).axes
  x, y = _lines(axes)['REM']
  final = 100 * _CURVES[..., -1]
  np.testing.assert_allclose(x, np.linspace(0, 200, 81))
  np.testing.assert_allclose(y, [(final > threshold).mean() for threshold in x])


def test_an_incomplete_set_is_marked_and_named(make_study):
  made = make_study({('5pct', 'rem'): _CURVES[:, :3]})
  (axes,) = draw_over_games(made, RETURN, narrow=False).axes
  assert axes.get_title() == 'REM, 5% †'
  (axes,) = draw_profiles(made, narrow=False).axes
  assert axes.get_title() == '5% †'
  for drawn in (
    over_games(made, RETURN),
    profiles(made),
  ):
    assert '† Computed on an incomplete set: REM on 5% (3 of 4' in drawn.caption


def test_what_was_not_measured_has_no_figure(make_study):
  made = make_study({('5pct', 'rem'): _CURVES})
  assert over_games(made, RANK) is None
  assert per_game(made, RANK, '5pct') is None
  drawn = draw_per_game(made, RANK, '5pct', narrow=False)
  assert [t.get_text() for t in drawn.axes[0].texts] == ['not measured']


def test_a_figure_is_two_pngs_and_a_pdf(whole):
  made = per_game(whole, RETURN, '5pct')
  assert made.name == 'return_5pct'
  assert made.wide.startswith(b'\x89PNG')
  assert made.narrow.startswith(b'\x89PNG')
  assert made.pdf.startswith(b'%PDF')
  assert isinstance(made, figures.Figure)
  # Equal figures are equal files.
  again = per_game(whole, RETURN, '5pct')
  assert (again.wide, again.pdf) == (made.wide, made.pdf)
