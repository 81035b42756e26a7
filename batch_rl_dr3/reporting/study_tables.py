"""Tables of a study over all games: Table 1, other statistics, stability."""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

import numpy as np

from batch_rl_dr3.reporting import reference, run_reader, statistics, words
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.statistics import Array, Estimate
from batch_rl_dr3.reporting.study import Cell, Study
from batch_rl_dr3.reporting.tables import (
  INCOMPLETE,
  MISSING,
  Column,
  Row,
  Table,
  build,
  interval,
  percent,
  spread,
  text,
)

# The first column of tables with a row for each line of a study.
LINE = text(('dataset', 'method'), 'Method, data', words.line_name)
_EXTENTS = (
  Column('games', 'Games', when='vary'),
  Column('runs', 'Runs of each', when='vary'),
  Column('gradient_steps', 'Gradient steps', when='never'),
  text('lacks', 'Lacks', when='known'),
)
# By name: heading and function.
_STATISTICS: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
  'iqm': ('IQM', statistics.iqm),
  'median': ('Median', statistics.median),
  'mean': ('Mean', statistics.mean),
  'optimality_gap': ('Optimality gap', statistics.optimality_gap),
}
# What is shown of the scores of one game.
_PARTS = ('mean', 'sd', 'runs', 'percent', 'complete')


def _cells(study: Study) -> Iterator[tuple[str, str, Cell, Row]]:
  """Yields data set, method and scores of each line that has any, and a row."""
  for dataset, method in study.lines:
    cell = study.scores(dataset, method)
    if cell is not None and cell.steps.size:
      yield dataset, method, cell, _identity(dataset, method, cell)


@functools.cache
def _statistics(study: Study, cell: Cell, measure: str) -> Estimate:
  """Returns the estimates of `_STATISTICS`, made once."""
  return study.bootstrap(
    lambda scores: np.array([f(scores) for _, f in _STATISTICS.values()]),
    study.normalised(cell, measure),
  )


def _identity(dataset: str, method: str, *cells: Cell) -> Row:
  """Returns the columns of `LINE` and `_EXTENTS`, and if it is complete."""
  lacks = dict.fromkeys(lack for cell in cells for lack in cell.lacks)
  return {
    'dataset': dataset,
    'method': method,
    'games': len(cells[0].games),
    'runs': cells[0].num_runs,
    'gradient_steps': int(cells[0].steps[-1]),
    'complete': not lacks,
    'lacks': '; '.join(lacks) or None,
  }


def _ends(name: str) -> tuple[str, str, str]:
  """Returns the columns of an estimate in percent."""
  return f'{name}_percent', f'{name}_low_percent', f'{name}_high_percent'


def _in_percent(name: str, estimate: Estimate) -> Row:
  values = (estimate.value, estimate.low, estimate.high)
  return {e: 100 * float(v) for e, v in zip(_ends(name), values, strict=True)}


def _estimates(headings: Mapping[str, str]) -> list[Column]:
  return [
    Column((*_ends(name), 'complete'), heading, interval)
    for name, heading in headings.items()
  ]


def _over_games(
  section: str, columns: list[Column], rows: list[Row], **values: Any
) -> Table:
  """Returns a table with a row a line, and what its marks mean if it has any.

  `columns` stand between the line and its extent; `values` are in the caption.
  """
  complete = all(row['complete'] for row in rows)
  marked = '' if complete else words.say('table_1', 'marked')
  columns = [LINE, *columns, *_EXTENTS]
  return build(section, columns, rows, marked=marked, **values)


def table_1(study: Study) -> Table:
  """Returns IQM of average and final score beside the paper's numbers."""
  is_published = study.preset.is_published
  rows = []
  for dataset, method, cell, row in _cells(study):
    for measure in study.measures:
      iqm = _statistics(study, cell, measure)[0]
      row |= _in_percent(measure, iqm)
      if is_published:
        paper = reference.published().get((dataset, method, measure))
        names = _ends(f'paper_{measure}')
        row |= zip(names, paper or [None] * 3, strict=True)
        verdict = _verdict(study, 100 * float(iqm.value), paper)
        row[f'{measure}_to_paper'] = verdict
    rows.append(row)
  columns = []
  for measure in study.measures:
    columns += _estimates({measure: measure.capitalize()})
    if is_published:
      columns += [
        Column(_ends(f'paper_{measure}'), 'Paper', _published),
        text(f'{measure}_to_paper', 'to paper', when='known'),
      ]
  count = study.preset.num_final_evaluations
  return _over_games(
    'table_1',
    columns,
    rows,
    number='Table 1: ' if is_published else '',
    scale=study.normalisation.label,
    final=words.say('final', 'last' if count == 1 else 'mean', count=count),
    beside_paper=words.say('table_1', 'beside_paper') if is_published else '',
  )


def _verdict(
  study: Study, value: float, paper: reference.Published | None
) -> str | None:
  if paper is None or study.normalisation.name != 'dqn':
    return None
  if value < paper.low:
    return 'below'
  return 'above' if value > paper.high else 'inside'


def _published(value: Any, low: Any, high: Any) -> str:
  return interval(value, low, high) if value == value and value else 'unknown'


def statistics_table(study: Study) -> Table:
  """Returns IQM, median, mean and optimality gap of both measures."""
  rows = []
  for *_, cell, identity in _cells(study):
    for measure in study.measures:
      row = identity | {'measure': measure}
      estimate = _statistics(study, cell, measure)
      for index, name in enumerate(_STATISTICS):
        row |= _in_percent(name, estimate[index])
      rows.append(row)
  headings = {name: heading for name, (heading, _) in _STATISTICS.items()}
  return _over_games(
    'statistics',
    [text('measure', 'Score'), *_estimates(headings)],
    rows,
    scale=study.normalisation.label,
  )


def improvement(study: Study) -> Table:
  """Returns the probability that DR3 improves each method."""
  rows = []
  for dataset, base in study.lines:
    found = [study.scores(dataset, m) for m in (words.with_dr3(base), base)]
    cells = study_lib.on_shared_games(found)
    if not cells:
      continue
    row = _identity(dataset, base, *cells)
    for measure in study.measures:
      estimate = study.bootstrap(
        statistics.probability_of_improvement,
        *(study.normalised(cell, measure) for cell in cells),
      )
      row |= _in_percent(measure, estimate[0])
    rows.append(row)
  headings = {measure: measure.capitalize() for measure in study.measures}
  return _over_games('probability_of_improvement', _estimates(headings), rows)


def stability(study: Study) -> Table:
  """Returns final over best score, and the area lost after the peak."""
  headings = {'final_over_best': 'Final over best', 'area_lost': 'Area lost'}
  rows = []
  for *_, cell, row in _cells(study):
    curves = study.normalisation(cell.values, cell.games)
    parts = study_lib.stability(curves, cell.num_final)
    estimate = study.bootstrap(study_lib.stability_statistics, parts)
    for index, name in enumerate(headings):
      row |= _in_percent(name, estimate[index])
    rows.append(row)
  return _over_games('stability', _estimates(headings), rows)


def game_scores(study: Study, dataset: str, measure: str) -> Table:
  """Returns the scores of each game and method, in points and normalised."""
  names = study.methods_on(dataset)
  scale = reference.scores()[['random', reference.ONLINE_DQN, 'behaviour']]
  rows = []
  for game in study.preset.games:
    row: Row = {'game': game, **scale.loc[game]}
    for method in names:
      row |= _game_score(study, dataset, method, game, measure)
    if any(row[f'{method}_runs'] for method in names):
      rows.append(row)
  columns = [
    Column(
      tuple(f'{method}_{part}' for part in _PARTS),
      words.display_name(method),
      _show_score,
    )
    for method in names
  ]
  return build(
    'game_scores',
    (
      text('game', 'Game'),
      *columns,
      Column('random', 'Random'),
      Column('behaviour', 'Logged play', when='known'),
      Column('online_dqn', 'Online DQN'),
    ),
    rows,
    f'{measure}_{dataset}',
    measure=words.say('measures', measure),
    dataset=words.dataset_name(dataset),
    scale=study.normalisation.label,
    num_runs=study.preset.num_runs,
  )


def _game_score(
  study: Study, dataset: str, method: str, game: str, measure: str
) -> Row:
  """Returns the `_PARTS` of one data set, method and game."""
  target = study.preset.datasets[dataset]
  returns = [
    run.series(run_reader.RETURN).loc[:target]
    for run in study.runs.get((dataset, method, game), ())
    if study.is_finished(run)
  ]
  count, num_final = len(returns), study.preset.num_final_evaluations
  values = np.array(
    [
      study_lib.run_score(one.to_numpy(float), measure, num_final)
      for one in returns
    ]
  )
  mean = values.mean() if count else np.nan
  is_whole = all(one.index[-1] >= target for one in returns)
  found = (
    mean,
    values.std(ddof=1) if count > 1 else np.nan,
    count,
    100 * study.normalisation(np.array([[mean]]), (game,)).item(),
    count >= study.preset.num_runs and is_whole,
  )
  return {f'{method}_{p}': v for p, v in zip(_PARTS, found, strict=True)}


def _show_score(
  mean: float, sd: float, runs: int, normalised: float, complete: bool
) -> str:
  if not runs:
    return MISSING
  mark = '' if complete else f' {INCOMPLETE}'
  return f'{spread(mean, sd)} ({percent(normalised)}){mark}'


def presence(study: Study, dataset: str) -> Table:
  """Returns which runs there are: one circle per run, per game and method."""
  parts = ('finished', 'unfinished', 'expected')
  rows = []
  for game in study.preset.games:
    row: Row = {'game': game}
    for method in study.methods:
      is_expected = method in study.preset.methods
      expected = study.preset.num_runs if is_expected else 0
      counts = (*study.count(dataset, method, game), expected)
      row |= {f'{method}_{p}': n for p, n in zip(parts, counts, strict=True)}
    rows.append(row)
  columns = [
    text(
      tuple(f'{method}_{part}' for part in parts),
      words.display_name(method),
      _circles,
    )
    for method in study.methods
  ]
  return build(
    'presence',
    [text('game', 'Game'), *columns],
    rows,
    f'runs_{dataset}',
    dataset=words.dataset_name(dataset),
  )


def _circles(finished: int, unfinished: int, expected: int) -> str:
  absent = max(0, expected - finished - unfinished)
  return '●' * finished + '◐' * unfinished + '○' * absent or MISSING
