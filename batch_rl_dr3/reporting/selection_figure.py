"""The figure of what each rule for choosing a checkpoint would have kept."""

import functools

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import figure as figure_lib
from batch_rl_dr3.reporting import scores, selection
from batch_rl_dr3.reporting.section import Section

CAPTION = (
  'What each rule keeps and gains, as in the table: means over runs and 95% '
  'bootstrap intervals. Dotted: the expectation of a choice by chance.'
)

_COLOUR = '#0072B2'
_BASELINE_COLOUR = '#888888'
# What is measured, and the label of its axis.
_PANELS = (
  ('kept', 'return kept, % of the range\nfrom worst to best evaluation'),
  ('gained', 'gained on the last evaluation,\n% of that range'),
)


def section(collection: scores.Collection) -> Section:
  """Returns the part of a page about choosing a checkpoint, folded."""
  table = selection.table(collection)
  figures = []
  if len(table.frame):
    figures.append(
      figure_lib.make(
        'selection',
        table.title,
        CAPTION,
        functools.partial(draw, table.frame),
      )
    )
  return Section(table.title, [table, *figures], is_folded=True)


def draw(measured: pd.DataFrame, narrow: bool = False) -> mpl_figure.Figure:
  """Returns the Matplotlib figure: a rule a line, means with their intervals.

  Args:
    measured: `selection.measure`, or the frame of `selection.table`, which
      holds the same; at least one row.
    narrow: True for two panels below each other, False for side by side.
  """
  height = 1.1 + 0.27 * len(measured)
  figure = mpl_figure.Figure(
    figsize=(4.2, 2 * height) if narrow else (8.0, height),
    layout='constrained',
  )
  grid = figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=not narrow)
  for axes, (quantity, label) in zip(np.ravel(grid), _PANELS, strict=True):
    _draw_panel(axes, measured, quantity)
    axes.set_xlabel(label, fontsize=9)
  return figure


def _draw_panel(
  axes: mpl_axes.Axes, measured: pd.DataFrame, quantity: str
) -> None:
  lines = np.arange(len(measured))
  chance = (measured['rule'] == selection.RANDOM).to_numpy()
  low, high = measured[f'{quantity}_low'], measured[f'{quantity}_high']
  colours = np.where(chance, _BASELINE_COLOUR, _COLOUR)
  axes.hlines(lines, low, high, colors=list(colours), linewidth=2)
  axes.scatter(
    measured[quantity], lines, c=list(colours), s=30, zorder=3, linewidth=0
  )
  for value in measured.loc[chance, quantity]:
    axes.axvline(value, color=_BASELINE_COLOUR, linestyle=':', linewidth=1.2)
  if quantity == 'kept':
    axes.set_xlim(-3, 103)
  else:
    axes.axvline(0, color='#bbbbbb', linewidth=0.8, zorder=0)
  axes.set_yticks(lines, list(measured['rule']))
  axes.set_ylim(len(measured) - 0.5, -0.5)
  axes.tick_params(labelsize=9)
  axes.tick_params(axis='y', length=0)
  axes.grid(visible=False, axis='y')
  axes.grid(axis='x', color='#e6e6e6', linewidth=0.6)
  axes.set_axisbelow(True)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#888888')
