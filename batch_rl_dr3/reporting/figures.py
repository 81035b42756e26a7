"""Figures: return, TD loss, dot product and rank over gradient steps."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np
from numpy import typing as npt

from batch_rl_dr3.reporting import curves, methods, scores
from batch_rl_dr3.reporting import figure as figure_lib

# Points beyond which raw lines hide each other, and a running mean is drawn.
MAX_RAW_POINTS = 200
_WINDOWS_PER_CURVE = 20
# Points up to which each gets a marker.
_MAX_MARKERS = 15
# Ratio of largest to smallest value, one and a half decades, from which an
# axis is logarithmic.
_LOG_SPAN = 30.0


@dataclasses.dataclass(frozen=True)
class Panel:
  """One quantity of a figure.

  Attributes:
    quantity: its name in the run directory.
    title: above the panel.
    label: of the vertical axis, with the unit.
    may_be_log: whether a wide span makes the axis logarithmic.
  """

  quantity: str
  title: str
  label: str
  may_be_log: bool


PANELS = (
  Panel(scores.RETURN, 'Return', 'points per episode', False),
  Panel(scores.TD_LOSS, 'TD loss', 'loss, mean over a data sample', True),
  Panel(
    scores.DOT_PRODUCT, 'Feature dot product', 'mean over a data sample', True
  ),
  Panel(scores.EFFECTIVE_RANK, 'Effective rank', 'number of directions', False),
)


def running_mean(
  values: npt.NDArray[np.float64], window: int
) -> npt.NDArray[np.float64]:
  """Returns the centred mean over `window` points, fewer at the ends.

  Args:
    values: float64 [T]; a NaN makes NaN of every window that holds it.
    window: number of points, odd.
  """
  half = window // 2
  return np.asarray(
    [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
  )


def _window(num_points: int) -> int:
  return num_points // _WINDOWS_PER_CURVE // 2 * 2 + 1


def _draw_curve(
  axes: mpl_axes.Axes, curve: curves.Curve, line: dict[str, Any], label: str
) -> None:
  mean = curve.mean
  if len(mean) > MAX_RAW_POINTS:
    axes.plot(curve.steps, mean, color=line['color'], alpha=0.22, linewidth=0.7)
    mean = running_mean(mean, _window(len(mean)))
  marker = 'o' if len(mean) <= _MAX_MARKERS else ''
  axes.plot(
    curve.steps, mean, label=label, marker=marker, markersize=4.2, **line
  )
  if curve.num_seeds > 1:
    axes.fill_between(
      curve.steps,
      curve.values.min(axis=0),
      curve.values.max(axis=0),
      color=line['color'],
      alpha=0.14,
      linewidth=0,
    )


def spans_decades(drawn: Sequence[curves.Curve]) -> bool:
  """Returns whether a logarithmic axis shows the curves better.

  It does when all values are positive and the largest is at least thirty
  times the smallest.
  """
  values = np.concatenate([[], *(curve.values.ravel() for curve in drawn)])
  values = values[np.isfinite(values)]
  if not values.size or values.min() <= 0:
    return False
  return bool(values.max() / values.min() >= _LOG_SPAN)


def draw_panel(
  axes: mpl_axes.Axes,
  panel: Panel,
  drawn: dict[str, curves.Curve],
  lines: dict[str, dict[str, Any]],
) -> None:
  """Draws one quantity of several methods.

  Args:
    axes: where.
    panel: the quantity.
    drawn: its curve by method.
    lines: the style of each method's line.
  """
  axes.set_title(panel.title)
  figure_lib.set_steps_axis(axes)
  label = panel.label
  for method, curve in drawn.items():
    if curve.steps.size:
      name = methods.display_name(method)
      _draw_curve(axes, curve, lines[method], name)
  if panel.may_be_log and spans_decades(list(drawn.values())):
    figure_lib.set_log_scale(axes)
    label += ' (log scale)'
  axes.set_ylabel(label)
  if not any(curve.steps.size for curve in drawn.values()):
    figure_lib.say_not_measured(axes)


def draw(
  collection: scores.Collection, setting: scores.Setting, narrow: bool
) -> mpl_figure.Figure:
  """Returns the Matplotlib figure of a setting, its methods side by side.

  Args:
    collection: the runs.
    setting: which game and data set.
    narrow: True for four panels below each other, False for two by two.
  """
  figure = mpl_figure.Figure(
    figsize=(4.2, 12.4) if narrow else (8.0, 6.4), layout='constrained'
  )
  grid = figure.subplots(*((4, 1) if narrow else (2, 2)))
  runs = [run for run in collection.runs if run.setting == setting]
  last_step = max(1, *(run.num_gradient_steps for run in runs))
  names = collection.methods(setting)
  lines = figure_lib.line_styles(names)
  for axes, panel in zip(np.ravel(grid), PANELS, strict=True):
    drawn = {
      method: curves.curve(collection, setting, method, panel.quantity)
      for method in names
    }
    draw_panel(axes, panel, drawn, lines)
    axes.set_xlim(-0.02 * last_step, 1.03 * last_step)
  figure_lib.add_legend(figure, names, 2 if narrow else 6)
  return figure


def caption(collection: scores.Collection, setting: scores.Setting) -> str:
  """Returns what a setting's figure shows, and what was done to its data."""
  drawn = [
    curves.curve(collection, setting, method, panel.quantity)
    for panel in PANELS
    for method in collection.methods(setting)
  ]
  basis = (
    'Each quantity against gradient steps; dashed and lighter without DR3, '
    'solid with it.'
  )
  parts = [basis]
  if any(curve.num_seeds > 1 for curve in drawn):
    parts.append(
      'Lines are means over seeds, bands reach from the lowest to the highest '
      'seed, at the steps that every seed has.'
    )
  else:
    parts.append('One seed per method, so there is no band.')
  if any(len(curve.steps) > MAX_RAW_POINTS for curve in drawn):
    parts.append(
      f'Where a line has more than {MAX_RAW_POINTS} points, it is a centred '
      f'running mean over a {_WINDOWS_PER_CURVE}th of them, and the raw values '
      'are drawn faintly behind it.'
    )
  else:
    parts.append('Nothing is smoothed.')
  return ' '.join(parts)


def all_figures(collection: scores.Collection) -> list[figure_lib.Figure]:
  """Returns one figure per setting."""
  return [
    figure_lib.make(
      setting.slug,
      setting.label,
      caption(collection, setting),
      functools.partial(draw, collection, setting),
    )
    for setting in collection.settings
  ]
