"""Judges kept MinAtar runs by the words of results/plan.md.

Writes FOLDER/tables/regimes.csv, FOLDER/figures/regimes.png (by gamma, or by
method) and, of runs that change one thing else, FOLDER/figures/drift.png:

  python run_scripts/regimes.py results/minatar_pilot
"""

import pathlib
import sys

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

import batch_rl_dr3
from batch_rl_dr3.reporting import reference

KEYS = ['game', 'dataset', 'method', 'seed']
QUANTITIES = (
  'mean_q',
  'feature_dot_product',
  'feature_norm_squared',
  'feature_cosine',
  'divergence_ratio',
)
COLOURS = {
  'gamma0.9': '#0072B2',
  'gamma0.95': '#E69F00',
  'gamma0.99': '#D55E00',
}
PALETTE = ('#000000', '#0072B2', '#E69F00', '#009E73', '#CC79A7')
LABELS = {
  'mean_q': 'mean Q',
  'feature_dot_product': 'dot product',
  'feature_cosine': "cosine of phi and phi'",
}
# The runs that the changes start from, and what is changed.
STARTS = {'dqn': 'gamma0.95', 'cql': 'gamma0.99'}
CHANGES = {
  '': ('as in the first step', '#000000'),
  'rate': ('learning rate 1e-3', '#D55E00'),
  'long': ('400,000 steps', '#0072B2'),
  'wide': ('512 features', '#009E73'),
  'wider': ('2,048 features', '#999999'),
  'small_batch': ('batches of 8', '#CC79A7'),
  'period_50': ('target period 50', '#E69F00'),
  'quantiles': ('200 quantiles', '#56B4E9'),
}


def slope(steps, values):
  """Returns the least-squares slope of values over steps."""
  centred = steps - steps.mean()
  return float((centred * (values - values.mean())).sum() / (centred**2).sum())


def factor(steps, values):
  """Returns by how much a fitted exponential grows from first to last step."""
  logs = np.log(np.abs(values).clip(1e-9))
  return float(np.exp(slope(steps, logs) * (steps[-1] - steps[0])))


def judge(metrics, returns):
  """Returns what the plan's words say of one run.

  Args:
    metrics: one row a log step.
    returns: normalised, in percent, one an evaluation.
  """
  last = metrics.gradient_steps.max()
  late = metrics[metrics.gradient_steps >= last / 2]
  steps, q = late.gradient_steps.to_numpy(float), late.mean_q.to_numpy()
  q_slope = slope(steps, q) * 10_000 / np.abs(q).mean()
  growth = factor(steps, late.feature_dot_product.to_numpy())
  running = pd.Series(returns).rolling(5).mean()
  is_settled = abs(q_slope) < 0.05
  return {
    'mean_q': float(q[-1]),
    'q_slope_per_10000': q_slope,
    'settled': is_settled,
    'dot_product': float(late.feature_dot_product.iloc[-1]),
    'growth_factor': growth,
    'q_factor': factor(steps, q),
    'norm_squared_factor': factor(steps, late.feature_norm_squared.to_numpy()),
    'cosine_change': float(
      late.feature_cosine.iloc[-1] - late.feature_cosine.iloc[0]
    ),
    'candidate': is_settled and growth >= 1.1,
    'best_five': float(running.max()),
    'final': float(running.iloc[-1]),
    'lost': float(running.max() - running.iloc[-1]),
    'divergence_ratio': float(metrics.divergence_ratio.iloc[-1]),
  }


def regimes(runs):
  """Returns one row a run."""
  normalise = reference.Normalisation()
  scores = dict(list(runs.scores.groupby(KEYS)))
  rows = []
  for key, metrics in runs.metrics.groupby(KEYS):
    returns = scores[key].sort_values('gradient_steps')['return'].to_numpy()
    percent = 100 * normalise(returns[None, None], (key[0],))[0, 0]
    rows.append(dict(zip(KEYS, key, strict=True)) | judge(metrics, percent))
  return pd.DataFrame(rows)


def draw(runs, path):
  """Draws mean Q and the dot product of every run, games across."""
  table = runs.metrics.copy()
  table[['base', 'gamma']] = table.method.str.split('_', n=1, expand=True)
  table = table[table.gamma.isin(list(COLOURS))]
  games = sorted(table.game.unique())
  rows = list(table.groupby(['base', 'dataset']))
  figure = mpl_figure.Figure(
    figsize=(3.4 * len(games), 4.2 * len(rows)), layout='constrained'
  )
  axes = figure.subplots(2 * len(rows), len(games), sharex=True, squeeze=False)
  for row, ((base, dataset), part) in enumerate(rows):
    for column, game in enumerate(games):
      top, bottom = axes[2 * row][column], axes[2 * row + 1][column]
      of_game = part[part.game == game]
      for (gamma, _), run in of_game.groupby(['gamma', 'seed']):
        style = {'color': COLOURS[gamma], 'linewidth': 1.2}
        thousands = run.gradient_steps / 1000
        top.plot(thousands, run.mean_q, label=gamma, **style)
        bottom.plot(thousands, run.feature_dot_product, **style)
      top.set_yscale('symlog', linthresh=1)
      bottom.set_yscale('log')
      top.set_title(f'{game}, {dataset}, {base.upper()}', fontsize=9)
    axes[2 * row][0].set_ylabel('mean Q')
    axes[2 * row + 1][0].set_ylabel('dot product')
  for axis in axes[-1]:
    axis.set_xlabel('thousand gradient steps')
  handles = {line.get_label(): line for line in axes[0][0].get_lines()}
  figure.legend(
    handles.values(),
    [name.replace('gamma', 'gamma ') for name in handles],
    loc='outside upper center',
    ncols=3,
    frameon=False,
  )
  figure.savefig(path, dpi=80)


def draw_changes(runs, path):
  """Draws the same of runs on breakout that change one thing, by method."""
  table = runs.metrics
  table = table[(table.game == 'breakout') & (table.dataset == '10pct')]
  figure = mpl_figure.Figure(figsize=(9, 6.5), layout='constrained')
  axes = figure.subplots(2, 2, sharex=True, sharey='row')
  for column, (base, start) in enumerate(STARTS.items()):
    for change, (label, colour) in CHANGES.items():
      run = table[
        (table.method == f'{base}_{change or start}')
        & (table.seed == '0')
        & (table.gradient_steps > 0)
      ]
      if run.empty:
        continue
      style = {'color': colour, 'label': label, 'linewidth': 1.4}
      thousands = run.gradient_steps / 1000
      axes[0][column].plot(thousands, run.mean_q, **style)
      axes[1][column].plot(thousands, run.feature_dot_product, **style)
    axes[0][column].set_title(f'breakout, 10pct, {base.upper()}, {start}')
    axes[1][column].set_xlabel('thousand gradient steps')
  for row, name in enumerate(('mean Q', 'dot product')):
    axes[row][0].set_ylabel(name)
    axes[row][0].set(xscale='log', yscale='log')
  figure.legend(
    *axes[0][0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=4,
    frameon=False,
  )
  figure.savefig(path, dpi=80)


def draw_methods(runs, path):
  """Draws mean Q, the dot product and the cosine of every run, by method."""
  table = runs.metrics[runs.metrics.gradient_steps > 0]
  methods = dict(zip(sorted(table.method.unique()), PALETTE, strict=False))
  games = sorted(table.game.unique())
  figure = mpl_figure.Figure(
    figsize=(10.5, 3.6 * len(games)), layout='constrained'
  )
  grid = figure.subplots(len(games), len(LABELS), sharex=True, squeeze=False)
  for axes, game in zip(grid, games, strict=True):
    for axis, (quantity, label) in zip(axes, LABELS.items(), strict=True):
      of_game = table[table.game == game]
      for (method, _), run in of_game.groupby(['method', 'seed']):
        thousands = run.gradient_steps / 1000
        style = {'color': methods[method], 'label': method, 'linewidth': 1.2}
        axis.plot(thousands, run[quantity], **style)
      axis.set(title=f'{game}: {label}', xlabel='thousand gradient steps')
    axes[1].set_yscale('log')
  lines = {line.get_label(): line for line in grid[0][0].get_lines()}
  figure.legend(
    lines.values(), lines, loc='outside upper center', ncols=4, frameon=False
  )
  figure.savefig(path, dpi=80)


def main(folder):
  """Writes the table and the figure of a folder of kept runs."""
  runs = batch_rl_dr3.read_runs(str(folder), QUANTITIES)
  for name in ('tables', 'figures'):
    (folder / name).mkdir(exist_ok=True)
  table = regimes(runs)
  table.round(4).to_csv(folder / 'tables' / 'regimes.csv', index=False)
  is_by_gamma = table.method.str.contains('gamma').any()
  figure = draw if is_by_gamma else draw_methods
  figure(runs, folder / 'figures' / 'regimes.png')
  if any(table.method.isin([f'dqn_{change}' for change in CHANGES])):
    draw_changes(runs, folder / 'figures' / 'drift.png')
  print(table.round(3).to_string())


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
