"""What the runs of a study came to: its figure and its table."""

import functools
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import figures, run_reader
from batch_rl_dr3.studies import catalogue

# Okabe and Ito's colours; the tenth variant would repeat the first.
_HUES = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
  '#8B6914',
  '#888888',
)
_DASHES: tuple[Any, ...] = ('-', (0, (5, 1.5)), (0, (1.5, 1.2)))
_WIDTH, _HEIGHT = 3.9, 2.6
_SAMPLE = 'mean over a data sample'

PANELS = {
  panel.quantity: panel
  for panel in (
    *figures.PANELS,
    figures.Panel(run_reader.MEAN_Q, 'Q-values of the data', _SAMPLE, False),
    figures.Panel('loss_total', 'Training loss', _SAMPLE, False),
    figures.Panel(
      'divergence_ratio', "Proposition 3.2's ratio", 'diverges from 1', False
    ),
    figures.Panel(
      'label_noise_anisotropy', 'Sigma against I', '|Sigma - I| / |I|', False
    ),
    figures.Panel('feature_cosine', 'Feature cosine', _SAMPLE, False),
    figures.Panel(
      'adaptive_coefficient', 'Adaptive coefficient', 'multiplier', True
    ),
  )
}


def line_styles(methods: list[str]) -> dict[str, dict[str, Any]]:
  """Returns a style for each method of a study, in their order."""
  return {
    method: {
      'color': _HUES[i % len(_HUES)],
      'linestyle': _DASHES[i % len(_DASHES)],
      'linewidth': 1.6,
    }
    for i, method in enumerate(methods)
  }


def draw(
  study: catalogue.Study,
  collection: run_reader.Collection,
  narrow: bool = False,
) -> mpl_figure.Figure:
  """Returns the figure: a row a quantity, a column a game and data set.

  Where there is one game alone, more than two quantities take two columns.
  """
  places = [
    (PANELS[quantity], setting)
    for quantity in study.quantities
    for setting in collection.settings
  ]
  num_columns = len(collection.settings)
  if narrow:
    num_columns = 1
  elif num_columns == 1 and len(places) > 2:
    num_columns = 2
  num_rows = -(-len(places) // num_columns)
  figure = mpl_figure.Figure(
    figsize=(_WIDTH * num_columns, _HEIGHT * num_rows + 0.6),
    layout='constrained',
  )
  lines = line_styles(study.methods)
  grid = np.ravel(figure.subplots(num_rows, num_columns, squeeze=False))
  for axes, (panel, setting) in zip(grid, places, strict=False):
    drawn = {
      method: figures.curve_of(collection, setting, method, panel.quantity)
      for method in study.methods
    }
    figures.draw_panel(axes, panel, drawn, lines)
    if len(collection.settings) > 1:
      axes.set_title(f'{panel.title}: {setting.label}')
  for axes in grid[len(places) :]:
    axes.set_visible(False)
  figures.add_legend(figure, study.methods, 2 * num_columns)
  return figure


def make(
  study: catalogue.Study, collection: run_reader.Collection
) -> figures.Figure:
  """Returns the figure as files."""
  return figures.make(
    study.name,
    study.title,
    study.question,
    functools.partial(draw, study, collection),
  )


def table(
  study: catalogue.Study, collection: run_reader.Collection
) -> pd.DataFrame:
  """Returns what each quantity began and ended with, a row a method.

  Returns:
    Columns suite, game, dataset, method, quantity, num_seeds; first_step,
    first, last_step, last: means over seeds at the first and the last gradient
    step that all of them have; lowest and highest: over seeds at the last.
  """
  rows = []
  for setting in collection.settings:
    for method in study.methods:
      for quantity in study.quantities:
        curve = figures.curve_of(collection, setting, method, quantity)
        if curve.steps.size:
          rows.append(
            {
              **setting._asdict(),
              'method': method,
              'quantity': quantity,
              'num_seeds': curve.num_seeds,
              'first_step': int(curve.steps[0]),
              'first': curve.mean[0],
              'last_step': int(curve.steps[-1]),
              'last': curve.mean[-1],
              'lowest': curve.values[:, -1].min(),
              'highest': curve.values[:, -1].max(),
            }
          )
  return pd.DataFrame(rows)
