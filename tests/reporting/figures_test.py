import struct

from matplotlib import colors
from matplotlib.backends import backend_agg
import numpy as np
import pytest

from batch_rl_dr3.reporting import figures, run_reader

SETTING = run_reader.Setting('minatar', 'breakout', '10pct')


def _draw(pattern, narrow=False):
  return figures.draw(run_reader.load([pattern]), SETTING, narrow)


def _rows(values, column='mean_q'):
  return [{'gradient_steps': s, column: v} for s, v in values.items()]


def _data(line):
  return [list(map(float, values)) for values in line.get_data()]


def test_lines_are_the_numbers(rem_pair):
  axes = _draw(rem_pair).axes
  assert [a.get_title() for a in axes] == [
    'Return',
    'TD loss',
    'Feature dot product',
    'Effective rank',
  ]
  assert [[_data(line) for line in a.lines] for a in axes] == [
    [[[100, 200, 300], [2, 5, 3]], [[100, 200], [2, 9]]],
    [[[100, 200, 300], [0.5, 0.4, 0.2]], [[100, 200], [0.5, 0.3]]],
    [[[100, 200, 300], [10, 20, 40]], [[100, 200], [4, 5]]],
    [[[100, 300], [8, 4]], [[100, 200], [9, 11]]],
  ]
  assert {a.get_xlabel() for a in axes} == {'gradient steps'}
  assert all(a.get_ylabel() for a in axes)
  assert {a.get_xlim() for a in axes} == {(-6.0, 309.0)}


def test_the_legend_names_each_method_once(rem_pair):
  for narrow in (False, True):
    (legend,) = _draw(rem_pair, narrow).legends
    assert [text.get_text() for text in legend.get_texts()] == [
      'REM',
      'REM + DR3',
    ]


def test_base_is_dashed_and_lighter_in_the_hue_of_its_dr3(rem_pair):
  base, dr3 = _draw(rem_pair).axes[0].lines
  assert (base.get_linestyle(), dr3.get_linestyle()) == ('--', '-')
  base_hsv = colors.rgb_to_hsv(colors.to_rgb(base.get_color()))
  dr3_hsv = colors.rgb_to_hsv(colors.to_rgb(dr3.get_color()))
  assert base_hsv[0] == pytest.approx(dr3_hsv[0])
  assert base_hsv[1] < dr3_hsv[1]
  assert (base.get_marker(), dr3.get_marker()) == ('o', 'o')


def test_curves_that_coincide_are_both_seen(make_run, tmp_path):
  for method in ('cql', 'cql_dr3'):
    make_run(method, returns={1: [1], 100: [3]})
  figure = _draw(str(tmp_path / 'runs' / '*'))
  axes = figure.axes[0]
  for line in axes.lines:
    line.set_marker('')  # Else they alone would be seen.
  seen = backend_agg.FigureCanvasAgg(figure)
  figure.legends.clear()
  seen.draw()
  pixels = np.asarray(seen.buffer_rgba())[..., :3].reshape(-1, 3)
  counts = [
    (np.abs(pixels - 255 * np.array(colors.to_rgb(line.get_color()))) < 2)
    .all(axis=1)
    .sum()
    for line in axes.lines
  ]
  assert min(counts) > 100, counts


@pytest.mark.parametrize(
  ('steps', 'ticks'),
  [
    ([100, 200, 300], [100, 200, 300]),
    (range(100, 2001, 50), [400, 800, 1200, 1600, 2000]),
    # None is round.
    ([7, 14, 21, 28], [7, 14, 21, 28]),
    ([7 * k for k in range(1, 14)], [7, 28, 49, 70, 91]),
    ([3], [3]),
  ],
)
def test_ticks_are_where_something_was_measured(make_run, steps, ticks):
  folder = str(make_run('rem', returns={step: [1] for step in steps}))
  axes = _draw(folder).axes[0]
  assert axes.get_xticks().tolist() == ticks


def test_the_grid_is_below_all_that_is_drawn(rem_pair, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    figures,
    '_png',
    lambda figure: drawn.append(figure) or b'',
  )
  figures.all_figures(run_reader.load([rem_pair]))
  assert {a.get_axisbelow() for figure in drawn for a in figure.axes} == {True}


def test_methods_differ_in_hue(make_run, tmp_path):
  for method in ('dqn', 'rem', 'cql', 'new', 'newer'):
    make_run(method, returns={1: [1]})
  lines = _draw(str(tmp_path / 'runs' / '*')).axes[0].lines
  assert len({line.get_color() for line in lines}) == 5


def test_seeds_are_a_mean_and_a_band(make_run, tmp_path):
  make_run('rem', name='a', seed=0, returns={1: [1], 2: [2]})
  make_run('rem', name='b', seed=1, returns={1: [3], 2: [8]})
  axes = _draw(str(tmp_path / 'runs' / '*')).axes[0]
  assert [_data(line) for line in axes.lines] == [[[1, 2], [2, 5]]]
  (band,) = axes.collections
  corners = {tuple(map(float, c)) for c in band.get_paths()[0].vertices}
  assert corners == {(1, 1), (1, 3), (2, 2), (2, 8)}


def test_many_points_are_drawn_raw_and_as_a_running_mean(make_run):
  count = figures.MAX_RAW_POINTS + 1
  values = {step: step % 2 for step in range(count)}
  rows = _rows(values, 'loss_bellman')
  folder = str(make_run('rem', metrics=rows))
  raw, mean = _draw(folder).axes[1].lines
  np.testing.assert_array_equal(raw.get_ydata(), list(values.values()))
  assert raw.get_alpha() < 0.5
  # 201 points: the window is 201 // 20 = 10, made odd: 11. Of steps 95 to
  # 105, six are odd.
  assert mean.get_ydata()[100] == pytest.approx(6 / 11)
  assert mean.get_ydata()[101] == pytest.approx(5 / 11)
  assert mean.get_marker() == ''
  caption = figures.caption(run_reader.load([folder]), SETTING)
  assert 'running mean' in caption


def test_few_points_are_not_smoothed(rem_pair):
  caption = figures.caption(run_reader.load([rem_pair]), SETTING)
  assert 'Nothing is smoothed.' in caption
  assert 'One seed per method' in caption


def test_running_mean_is_centred_and_shorter_at_the_ends():
  values = np.array([0.0, 3.0, 6.0, 0.0])
  np.testing.assert_allclose(
    figures.running_mean(values, 3), [1.5, 3.0, 3.0, 3.0]
  )


@pytest.mark.parametrize(
  ('values', 'expected'),
  [
    ([1.0, 29.0], False),
    ([1.0, 30.0], True),
    ([0.0, 1000.0], False),
    ([-1.0, 1000.0], False),
    ([np.nan, 1.0, 1000.0], True),
    ([np.nan], False),
    ([], False),
  ],
)
def test_spans_decades(values, expected):
  curve = run_reader.Curve(np.arange(len(values)), np.array([values]), ())
  assert figures.spans_decades([curve]) is expected


def test_a_wide_span_is_logarithmic_and_says_so(make_run):
  rows = _rows({1: 1.0, 2: 0.001}, 'loss_bellman')
  axes = _draw(str(make_run('rem', metrics=rows))).axes
  assert axes[1].get_yscale() == 'log'
  assert axes[1].get_ylabel().endswith('(log scale)')
  assert axes[0].get_yscale() == 'linear'


def test_what_is_not_finite_is_a_gap(make_run):
  rows = _rows({1: 1.0, 2: 'nan', 3: 2.0}, 'loss_bellman')
  (line,) = _draw(str(make_run('rem', metrics=rows))).axes[1].lines
  np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan, 2.0])


def test_what_was_not_measured_says_so(make_run):
  folder = str(make_run('rem', finished=False))
  for axes in _draw(folder).axes:
    assert [text.get_text() for text in axes.texts] == ['not measured']


def test_figures_are_png_files_of_two_widths(rem_pair):
  (figure,) = figures.all_figures(run_reader.load([rem_pair]))
  assert figure.name == 'minatar_breakout_10pct'
  assert figure.title == 'breakout, 10pct'
  sizes = []
  for png in (figure.wide, figure.narrow):
    assert png.startswith(b'\x89PNG')
    sizes.append(struct.unpack('>II', png[16:24]))
  assert sizes == [(1280, 1024), (672, 1984)]
