"""Figures of a study: the paper's Figures 4 and 5, profiles, each game."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np
from numpy import typing as npt

from batch_rl_dr3.reporting import (
  figures,
  methods,
  reference,
  run_reader,
  statistics,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.tables import INCOMPLETE

# Normalised scores that profiles are drawn over: 0 to 200%.
THRESHOLDS = np.linspace(0, 2, 81)
_BAND = 0.16
# Inches beside and between panels.
_LEFT, _RIGHT, _GAP, _ROW_GAP = 0.65, 0.28, 0.58, 0.6


@dataclasses.dataclass(frozen=True)
class Quantity:
  """What is drawn against gradient steps.

  Attributes:
    key: its name in the run directory.
    name: of the files.
    title: above the figure.
    label: of the vertical axis over games, with the unit.
    label_per_game: of the vertical axis of one game.
    is_log: whether the axis is logarithmic.
  """

  key: str
  name: str
  title: str
  label: str
  label_per_game: str
  is_log: bool = False


RETURN = Quantity(
  run_reader.RETURN,
  'figure_4',
  'Figure 4: normalised score against gradient steps',
  '{scale} score, IQM, %',
  'return, points per episode',
)
RANK = Quantity(
  run_reader.EFFECTIVE_RANK,
  'figure_5',
  'Figure 5: effective rank against gradient steps',
  'effective rank, IQM',
  'effective rank, directions',
)
DOT_PRODUCT = Quantity(
  run_reader.DOT_PRODUCT,
  'feature_dot_product',
  'Feature dot product against gradient steps',
  'dot product, IQM (log scale)',
  'feature dot product, mean over data (log scale)',
  is_log=True,
)
QUANTITIES = (RETURN, RANK, DOT_PRODUCT)
# What the grey lines of a figure by game are.
_LEVELS = {
  run_reader.RETURN: ' Grey lines: random play, the mean of all logged play '
  'where it is known, and the final score of the online DQN.',
}


@dataclasses.dataclass(frozen=True, eq=False)
class StudyFigures:
  """Draws the figures of one study on one scale.

  Attributes:
    study: the runs.
    normalisation: the scale of scores.
    bootstrap: makes the intervals.
  """

  study: study_lib.Study
  normalisation: reference.Normalisation
  bootstrap: statistics.Bootstrap

  @functools.cache  # noqa: B019, the figures live as long as the report.
  def estimate(
    self, dataset: str, method: str, quantity: Quantity
  ) -> tuple[study_lib.Cell, statistics.Estimate] | None:
    """Returns the IQM over games and runs at each step; None without runs."""
    cell = self.study.curve(dataset, method, quantity.key)
    if cell is None or not cell.steps.size:
      return None
    values = cell.values
    if quantity is RETURN:
      values = 100 * self.normalisation(values, cell.games)
    return cell, self.bootstrap(statistics.iqm, values)

  def over_games(self, quantity: Quantity) -> figures.Figure | None:
    """Returns IQM and interval against steps, a panel a base and data set.

    None if no run has the quantity.
    """
    drawn = {
      line: found
      for line in self.study.lines
      if (found := self.estimate(*line, quantity)) is not None
    }
    if not drawn:
      return None
    return figures.make(
      quantity.name,
      quantity.title,
      'Interquartile mean over games and runs, with 95% stratified bootstrap '
      'intervals; dashed and lighter without DR3, solid with it. '
      + _extent({line: cell for line, (cell, _) in drawn.items()}),
      functools.partial(self.draw_over_games, quantity),
    )

  def draw_over_games(
    self, quantity: Quantity, narrow: bool
  ) -> mpl_figure.Figure:
    """Returns the Matplotlib figure of `over_games`."""
    names = self.study.methods
    bases = list(dict.fromkeys(map(methods.base_of, names)))
    panels = [
      (base, dataset) for base in bases for dataset in self.study.datasets
    ]
    figure, grid = _panels(
      len(panels), 1 if narrow else len(self.study.datasets), narrow, 2.6
    )
    lines = figures.line_styles(names)
    for axes, (base, dataset) in zip(grid, panels, strict=True):
      found = [
        (method, self.estimate(dataset, method, quantity))
        for method in self.study.methods_on(dataset)
        if methods.base_of(method) == base
      ]
      axes.set_title(
        f'{methods.display_name(base)}, {study_lib.dataset_name(dataset)}'
        + _mark(estimate[0] for _, estimate in found if estimate)
      )
      for method, estimate in found:
        if estimate is not None:
          _draw_line(
            axes, estimate[0].steps, estimate[1], lines[method], method
          )
      _finish(
        axes, quantity, quantity.label.format(scale=self.normalisation.label)
      )
      last_step = self.study.preset.datasets[dataset]
      axes.set_xlim(0, last_step)
      if quantity is RETURN and axes.lines:
        figures.draw_levels(axes, self._scale_levels(), last_step)
    figures.add_legend(figure, names, 2 if narrow else 4)
    return figure

  def _scale_levels(self) -> dict[str, float]:
    upper = 'online DQN' if self.normalisation.name == 'dqn' else 'human'
    return {'random play': 0.0, upper: 100.0}

  def _game_levels(self, game: str) -> dict[str, float]:
    scores = reference.scores().reindex([game]).iloc[0]
    return {
      'random play': float(scores['random']),
      'logged play': float(scores[reference.BEHAVIOUR]),
      'online DQN': float(scores[reference.ONLINE_DQN]),
    }

  def per_game(self, quantity: Quantity, dataset: str) -> figures.Figure | None:
    """Returns a quantity against steps, a panel a game; None without runs."""
    cells = [
      self.study.curve(dataset, method, quantity.key)
      for method in self.study.methods_on(dataset)
    ]
    if not any(cell is not None and cell.steps.size for cell in cells):
      return None
    title = {
      RETURN: 'Return of each game',
      RANK: 'Effective rank in each game',
      DOT_PRODUCT: 'Feature dot product in each game',
    }[quantity]
    return figures.make(
      f'{quantity.key}_{dataset}',
      f'{title}, {study_lib.dataset_name(dataset)}',
      f'{quantity.label_per_game.capitalize()}, against gradient steps. Lines '
      'are means over runs, bands reach from the lowest run to the highest.'
      + _LEVELS.get(quantity.key, ''),
      functools.partial(self.draw_per_game, quantity, dataset),
    )

  def draw_per_game(
    self, quantity: Quantity, dataset: str, narrow: bool
  ) -> mpl_figure.Figure:
    """Returns the Matplotlib figure of `per_game`."""
    names = self.study.methods_on(dataset)
    games = self.study.preset.games
    num_columns = 2 if narrow else _num_columns(len(games), 4)
    figure, grid = _panels(len(games), num_columns, narrow, 1.7)
    lines = figures.line_styles(names)
    highest = 1.0
    for axes, game in zip(grid, games, strict=True):
      axes.set_title(game)
      for method in names:
        cell = self.study.curve(dataset, method, quantity.key)
        if cell is None or game not in cell.games or not cell.steps.size:
          continue
        values = cell.values[:, cell.games.index(game)]
        ends = statistics.Estimate(
          values.mean(axis=0), values.min(axis=0), values.max(axis=0)
        )
        _draw_line(axes, cell.steps, ends, lines[method], method)
      _finish(axes, quantity, None, num_ticks=3)
      last_step = self.study.preset.datasets[dataset]
      axes.set_xlim(0, last_step)
      if quantity is RETURN and axes.lines:
        figures.draw_levels(axes, self._game_levels(game), last_step)
      if quantity is RANK:
        highest = max(highest, axes.get_ylim()[1])
      axes.tick_params(labelsize=7.5)
    if quantity is RANK:
      for axes in grid:
        axes.set_ylim(0, highest)
    figure.supylabel(quantity.label_per_game, fontsize=9, x=0.01)
    figure.supxlabel(
      'gradient steps', fontsize=9, y=0.04 / figure.get_figheight()
    )
    figures.add_legend(figure, names, 2 if narrow else 6)
    return figure

  def profiles(self) -> figures.Figure | None:
    """Returns performance profiles of final scores; None without any."""
    drawn = {
      line: cell
      for line in self.study.lines
      if (cell := self.study.scores(*line)) is not None and cell.steps.size
    }
    if not drawn:
      return None
    return figures.make(
      'performance_profiles',
      'Performance profiles',
      'The share of runs whose final score is above the one on the horizontal '
      'axis, with 95% stratified bootstrap intervals. ' + _extent(drawn),
      self.draw_profiles,
    )

  @functools.cache  # noqa: B019
  def profile(self, dataset: str, method: str) -> statistics.Estimate | None:
    """Returns the share of final scores above each of `THRESHOLDS`."""
    cell = self.study.scores(dataset, method)
    if cell is None or not cell.steps.size:
      return None
    final = study_lib.measure(cell, study_lib.FINAL)
    return self.bootstrap(
      lambda drawn: statistics.performance_profile(drawn, THRESHOLDS),
      self.normalisation(final, cell.games),
    )

  def draw_profiles(self, narrow: bool) -> mpl_figure.Figure:
    """Returns the Matplotlib figure of `profiles`."""
    datasets = self.study.datasets
    figure, grid = _panels(
      len(datasets), 1 if narrow else len(datasets), narrow, 3.0
    )
    lines = figures.line_styles(self.study.methods)
    for axes, dataset in zip(grid, datasets, strict=True):
      names = self.study.methods_on(dataset)
      axes.set_title(
        study_lib.dataset_name(dataset)
        + _mark(self.study.scores(dataset, method) for method in names)
      )
      for method in names:
        estimate = self.profile(dataset, method)
        if estimate is not None:
          _draw_line(axes, 100 * THRESHOLDS, estimate, lines[method], method)
      axes.set_xlabel(f'{self.normalisation.label} score, %')
      axes.set_ylabel('share of runs above')
      axes.set_xlim(0, 100 * THRESHOLDS[-1])
      axes.set_ylim(0, 1)
    figures.add_legend(figure, self.study.methods, 2 if narrow else 4)
    return figure


def _num_columns(count: int, limit: int) -> int:
  """Returns how many panels side by side fill as few rows most evenly."""
  num_rows = -(-count // limit)
  return -(-count // num_rows)


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


def _draw_line(
  axes: mpl_axes.Axes,
  horizontal: npt.NDArray[Any],
  estimate: statistics.Estimate,
  line: dict[str, Any],
  method: str,
) -> None:
  axes.plot(
    horizontal, estimate.value, label=methods.display_name(method), **line
  )
  axes.fill_between(
    horizontal,
    estimate.low,
    estimate.high,
    color=line['color'],
    alpha=_BAND,
    linewidth=0,
  )


def _finish(
  axes: mpl_axes.Axes,
  quantity: Quantity,
  label: str | None,
  num_ticks: int = 5,
) -> None:
  figures.set_steps_axis(axes, num_ticks)
  if label is None:
    axes.set_xlabel('')
  else:
    axes.set_ylabel(label)
  if not axes.lines:
    figures.say_not_measured(axes)
  elif quantity.is_log and _lowest(axes) > 0:
    figures.set_log_scale(axes)


def _lowest(axes: mpl_axes.Axes) -> float:
  values = [np.asarray(line.get_ydata(), float) for line in axes.lines]
  return float(np.nanmin(np.concatenate(values)))


def _extent(cells: Mapping[tuple[str, str], study_lib.Cell]) -> str:
  """Returns what the cells that are drawn lack, in a sentence."""
  lacking = [
    f'{methods.display_name(method)} on {study_lib.dataset_name(dataset)} '
    f'({"; ".join(cell.lacks)})'
    for (dataset, method), cell in cells.items()
    if cell.lacks
  ]
  if not lacking:
    return 'Every run of the study is in it.'
  return f'{INCOMPLETE} Computed on an incomplete set: {", ".join(lacking)}.'


def _mark(cells: Iterable[study_lib.Cell | None]) -> str:
  lacking = any(cell is not None and cell.lacks for cell in cells)
  return f' {INCOMPLETE}' if lacking else ''
