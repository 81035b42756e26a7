"""Tables of a study over all games: Table 1, other statistics, stability."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import typing as npt

from batch_rl_dr3.reporting import methods, reference, statistics
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.tables import (
  INCOMPLETE,
  MISSING,
  Column,
  Table,
  build,
  interval,
  number,
  percent,
  text,
)

# The first column of tables with a row for each line of a study.
LINE = text(
  ('dataset', 'method'),
  'Method, data',
  lambda dataset, method: (
    f'{methods.display_name(method)}, {study_lib.dataset_name(dataset)}'
  ),
)
_EXTENTS = (
  Column('games', 'Games', when='vary'),
  Column('runs', 'Runs of each', when='vary'),
  Column('gradient_steps', 'Gradient steps', when='never'),
  text('lacks', 'Lacks', when='known'),
)
_BESIDE_PAPER = (
  "Inside, above, below: where the number lies to the paper's interval. The "
  "paper's text has no table of final scores. "
)
_BRACKETS = 'In brackets: 95% stratified bootstrap intervals.'
_STATISTICS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
  ('iqm', 'IQM', statistics.iqm),
  ('median', 'Median', statistics.median),
  ('mean', 'Mean', statistics.mean),
  ('optimality_gap', 'Optimality gap', statistics.optimality_gap),
)
_NO_SCORES = 'No run has been evaluated at its end yet.'


class StudyTables:
  """Makes the tables of one study on one scale."""

  def __init__(
    self,
    study: study_lib.Study,
    normalisation: reference.Normalisation,
    bootstrap: statistics.Bootstrap,
  ):
    """Computes nothing yet."""
    self._study = study
    self._normalisation = normalisation
    self._bootstrap = bootstrap
    self._estimates: dict[tuple[str, str, str], statistics.Estimate] = {}

  def _matrix(self, cell: study_lib.Cell, measure: str) -> statistics.Array:
    """Returns normalised scores, float64 [runs, games]."""
    points = study_lib.measure(cell, measure)
    return self._normalisation(points, cell.games)

  def _cells(self) -> list[tuple[str, str, study_lib.Cell]]:
    found = []
    for dataset, method in self._study.lines:
      cell = self._study.scores(dataset, method)
      if cell is not None and cell.steps.size:
        found.append((dataset, method, cell))
    return found

  def _statistics(
    self, dataset: str, method: str, measure: str
  ) -> statistics.Estimate:
    """Returns the estimates of `_STATISTICS`, made once."""
    key = (dataset, method, measure)
    if key not in self._estimates:
      cell = self._study.scores(dataset, method)
      assert cell is not None
      self._estimates[key] = self._bootstrap(
        lambda scores: np.array([f(scores) for _, _, f in _STATISTICS]),
        self._matrix(cell, measure),
      )
    return self._estimates[key]

  def table_1(self) -> Table:
    """Returns IQM of average and final score beside the paper's numbers."""
    rows = []
    for dataset, method, cell in self._cells():
      row = _identity(dataset, method, cell)
      for measure in self._study.measures:
        iqm = self._statistics(dataset, method, measure)[0]
        row |= _in_percent(measure, iqm)
        if not self._study.preset.is_published:
          continue
        paper = reference.published().get((dataset, method, measure))
        row |= {
          f'paper_{measure}_percent': paper and paper.iqm,
          f'paper_{measure}_low_percent': paper and paper.low,
          f'paper_{measure}_high_percent': paper and paper.high,
        }
        row[f'{measure}_to_paper'] = self._verdict(100 * iqm.value, paper)
      rows.append(row)
    columns = [LINE]
    for measure in self._study.measures:
      heading = measure.capitalize()
      ends = [f'{measure}{end}_percent' for end in ('', '_low', '_high')]
      columns.append(Column((*ends, 'complete'), heading, interval))
      if self._study.preset.is_published:
        paper_ends = tuple(f'paper_{end}' for end in ends)
        columns += [
          Column(paper_ends, 'Paper', _published),
          text(f'{measure}_to_paper', 'to paper', when='known'),
        ]
    return build(
      'table_1',
      'IQM of normalised scores'
      if not self._study.preset.is_published
      else 'Table 1: IQM of normalised scores',
      f'Interquartile mean over games and runs of {self._normalisation.label} '
      f'scores, in percent. {_BRACKETS} Average: over the evaluations of the '
      f'whole training; final: {_final(self._study)}. '
      f'{_BESIDE_PAPER if self._study.preset.is_published else ""}'
      f'{_marked(rows)}',
      _NO_SCORES,
      [*columns, *_EXTENTS],
      rows,
    )

  def _verdict(
    self, value: statistics.Array, paper: reference.Published | None
  ) -> str | None:
    if paper is None or self._normalisation.name != 'dqn':
      return None
    if value < paper.low:
      return 'below'
    return 'above' if value > paper.high else 'inside'

  def statistics(self) -> Table:
    """Returns IQM, median, mean and optimality gap of both measures."""
    rows = []
    for dataset, method, cell in self._cells():
      for measure in self._study.measures:
        row = _identity(dataset, method, cell)
        row['measure'] = measure
        estimate = self._statistics(dataset, method, measure)
        for index, (name, _, _) in enumerate(_STATISTICS):
          row |= _in_percent(name, estimate[index])
        rows.append(row)
    columns = [
      Column(
        (f'{n}_percent', f'{n}_low_percent', f'{n}_high_percent', 'complete'),
        heading,
        interval,
      )
      for n, heading, _ in _STATISTICS
    ]
    return build(
      'statistics',
      'Other statistics',
      f'Of {self._normalisation.label} scores, in percent. {_BRACKETS} IQM: '
      'mean of the middle half of all runs; median and mean: over games, of '
      'the mean over runs; optimality gap: by how much scores miss 100 on '
      f'average, lower is better. {_marked(rows)}',
      _NO_SCORES,
      [LINE, text('measure', 'Score'), *columns, *_EXTENTS],
      rows,
    )

  def improvement(self) -> Table:
    """Returns the probability that DR3 improves each method."""
    rows = []
    for dataset, base in self._study.lines:
      cells = study_lib.on_shared_games(
        [
          self._study.scores(dataset, method)
          for method in (methods.with_dr3(base), base)
        ]
      )
      if not cells:
        continue
      dr3, without = cells
      row = _identity(dataset, base, dr3)
      row['lacks'] = _and(dict.fromkeys((*dr3.lacks, *without.lacks)))
      row['complete'] = not row['lacks']
      for measure in self._study.measures:
        row |= _in_percent(
          measure,
          self._bootstrap(
            statistics.probability_of_improvement,
            self._matrix(dr3, measure),
            self._matrix(without, measure),
          )[0],
        )
      rows.append(row)
    columns = [
      Column(
        (f'{m}_percent', f'{m}_low_percent', f'{m}_high_percent', 'complete'),
        heading,
        interval,
      )
      for m, heading in ((m, m.capitalize()) for m in self._study.measures)
    ]
    return build(
      'probability_of_improvement',
      'Probability that DR3 improves a method',
      'The chance, in percent, that a run with DR3 scores above a run without, '
      f'averaged over the games that both have; ties count half. {_BRACKETS} '
      f'{_marked(rows)}',
      'No method has finished runs both with and without DR3 on one data set.',
      [LINE, *columns, *_EXTENTS],
      rows,
    )

  def stability(self) -> Table:
    """Returns final over best score, and the area lost after the peak."""
    rows = []
    for dataset, method, cell in self._cells():
      curves = self._normalisation(cell.values, cell.games)
      estimate = self._bootstrap(
        study_lib.stability_statistics,
        study_lib.stability(curves, cell.num_final),
      )
      rows.append(
        _identity(dataset, method, cell)
        | _in_percent('final_over_best', estimate[0])
        | _in_percent('area_lost', estimate[1])
      )
    columns = [
      Column(
        (f'{n}_percent', f'{n}_low_percent', f'{n}_high_percent', 'complete'),
        heading,
        interval,
      )
      for n, heading in (
        ('final_over_best', 'Final over best'),
        ('area_lost', 'Area lost'),
      )
    ]
    return build(
      'stability',
      'Stability',
      'Final over best: the IQM of final scores over the IQM of the best '
      'evaluation of each run, in percent; 100 is a run that ends at its best. '
      'Area lost: from its best evaluation on, what a run falls short of it, '
      'summed and divided by the length of the whole training; IQM, in percent '
      'of the normalised scale; 0 is no loss. Chance favours the best of many '
      f'evaluations, so no run reaches 100 and 0 quite. {_BRACKETS} '
      f'{_marked(rows)}',
      _NO_SCORES,
      [LINE, *columns, *_EXTENTS],
      rows,
    )


def _identity(
  dataset: str, method: str, cell: study_lib.Cell
) -> dict[str, Any]:
  return {
    'dataset': dataset,
    'method': method,
    'games': len(cell.games),
    'runs': cell.num_runs,
    'gradient_steps': int(cell.steps[-1]),
    'complete': not cell.lacks,
    'lacks': _and(cell.lacks),
  }


def _final(study: study_lib.Study) -> str:
  """Returns what a final score is, in words."""
  count = study.preset.num_final_evaluations
  if count == 1:
    return 'the last evaluation'
  return (
    f'the mean of the last {count} evaluations, as one alone is mostly '
    'chance; last: the last alone'
  )


def _marked(rows: Sequence[dict[str, Any]]) -> str:
  """Returns what the mark of a table's incomplete numbers means, if any is."""
  if all(row['complete'] for row in rows):
    return ''
  return (
    f'{INCOMPLETE} computed on fewer runs than the study has, see the last '
    'column.'
  )


def _and(phrases: Sequence[str] | dict[str, None]) -> str | None:
  return '; '.join(phrases) or None


def _in_percent(name: str, estimate: statistics.Estimate) -> dict[str, float]:
  return {
    f'{name}_percent': 100 * float(estimate.value),
    f'{name}_low_percent': 100 * float(estimate.low),
    f'{name}_high_percent': 100 * float(estimate.high),
  }


def _published(value: Any, low: Any, high: Any) -> str:
  return interval(value, low, high) if value == value and value else 'unknown'


_MEASURE_NAMES = {
  study_lib.AVERAGE: 'average over training',
  study_lib.FINAL: 'final score',
  study_lib.LAST: 'last evaluation',
}
_PARTS = ('mean', 'sd', 'runs', 'percent', 'complete')


def game_scores(
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
      'behaviour': scale.loc[game, reference.BEHAVIOUR],
    }
    for method in names:
      found = _summary(study, normalisation, (dataset, method, game), measure)
      row |= {f'{method}_{part}': found[part] for part in _PARTS}
    if any(row[f'{method}_runs'] for method in names):
      rows.append(row)
  return build(
    f'{measure}_{dataset}',
    f'Each game, {_MEASURE_NAMES[measure]}, {study_lib.dataset_name(dataset)}',
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
      Column('behaviour', 'Logged play', when='known'),
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
    [
      study_lib.run_score(
        r.to_numpy(float), measure, study.preset.num_final_evaluations
      )
      for r in returns
    ],
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
    f'Runs on {study_lib.dataset_name(dataset)}',
    '● finished, ◐ unfinished, ○ absent.',
    '',
    columns,
    rows,
  )


def _circles(finished: int, unfinished: int, expected: int) -> str:
  absent = max(0, expected - finished - unfinished)
  return '●' * finished + '◐' * unfinished + '○' * absent or MISSING
