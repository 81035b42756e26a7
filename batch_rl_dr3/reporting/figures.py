"""How every figure here looks, and the figures of runs and of studies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import io
import pathlib
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import colors, style, ticker
from matplotlib import figure as mpl_figure
from matplotlib.backends import backend_agg
import numpy as np
from numpy import typing as npt
from PIL import Image

from batch_rl_dr3.reporting import reference, run_reader, statistics, words
from batch_rl_dr3.reporting.run_reader import Collection, Curve, Setting
from batch_rl_dr3.reporting.statistics import Estimate
from batch_rl_dr3.reporting.study import FINAL, Cell, Study
from batch_rl_dr3.reporting.tables import INCOMPLETE

# Okabe and Ito's colours, which colour-blind readers can tell apart, and grey.
PALETTE = (
  *('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'),
  '#555555',
)
# Of base methods, by their place in the palette; others have the last four.
_HUES = {'dqn': 0, 'rem': 1, 'cql': 2, 'cog': 2, 'brac': 3}
# Backups that are drawn in one panel, without DR3: a hue and a dash each.
_BACKUPS: dict[str, tuple[int, Any]] = {
  'regression': (6, (0, (1, 1.2))),
  'sarsa': (0, (0, (5, 1.5))),
  'td': (4, (0, (6, 1.2, 1.2, 1.2))),
  'q_learning': (1, '-'),
}
_STYLE = pathlib.Path(__file__).parent / 'templates' / 'figures.mplstyle'
_DPI = 160
_NUM_COLORS = 128
# Points beyond which raw lines hide each other, and a running mean is drawn.
MAX_RAW_POINTS = 200
_WINDOWS_PER_CURVE = 20
# Points up to which each gets a marker.
_MAX_MARKERS = 15
# Ratio of largest to smallest value, one and a half decades, from which an
# axis is logarithmic; and below which it has not only powers of ten as ticks.
_LOG_SPAN, _NARROW_LOG_SPAN = 30.0, 300.0


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
  """A figure, for wide and for narrow screens and for paper."""

  name: str  # Of the files.
  title: str
  caption: str  # What is drawn, and what was done to it.
  wide: bytes  # PNG, for at least 600 pixels.
  narrow: bytes  # PNG, for a phone.
  pdf: bytes  # What `wide` shows.


def make(
  name: str, title: str, caption: str, draw: Callable[[bool], mpl_figure.Figure]
) -> Figure:
  """Returns a figure that `draw` draws, given whether it is a narrow one."""
  with style.context(_STYLE):
    figure = draw(False)
    wide = _png(figure)
    # Its panels are in their places: to find them again takes half the time.
    figure.set_layout_engine('none')
    pdf = io.BytesIO()
    # Without date and version, equal figures are equal files.
    metadata = {'CreationDate': None, 'Producer': None}
    figure.savefig(pdf, format='pdf', metadata=metadata)
    narrow = _png(draw(True))
  return Figure(name, title, caption, wide, narrow, pdf.getvalue())


def make_named(name: str, draw: Callable[[bool], mpl_figure.Figure]) -> Figure:
  """Returns a figure whose title and caption words.toml has by its name."""
  return make(name, words.say(name, 'title'), words.say(name, 'caption'), draw)


def _png(figure: mpl_figure.Figure) -> bytes:
  """Returns a PNG of few colours, a quarter of the size of one of many."""
  figure.set_dpi(_DPI)
  canvas: Any = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
  buffer = io.BytesIO()
  drawn.quantize(_NUM_COLORS, Image.Quantize.FASTOCTREE).save(buffer, 'png')
  return buffer.getvalue()


def pair(
  narrow: bool, size: tuple[float, float] | None = None, **kwargs: Any
) -> tuple[mpl_figure.Figure, list[mpl_axes.Axes]]:
  """Returns a figure of two panels: below each other if it is narrow."""
  size = size or ((4.2, 6.6) if narrow else (8.0, 3.4))
  figure = mpl_figure.Figure(size, layout='constrained')
  shape = (2, 1) if narrow else (1, 2)
  return figure, list(np.ravel(figure.subplots(*shape, **kwargs)))


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns one style per method: a hue per base, solid and dark with DR3."""
  bases = dict.fromkeys(words.base_of(name) for name in names)
  others = [b for b in bases if b not in _HUES and b not in _BACKUPS]
  hues = _HUES | {name: hue for name, (hue, _) in _BACKUPS.items()}
  hues |= {base: 3 + i % 4 for i, base in enumerate(others)}
  return {
    name: _line_style(name, PALETTE[hues[words.base_of(name)]])
    for name in names
  }


def _line_style(method: str, hue: str) -> dict[str, Any]:
  if words.has_dr3(method):
    return {'color': hue, 'linestyle': '-', 'linewidth': 1.9, 'zorder': 3.0}
  if method in _BACKUPS:
    _, dashes = _BACKUPS[method]
    return {'color': hue, 'linestyle': dashes, 'linewidth': 1.8, 'zorder': 2.5}
  return {
    # Mixed with white; the hue stays.
    'color': tuple(0.62 * part + 0.38 for part in colors.to_rgb(hue)),
    'linestyle': (0, (3, 2.2)),
    'linewidth': 1.6,
    'markerfacecolor': 'white',
    # Above the solid line: where both coincide, light dashes are seen on it.
    'zorder': 3.5,
  }


def set_steps_axis(axes: mpl_axes.Axes, num_ticks: int = 6) -> None:
  """Labels the x axis as gradient steps, in thousands or millions.

  Ticks stand where something that is drawn already was measured: at round
  numbers if there are three such, else at about every so many-th measurement.
  """
  axes.set_xlabel('gradient steps')
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  nice = ticker.MaxNLocator(num_ticks)
  axes.xaxis.set_major_locator(nice)
  if not axes.lines:
    return
  measured = np.unique(np.concatenate([x.get_xdata() for x in axes.lines]))
  ticks = np.intersect1d(nice.tick_values(0, measured[-1]), measured)
  if ticks.size < min(3, measured.size):
    every = -(-measured.size // num_ticks)
    ticks = measured[::-1][::every][::-1]  # The last is among them.
  axes.xaxis.set_major_locator(ticker.FixedLocator(ticks.tolist()))


def set_log_scale(axes: mpl_axes.Axes) -> None:
  """Makes the y axis logarithmic, its ticks few enough to be read."""
  axes.set_yscale('log')
  low, high = axes.get_ylim()
  narrow = high / low < _NARROW_LOG_SPAN
  axes.yaxis.set_major_locator(
    ticker.LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8)
  )
  axes.yaxis.set_major_formatter(
    ticker.StrMethodFormatter('{x:g}')
    if narrow
    else ticker.LogFormatterSciNotation()
  )
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def add_legend(
  figure: mpl_figure.Figure, names: Sequence[str], num_columns: int
) -> None:
  """Puts one legend above all panels: methods in order, then all others."""
  handles: dict[str, Any] = {}
  for axes in figure.axes:
    lines, labels = axes.get_legend_handles_labels()
    handles |= dict(zip(labels, lines, strict=True))
  labels = [name for name in map(words.display_name, names) if name in handles]
  labels += [label for label in handles if label not in labels]
  figure.legend(
    [handles[label] for label in labels],
    labels,
    # Outside of the panels only where these are placed around it.
    loc='outside upper center'
    if figure.get_layout_engine()
    else 'upper center',
    ncols=min(num_columns, max(1, len(labels))),
    handlelength=2.6,
  )


def draw_levels(
  axes: mpl_axes.Axes, levels: Mapping[str, float], right: float
) -> None:
  """Draws values that returns are compared with, from 0 to the `right` end.

  Those that are NaN are left out.
  """
  known = {name: value for name, value in levels.items() if value == value}
  axes.hlines(
    list(known.values()), 0, right, colors='#999999', linewidth=0.8, zorder=1
  )
  for name, value in known.items():
    axes.annotate(
      name,
      (right, value),
      xytext=(-1, 1),
      textcoords='offset points',
      ha='right',
      fontsize=6.5,
      color='#666666',
    )
  axes.set_ylim(bottom=min(0.0, *known.values(), axes.dataLim.y0))


def draw_public(
  axes: mpl_axes.Axes, setting: Setting, names: Sequence[str], right: float
) -> None:
  """Draws the returns of others' seeds beside the methods that repeat theirs.

  A line with a band is their average over training, a diamond with a bar their
  score at a gradient step: mean, lowest and highest. Averages are of the first
  training that reaches the `right` end.
  """
  for method in reference.public_methods(setting, names):
    seeds = reference.public_seeds(method, setting.game)
    ends = sorted({steps for _, steps in seeds})
    end = next((steps for steps in ends if steps >= right), ends[-1])
    label = f'{method}, {len(next(iter(seeds.values())))} public seeds'
    grey: dict[str, Any] = {'color': '#666666', 'zorder': 1.5}
    for (measure, steps), values in seeds.items():
      mean, low, high = values.mean(), values.min(), values.max()
      if measure == 'average' and steps == end:
        band = grey | {'alpha': 0.18, 'linewidth': 0, 'label': label}
        axes.fill_between([0, steps], low, high, **band)
        axes.hlines(mean, 0, steps, linewidth=0.8, **grey)
      elif measure == 'score' and steps <= right:
        shown = grey | {'clip_on': False}
        axes.vlines(steps, low, high, linewidth=1.2, **shown)
        axes.scatter(steps, mean, s=16, marker='D', **shown)


def public_caption(settings: Iterable[Setting], names: Sequence[str]) -> str:
  """Returns what `draw_public` draws in figures of settings, '' if nothing."""
  found = [m for s in settings for m in reference.public_methods(s, names)]
  methods = ', '.join(dict.fromkeys(found))
  return words.say('public', 'caption', methods=methods) if found else ''


def say_not_measured(axes: mpl_axes.Axes) -> None:
  """Says in an empty panel that it is empty for want of data."""
  axes.set_yticks([])
  where, grey = axes.transAxes, '#666666'
  axes.text(0.5, 0.5, 'not measured', transform=where, ha='center', color=grey)


def draw_curve(
  axes: mpl_axes.Axes,
  horizontal: npt.NDArray[Any],
  estimate: Estimate,
  line: dict[str, Any],
  method: str,
  marker: str = '',
) -> None:
  """Draws a method's line and the band around it, in the style of its line."""
  label = words.display_name(method)
  axes.plot(
    *(horizontal, estimate.value),
    **{'label': label, 'marker': marker, 'markersize': 4.2, **line},
  )
  if np.isfinite(estimate.high).any():
    band = {'color': line['color'], 'alpha': 0.15, 'linewidth': 0}
    axes.fill_between(horizontal, estimate.low, estimate.high, **band)


# Figures of runs.


@dataclasses.dataclass(frozen=True)
class Panel:
  """One quantity of a figure."""

  quantity: str  # Its name in the run directory.
  title: str  # Above the panel.
  label: str  # Of the vertical axis, with the unit.
  may_be_log: bool = False  # Whether a wide span makes the axis logarithmic.
  # Bands are Student's 95% intervals of the mean, not from lowest to highest.
  has_intervals: bool = False
  limits: tuple[float, float] | None = None  # Of the vertical axis.


def panel(quantity: str) -> Panel:
  """Returns the panel that words.toml has for a quantity."""
  return Panel(quantity, *words.entries('panels', quantity))


PANELS = tuple(
  panel(quantity)
  for quantity in (
    *(run_reader.RETURN, run_reader.TD_LOSS),
    *(run_reader.DOT_PRODUCT, run_reader.EFFECTIVE_RANK),
  )
)
# The paper's Figure 3, of image-based manipulation.
COG_PANELS = (
  Panel(
    *(run_reader.RETURN, 'Success', 'share of episodes that succeed'),
    has_intervals=True,
    limits=(0, 1.02),
  ),
  dataclasses.replace(panel(run_reader.DOT_PRODUCT), has_intervals=True),
)


def running_mean(
  values: npt.NDArray[np.float64], window: int
) -> npt.NDArray[np.float64]:
  """Returns the centred mean over an odd `window` of points, fewer at the ends.

  A NaN makes NaN of every window that holds it.
  """
  half = window // 2
  return np.asarray(
    [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
  )


def _ends(curve: Curve, has_intervals: bool) -> tuple[Any, Any]:
  """Returns the ends of a curve's band, NaN of a single seed."""
  if curve.num_seeds < 2:
    return (np.full(curve.steps.shape, np.nan),) * 2
  if not has_intervals:
    return curve.values.min(axis=0), curve.values.max(axis=0)
  # Imported here because SciPy's statistics take a second.
  from scipy import stats

  quantile = stats.t.ppf((1 + statistics.CONFIDENCE) / 2, curve.num_seeds - 1)
  half = quantile * stats.sem(curve.values)
  return curve.mean - half, curve.mean + half


def spans_decades(drawn: Sequence[Curve]) -> bool:
  """Returns whether a logarithmic axis shows the curves better.

  It does when all values are positive and the largest is at least thirty
  times the smallest.
  """
  values = np.concatenate([[], *(curve.values.ravel() for curve in drawn)])
  values = values[np.isfinite(values)]
  if not values.size or values.min() <= 0:
    return False
  return bool(values.max() / values.min() >= _LOG_SPAN)


def _draw_panel(
  axes: mpl_axes.Axes,
  panel: Panel,
  drawn: dict[str, Curve],
  lines: dict[str, dict[str, Any]],
) -> None:
  label = panel.label
  drawn = {method: curve for method, curve in drawn.items() if curve.num_seeds}
  for method, curve in drawn.items():
    mean, line = curve.mean, lines[method]
    if len(mean) > MAX_RAW_POINTS:
      faint = {'color': line['color'], 'alpha': 0.22, 'linewidth': 0.7}
      axes.plot(curve.steps, mean, **faint)
      mean = running_mean(mean, len(mean) // _WINDOWS_PER_CURVE // 2 * 2 + 1)
    marker = 'o' if len(mean) <= _MAX_MARKERS else ''
    estimate = Estimate(mean, *_ends(curve, panel.has_intervals))
    draw_curve(axes, curve.steps, estimate, line, method, marker)
  set_steps_axis(axes)
  if panel.may_be_log and spans_decades(list(drawn.values())):
    set_log_scale(axes)
    label += '\n(log scale)'  # On one line it is longer than a panel is high.
  axes.set_ylabel(label)
  axes.set_ylim(panel.limits)
  if not drawn:
    say_not_measured(axes)


def draw_panels(
  collection: Collection,
  panels: Sequence[Panel],
  settings: Sequence[Setting],
  names: Sequence[str],
  narrow: bool,
) -> mpl_figure.Figure:
  """Returns a figure of methods: a row a panel, a column a setting.

  Of one setting, more than two panels take two columns; a narrow figure is one
  column.
  """
  num_columns = len(settings)
  if narrow:
    num_columns = 1
  elif num_columns == 1 and len(panels) > 2:
    num_columns = 2
  places = [(panel, setting) for panel in panels for setting in settings]
  num_rows = -(-len(places) // num_columns)
  width = 4.2 if num_columns == 1 else 4.0 * num_columns
  figure = mpl_figure.Figure(
    (width, 3.0 * num_rows + 0.4), layout='constrained'
  )
  lines = line_styles(names)
  grid = np.ravel(figure.subplots(num_rows, num_columns, squeeze=False))
  for axes, (panel, setting) in zip(grid, places, strict=False):
    drawn = {n: collection.curve(setting, n, panel.quantity) for n in names}
    _draw_panel(axes, panel, drawn, lines)
    where = f'\n{setting.label}' if len(settings) > 1 else ''
    axes.set_title(panel.title + where)
    of_setting = [run for run in collection.runs if run.setting == setting]
    last_step = max(1, *(run.num_gradient_steps for run in of_setting))
    if panel.quantity == run_reader.RETURN and axes.lines:
      draw_public(axes, setting, names, last_step)
    axes.set_xlim(-0.02 * last_step, 1.03 * last_step)
  for axes in grid[len(places) :]:
    axes.remove()
  add_legend(figure, names, 2 if num_columns == 1 else 3 * num_columns)
  return figure


def draw(
  collection: Collection, setting: Setting, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of a setting, its methods side by side."""
  names = collection.methods(setting)
  return draw_panels(collection, PANELS, [setting], names, narrow)


def caption(collection: Collection, setting: Setting) -> str:
  """Returns what a setting's figure shows, and what was done to its data."""
  names = collection.methods(setting)
  drawn = [
    collection.curve(setting, name, panel.quantity)
    for panel in PANELS
    for name in names
  ]
  several = any(curve.num_seeds > 1 for curve in drawn)
  smoothed = any(len(curve.steps) > MAX_RAW_POINTS for curve in drawn)
  limits = {'max_points': MAX_RAW_POINTS, 'windows': _WINDOWS_PER_CURVE}
  smoothing = 'smoothed' if smoothed else 'not_smoothed'
  return words.say(
    'curves',
    'caption',
    seeds=words.say('curves', 'seeds' if several else 'one_seed'),
    smoothing=words.say('curves', smoothing, **limits),
    public=public_caption([setting], names),
  )


def all_figures(collection: Collection) -> list[Figure]:
  """Returns one figure per setting."""
  return [
    make(
      setting.slug,
      setting.label,
      caption(collection, setting),
      functools.partial(draw, collection, setting),
    )
    for setting in collection.settings
  ]


def of_methods(
  name: str,
  collection: Collection,
  names: Sequence[str],
  panels: Sequence[Panel],
) -> Figure:
  """Returns the figure that words.toml names: a column a setting."""
  settings = collection.settings
  draw = functools.partial(draw_panels, collection, panels, settings, names)
  return make_named(name, draw)


def figure_3(collection: Collection) -> Figure:
  """Returns success and dot product of COG against steps, data side by side."""
  names = words.ordered(run.method for run in collection.runs)
  return of_methods('figure_3', collection, names, COG_PANELS)


# Figures of a study, over all games and of each.

# What is drawn against gradient steps, with the section of words.toml that also
# names the files.
_SECTIONS = {
  run_reader.RETURN: 'figure_4',
  run_reader.EFFECTIVE_RANK: 'figure_5',
  run_reader.DOT_PRODUCT: 'feature_dot_product',
}
QUANTITIES = tuple(_SECTIONS)
# Normalised scores that profiles are drawn over: 0 to 200%.
THRESHOLDS = np.linspace(0, 2, 81)
# Inches beside and between panels.
_LEFT, _RIGHT, _GAP, _ROW_GAP = 0.65, 0.28, 0.58, 0.6

_Line = tuple[Cell, Estimate]


@functools.cache
def _iqm(
  study: Study, dataset: str, method: str, quantity: str
) -> _Line | None:
  """Returns the IQM over games and runs at each step; None without runs."""
  cell = study.curve(dataset, method, quantity)
  if cell is None or not cell.steps.size:
    return None
  values = cell.values
  if quantity == run_reader.RETURN:
    values = 100 * study.normalisation(values, cell.games)
  return cell, study.bootstrap(statistics.iqm, values)


@functools.cache
def _profile(study: Study, dataset: str, method: str) -> _Line | None:
  """Returns the share of final scores above each of `THRESHOLDS`."""
  cell = study.scores(dataset, method)
  if cell is None or not cell.steps.size:
    return None
  return cell, study.bootstrap(
    lambda drawn: statistics.performance_profile(drawn, THRESHOLDS),
    study.normalised(cell, FINAL),
  )


def over_games(study: Study, quantity: str) -> Figure | None:
  """Returns IQM and interval against steps, a panel a base and data set.

  None if no run has the quantity.
  """
  lines = {line: _iqm(study, *line, quantity) for line in study.lines}
  draw = functools.partial(draw_over_games, study, quantity)
  return _made(_SECTIONS[quantity], 'over_games', lines, draw)


def profiles(study: Study) -> Figure | None:
  """Returns performance profiles of final scores; None without any."""
  lines = {line: _profile(study, *line) for line in study.lines}
  draw = functools.partial(draw_profiles, study)
  return _made('performance_profiles', 'performance_profiles', lines, draw)


def _made(
  name: str,
  section: str,
  lines: Mapping[tuple[str, str], _Line | None],
  draw: Callable[[bool], mpl_figure.Figure],
) -> Figure | None:
  """Returns a figure of lines, its caption with what they lack."""
  if not any(lines.values()):
    return None
  lacking = [
    f'{words.display_name(method)} on {words.dataset_name(dataset)} '
    f'({"; ".join(found[0].lacks)})'
    for (dataset, method), found in lines.items()
    if found and found[0].lacks
  ]
  part = 'incomplete' if lacking else 'complete'
  extent = words.say('over_games', part, lines=', '.join(lacking))
  caption = words.say(section, 'caption', extent=extent)
  return make(name, words.say(name, 'title'), caption, draw)


def draw_over_games(
  study: Study, quantity: str, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of `over_games`."""
  names, datasets, scale = study.methods, study.datasets, study.normalisation
  bases = dict.fromkeys(map(words.base_of, names))
  panels = [(base, dataset) for base in bases for dataset in datasets]
  num_columns = 1 if narrow else len(datasets)
  figure, grid = _panels(len(panels), num_columns, narrow, 2.6)
  styles = line_styles(names)
  for axes, (base, dataset) in zip(grid, panels, strict=True):
    methods = [m for m in study.methods_on(dataset) if words.base_of(m) == base]
    drawn = {
      method: line
      for method in methods
      if (line := _iqm(study, dataset, method, quantity))
    }
    mark = _mark(cell for cell, _ in drawn.values())
    axes.set_title(words.line_name(dataset, base) + mark)
    for method, (cell, estimate) in drawn.items():
      draw_curve(axes, cell.steps, estimate, styles[method], method)
    _finish(axes, quantity, 5)
    label = words.say(_SECTIONS[quantity], 'label', scale=scale.label)
    axes.set_ylabel(label)
    last_step = study.preset.datasets[dataset]
    axes.set_xlim(0, last_step)
    if quantity == run_reader.RETURN and axes.lines:
      upper = 'online DQN' if scale.name == 'dqn' else 'human'
      draw_levels(axes, {'random play': 0.0, upper: 100.0}, last_step)
  add_legend(figure, names, 2 if narrow else 4)
  return figure


def draw_profiles(study: Study, narrow: bool) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of `profiles`."""
  datasets = study.datasets
  num_columns = 1 if narrow else len(datasets)
  figure, grid = _panels(len(datasets), num_columns, narrow, 3.0)
  styles = line_styles(study.methods)
  for axes, dataset in zip(grid, datasets, strict=True):
    methods = study.methods_on(dataset)
    mark = _mark(study.scores(dataset, method) for method in methods)
    axes.set_title(words.dataset_name(dataset) + mark)
    for method in methods:
      if line := _profile(study, dataset, method):
        draw_curve(axes, 100 * THRESHOLDS, line[1], styles[method], method)
    axes.set_xlabel(f'{study.normalisation.label} score, %')
    axes.set_ylabel('share of runs above')
    axes.set_xlim(0, 100 * THRESHOLDS[-1])
    axes.set_ylim(0, 1)
  add_legend(figure, study.methods, 2 if narrow else 4)
  return figure


def _settings(study: Study, dataset: str) -> list[Setting]:
  preset = study.preset
  return [Setting(preset.suite, game, dataset) for game in preset.games]


def per_game(study: Study, quantity: str, dataset: str) -> Figure | None:
  """Returns a quantity against steps, a panel a game; None without runs."""
  names = study.methods_on(dataset)
  cells = [study.curve(dataset, method, quantity) for method in names]
  if not any(cell is not None and cell.steps.size for cell in cells):
    return None
  levels = public = ''
  if quantity == run_reader.RETURN:
    levels = words.say('per_game', 'levels')
    public = public_caption(_settings(study, dataset), names)
  label = words.say(_SECTIONS[quantity], 'label_per_game').capitalize()
  title = words.say(_SECTIONS[quantity], 'title_per_game')
  texts = {'quantity': label, 'levels': levels, 'public': public}
  return make(
    f'{quantity}_{dataset}',
    f'{title}, {words.dataset_name(dataset)}',
    words.say('per_game', 'caption', **texts),
    functools.partial(draw_per_game, study, quantity, dataset),
  )


def draw_per_game(
  study: Study, quantity: str, dataset: str, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of `per_game`."""
  names, settings = study.methods_on(dataset), _settings(study, dataset)
  # As few rows as four side by side make, filled evenly.
  num_columns = 2 if narrow else -(-len(settings) // -(-len(settings) // 4))
  figure, grid = _panels(len(settings), num_columns, narrow, 1.7)
  styles = line_styles(names)
  last_step = study.preset.datasets[dataset]
  for axes, setting in zip(grid, settings, strict=True):
    game = setting.game
    axes.set_title(game)
    for method in names:
      cell = study.curve(dataset, method, quantity)
      if cell is not None and game in cell.games and cell.steps.size:
        values = cell.values[:, cell.games.index(game)]
        ends = Estimate(
          values.mean(axis=0), values.min(axis=0), values.max(axis=0)
        )
        draw_curve(axes, cell.steps, ends, styles[method], method)
    _finish(axes, quantity, 3)
    axes.set_xlabel('')
    axes.set_xlim(0, last_step)
    if quantity == run_reader.RETURN and axes.lines:
      scores = reference.scores().reindex([game]).iloc[0]
      levels = {
        'random play': float(scores['random']),
        'logged play': float(scores[reference.BEHAVIOUR]),
        'online DQN': float(scores[reference.ONLINE_DQN]),
      }
      draw_public(axes, setting, names, last_step)
      draw_levels(axes, levels, last_step)
    axes.tick_params(labelsize=7.5)
  if quantity == run_reader.EFFECTIVE_RANK:
    highest = max(1.0, *(axes.get_ylim()[1] for axes in grid))
    for axes in grid:
      axes.set_ylim(0, highest)
  label = words.say(_SECTIONS[quantity], 'label_per_game')
  figure.supylabel(label, fontsize=9, x=0.01)
  low = 0.04 / figure.get_figheight()
  figure.supxlabel('gradient steps', fontsize=9, y=low)
  add_legend(figure, names, 2 if narrow else 6)
  return figure


def _panels(
  count: int, num_columns: int, narrow: bool, height: float
) -> tuple[mpl_figure.Figure, Sequence[mpl_axes.Axes]]:
  """Returns a figure of so many panels, and these.

  The panels are placed by hand: to let Matplotlib find places for as many as a
  study has would take half the time of a report.
  """
  num_rows = -(-count // num_columns)
  legend, below = 0.75 if narrow else 0.5, 0.5
  width, total = 4.2 if narrow else 8.0, legend + below + height * num_rows
  figure = mpl_figure.Figure(figsize=(width, total))
  grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
  panel = (width - _LEFT - _RIGHT - (num_columns - 1) * _GAP) / num_columns
  figure.subplots_adjust(
    left=_LEFT / width,
    right=1 - _RIGHT / width,
    bottom=below / total,
    top=1 - legend / total,
    wspace=_GAP / panel,
    hspace=_ROW_GAP / (height - _ROW_GAP),
  )
  for axes in grid[count:]:
    axes.remove()
  return figure, list(grid[:count])


def _finish(axes: mpl_axes.Axes, quantity: str, num_ticks: int) -> None:
  set_steps_axis(axes, num_ticks)
  if not axes.lines:
    say_not_measured(axes)
  elif quantity == run_reader.DOT_PRODUCT:
    values = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    if np.nanmin(np.concatenate(values)) > 0:
      set_log_scale(axes)


def _mark(cells: Iterable[Cell | None]) -> str:
  lacking = any(cell is not None and cell.lacks for cell in cells)
  return f' {INCOMPLETE}' if lacking else ''
