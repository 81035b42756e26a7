"""The figures and tables of the studies that train.

What a study trains is its grid, `gin_configs/studies/<name>.gin`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import figures, run_reader

# What is drawn: columns of metrics.csv, and `return`.
RETURN = 'return'
_DOT = 'feature_dot_product'
_RANK = 'effective_rank'
_RATIO = 'divergence_ratio'


@dataclasses.dataclass(frozen=True)
class TrainedStudy:
  """What is drawn of the runs of a study: a row of the figure a quantity."""

  name: str
  title: str
  question: str
  quantities: tuple[str, ...]


STUDIES = {
  study.name: study
  for study in (
    TrainedStudy(
      'figure1',
      'Which backups co-adapt features',
      'The dot product is to grow under TD- and Q-learning, and to stay low '
      'under SARSA and regression, while all Q-values converge.',
      (_DOT, 'mean_q'),
    ),
    TrainedStudy(
      'figure2',
      'Training on without DR3 from a DR3 checkpoint',
      'Return is to fall and the dot product to grow from the start, while '
      'losses do not.',
      (RETURN, _DOT, 'loss_bellman', 'loss_total'),
    ),
    TrainedStudy(
      'figure5',
      'Effective rank with and without DR3',
      'The rank is to fall without DR3 and to hold with it; beside it the '
      'penalty that acts on the rank itself.',
      (_RANK, _DOT, RETURN),
    ),
    TrainedStudy(
      'figure6',
      'Sigma of label noise against Sigma = I',
      'Both regularisers are to improve CQL alike.',
      (RETURN, _DOT, _RANK, 'label_noise_anisotropy'),
    ),
    TrainedStudy(
      'table_a1',
      'Which gradients DR3 needs',
      'DR3 with the gradient stopped is to be between the base and DR3.',
      (RETURN, _DOT, _RANK, _RATIO),
    ),
    TrainedStudy(
      'adaptive',
      'A coefficient that looks for a cosine',
      'One target is to do what c0 does after tuning.',
      (
        *(RETURN, _DOT, _RANK, _RATIO),
        *('feature_cosine', 'adaptive_coefficient'),
      ),
    ),
  )
}

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
    figures.Panel(_RATIO, "Proposition 3.2's ratio", 'diverges from 1', False),
    figures.Panel(
      'label_noise_anisotropy', 'Sigma against I', '|Sigma - I| / |I|', False
    ),
    figures.Panel('feature_cosine', 'Feature cosine', _SAMPLE, False),
    figures.Panel(
      'adaptive_coefficient', 'Adaptive coefficient', 'multiplier', True
    ),
  )
}


def draw(
  study: TrainedStudy,
  collection: run_reader.Collection,
  names: Sequence[str],
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
  lines = {
    name: {
      'color': _HUES[i % len(_HUES)],
      'linestyle': _DASHES[i % len(_DASHES)],
      'linewidth': 1.6,
    }
    for i, name in enumerate(names)
  }
  grid = np.ravel(figure.subplots(num_rows, num_columns, squeeze=False))
  for axes, (panel, setting) in zip(grid, places, strict=False):
    drawn = {
      name: figures.curve_of(collection, setting, name, panel.quantity)
      for name in names
    }
    figures.draw_panel(axes, panel, drawn, lines)
    if len(collection.settings) > 1:
      axes.set_title(f'{panel.title}: {setting.label}')
  for axes in grid[len(places) :]:
    axes.set_visible(False)
  figures.add_legend(figure, names, 2 * num_columns)
  return figure


def make(
  study: TrainedStudy, collection: run_reader.Collection, names: Sequence[str]
) -> figures.Figure:
  """Returns the figure as files."""
  return figures.make(
    study.name,
    study.title,
    study.question,
    functools.partial(draw, study, collection, names),
  )


def table(
  study: TrainedStudy, collection: run_reader.Collection, names: Sequence[str]
) -> pd.DataFrame:
  """Returns what each quantity began and ended with, a row a method.

  Returns:
    Columns suite, game, dataset, method, quantity, num_seeds; first_step,
    first, last_step, last: means over seeds at the first and the last gradient
    step that all of them have; lowest and highest: over seeds at the last.
  """
  rows = []
  for setting, name, quantity in itertools.product(
    collection.settings, names, study.quantities
  ):
    curve = figures.curve_of(collection, setting, name, quantity)
    if curve.steps.size:
      rows.append(
        {
          **setting._asdict(),
          'method': name,
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
