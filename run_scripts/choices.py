"""Judges the rules of `select` by regret, and what playing checkpoints brings.

  python run_scripts/choices.py results/minatar

Writes FOLDER/tables/choices.csv and budget.csv, and FOLDER/figures/budget.png.

A checkpoint is worth the mean of the evaluations around it, two before and two
after, without its own: what is chosen by an evaluation is not judged by it. A
run's regret under a rule is the worth of its best checkpoint less that of the
rule's, in normalised points. Games are the unit: a rule's number is the mean
over games of the mean over runs, with a t interval over games. A rule of
'training' looks at what was measured on rows of the data set, one of 'held_out'
on rows that were never trained on. 'leave_one_out' uses for each game the rule
with the least regret on the others.

The budget is how many checkpoints of a run may be played: the one that plays
best is taken. `any` draws them at random; a rule takes what it puts first.
"""

import pathlib
import sys

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd
from scipy import special, stats

import batch_rl_dr3
from batch_rl_dr3.reporting import reference, run_reader, selection

RUN = ['dataset', 'method', 'game', 'seed']
HELD_OUT = 'held_out_'
SOURCES = {'training': '', 'held_out': HELD_OUT}
QUANTITIES = (
  *run_reader.METRICS,
  *(
    f'{HELD_OUT}{name}'
    for name in ('loss_bellman', 'feature_dot_product', 'mean_q')
  ),
  f'{HELD_OUT}effective_rank',
)
DRAWN = ('last', 'mean_rank', 'q_peak', 'rank_highest', 'td_error')


def worths(returns):
  """Returns the mean of the two evaluations before and after each one."""
  padded = np.pad(returns, 2, constant_values=np.nan)
  shifted = [padded[2 + k : len(padded) - 2 + k] for k in (-2, -1, 1, 2)]
  return np.nanmean(shifted, axis=0)


def history(metrics, steps, prefix):
  """Returns what a rule sees of a run, with checkpoints at steps [C]."""
  series = {
    name: metrics.set_index('gradient_steps')[prefix + name].dropna()
    for name in run_reader.METRICS
    if prefix + name in metrics
  }
  series = {name: found for name, found in series.items() if len(found)}
  every = np.unique(
    np.concatenate([steps, *(found.index for found in series.values())])
  )
  values = {
    name: found.reindex(every).ffill().to_numpy(float)
    for name, found in series.items()
  }
  return selection.History(every, values, np.searchsorted(every, steps))


def orders(metrics, steps):
  """Yields (source, rule, checkpoints from the first choice on) of a run."""
  for source, prefix in SOURCES.items():
    seen = history(metrics, steps, prefix)
    for rule in selection.RULES:
      known = all(name in seen.values for name in rule.quantities)
      if known and (rule.quantities or source == 'training'):
        yield source, rule.name, selection.order(rule.judge(seen), steps)


def at_random(returns, worth):
  """Returns the expected worth of the best of k drawn, k = 1, 2, ...: [C]."""
  count = len(returns)
  ascending = np.argsort(returns, kind='stable')
  better = np.arange(count)  # How many it beats.
  k = np.arange(1, count + 1)[:, np.newaxis]
  chances = special.comb(better, k - 1) / special.comb(count, k)
  return chances @ worth[ascending]


def judge(runs):
  """Returns a row a run, rule and budget k, with its worth and regret."""
  normalise = reference.Normalisation()
  metrics_of = dict(list(runs.metrics.groupby(RUN)))
  rows = []
  for key, scores in runs.scores.groupby(RUN):
    scores = scores.sort_values('gradient_steps')
    game = key[RUN.index('game')]
    returns = scores['return'].to_numpy(float)
    returns = 100 * normalise(returns[None, None], (game,))[0, 0]
    worth = worths(returns)
    found = {('none', 'any'): at_random(returns, worth)}
    steps = scores.gradient_steps.to_numpy()
    for source, rule, chosen in orders(metrics_of[key], steps):
      found[source, rule] = [
        worth[chosen[int(np.argmax(returns[chosen[:k]]))]]
        for k in range(1, len(chosen) + 1)
      ]
    rows += [
      (*key, source, rule, k, value, worth.max() - value)
      for (source, rule), values in found.items()
      for k, value in enumerate(values, 1)
    ]
  columns = [*RUN, 'source', 'rule', 'k', 'worth', 'regret']
  return pd.DataFrame(rows, columns=columns)


def by_game(table, column, *further):
  """Returns the mean over runs of each game, games down."""
  keys = ['source', 'rule', *further]
  return table.pivot_table(column, 'game', keys, aggfunc='mean')


def summary(judged):
  """Returns a row a rule: its mean regret over games, and the interval."""
  games = by_game(judged[judged.k == 1], 'regret')
  rules = games.drop(columns=('none', 'any'))
  # For each game the rule that does best on the others.
  games['training', 'leave_one_out'] = [
    rules.loc[game, rules.drop(index=game).mean().idxmin()]
    for game in games.index
  ]
  count = len(games)
  half = stats.t.ppf(0.975, count - 1) * games.std() / np.sqrt(count)
  table = pd.DataFrame(
    {
      'regret': games.mean(),
      'low': games.mean() - half,
      'high': games.mean() + half,
      'games': count,
    }
  )
  return table.reset_index().sort_values(['regret', 'source', 'rule'])


def draw(budget, path):
  """Draws what is expected by how many checkpoints are played."""
  means = budget.mean()
  figure = mpl_figure.Figure(figsize=(6.4, 4), layout='constrained')
  axes = figure.subplots()
  axes.plot(means['none', 'any'], color='#000000', label='drawn at random')
  for rule in DRAWN:
    if ('training', rule) in means.index.droplevel(2):
      axes.plot(means['training', rule], label=rule, linewidth=1.3)
  axes.set_xlabel('checkpoints of a run that may be played, k')
  axes.set_ylabel('worth of the one that plays best, points')
  axes.set_xticks(range(1, 1 + len(means['none', 'any'])))
  axes.legend(frameon=False)
  axes.grid(color='#e6e6e6', linewidth=0.6)
  figure.savefig(path, dpi=80)


def main(folder):
  """Writes the tables and the figure of a folder of kept runs."""
  runs = batch_rl_dr3.read_runs(str(folder), QUANTITIES)
  for name in ('tables', 'figures'):
    (folder / name).mkdir(exist_ok=True)
  judged = judge(runs)
  table = summary(judged)
  table.round(2).to_csv(folder / 'tables' / 'choices.csv', index=False)
  budget = by_game(judged, 'worth', 'k')
  budget.mean().rename('worth').round(2).reset_index().to_csv(
    folder / 'tables' / 'budget.csv', index=False
  )
  draw(budget, folder / 'figures' / 'budget.png')
  print(table.round(2).to_string(index=False))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
