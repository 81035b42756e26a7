"""Figures of a study: the paper's Figures 4 and 5, profiles, each game."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np

from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
  statistics,
  words,
)
from batch_rl_dr3.reporting.statistics import Estimate
from batch_rl_dr3.reporting.study import FINAL, Cell, Study
from batch_rl_dr3.reporting.tables import INCOMPLETE

# Normalised scores that profiles are drawn over: 0 to 200%.
THRESHOLDS = np.linspace(0, 2, 81)
# Inches beside and between panels.
_LEFT, _RIGHT, _GAP, _ROW_GAP = 0.65, 0.28, 0.58, 0.6

_Line = tuple[Cell, Estimate]


@dataclasses.dataclass(frozen=True)
class Quantity:
  """What is drawn against gradient steps, over all games and of each."""

  key: str  # Its name in the run directory.
  name: str  # Of the files.
  title: str
  title_per_game: str
  label: str  # Of the vertical axis, with the unit.
  label_per_game: str
  is_log: bool = False


RETURN = Quantity(
  run_reader.RETURN,
  'figure_4',
  'Figure 4: normalised score against gradient steps',
  'Return of each game',
  '{scale} score, IQM, %',
  'return, points per episode',
)
RANK = Quantity(
  run_reader.EFFECTIVE_RANK,
  'figure_5',
  'Figure 5: effective rank against gradient steps',
  'Effective rank in each game',
  'effective rank, IQM',
  'effective rank, directions',
)
DOT_PRODUCT = Quantity(
  run_reader.DOT_PRODUCT,
  'feature_dot_product',
  'Feature dot product against gradient steps',
  'Feature dot product in each game',
  'dot product, IQM (log scale)',
  'feature dot product, mean over data (log scale)',
  is_log=True,
)
QUANTITIES = (RETURN, RANK, DOT_PRODUCT)


@functools.cache
def _iqm(
  study: Study, dataset: str, method: str, quantity: Quantity
) -> _Line | None:
  """Returns the IQM over games and runs at each step; None without runs."""
  cell = study.curve(dataset, method, quantity.key)
  if cell is None or not cell.steps.size:
    return None
  values = cell.values
  if quantity is RETURN:
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


def over_games(study: Study, quantity: Quantity) -> figures.Figure | None:
  """Returns IQM and interval against steps, a panel a base and data set.

  None if no run has the quantity.
  """
  lines = {line: _iqm(study, *line, quantity) for line in study.lines}
  draw = functools.partial(draw_over_games, study, quantity)
  return _made(quantity.name, quantity.title, 'over_games', lines, draw)


def profiles(study: Study) -> figures.Figure | None:
  """Returns performance profiles of final scores; None without any."""
  name = 'performance_profiles'
  lines = {line: _profile(study, *line) for line in study.lines}
  draw = functools.partial(draw_profiles, study)
  return _made(name, words.say(name, 'title'), name, lines, draw)


def _made(
  name: str,
  title: str,
  section: str,
  lines: Mapping[tuple[str, str], _Line | None],
  draw: Callable[[bool], mpl_figure.Figure],
) -> figures.Figure | None:
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
  return figures.make(name, title, caption, draw)


def draw_over_games(
  study: Study, quantity: Quantity, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of `over_games`."""
  names, datasets = study.methods, study.datasets
  bases = dict.fromkeys(map(words.base_of, names))
  panels = [(base, dataset) for base in bases for dataset in datasets]
  num_columns = 1 if narrow else len(datasets)
  figure, grid = _panels(len(panels), num_columns, narrow, 2.6)
  styles = figures.line_styles(names)
  for axes, (base, dataset) in zip(grid, panels, strict=True):
    drawn = {
      method: _iqm(study, dataset, method, quantity)
      for method in study.methods_on(dataset)
      if words.base_of(method) == base
    }
    title = words.line_name(dataset, base)
    axes.set_title(title + _mark(line[0] for line in drawn.values() if line))
    for method, line in drawn.items():
      if line is not None:
        figures.draw_curve(axes, line[0].steps, line[1], styles[method], method)
    _finish(axes, quantity, 5)
    axes.set_ylabel(quantity.label.format(scale=study.normalisation.label))
    last_step = study.preset.datasets[dataset]
    axes.set_xlim(0, last_step)
    if quantity is RETURN and axes.lines:
      upper = 'online DQN' if study.normalisation.name == 'dqn' else 'human'
      levels = {'random play': 0.0, upper: 100.0}
      figures.draw_levels(axes, levels, last_step)
  figures.add_legend(figure, names, 2 if narrow else 4)
  return figure


def draw_profiles(study: Study, narrow: bool) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of `profiles`."""
  datasets = study.datasets
  num_columns = 1 if narrow else len(datasets)
  figure, grid = _panels(len(datasets), num_columns, narrow, 3.0)
  styles = figures.line_styles(study.methods)
  for axes, dataset in zip(grid, datasets, strict=True):
    methods = study.methods_on(dataset)
    mark = _mark(study.scores(dataset, method) for method in methods)
    axes.set_title(words.dataset_name(dataset) + mark)
    for method in methods:
      if line := _profile(study, dataset, method):
        figures.draw_curve(
          axes, 100 * THRESHOLDS, line[1], styles[method], method
        )
    axes.set_xlabel(f'{study.normalisation.label} score, %')
    axes.set_ylabel('share of runs above')
    axes.set_xlim(0, 100 * THRESHOLDS[-1])
    axes.set_ylim(0, 1)
  figures.add_legend(figure, study.methods, 2 if narrow else 4)
  return figure


def _settings(study: Study, dataset: str) -> list[run_reader.Setting]:
  preset = study.preset
  return [run_reader.Setting(preset.suite, g, dataset) for g in preset.games]


def per_game(
  study: Study, quantity: Quantity, dataset: str
) -> figures.Figure | None:
  """Returns a quantity against steps, a panel a game; None without runs."""
  names = study.methods_on(dataset)
  cells = [study.curve(dataset, method, quantity.key) for method in names]
  if not any(cell is not None and cell.steps.size for cell in cells):
    return None
  is_return, settings = quantity is RETURN, _settings(study, dataset)
  caption = words.say(
    'per_game',
    'caption',
    quantity=quantity.label_per_game.capitalize(),
    levels=words.say('per_game', 'levels') if is_return else '',
    public=figures.public_caption(settings, names) if is_return else '',
  )
  return figures.make(
    f'{quantity.key}_{dataset}',
    f'{quantity.title_per_game}, {words.dataset_name(dataset)}',
    caption,
    functools.partial(draw_per_game, study, quantity, dataset),
  )


def draw_per_game(
  study: Study, quantity: Quantity, dataset: str, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of `per_game`."""
  names, settings = study.methods_on(dataset), _settings(study, dataset)
  # As few rows as four side by side make, filled evenly.
  num_columns = 2 if narrow else -(-len(settings) // -(-len(settings) // 4))
  figure, grid = _panels(len(settings), num_columns, narrow, 1.7)
  styles = figures.line_styles(names)
  last_step = study.preset.datasets[dataset]
  for axes, setting in zip(grid, settings, strict=True):
    game = setting.game
    axes.set_title(game)
    for method in names:
      cell = study.curve(dataset, method, quantity.key)
      if cell is None or game not in cell.games or not cell.steps.size:
        continue
      values = cell.values[:, cell.games.index(game)]
      ends = Estimate(
        values.mean(axis=0), values.min(axis=0), values.max(axis=0)
      )
      figures.draw_curve(axes, cell.steps, ends, styles[method], method)
    _finish(axes, quantity, 3)
    axes.set_xlabel('')
    axes.set_xlim(0, last_step)
    if quantity is RETURN and axes.lines:
      scores = reference.scores().reindex([game]).iloc[0]
      levels = {
        'random play': float(scores['random']),
        'logged play': float(scores[reference.BEHAVIOUR]),
        'online DQN': float(scores[reference.ONLINE_DQN]),
      }
      figures.draw_public(axes, setting, names, last_step)
      figures.draw_levels(axes, levels, last_step)
    axes.tick_params(labelsize=7.5)
  if quantity is RANK:
    highest = max(1.0, *(axes.get_ylim()[1] for axes in grid))
    for axes in grid:
      axes.set_ylim(0, highest)
  figure.supylabel(quantity.label_per_game, fontsize=9, x=0.01)
  figure.supxlabel(
    'gradient steps', fontsize=9, y=0.04 / figure.get_figheight()
  )
  figures.add_legend(figure, names, 2 if narrow else 6)
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


def _finish(axes: mpl_axes.Axes, quantity: Quantity, num_ticks: int) -> None:
  figures.set_steps_axis(axes, num_ticks)
  if not axes.lines:
    figures.say_not_measured(axes)
  elif quantity.is_log:
    values = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    if np.nanmin(np.concatenate(values)) > 0:
      figures.set_log_scale(axes)


def _mark(cells: Iterable[Cell | None]) -> str:
  lacking = any(cell is not None and cell.lacks for cell in cells)
  return f' {INCOMPLETE}' if lacking else ''
