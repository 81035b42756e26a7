"""Tables of a study by game: scores in points, and which runs there are."""

from typing import Any

import numpy as np
from numpy import typing as npt

from batch_rl_dr3.reporting import (
  methods,
  preset,
  reference,
)
from batch_rl_dr3.reporting import (
  study as study_lib,
)
from batch_rl_dr3.reporting.table import (
  INCOMPLETE,
  MISSING,
  Column,
  Table,
  build,
  number,
  percent,
  text,
)

_MEASURE_NAMES = {
  study_lib.AVERAGE: 'average over training',
  study_lib.FINAL: 'final score',
}
_PARTS = ('mean', 'sd', 'runs', 'percent', 'complete')


def scores(
  study: study_lib.Study,
  normalisation: reference.Normalisation,
  dataset: str,
  measure: str,
) -> Table:
  """Returns the scores of each game and method, in points and normalised."""
  names = study.methods_on(dataset)
  scale = reference.scores()
  rows = []
  for game in study.preset.games:
    row: dict[str, Any] = {
      'game': game,
      'random': scale.loc[game, 'random'],
      'online_dqn': scale.loc[game, reference.ONLINE_DQN],
    }
    for method in names:
      found = _summary(study, normalisation, (dataset, method, game), measure)
      row |= {f'{method}_{part}': found[part] for part in _PARTS}
    if any(row[f'{method}_runs'] for method in names):
      rows.append(row)
  return build(
    f'{measure}_{dataset}',
    f'Each game, {_MEASURE_NAMES[measure]}, {preset.dataset_name(dataset)}',
    'Raw scores, in points: mean ± standard deviation over finished runs; in '
    f'brackets the mean as {normalisation.label} score, in percent. '
    f'{INCOMPLETE} fewer than {study.preset.num_runs} runs, or shorter ones.',
    'No run has been evaluated at its end yet.',
    (
      text('game', 'Game'),
      *(
        Column(
          tuple(f'{method}_{part}' for part in _PARTS),
          methods.display_name(method),
          _score,
        )
        for method in names
      ),
      Column('random', 'Random'),
      Column('online_dqn', 'Online DQN'),
    ),
    rows,
  )


def _summary(
  study: study_lib.Study,
  normalisation: reference.Normalisation,
  key: tuple[str, str, str],
  measure: str,
) -> dict[str, Any]:
  """Returns the `_PARTS` of one data set, method and game."""
  dataset, _, game = key
  target = study.preset.datasets[dataset]
  runs = [run for run in study.runs.get(key, ()) if study.is_finished(run)]
  returns = [run.series('return').loc[:target] for run in runs]
  values: npt.NDArray[np.float64] = np.array(
    [r.mean() if measure == study_lib.AVERAGE else r.iloc[-1] for r in returns],
    float,
  )
  count = len(values)
  mean = values.mean() if count else np.nan
  return {
    'mean': mean,
    'sd': values.std(ddof=1) if count > 1 else np.nan,
    'runs': count,
    'percent': 100 * normalisation(np.array([[mean]]), (game,)).item(),
    'complete': count >= study.preset.num_runs
    and all(r.index[-1] >= target for r in returns),
  }


def _score(
  mean: float, sd: float, runs: int, normalised: float, complete: bool
) -> str:
  if not runs:
    return MISSING
  spread = '' if np.isnan(sd) else f' ± {number(sd)}'
  mark = '' if complete else f' {INCOMPLETE}'
  return f'{number(mean)}{spread} ({percent(normalised)}){mark}'


def presence(study: study_lib.Study, dataset: str) -> Table:
  """Returns which runs there are: one circle per run, per game and method."""
  rows = []
  for game in study.preset.games:
    row: dict[str, Any] = {'game': game}
    for method in study.methods:
      finished, unfinished = study.count(dataset, method, game)
      row[f'{method}_finished'] = finished
      row[f'{method}_unfinished'] = unfinished
      row[f'{method}_expected'] = (
        study.preset.num_runs if method in study.preset.methods else 0
      )
    rows.append(row)
  columns = [text('game', 'Game')] + [
    Column(
      tuple(f'{m}_{part}' for part in ('finished', 'unfinished', 'expected')),
      methods.display_name(m),
      _circles,
      is_text=True,
    )
    for m in study.methods
  ]
  return build(
    f'runs_{dataset}',
    f'Runs on {preset.dataset_name(dataset)}',
    '● finished, ◐ unfinished, ○ absent.',
    '',
    columns,
    rows,
  )


def _circles(finished: int, unfinished: int, expected: int) -> str:
  absent = max(0, expected - finished - unfinished)
  return '●' * finished + '◐' * unfinished + '○' * absent or MISSING
