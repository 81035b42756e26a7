"""Compares methods of kept MinAtar runs by the measures of results/plan.md.

  python run_scripts/effects.py --output=EFFECTS.csv \
    --pairs cql_norm:cql_dr3 cql_norm:cql -- \
    results/minatar_norm results/minatar

A row a pair and measure: the difference within games, averaged over games, with
Welch's 95% interval, the p of a permutation test within games, and Holm's over
the table. Scores are in normalised points; what ends in _factor is the factor
between geometric means. `seeds_for_80_power` says with how many seeds a game
80% of studies would show a difference of 5 points, or a factor of 1.25.
`average` is over all evaluations, `final` the mean of the last five, `lost` the
best mean of five less the last; metrics are means over the last half of
training, `growth_factor` and `cosine_change` what the dot product and the
cosine of phi(s, a) and phi(s', a') do over it (regimes.py). Only games and as
many runs of each are compared as both methods have. A pair may name its
measures: FIRST:SECOND:average,final.
"""

import argparse
import math
import pathlib

import numpy as np
import pandas as pd
import regimes

import batch_rl_dr3
from batch_rl_dr3.reporting import reference, statistics

RUN = ['method', 'game', 'seed']
QUANTITIES = (
  'feature_dot_product',
  'feature_norm_squared',
  'effective_rank',
  'mean_q',
  'feature_cosine',
)


def measure(runs):
  """Returns a frame indexed by method, game and seed, a column a measure."""
  scores = runs.scores.sort_values('gradient_steps').copy()
  normalise = reference.Normalisation()
  for game, part in scores.groupby('game'):
    returns = part['return'].to_numpy()
    scores.loc[part.index, 'return'] = (
      100 * normalise(returns[None, None], (game,))[0, 0]
    )
  returns = scores.groupby(RUN)['return']
  fives = returns.rolling(5).mean().groupby(level=[0, 1, 2])
  table = pd.DataFrame(
    {
      'average': returns.mean(),
      'final': fives.last(),
      'lost': fives.max() - fives.last(),
    }
  )
  metrics = runs.metrics
  last = metrics.groupby(RUN).gradient_steps.transform('max')
  late = metrics[metrics.gradient_steps >= last / 2].groupby(RUN)
  for name in ('feature_dot_product', 'feature_norm_squared'):
    table[f'{name}_factor'] = np.log(late[name].mean())
  # The cosine, but for the two factors' lengths; older runs have no other.
  table['alignment'] = (
    late.feature_dot_product.mean() / late.feature_norm_squared.mean()
  )
  table['effective_rank'] = late.effective_rank.mean()
  table['mean_q'] = late.mean_q.mean()
  if 'feature_cosine' in metrics and metrics.feature_cosine.notna().all():
    # Runs of the first study do not have it.
    series = late[['gradient_steps', 'feature_dot_product']]
    table['growth_factor'] = series.apply(
      lambda run: np.log(regimes.factor(*run.to_numpy(float).T))
    )
    cosine = late.feature_cosine
    table['cosine_change'] = cosine.last() - cosine.first()
  return table


def matrices(table, methods, column):
  """Returns float64 [runs, games] of each method, on what all of them have."""
  parts = [table.loc[method, column].unstack('game') for method in methods]
  games = sorted(set.intersection(*(set(part.columns) for part in parts)))
  if not games:
    raise SystemExit(f'{" and ".join(methods)} share no game.')
  columns = [
    [part[game].dropna().to_numpy() for game in games] for part in parts
  ]
  count = min(len(values) for part in columns for values in part)
  return [np.stack([v[:count] for v in part], axis=1) for part in columns]


def num_seeds(column, first, second):
  """Returns the seeds needed for a margin; none for what has no margin."""
  margins = {'average': 5, 'final': 5, 'lost': 5}
  margin = math.log(1.25) if column.endswith('_factor') else margins.get(column)
  if margin is None or min(len(first), len(second)) < 2:
    return pd.NA
  return statistics.num_seeds_for_power(first, second, margin)


def effects(table, pairs):
  """Returns one row a pair and measure."""
  rows = []
  for pair in pairs:
    *methods, measures = f'{pair}:'.split(':')[:3]
    for column in measures.split(',') if measures else table.columns:
      first, second = matrices(table, methods, column)
      found = statistics.compare(first, second)
      numbers = np.array([found.value, found.low, found.high])
      value, low, high = (
        np.exp(numbers) if column.endswith('_factor') else numbers
      )
      rows.append(
        {
          'method': methods[0],
          'less': methods[1],
          'measure': column,
          'games': first.shape[1],
          'runs': first.shape[0],
          'difference': value,
          'low': low,
          'high': high,
          'p': found.p_value,
          'seeds_for_80_power': num_seeds(column, first, second),
        }
      )
  table = pd.DataFrame(rows)
  return table.assign(holm=statistics.holm(table.p))


def main():
  """Writes the table and prints it."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('runs', nargs='+', help='folders of kept runs')
  parser.add_argument(
    '--pairs', nargs='+', required=True, help='FIRST:SECOND[:MEASURES]'
  )
  parser.add_argument('--output', type=pathlib.Path, required=True)
  arguments = parser.parse_args()
  runs = batch_rl_dr3.read_runs(arguments.runs, QUANTITIES)
  table = effects(measure(runs), arguments.pairs)
  arguments.output.parent.mkdir(parents=True, exist_ok=True)
  table.round(4).to_csv(arguments.output, index=False)
  print(table.round(3).to_string())


if __name__ == '__main__':
  main()
