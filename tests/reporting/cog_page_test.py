"""The page of COG: numbers by hand, and whose runs it takes."""

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import figures, page, run_reader, tables


@pytest.fixture
def collection(make_run, tmp_path):
  for method, ends in (('cog', (0.1, 0.3)), ('cog_dr3', (0.5, 0.7))):
    for seed, end in enumerate(ends):
      make_run(
        method,
        returns={10: [0.0], 20: [end]},
        name=f'{method}_{seed}',
        suite='cog',
        game='drawer-open-grasp',
        dataset='5pct',
        seed=seed,
      )
  return run_reader.load([str(tmp_path / 'runs' / '*')])


def test_success_rates_by_hand(collection):
  """Of two evaluations, of which the first is 0; DR3 adds 0.4 to the second."""
  frame = tables.cog_table(collection.runs).frame.set_index('quantity')
  average = frame.loc['average success']
  assert average[['cog', 'cog_dr3']].tolist() == pytest.approx([10.0, 30.0])
  assert average[['cog_runs', 'cog_dr3_runs']].tolist() == [2, 2]
  assert average['difference'] == pytest.approx(20.0)
  # Deviations of 7.07 each: t(2) = 4.303 times sqrt(50 / 2 + 50 / 2).
  assert average['high'] - average['low'] == pytest.approx(2 * 30.43, rel=1e-3)
  # Of the last five there are two, too: the same numbers.
  assert frame.loc['final success', 'cog_dr3'] == pytest.approx(30.0)


def test_the_page(collection):
  html, content = page.make(collection, page.Options(preset='dr3_cog'))
  assert content.tables[0].name == 'cog'
  assert 'COG + DR3' in html
  assert content.figures[0].name == 'figure_3'


def test_figure_3_has_intervals_of_the_mean(collection):
  figure = figures.draw_panels(
    collection,
    figures.COG_PANELS,
    collection.settings,
    ['cog', 'cog_dr3'],
    narrow=False,
  )
  success, dots = figure.axes
  assert [line.get_ydata().tolist() for line in success.lines] == [
    pytest.approx([0.0, 0.2]),
    pytest.approx([0.0, 0.6]),
  ]
  # Of 0.1 and 0.3: t(1) = 12.706 times a standard error of 0.1.
  corners = success.collections[0].get_paths()[0].vertices
  at_end = corners[corners[:, 0] == 20, 1]
  assert (at_end.min(), at_end.max()) == pytest.approx(
    (0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4
  )
  assert success.get_ylim() == (0, 1.02)
  assert [text.get_text() for text in dots.texts] == ['not measured']


def test_other_runs_are_refused(make_run, tmp_path):
  make_run('cql', returns={10: [1.0]})
  runs = run_reader.load([str(tmp_path / 'runs' / '*')])
  with pytest.raises(errors.DataError, match='manipulation from images'):
    page.control_content('dr3_cog', runs)
