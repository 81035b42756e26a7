"""The figures and tables of the studies that train.

What a study trains is its grid, `gin_configs/studies/<name>.gin`; what it asks
is in reporting/templates/words.toml.
"""

from collections.abc import Sequence
import functools
import itertools

import pandas as pd

from batch_rl_dr3.reporting import figures, run_reader

RETURN = run_reader.RETURN
_DOT, _RANK = run_reader.DOT_PRODUCT, run_reader.EFFECTIVE_RANK
# What is drawn of each study: columns of metrics.csv, and the return.
STUDIES: dict[str, tuple[str, ...]] = {
  'figure1': (_DOT, run_reader.MEAN_Q),
  'figure2': (RETURN, _DOT, run_reader.TD_LOSS, 'loss_total'),
  'figure5': (_RANK, _DOT, RETURN),
  'figure6': (RETURN, _DOT, _RANK, 'label_noise_anisotropy'),
  'table_a1': (RETURN, _DOT, _RANK, run_reader.RATIO),
  'adaptive': (
    *(RETURN, _DOT, _RANK, run_reader.RATIO),
    *('feature_cosine', 'adaptive_coefficient'),
  ),
}

_SAMPLE = 'mean over a data sample'
PANELS = {
  panel.quantity: panel
  for panel in (
    *figures.PANELS,
    figures.Panel(run_reader.MEAN_Q, 'Q-values of the data', _SAMPLE),
    figures.Panel('loss_total', 'Training loss', _SAMPLE),
    figures.Panel(
      run_reader.RATIO, "Proposition 3.2's ratio", 'diverges from 1'
    ),
    figures.Panel(
      'label_noise_anisotropy', 'Sigma against I', '|Sigma - I| / |I|'
    ),
    figures.Panel('feature_cosine', 'Feature cosine', _SAMPLE),
    figures.Panel(
      *('adaptive_coefficient', 'Adaptive coefficient', 'multiplier'),
      may_be_log=True,
    ),
  )
}


def make(
  study: str, collection: run_reader.Collection, names: Sequence[str]
) -> figures.Figure:
  """Returns the figure: a row a quantity, a column a game and data set."""
  draw = functools.partial(
    figures.draw_panels,
    collection,
    [PANELS[quantity] for quantity in STUDIES[study]],
    collection.settings,
    names,
  )
  return figures.make_named(study, draw)


def table(
  study: str, collection: run_reader.Collection, names: Sequence[str]
) -> pd.DataFrame:
  """Returns what each quantity began and ended with, a row a method.

  Returns:
    Columns suite, game, dataset, method, quantity, num_seeds; first_step,
    first, last_step, last: means over seeds at the first and the last gradient
    step that all of them have; lowest and highest: over seeds at the last.
  """
  rows = []
  for setting, name, quantity in itertools.product(
    collection.settings, names, STUDIES[study]
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
