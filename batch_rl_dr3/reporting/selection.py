"""Which checkpoint each rule chooses, and what that choice is worth.

Two questions with different candidates. What to deploy is asked of the whole
checkpoints that are still on disk. What a rule is worth is asked of every
evaluation of a run whose scores are known, whether or not its checkpoint was
kept: a rule is shown the metrics alone, and its choice is then looked up.
"""

from collections.abc import Sequence
import json
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import (
  intervals,
  methods,
  reference,
  scores,
  selection_rules,
  tables,
)
from batch_rl_dr3.reporting.selection_rules import RULES, Rule
from batch_rl_dr3.reporting.table import Column, Table, number, signed, text
from batch_rl_dr3.runs import mirror, run_directory

# What stands beside the rules in a table: a checkpoint drawn at random.
RANDOM = 'random'
# Below so many runs the table says that it is not to be relied on.
_FEW_RUNS = 5
_MANIFESTS = 'ckpt.*.json'
# What is read of a run.
CONTENTS = mirror.Contents(
  'selection',
  whole=(
    *scores.CONTENTS.whole,
    f'{run_directory.CHECKPOINTS}/{_MANIFESTS}',
  ),
  sizes=(f'{run_directory.CHECKPOINTS}/*',),
)
# Columns of `ranking`, beside 'run' and 'rule'.
_RANKED = ('place', 'checkpoint', 'gradient_steps', 'value', 'return')


def checkpoints(run: scores.Run) -> pd.Series:
  """Returns the names of a run's whole checkpoints by gradient steps, rising.

  Whole is one whose manifest can be read and whose files are there with the
  sizes that it states; their hashes are checked when one is restored.
  """
  found: dict[int, str] = {}
  for path in sorted((run.folder / run_directory.CHECKPOINTS).glob(_MANIFESTS)):
    try:
      record = json.loads(path.read_text())
      sizes = {
        path.parent / name: int(entry['bytes'])
        for name, entry in record['files'].items()
      }
      if all(file.stat().st_size == size for file, size in sizes.items()):
        found[int(record['gradient_steps'])] = str(record['name'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      continue
  return pd.Series(found, dtype=object).sort_index()


def ranking(
  collection: scores.Collection, rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """Returns the checkpoints on disk of each run, as each rule ranks them.

  Args:
    collection: the runs; those with fewer than two checkpoints are left out.
    rules: the rules; one that lacks what it looks at is left out for a run.

  Returns:
    One row per run, rule and checkpoint: `run`, `folder`, `rule`, `place` (1
    is the choice), `checkpoint`, `gradient_steps`, `value` (of what the rule
    looks at; NaN if not finite) and `return` (NaN if it was never evaluated).
  """
  rows = []
  for run in collection.runs:
    names = checkpoints(run)
    steps = np.asarray(names.index, np.int64)
    if len(steps) < 2:
      continue
    returns = run.evaluations[scores.RETURN].reindex(steps).to_numpy(float)
    history = selection_rules.history(run, steps, tables.gamma_of(run))
    for rule in _applicable(rules, history):
      judgement = rule.judge(history)
      for place, i in enumerate(selection_rules.order(judgement, steps), 1):
        cells = (place, names.iloc[i], steps[i], judgement.values[i])
        rows.append(
          {'run': run.name, 'folder': str(run.folder), 'rule': rule.name}
          | dict(zip(_RANKED, (*cells, returns[i]), strict=True))
        )
  return pd.DataFrame(rows, columns=['run', 'folder', 'rule', *_RANKED])


def _applicable(
  rules: Sequence[Rule], history: selection_rules.History
) -> list[Rule]:
  return [
    rule
    for rule in rules
    if all(name in history.values for name in rule.quantities)
  ]


def outcomes(
  collection: scores.Collection, rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """Returns what each rule would have kept of each run's return.

  Args:
    collection: the runs; only those with two evaluations or more count, and
      of them only those whose returns differ: elsewhere nothing is to be lost.
    rules: the rules.

  Returns:
    One row per run and rule, and one for a checkpoint drawn at random:
    `suite`, `game`, `dataset`, `method`, `run`, `rule`, `gradient_steps`,
    `return` of the choice, `best`, `last`, `lost_to_best` and
    `gained_on_last` in points, and, as percentages of the range from the
    worst to the best evaluation of the run, `kept` (100 is the best, 0 the
    worst) and `gained` (on the last). `lost_normalised` is `lost_to_best` in
    percent of what separates random play from the online DQN's final score;
    NaN where these are not known.
  """
  found = [_outcomes_of(run, rules) for run in collection.runs]
  return pd.DataFrame(
    [row for rows in found for row in rows], columns=list(_OUTCOME)
  )


_OUTCOME = (
  *scores.Setting._fields,
  'method',
  'run',
  'rule',
  'gradient_steps',
  'return',
  'best',
  'last',
  'lost_to_best',
  'gained_on_last',
  'kept',
  'gained',
  'lost_normalised',
)


def _outcomes_of(
  run: scores.Run, rules: Sequence[Rule]
) -> list[dict[str, Any]]:
  """Returns the rows of `outcomes` of one run, none if nothing can be lost."""
  returns = run.evaluations[scores.RETURN].to_numpy(float)
  if len(returns) < 2 or np.ptp(returns) == 0:
    return []
  steps = np.asarray(run.evaluations.index, np.int64)
  history = selection_rules.history(run, steps, tables.gamma_of(run))
  chosen: dict[str, tuple[float, float]] = {}
  for rule in _applicable(rules, history):
    best_first = selection_rules.order(rule.judge(history), steps)
    if best_first:
      i = best_first[0]
      chosen[rule.name] = (float(steps[i]), float(returns[i]))
  chosen[RANDOM] = (np.nan, float(returns.mean()))
  best, worst, last = returns.max(), returns.min(), returns[-1]
  share = 100 / (best - worst)
  point = _normalised_point(run.setting)
  whose = run.setting._asdict() | {'method': run.method, 'run': run.name}
  return [
    whose
    | {
      'rule': name,
      'gradient_steps': step,
      'return': value,
      'best': best,
      'last': last,
      'lost_to_best': best - value,
      'gained_on_last': value - last,
      'kept': share * (value - worst),
      'gained': share * (value - last),
      'lost_normalised': point * (best - value),
    }
    for name, (step, value) in chosen.items()
  ]


def _normalised_point(setting: scores.Setting) -> float:
  """Returns what a point is worth in percent, NaN without a reference."""
  if setting.game not in reference.scores().index:
    return np.nan
  scale = reference.Normalisation('dqn').points((setting.game,))
  return 100 / float(scale[0])


def measure(found: pd.DataFrame) -> pd.DataFrame:
  """Returns each rule's outcomes, averaged over runs.

  Args:
    found: `outcomes`.

  Returns:
    One row per rule, in the order of the rules, with `runs` (how many it
    could choose in), means and 95% bootstrap intervals over runs of `kept`
    and `gained`, means of the points and of `lost_normalised` (NaN unless it is
    known of all), `better`, `equal` and `worse` than the last, in runs, and
    `kept_<method>`, the mean over the runs of a method.
  """
  rows = []
  groups = dict(iter(found.groupby('rule')))
  for name in (*(rule.name for rule in RULES), RANDOM):
    if name not in groups:
      continue
    group = groups[name]
    gained = group['gained']
    row: dict[str, Any] = {'rule': name, 'runs': len(group)}
    for column in ('kept', 'gained'):
      values = group[column].to_numpy(float)
      low, high = intervals.mean_interval(values) or (np.nan, np.nan)
      row |= {
        column: values.mean(),
        f'{column}_low': low,
        f'{column}_high': high,
      }
    row |= {
      'gained_on_last': group['gained_on_last'].mean(),
      'lost_to_best': group['lost_to_best'].mean(),
      'lost_normalised': group['lost_normalised'].mean(skipna=False),
      'better': int((gained > 0).sum()),
      'equal': int((gained == 0).sum()),
      'worse': int((gained < 0).sum()),
    }
    by_method = group.groupby('method')['kept'].mean()
    rows.append(row | {f'kept_{m}': by_method[m] for m in by_method.index})
  return pd.DataFrame(rows)


def table(
  collection: scores.Collection, found: pd.DataFrame | None = None
) -> Table:
  """Returns what each rule would have kept, for the page and as CSV.

  Args:
    collection: the runs.
    found: their `outcomes`, if they are known already.
  """
  found = outcomes(collection) if found is None else found
  measured = measure(found)
  rules = {rule.name: rule for rule in RULES}
  names = list(measured.get('rule', []))
  described = {
    'choice': [
      rules[n].choice if n in rules else 'any, the expectation' for n in names
    ],
    'source': [rules[n].source if n in rules else 'baseline' for n in names],
  }
  ordered = methods.ordered(found['method'])
  # Points of different games cannot be averaged.
  single = found[['suite', 'game']].drop_duplicates().shape[0] <= 1
  points = 'always' if single else 'never'
  columns = (
    text('rule', 'Rule'),
    text('choice', 'Chooses'),
    Column('kept', 'Kept, %'),
    Column('kept_low', '95% from', when='known'),
    Column('kept_high', 'to', when='known'),
    Column('gained', 'Gained on last, %', signed),
    Column('gained_low', '95% from', signed, when='known'),
    Column('gained_high', 'to', signed, when='known'),
    Column('gained_on_last', 'in points', signed, when=points),
    Column('lost_to_best', 'Lost to best, points', when=points),
    Column('lost_normalised', 'Lost to best, % DQN-normalised', when='known'),
    Column('better', 'Runs better'),
    Column('equal', 'equal'),
    Column('worse', 'worse'),
    *(
      Column(f'kept_{m}', f'Kept: {methods.display_name(m)}')
      for m in (ordered if len(ordered) > 1 else ())
    ),
    Column('runs', 'Runs'),
    text('source', 'Source', when='never'),
  )
  frame = measured.assign(**described).reindex(
    columns=[c.name for c in columns]
  )
  return Table(
    'selection',
    'Choosing a checkpoint without playing',
    _caption(collection, found),
    'No run has two evaluations that differ, so no choice of a checkpoint can '
    'be judged.',
    columns,
    frame,
  )


def _caption(collection: scores.Collection, found: pd.DataFrame) -> str:
  num_runs = found['run'].nunique()
  num_games = len(found[['suite', 'game']].drop_duplicates())
  few = ' So few say next to nothing.' if num_runs < _FEW_RUNS else ''
  return (
    'What each rule would have kept, had it chosen among all evaluations of a '
    'run by what was logged of the data alone. Kept: the return of its choice, '
    'from 0 at the worst to 100 at the best evaluation of the run; the best is '
    'in part luck. Gained on last: against the last evaluation, in the same '
    'unit. Random: the expectation of a choice by chance, which a rule has to '
    'beat. Better, equal, worse: against the last, in runs. Interval: 95% '
    'bootstrap over runs; runs of one game resemble each other, so for other '
    f'games it is too narrow. Measured on {num_runs} of '
    f'{len(collection.runs)} runs (those with evaluations that differ) of '
    f'{num_games} {"game" if num_games == 1 else "games"}.{few}'
  )


def choices(ranked: pd.DataFrame, top: int = 1) -> Table:
  """Returns the best `top` checkpoints of each rule, for reading.

  Args:
    ranked: `ranking`.
    top: how many of each run and rule.
  """
  columns = (
    text('run', 'Run'),
    text('rule', 'Rule'),
    Column('place', 'Place', when='always' if top > 1 else 'never'),
    text('checkpoint', 'Checkpoint'),
    Column('gradient_steps', 'Gradient steps'),
    Column('value', 'Value'),
    Column('return', 'Return', number, 'known'),
  )
  frame = ranked.loc[ranked['place'] <= top, [c.name for c in columns]]
  return Table('choices', 'Choices', '', 'Nothing to rank.', columns, frame)
