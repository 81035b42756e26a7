"""Tables of a study over all games, and what the paper finds, claim by claim.

Each claim is about one number of a data set, and about the side of zero on
which it lies. A verdict rests on Welch's 95% interval within games and on a
permutation test within games, since a bootstrap of a few runs is too narrow.
Supported or contradicted is a claim whose whole interval is on one side of zero
and whose p-value is at most 0.05; equivalent, one whose whole interval lies
within a margin of no effect. Below three runs of each game there is no verdict.
A growth depends on where it is measured from, so a verdict on one stands only
if the growth from the first measurement says the same.
"""

from collections.abc import Iterable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import numpy as np

from batch_rl_dr3.reporting import reference, run_reader, statistics, words
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.statistics import Array, Estimate
from batch_rl_dr3.reporting.study import Cell, Study
from batch_rl_dr3.reporting.tables import Column, Row, Table, build, columns_of

# Functions of `statistics`, with columns of their names.
_STATISTICS = ('iqm', 'median', 'mean', 'optimality_gap')


def _cells(study: Study) -> Iterator[tuple[Cell, Row]]:
  """Yields the scores of each line that has any, and the start of its row."""
  for dataset, method in study.lines:
    cell = study.scores(dataset, method)
    if cell is not None and cell.steps.size:
      yield cell, _identity(dataset, method, cell)


@functools.cache
def _statistics(study: Study, cell: Cell, measure: str) -> Estimate:
  """Returns the estimates of `_STATISTICS`, made once."""
  return study.bootstrap(
    lambda x: np.array([getattr(statistics, n)(x) for n in _STATISTICS]),
    study.normalised(cell, measure),
  )


def _identity(dataset: str, method: str, *cells: Cell) -> Row:
  """Returns whom a row is about, of how many runs, and what these lack."""
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


def _ends(name: str) -> list[str]:
  """Returns the columns of an estimate in percent."""
  return [f'{name}{end}_percent' for end in ('', '_low', '_high')]


def _in_percent(names: Iterable[str], estimate: Estimate) -> Row:
  """Returns the columns of the estimates that have these names."""
  values = np.stack([estimate.value, estimate.low, estimate.high], axis=1)
  return {
    column: 100 * float(value)
    for name, ends in zip(names, values, strict=True)
    for column, value in zip(_ends(name), ends, strict=True)
  }


def _estimate(name: str, heading: str) -> Column:
  return Column(' '.join([*_ends(name), 'complete']), heading, 'interval')


def _over_games(
  section: str, rows: list[Row], columns: Sequence[Column] = (), **values: Any
) -> Table:
  """Returns a table with a row a line, and what its marks mean if it has any.

  Its `columns` stand between the line and its extent; `values` are in the
  caption.
  """
  complete = all(row['complete'] for row in rows)
  marked = '' if complete else words.say('table_1', 'marked')
  line, *extent = columns_of('study_lines')
  columns = [line, *(columns or columns_of(section)), *extent]
  return build(section, rows, columns, marked=marked, **values)


def table_1(study: Study) -> Table:
  """Returns IQM of average and final score beside the paper's numbers."""
  is_published = study.preset.is_published
  rows, columns = [], []
  for cell, row in _cells(study):
    for measure in study.measures:
      iqm = _statistics(study, cell, measure)[:1]
      row |= _in_percent([measure], iqm)
      if is_published:
        key = row['dataset'], row['method'], measure
        paper = reference.published().get(key)
        names = _ends(f'paper_{measure}')
        row |= zip(names, paper or [None] * 3, strict=True)
        value = row[f'{measure}_percent']
        row[f'{measure}_to_paper'] = _beside(study, value, paper)
    rows.append(row)
  for measure in study.measures:
    columns.append(_estimate(measure, measure.capitalize()))
    if is_published:
      ends = ' '.join(_ends(f'paper_{measure}'))
      columns += [
        Column(ends, 'Paper', 'published'),
        Column(f'{measure}_to_paper', 'to paper', 'text', 'known'),
      ]
  count = study.preset.num_final_evaluations
  return _over_games(
    'table_1',
    rows,
    columns,
    number='Table 1: ' if is_published else '',
    scale=study.normalisation.label,
    final=words.say('final', 'last' if count == 1 else 'mean', count=count),
    beside_paper=words.say('table_1', 'beside_paper') if is_published else '',
  )


def _beside(
  study: Study, value: float, paper: reference.Published | None
) -> str | None:
  """Returns where a number lies to the paper's interval."""
  if paper is None or study.normalisation.name != 'dqn':
    return None
  if value < paper.low:
    return 'below'
  return 'above' if value > paper.high else 'inside'


def statistics_table(study: Study) -> Table:
  """Returns IQM, median, mean and optimality gap of both measures."""
  rows = [
    row
    | {'measure': measure}
    | _in_percent(_STATISTICS, _statistics(study, cell, measure))
    for cell, row in _cells(study)
    for measure in study.measures
  ]
  scale = study.normalisation.label
  return _over_games('statistics', rows, scale=scale)


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
      row |= _in_percent([measure], estimate)
    rows.append(row)
  columns = [_estimate(name, name.capitalize()) for name in study.measures]
  return _over_games('probability_of_improvement', rows, columns)


def stability(study: Study) -> Table:
  """Returns final over best score, and the area lost after the peak."""
  rows = []
  for cell, row in _cells(study):
    curves = study.normalisation(cell.values, cell.games)
    parts = study_lib.stability(curves, cell.num_final)
    estimate = study.bootstrap(study_lib.stability_statistics, parts)
    names = ('final_over_best', 'area_lost')
    rows.append(row | _in_percent(names, estimate))
  return _over_games('stability', rows)


def _by_method(
  methods: Sequence[str], parts: Sequence[str], way: str
) -> list[Column]:
  """Returns a column a method, made of its parts."""
  return [
    Column(' '.join(f'{m}_{p}' for p in parts), words.display_name(m), way)
    for m in methods
  ]


def game_scores(study: Study, dataset: str, measure: str) -> Table:
  """Returns the scores of each game and method, in points and normalised."""
  methods = study.methods_on(dataset)
  scale = reference.scores()[['random', reference.ONLINE_DQN, 'behaviour']]
  rows = []
  for game in study.preset.games:
    row: Row = {'game': game, **scale.loc[game]}
    for method in methods:
      found = _game_score(study, dataset, method, game, measure)
      row |= {f'{method}_{part}': value for part, value in found.items()}
    if any(row[f'{method}_runs'] for method in methods):
      rows.append(row)
  parts = ('mean', 'sd', 'runs', 'percent', 'complete')
  first, *rest = columns_of('game_scores')
  return build(
    'game_scores',
    rows,
    [first, *_by_method(methods, parts, 'score'), *rest],
    f'{measure}_{dataset}',
    measure=words.say('measures', measure),
    dataset=words.dataset_name(dataset),
    scale=study.normalisation.label,
    num_runs=study.preset.num_runs,
  )


def _game_score(
  study: Study, dataset: str, method: str, game: str, measure: str
) -> Row:
  """Returns what is shown of one data set, method and game."""
  preset, target = study.preset, study.preset.datasets[dataset]
  returns = [
    run.series(run_reader.RETURN).loc[:target]
    for run in study.runs.get((dataset, method, game), ())
    if study.is_finished(run)
  ]
  values = np.array(
    [
      study_lib.run_score(
        one.to_numpy(float), measure, preset.num_final_evaluations
      )
      for one in returns
    ]
  )
  count = len(values)
  mean = values.mean() if count else np.nan
  is_whole = all(one.index[-1] >= target for one in returns)
  return {
    'mean': mean,
    'sd': values.std(ddof=1) if count > 1 else np.nan,
    'runs': count,
    'percent': 100 * study.normalisation(np.array([[mean]]), (game,)).item(),
    'complete': count >= preset.num_runs and is_whole,
  }


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
  return build(
    'presence',
    rows,
    [
      Column('game', 'Game', 'text'),
      *_by_method(study.methods, parts, 'circles'),
    ],
    f'runs_{dataset}',
    dataset=words.dataset_name(dataset),
  )


# What the paper finds.

_MIN_RUNS = 3
_ALPHA = 0.05
# Within so many points, or such a factor, an effect is as good as none.
_MARGIN, _FACTOR_MARGIN = 5.0, 1.25
# The share of training after which growth and fall are measured: what the
# features do in their first steps is the same for all methods.
_EARLY = 0.05
_FLOOR = 1e-9  # Of quantities whose logarithm is taken.
# Methods that do not choose the action of their backup by their own values.
_IN_SAMPLE = ('sarsa', 'regression')


class _Claim(NamedTuple):
  """A claim of the paper about one method, or about two; see words.toml."""

  sentence: str
  measure: str
  quantity: str  # That it is made of, of `run_reader.METRICS` or a return.
  # Of no effect, on which the number is to be: 1 above, -1 below, 0 neither,
  # which only an equivalent number supports.
  side: int

  @property
  def is_factor(self) -> bool:
    """Whether the number is the logarithm of a factor."""
    return self.quantity != run_reader.RETURN


def _values(claim: _Claim, study: Study, cell: Cell, share: float) -> Array:
  """Returns what a claim is about, [runs, games]; growth is from a share on."""
  if claim.measure == 'area_lost':
    curves = study.normalisation(cell.values, cell.games)
    return 100 * statistics.area_lost(curves)
  if not claim.is_factor:
    return 100 * study.normalised(cell, claim.measure)
  logs = np.log(np.maximum(cell.values, _FLOOR))
  if claim.measure == 'end':
    return np.asarray(logs[..., -1])
  start = np.searchsorted(cell.steps, share * cell.steps[-1])
  return np.asarray(logs[..., -1] - logs[..., start])


def findings(study: Study) -> Table:
  """Returns the claims of the paper that the runs of a study are about."""
  rows: list[Row] = []
  for claim, dataset, method, other in _claims(study):
    cells = study_lib.on_shared_games(
      [
        study.measurements(dataset, name, claim.quantity)
        for name in (method, other)
        if name is not None
      ]
    )
    if cells:
      rows.append(
        {
          'dataset': dataset,
          'method': method,
          'other': other,
          'claim': claim.sentence.format(other=words.display_name(other or '')),
          'games': len(cells[0].games),
          'runs': min(cell.num_runs for cell in cells),
        }
        | _measure(claim, study, cells)
      )
  adjusted = statistics.holm([row['p_value'] for row in rows])
  for row, p_value in zip(rows, adjusted, strict=True):
    row['p_holm'] = p_value
  return build(
    'findings',
    rows,
    early=_EARLY,
    alpha=_ALPHA,
    margin=_MARGIN,
    factor=_FACTOR_MARGIN,
    min_runs=_MIN_RUNS,
  )


def _claims(study: Study) -> Iterator[tuple[_Claim, str, str, str | None]]:
  """Yields each claim with its data set, its method and the other one."""

  def of(kind: str) -> list[_Claim]:
    return [_Claim(*entry) for entry in words.entries('claims', kind)]

  for dataset, method in study.lines:
    there = study.methods_on(dataset)
    if words.has_dr3(method):
      continue
    is_in_sample = method in _IN_SAMPLE
    for claim in of('in_sample' if is_in_sample else 'one'):
      yield claim, dataset, method, None
    for other in () if is_in_sample else _IN_SAMPLE:
      for claim in of('backups') if other in there else ():
        yield claim, dataset, method, other
    dr3 = words.with_dr3(method)
    if dr3 in there:
      for claim in of('dr3'):
        if claim.measure != study_lib.LAST or claim.measure in study.measures:
          yield claim, dataset, dr3, method


def _row(names: str, found: Estimate | statistics.Comparison) -> Row:
  values = (found.value, found.low, found.high)
  return dict(zip(names.split(), map(float, values), strict=True))


def _measure(claim: _Claim, study: Study, cells: Sequence[Cell]) -> Row:
  """Returns the numbers of a claim, their intervals and the verdict."""
  values = [_values(claim, study, cell, _EARLY) for cell in cells]
  compared = statistics.compare(*values)
  verdict = _verdict(claim, values, compared)

  def statistic(*drawn: Array) -> Array:
    found = [np.atleast_1d(statistics.iqm(one)) for one in drawn]
    return found[0] - found[1] if len(found) == 2 else found[0]

  iqm = study.bootstrap(statistic, *values)[0]
  row = _row('number low high', compared) | _row('iqm iqm_low iqm_high', iqm)
  if claim.measure == 'growth':
    values = [_values(claim, study, cell, 0.0) for cell in cells]
    from_start = statistics.compare(*values)
    row |= _row('start_number start_low start_high', from_start)
    if verdict not in ('open', _verdict(claim, values, from_start)):
      verdict = 'depends on the start'
  if claim.is_factor:
    row = {name: float(np.exp(value)) for name, value in row.items()}
  return row | {
    'unit': 'factor' if claim.is_factor else 'percent',
    'p_value': compared.p_value,
    'verdict': verdict,
  }


def _verdict(
  claim: _Claim, values: Sequence[Array], compared: statistics.Comparison
) -> str:
  if min(map(len, values)) < _MIN_RUNS:
    return 'no verdict'
  low, high = compared.low, compared.high
  margin = np.log(_FACTOR_MARGIN) if claim.is_factor else _MARGIN
  is_equivalent = -margin < low and high < margin
  if claim.side == 0 and is_equivalent:
    return 'supported'
  if low * high > 0 and compared.p_value <= _ALPHA:
    return 'supported' if claim.side * low > 0 else 'contradicted'
  return 'equivalent' if is_equivalent else 'open'
