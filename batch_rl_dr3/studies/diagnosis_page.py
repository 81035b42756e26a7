"""The page of `diagnose`: one checkpoint's features and Q-values."""

from collections.abc import Mapping
import dataclasses
import pathlib

import jinja2
from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.analysis import diagnosis as diagnosis_lib
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.runs import atomic

# What each measure is: the reader's words, in the order of the page.
WORDS = {
  'feature_dot_product': "mean of phi(s, a)^T phi(s', a')",
  'feature_cosine': "mean cosine of phi(s, a) and phi(s', a')",
  'feature_norm': 'mean |phi(s, a)|',
  'feature_norm_squared': 'mean |phi(s, a)|^2',
  'discounted_dot_product': 'the dot product of what is backed up',
  'divergence_ratio': "Proposition 3.2's ratio: from 1 on, linear TD diverges",
  'lowest_eigenvalue_of_G': 'lowest real part of an eigenvalue of G / N: '
  'negative where linear TD diverges',
  'effective_rank': 'srank: directions that hold 99% of the singular values',
  'threshold_rank': 'singular values of Phi / sqrt(N) above 0.01',
  'pca_rank': 'principal components that hold 99% of the variance',
  'dormant_fraction': 'features with a score of at most 0.025',
  'dead_fraction': 'features that are 0 at every state',
  'mean_q': 'mean Q(s, a)',
  'mean_return': 'mean logged return from (s, a) on',
  'q_bias': 'mean of Q less return',
  'q_error': 'mean of |Q less return|',
  'q_correlation': 'correlation of Q and return',
}
_COLOURS = ('#0072B2', '#D55E00')
_FIGURE = 'diagnosis.png'


@dataclasses.dataclass(frozen=True)
class PageColumn:
  """What was measured on one sample of transitions."""

  transitions: diagnosis_lib.LoggedOutputs
  diagnosis: diagnosis_lib.Diagnosis


@dataclasses.dataclass(frozen=True)
class Page:
  """What the page shows.

  Attributes:
    title: the checkpoint.
    columns: by the name of the sample.
    layers: see `policies.sensitivity`; None where it is not known.
    gradient_steps: of the checkpoint, if known.
    percentiles: of the first column's measures among other runs, 0 to 100.
  """

  title: str
  columns: Mapping[str, PageColumn]
  layers: pd.DataFrame | None
  gradient_steps: int | None
  percentiles: Mapping[str, float]


def percentiles(
  columns: Mapping[str, PageColumn],
  runs: str | None,
  gradient_steps: int | None,
) -> dict[str, float]:
  """Returns where measures stand among runs at the same gradient step.

  Args:
    columns: of which the first is compared.
    runs: a glob pattern of runs; None compares with nothing.
    gradient_steps: the step; None is each run's last.

  Returns:
    By measure, the percentage of runs that are below, half of those equal.

  Raises:
    DataError: if there are no such runs.
  """
  if runs is None:
    return {}
  table = run_reader.read_runs(runs).metrics
  found = {}
  measures = next(iter(columns.values())).diagnosis.measures
  for name in sorted(measures.keys() & set(run_reader.METRICS)):
    rows = table[['folder', 'gradient_steps', name]].dropna()
    if gradient_steps is not None:
      rows = rows[rows['gradient_steps'] <= gradient_steps]
    values = rows.sort_values('gradient_steps').groupby('folder')[name].last()
    if len(values):
      below = (values < measures[name]).mean()
      found[name] = 100 * float(below + (values == measures[name]).mean() / 2)
  return found


def write(page: Page, folder: pathlib.Path) -> None:
  """Writes index.html, its figure, measures.csv and layers.csv.

  Raises:
    WriteError: if the folder cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  measures = pd.DataFrame(
    {name: c.diagnosis.measures for name, c in page.columns.items()}
  )
  measures = measures.reindex(
    [name for name in WORDS if name in measures.index]
  )
  if page.percentiles:
    measures['percentile'] = pd.Series(page.percentiles)
  atomic.write_text(
    folder / 'measures.csv', measures.to_csv(index_label='measure')
  )
  if page.layers is not None:
    atomic.write_text(folder / 'layers.csv', page.layers.to_csv(index=False))
  with atomic.whole_path(folder / _FIGURE) as path:
    _draw(page).savefig(path, format='png', dpi=120)
  templates = jinja2.Environment(
    loader=jinja2.PackageLoader('batch_rl_dr3.reporting'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  html = templates.get_template('diagnosis.html').render(
    page=page, measures=measures, words=WORDS, figure=_FIGURE
  )
  atomic.write_text(folder / 'index.html', html)


def _draw(page: Page) -> mpl_figure.Figure:
  figure = mpl_figure.Figure(figsize=(10, 7), layout='constrained')
  (spectrum, plane), (cosines, values) = figure.subplots(2, 2)
  for colour, (name, column) in zip(
    _COLOURS, page.columns.items(), strict=False
  ):
    found, seen = column.diagnosis, column.transitions
    style = {'color': colour, 'label': name}
    spectrum.semilogy(np.maximum(found.singular_values, 1e-12), **style)
    plane.plot(
      found.eigenvalues.real, found.eigenvalues.imag, '.', alpha=0.5, **style
    )
    cosines.hist(
      diagnosis_lib.cosines(seen.features, seen.next_features),
      bins=50,
      histtype='step',
      **style,
    )
    if seen.returns is None:
      values.hist(seen.q_values, bins=50, histtype='step', **style)
    else:
      values.plot(seen.returns, seen.q_values, '.', alpha=0.3, **style)
  spectrum.set(xlabel='number', ylabel='singular value of Phi')
  plane.set(xlabel='real part', ylabel='imaginary part')
  plane.set_title('eigenvalues of G / N', fontsize=10)
  plane.axvline(0, color='#8d8d92', linewidth=1)
  plane.set_xscale('symlog', linthresh=1e-3, linscale=0.3)
  cosines.set(
    xlabel="cosine of phi(s, a) and phi(s', a')", ylabel='transitions'
  )
  if all(c.transitions.returns is None for c in page.columns.values()):
    values.set(xlabel='Q(s, a)', ylabel='transitions')
  else:
    values.set(xlabel='logged discounted return', ylabel='Q(s, a)')
    values.axline((0, 0), slope=1, color='#8d8d92', linewidth=1)
  spectrum.legend(frameon=False)
  return figure
