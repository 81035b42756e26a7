"""The studies that train: what is trained, their figures and their tables.

A run is a base method of a suite (`<suite>/methods/<base>.gin`) and what the
study changes of it (`studies/<change>.gin`, bindings), so that the same study
serves MinAtar and Atari.
"""

import dataclasses
import functools
from typing import Any

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import figures, run_reader

# What is drawn: columns of metrics.csv, and `return`.
RETURN = 'return'
_DOT = 'feature_dot_product'
_RANK = 'effective_rank'


@dataclasses.dataclass(frozen=True)
class Variant:
  """One of the things that a study trains.

  Attributes:
    method: its name in runs, tables and figures.
    base: the base method's gin file.
    change: the study's gin file; None for the base method as it is.
    bindings: further changes.
    starts_from: the method whose last checkpoint it starts from.
    is_drawn: whether it is in the figure.
  """

  method: str
  base: str
  change: str | None = None
  bindings: tuple[str, ...] = ()
  starts_from: str | None = None
  is_drawn: bool = True

  def gin_files(self, suite: str, dataset: str | None) -> list[str]:
    """Returns the files that say what is trained.

    Args:
      suite: 'minatar' or 'atari'.
      dataset: part of the data, such as '1pct'; None for the suite's own.
    """
    folder = 'atari/methods' if suite == 'atari' else suite
    return [
      f'{folder}/{self.base}.gin',
      *([f'{suite}/datasets/{dataset}.gin'] if dataset else []),
      *([f'studies/{self.change}.gin'] if self.change else []),
    ]


@dataclasses.dataclass(frozen=True)
class TrainedStudy:
  """What is trained, and what is drawn of it.

  Attributes:
    name: of the command and the files.
    title: above the figure.
    question: what it is to show, a sentence.
    variants: what is trained, in order.
    quantities: the rows of the figure.
  """

  name: str
  title: str
  question: str
  variants: tuple[Variant, ...]
  quantities: tuple[str, ...]

  @property
  def methods(self) -> list[str]:
    """The methods of the figure."""
    return [v.method for v in self.variants if v.is_drawn]


def _plain(*methods: str) -> list[Variant]:
  return [Variant(method, method) for method in methods]


_FIXED = [
  Variant(
    f'dqn_c{value}_dr3',
    'dqn_dr3',
    bindings=(
      f"FixedReplayRunner.method='dqn_c{value}_dr3'",
      f'FeatureDotPenalty.coefficient={value}',
    ),
  )
  for value in ('0.001', '0.01')
]

STUDIES = {
  study.name: study
  for study in (
    TrainedStudy(
      'figure1',
      'Which backups co-adapt features',
      'The dot product is to grow under TD- and Q-learning, and to stay low '
      'under SARSA and regression, while all Q-values converge.',
      tuple(
        Variant(name, 'dqn', f'figure1_{name}')
        for name in ('regression', 'sarsa', 'td', 'q_learning')
      ),
      (_DOT, 'mean_q'),
    ),
    TrainedStudy(
      'figure2',
      'Training on without DR3 from a DR3 checkpoint',
      'Return is to fall and the dot product to grow from the start, while '
      'losses do not.',
      (
        Variant('dqn_cql_dr3', 'dqn_cql_dr3', is_drawn=False),
        Variant('from_dr3_dqn', 'dqn', 'figure2_dqn', (), 'dqn_cql_dr3'),
        Variant('from_dr3_cql', 'dqn_cql', 'figure2_cql', (), 'dqn_cql_dr3'),
      ),
      (RETURN, _DOT, 'loss_bellman', 'loss_total'),
    ),
    TrainedStudy(
      'figure5',
      'Effective rank with and without DR3',
      'The rank is to fall without DR3 and to hold with it; beside it the '
      'penalty that acts on the rank itself.',
      tuple(
        variant
        for base in ('dqn', 'rem', 'cql')
        for variant in (
          *_plain(base, f'{base}_dr3'),
          Variant(f'{base}_rank', base, f'figure5_{base}_rank'),
        )
      ),
      (_RANK, _DOT, RETURN),
    ),
    TrainedStudy(
      'figure6',
      'Sigma of label noise against Sigma = I',
      'Both regularisers are to improve CQL alike.',
      (
        *_plain('cql', 'cql_dr3'),
        Variant('cql_label_noise', 'cql', 'figure6_cql_label_noise'),
      ),
      (RETURN, _DOT, _RANK, 'label_noise_anisotropy'),
    ),
    TrainedStudy(
      'table_a1',
      'Which gradients DR3 needs',
      'DR3 with the gradient stopped is to be between the base and DR3.',
      (
        *_plain('cql', 'cql_dr3'),
        *(
          Variant(f'cql_dr3_{name}', 'cql_dr3', f'table_a1_{name}')
          for name in ('stop_gradient', 'same_action')
        ),
      ),
      (RETURN, _DOT, _RANK, 'divergence_ratio'),
    ),
    TrainedStudy(
      'adaptive',
      'A coefficient that looks for a cosine',
      'One target is to do what c0 does after tuning.',
      (
        *_plain('dqn', 'dqn_dr3'),
        *_FIXED,
        Variant('dqn_adaptive', 'dqn', 'adaptive_dqn'),
        Variant('dqn_adaptive_c0', 'dqn', 'adaptive_dqn_c0'),
      ),
      (
        RETURN,
        _DOT,
        _RANK,
        'divergence_ratio',
        'feature_cosine',
        'adaptive_coefficient',
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
  study: TrainedStudy,
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
  study: TrainedStudy, collection: run_reader.Collection
) -> figures.Figure:
  """Returns the figure as files."""
  return figures.make(
    study.name,
    study.title,
    study.question,
    functools.partial(draw, study, collection),
  )


def table(
  study: TrainedStudy, collection: run_reader.Collection
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
