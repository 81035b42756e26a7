"""The page of `diagnose`: one checkpoint's features and Q-values."""

from collections.abc import Mapping
import pathlib

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.analysis import diagnosis
from batch_rl_dr3.reporting import figures, page, run_reader, words
from batch_rl_dr3.runs import atomic

_FIGURE = 'diagnosis.png'


def percentiles(
  measures: Mapping[str, float], runs: str | None, gradient_steps: int | None
) -> dict[str, float]:
  """Returns where measures stand among runs at the same gradient step.

  That is the percentage of the runs of a glob pattern that are below, half of
  those equal; without a step, at each run's last. DataError without runs.
  """
  if runs is None:
    return {}
  table = run_reader.read_runs(runs).metrics
  found = {}
  for name in sorted(measures.keys() & set(run_reader.METRICS)):
    rows = table[['folder', 'gradient_steps', name]].dropna()
    if gradient_steps is not None:
      rows = rows[rows['gradient_steps'] <= gradient_steps]
    values = rows.sort_values('gradient_steps').groupby('folder')[name].last()
    if len(values):
      below = (values < measures[name]).mean()
      found[name] = 100 * float(below + (values == measures[name]).mean() / 2)
  return found


def write(
  folder: pathlib.Path,
  title: str,
  columns: Mapping[str, diagnosis.Diagnosis],
  layers: pd.DataFrame | None = None,
  gradient_steps: int | None = None,
  runs: str | None = None,
) -> None:
  """Writes index.html, its figure, measures.csv and layers.csv.

  Args:
    folder: where they go.
    title: the checkpoint.
    columns: by the name of the sample of transitions.
    layers: see `policies.sensitivity`.
    gradient_steps: of the checkpoint.
    runs: see `percentiles`; of the first column.

  Raises:
    DataError: if there are no runs to compare with.
    WriteError: if the folder cannot be written.
  """
  meanings = words.parts('diagnosis')
  measures = pd.DataFrame({n: c.measures for n, c in columns.items()})
  measures = measures.reindex([n for n in meanings if n in measures.index])
  first = next(iter(columns.values())).measures
  if compared := percentiles(first, runs, gradient_steps):
    measures['percentile'] = pd.Series(compared)
  atomic.make_directory(folder)
  csv = measures.to_csv(index_label='measure')
  atomic.write_text(folder / 'measures.csv', csv)
  if layers is not None:
    atomic.write_text(folder / 'layers.csv', layers.to_csv(index=False))
  with atomic.whole_path(folder / _FIGURE) as path:
    _draw(columns).savefig(path, format='png', dpi=120)
  html = page.render(
    'diagnosis.html',
    title=title,
    columns=columns,
    layers=layers,
    gradient_steps=gradient_steps,
    measures=measures,
    meanings=meanings,
    figure=_FIGURE,
  )
  atomic.write_text(folder / 'index.html', html)


def _draw(columns: Mapping[str, diagnosis.Diagnosis]) -> mpl_figure.Figure:
  figure = mpl_figure.Figure(figsize=(10, 7), layout='constrained')
  (spectrum, plane), (cosines, values) = figure.subplots(2, 2)
  for colour, (name, found) in zip(
    figures.PALETTE, columns.items(), strict=False
  ):
    outputs = found.outputs
    line = {'color': colour, 'label': name}
    spectrum.semilogy(np.maximum(found.singular_values, 1e-12), **line)
    eigenvalues = found.eigenvalues
    plane.plot(eigenvalues.real, eigenvalues.imag, '.', alpha=0.5, **line)
    angles = diagnosis.cosines(outputs.features, outputs.next_features)
    cosines.hist(angles, bins=50, histtype='step', **line)
    if outputs.returns is None:
      values.hist(outputs.q_values, bins=50, histtype='step', **line)
    else:
      values.plot(outputs.returns, outputs.q_values, '.', alpha=0.3, **line)
  spectrum.set(xlabel='number', ylabel='singular value of Phi')
  spectrum.legend(frameon=False)
  plane.set(xlabel='real part', ylabel='imaginary part')
  plane.set_title('eigenvalues of G / N', fontsize=10)
  plane.axvline(0, color='#8d8d92', linewidth=1)
  plane.set_xscale('symlog', linthresh=1e-3, linscale=0.3)
  cosines.set(
    xlabel="cosine of phi(s, a) and phi(s', a')", ylabel='transitions'
  )
  if all(found.outputs.returns is None for found in columns.values()):
    values.set(xlabel='Q(s, a)', ylabel='transitions')
  else:
    values.set(xlabel='logged discounted return', ylabel='Q(s, a)')
    values.axline((0, 0), slope=1, color='#8d8d92', linewidth=1)
  return figure
