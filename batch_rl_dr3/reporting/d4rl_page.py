"""The page of runs of continuous control: Table 2 and BRAC, then any runs' own.

`dr3_table2.csv` is Table 2 of Kumar et al. 2022 (arXiv:2112.04716): percent on
the kitchen, shares of episodes that reach the goal on antmaze, mean and
standard deviation. Of BRAC its text gives two numbers only: over 15 MuJoCo
tasks, DR3 adds 13.8 to the median normalised final score and 8.1 to stability.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import methods, overview, preset, scores
from batch_rl_dr3.reporting.section import Content, Section
from batch_rl_dr3.reporting.table import (
  Column,
  Table,
  build,
  number,
  signed,
  text,
)

_SUITE = 'd4rl'
_TABLE_2 = ('cql', 'cql_dr3')
_BRAC = ('brac', 'brac_dr3')
_PAPERS_BRAC_GAIN = 13.8
_NUM_BRAC_TASKS = 15


@functools.cache
def published() -> pd.DataFrame:
  """Returns Table 2 of the paper, a row for each game and method."""
  return pd.read_csv(pathlib.Path(__file__).parent / 'dr3_table2.csv')


def content(collection: scores.Collection) -> Content:
  """Returns what the page says.

  Raises:
    DataError: if no run is of continuous control.
  """
  runs = [run for run in collection.runs if run.setting.suite == _SUITE]
  if not runs:
    raise errors.DataError(
      f'no run is of continuous control, which --preset={preset.DR3_D4RL} is '
      'about. Leave --preset out, or name other --runs.'
    )
  plain = overview.content(collection)
  return dataclasses.replace(
    plain,
    title='DR3 on D4RL',
    sections=[
      Section('', [table_2(runs), brac_table(runs)]),
      *plain.sections,
    ],
  )


def final_scores(run: scores.Run) -> float | None:
  """Returns the normalised score of the last evaluation, in percent.

  None without an evaluation, or where D4RL's scale does not apply.
  """
  scale = run.provenance.get('protocol', {}).get('scale')
  returns = run.evaluations[scores.RETURN]
  if scale is None or returns.empty:
    return None
  low, high = scale
  return float(100 * (returns.iloc[-1] - low) / (high - low))


def _statistics(runs: list[scores.Run], method: str) -> dict[str, Any]:
  """Returns mean and deviation over the finished runs of one method."""
  of_method = [r for r in runs if r.method == method and r.finished]
  found = [s for s in map(final_scores, of_method) if s is not None]
  return {
    f'{method}_mean': float(np.mean(found)) if found else None,
    f'{method}_deviation': float(np.std(found)) if len(found) > 1 else None,
    f'{method}_runs': len(found),
  }


def _spread(mean: Any, deviation: Any, *_: Any) -> str:
  if pd.isna(mean) or pd.isna(deviation):
    return number(mean)
  return f'{number(mean)} ± {number(deviation)}'


def table_2(runs: list[scores.Run]) -> Table:
  """Returns CQL and CQL + DR3 on the seven tasks, beside the paper's."""
  rows = []
  for game, numbers in published().groupby('game', sort=False):
    row: dict[str, Any] = {'game': game}
    factor = 0.01 if str(game).startswith('antmaze') else 1.0
    of_game = [run for run in runs if run.setting.game == game]
    for method in _TABLE_2:
      row |= _statistics(of_game, method)
      for name in (f'{method}_mean', f'{method}_deviation'):
        row[name] = None if row[name] is None else factor * row[name]
      (paper,) = numbers[numbers['method'] == method].to_dict('records')
      row[f'paper_{method}_mean'] = paper['mean']
      row[f'paper_{method}_deviation'] = paper['deviation']
    rows.append(row)
  columns = [text('game', 'Task')]
  for method in _TABLE_2:
    name = methods.display_name(method)
    ends = (f'{method}_mean', f'{method}_deviation')
    columns += [
      Column(ends, name, _spread),
      Column(f'{method}_runs', 'Runs', str),
      Column(tuple(f'paper_{e}' for e in ends), f'{name}, paper', _spread),
    ]
  return build(
    'table_2',
    'CQL and CQL + DR3 on antmaze and the kitchen',
    'Final scores of finished runs, mean ± standard deviation over runs: '
    'percent of the tasks on the kitchen, the share of episodes that reach '
    "the goal on antmaze. Paper: Table 2, arXiv:2112.04716, on D4RL's -v0, "
    'whose environments and data are not those of these runs.',
    'No task is known.',
    columns,
    rows,
  )


def brac_table(runs: list[scores.Run]) -> Table:
  """Returns BRAC and the others on MuJoCo, and what DR3 adds to each."""
  games = published()['game'].unique()
  settings = dict.fromkeys(
    run.setting for run in runs if run.setting.game not in games
  )
  rows = []
  for setting in settings:
    of_setting = [run for run in runs if run.setting == setting]
    for base in dict.fromkeys(methods.base_of(r.method) for r in of_setting):
      row: dict[str, Any] = {
        'game': setting.game,
        'dataset': setting.dataset,
        'method': base,
      }
      for name, method in (('base', base), ('dr3', methods.with_dr3(base))):
        for key, value in _statistics(of_setting, method).items():
          row[name + key.removeprefix(method)] = value
      both = row['base_mean'] is not None and row['dr3_mean'] is not None
      row['gain'] = row['dr3_mean'] - row['base_mean'] if both else None
      rows.append(row)
  return build(
    'brac',
    'MuJoCo tasks, with and without DR3',
    'Final normalised scores of finished runs, percent, mean ± standard '
    f'deviation over runs. {_brac_medians(rows)}',
    'No run is of a MuJoCo task.',
    (
      text('game', 'Game'),
      text('dataset', 'Data set'),
      text('method', 'Method', methods.display_name),
      Column(('base_mean', 'base_deviation'), 'Without DR3', _spread),
      Column('base_runs', 'Runs', str),
      Column(('dr3_mean', 'dr3_deviation'), 'With DR3', _spread),
      Column('dr3_runs', 'Runs with', str),
      Column('gain', 'DR3 adds', signed),
    ),
    rows,
  )


def _brac_medians(rows: list[dict[str, Any]]) -> str:
  """Returns what DR3 adds to BRAC's median, beside the paper's number."""
  paper = (
    f'Paper: over {_NUM_BRAC_TASKS} tasks, DR3 adds {_PAPERS_BRAC_GAIN} to the '
    "median of BRAC's."
  )
  whole = [r for r in rows if r['method'] == _BRAC[0] and r['gain'] is not None]
  if not whole:
    return paper
  base, with_dr3 = (
    float(np.median([row[f'{name}_mean'] for row in whole]))
    for name in ('base', 'dr3')
  )
  return (
    f'{paper} Here, over {len(whole)}: {signed(with_dr3 - base)} '
    f'({number(base)} and {number(with_dr3)}).'
  )
