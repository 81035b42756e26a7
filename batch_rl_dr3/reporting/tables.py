"""Tables: final scores, final metrics, the effect of DR3, co-adaptation."""

from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import curves, intervals, methods, scores
from batch_rl_dr3.reporting.table import (
  Column,
  Table,
  build,
  exact,
  signed,
  text,
)

# What is assumed of a run whose protocol does not say.
DEFAULT_GAMMA = 0.99

_SETTING = (
  text('suite', 'Suite', when='vary'),
  text('game', 'Game', when='vary'),
  text('dataset', 'Data set', when='vary'),
)
_METHOD = text('method', 'Method', methods.display_name)


def _lines(
  collection: scores.Collection,
) -> list[tuple[scores.Setting, str]]:
  return [
    (setting, method)
    for setting in collection.settings
    for method in collection.methods(setting)
  ]


def final_scores(collection: scores.Collection) -> Table:
  """Returns last, best and average return of each method."""
  rows = []
  for setting, method in _lines(collection):
    curve = curves.curve(collection, setting, method, scores.RETURN)
    if not curve.steps.size:
      continue
    step = curve.last_step
    last = [
      run.evaluations.loc[step]
      for run in collection.select(setting, method)
      if run.replicate in curve.replicates
    ]
    low, high = intervals.mean_interval(curve.values[:, -1]) or (None, None)
    rows.append(
      setting._asdict()
      | {
        'method': method,
        'last_return': curve.last,
        'interval_low': low,
        'interval_high': high,
        'best_return': float(curve.values.max(axis=1).mean()),
        'average_return': float(curve.values.mean()),
        'evaluations': len(curve.steps),
        'episodes': int(sum(row['episodes'] for row in last)),
        'truncated': int(sum(row['truncated'] for row in last)),
        'seeds': curve.num_seeds,
        'gradient_steps': step,
      }
    )
  return build(
    'final_scores',
    'Final scores',
    'Return: the undiscounted sum of rewards of an episode, averaged over the '
    'episodes of an evaluation. Last: at the gradient step given; best: the '
    'highest of all evaluations, which chance favours; average: over all '
    'evaluations of the training. Each is the mean over seeds, at the '
    'evaluations that every seed has. Episodes, and those of them that were '
    'cut short: in the last evaluation, over all seeds. Interval: 95% '
    'bootstrap over seeds; one seed: no interval.',
    'No run has been evaluated yet.',
    (
      *_SETTING,
      _METHOD,
      Column('last_return', 'Last return'),
      Column('interval_low', '95% from', when='known'),
      Column('interval_high', 'to', when='known'),
      Column('best_return', 'Best return'),
      Column('average_return', 'Average return'),
      Column('evaluations', 'Evalu\u00adations'),
      Column('episodes', 'Episodes'),
      Column('truncated', 'Cut short'),
      Column('seeds', 'Seeds'),
      Column('gradient_steps', 'Gradient steps'),
    ),
    rows,
  )


def final_metrics(collection: scores.Collection) -> Table:
  """Returns the last logged loss, dot product, rank and Q-value."""
  rows = []
  for setting, method in _lines(collection):
    found = {
      quantity: curves.curve(collection, setting, method, quantity)
      for quantity in scores.METRICS
    }
    steps = [c.last_step for c in found.values() if c.last_step is not None]
    if not steps:
      continue
    rows.append(
      setting._asdict()
      | {'method': method}
      | {quantity: curve.last for quantity, curve in found.items()}
      | {
        'seeds': max(curve.num_seeds for curve in found.values()),
        'gradient_steps': max(steps),
      }
    )
  return build(
    'final_metrics',
    'Final metrics',
    'The last logged value of each quantity, a mean over a sample of the data '
    'and over seeds. The effective rank is measured less often than the rest: '
    'its last measurement.',
    'No run has logged any metrics yet.',
    (
      *_SETTING,
      _METHOD,
      Column(scores.TD_LOSS, 'TD loss'),
      Column(scores.DOT_PRODUCT, 'Feature dot product'),
      Column(scores.NORM_SQUARED, 'Feature norm²'),
      Column(scores.EFFECTIVE_RANK, 'Effective rank'),
      Column(scores.MEAN_Q, 'Mean Q'),
      Column('seeds', 'Seeds'),
      Column('gradient_steps', 'Gradient steps'),
    ),
    rows,
  )


# The CSV prefix of each quantity that DR3 is compared on.
_EFFECTS = {
  'dot_product': scores.DOT_PRODUCT,
  'effective_rank': scores.EFFECTIVE_RANK,
  'return': scores.RETURN,
}


def dr3_effect(collection: scores.Collection) -> Table:
  """Returns each method with DR3 beside itself without, at equal steps."""
  rows = []
  for setting, base in _lines(collection):
    dr3 = methods.with_dr3(base)
    shared = {r.replicate for r in collection.select(setting, base)} & {
      r.replicate for r in collection.select(setting, dr3)
    }
    if not shared:
      continue
    row: dict[str, Any] = setting._asdict() | {'method': base}
    row['seeds'] = len(shared)
    for prefix, quantity in _EFFECTS.items():
      both = curves.at_last_common_step(
        curves.curve(collection, setting, base, quantity, shared),
        curves.curve(collection, setting, dr3, quantity, shared),
      )
      step, without, having = both or (None, np.nan, np.nan)
      row[f'{prefix}_gradient_steps'] = step
      row[f'{prefix}_base'] = without
      row[f'{prefix}_dr3'] = having
      row[f'{prefix}_difference'] = having - without
      if quantity == scores.DOT_PRODUCT:
        row[f'{prefix}_ratio'] = having / without if without > 0 else np.nan
    steps = {row[f'{prefix}_gradient_steps'] for prefix in _EFFECTS} - {None}
    row['gradient_steps'] = steps.pop() if len(steps) == 1 else None
    rows.append(row)
  # One column of steps on the page, unless the quantities differ in it.
  agree = all(row['gradient_steps'] is not None for row in rows)
  apart, together = ('never', 'always') if agree else ('always', 'never')
  return build(
    'dr3_effect',
    'Effect of DR3',
    'Each method without and with DR3, on the seeds that both have, at the '
    'last gradient step at which both were measured. Ratio: with DR3 over '
    'without; difference: with DR3 minus without; dash: no step in common, '
    'or nothing to divide by.',
    'No method was run both with and without DR3 on the same game, data set '
    'and seed, so there is nothing to compare.',
    (
      *_SETTING,
      _METHOD,
      Column('dot_product_base', 'Dot product'),
      Column('dot_product_dr3', 'with DR3'),
      Column('dot_product_ratio', 'Ratio'),
      Column('dot_product_gradient_steps', 'at step', when=apart),
      Column('effective_rank_base', 'Effective rank'),
      Column('effective_rank_dr3', 'with DR3'),
      Column('effective_rank_difference', 'Difference', signed),
      Column('effective_rank_gradient_steps', 'at step', when=apart),
      Column('return_base', 'Return'),
      Column('return_dr3', 'with DR3'),
      Column('return_difference', 'Difference', signed),
      Column('return_gradient_steps', 'at step', when=apart),
      Column('seeds', 'Seeds'),
      Column('gradient_steps', 'Gradient steps', when=together),
    ),
    rows,
  )


def gamma_of(run: scores.Run) -> float:
  """Returns the discount factor of a run's protocol."""
  protocol = run.provenance.get('protocol')
  value = protocol.get('gamma') if isinstance(protocol, dict) else None
  return float(value) if isinstance(value, int | float) else DEFAULT_GAMMA


def _criterion(run: scores.Run) -> pd.Series:
  """Returns gamma times dot product over squared norm, by gradient step."""
  dot_product = run.series(scores.DOT_PRODUCT)
  norm_squared = run.series(scores.NORM_SQUARED)
  ratio = gamma_of(run) * dot_product / norm_squared
  return ratio[np.isfinite(ratio)]


def co_adaptation(collection: scores.Collection) -> Table:
  """Returns where the features meet the criterion of Proposition 3.2."""
  rows = []
  for setting, method in _lines(collection):
    runs = collection.select(setting, method)
    ratios = [ratio for run in runs if len(ratio := _criterion(run))]
    if not ratios:
      continue
    every = pd.concat(ratios)
    meeting = every[every >= 1]
    rows.append(
      setting._asdict()
      | {
        'method': method,
        'gamma': gamma_of(runs[0]),
        'met': 'yes' if len(meeting) else 'no',
        'rows_meeting': len(meeting),
        'rows': len(every),
        'first_gradient_steps': meeting.index.min() if len(meeting) else None,
        'largest_ratio': float(every.max()),
        'last_ratio': float(np.mean([ratio.iloc[-1] for ratio in ratios])),
        'seeds': len(ratios),
      }
    )
  return build(
    'co_adaptation',
    'Co-adaptation',
    'Proposition 3.2: linear TD-learning on the features does not converge '
    'where gamma times the feature dot product reaches the squared feature '
    'norm, that is where their ratio reaches 1. Here both are means over the '
    'sample of the data, so the ratio is an estimate. Last: the mean over '
    'seeds.',
    'No run has logged both the feature dot product and the squared norm.',
    (
      *_SETTING,
      _METHOD,
      text('met', 'Criterion met'),
      Column('rows_meeting', 'in logged steps'),
      Column('rows', 'of'),
      Column('first_gradient_steps', 'first at step', when='known'),
      Column('largest_ratio', 'Largest ratio'),
      Column('last_ratio', 'Last ratio'),
      Column('gamma', 'Gamma', exact),
      Column('seeds', 'Seeds'),
    ),
    rows,
  )


def all_tables(collection: scores.Collection) -> list[Table]:
  """Returns every table of the report."""
  return [
    final_scores(collection),
    dr3_effect(collection),
    final_metrics(collection),
    co_adaptation(collection),
  ]
