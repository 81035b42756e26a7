"""What the paper finds, claim by claim, and what the runs of a study say.

Each claim is about one number of a data set, and about the side of zero on
which it lies. A verdict rests on Welch's 95% interval within games and on a
permutation test within games, since a bootstrap of a few runs is too narrow.
Supported or contradicted is a claim whose whole interval is on one side of zero
and whose p-value is at most 0.05; equivalent, one whose whole interval lies
within a margin of no effect. Below three runs of each game there is no verdict.
A growth depends on where it is measured from, so a verdict on one stands only
if the growth from the first measurement says the same.

Notes are what limits the meaning of a page's numbers, a sentence each.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.analysis import returns
from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
  statistics,
  tables,
  words,
)
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.run_reader import Collection
from batch_rl_dr3.reporting.statistics import Array
from batch_rl_dr3.reporting.study import Cell, Study

SUPPORTED, CONTRADICTED, OPEN = 'supported', 'contradicted', 'open'
EQUIVALENT = 'equivalent'
DEPENDS = 'depends on the start'
TOO_FEW = 'no verdict'
_MIN_RUNS = 3
# Seeds below which an interval over them is too narrow.
_FEW_SEEDS = 5
_ALPHA = 0.05
# Within so many points, or such a factor, an effect is as good as none.
_MARGIN, _FACTOR_MARGIN = 5.0, 1.25
# The share of training after which growth and fall are measured: what the
# features do in their first steps is the same for all methods.
_EARLY = 0.05
_FLOOR = 1e-9  # Of quantities whose logarithm is taken.
# Methods that do not choose the action of their backup by their own values.
_IN_SAMPLE = ('sarsa', 'regression')

# Columns of a number and the ends of its interval.
_HERE = ('number', 'low', 'high')
_IQM = ('iqm', 'iqm_low', 'iqm_high')
_START = ('start_number', 'start_low', 'start_high')
_DOT, _RANK = run_reader.DOT_PRODUCT, run_reader.EFFECTIVE_RANK
_SCORE = run_reader.RETURN


def _log(values: Array) -> Any:
  return np.log(np.maximum(values, _FLOOR))


def _end(_: Study, cell: Cell) -> Any:
  return _log(cell.values[..., -1])


def _growth(_: Study, cell: Cell, share: float = _EARLY) -> Any:
  early = np.searchsorted(cell.steps, share * cell.steps[-1])
  return _log(cell.values[..., -1]) - _log(cell.values[..., early])


def _score(name: str, study: Study, cell: Cell) -> Any:
  return 100 * study.normalised(cell, name)


def _area_lost(study: Study, cell: Cell) -> Any:
  curves = study.normalisation(cell.values, cell.games)
  return 100 * statistics.area_lost(curves)


@dataclasses.dataclass(frozen=True)
class _Claim:
  """A claim of the paper about one method, or about two."""

  sentence: str
  measure: Callable[[Study, Cell], Array]  # [runs, games] of a method's runs.
  quantity: str  # That it is made of, of `run_reader.METRICS` or a return.
  # Of no effect, on which the number is to be: 1 above, -1 below, 0 neither,
  # which only an equivalent number supports.
  side: int

  @property
  def is_factor(self) -> bool:
    """Whether the number is the logarithm of a factor."""
    return self.quantity != _SCORE


def _raises(name: str, measure: str) -> _Claim:
  score = functools.partial(_score, measure)
  return _Claim(f'DR3 raises the {name}', score, _SCORE, 1)


_OF_ONE = (
  _Claim(
    'features co-adapt: their dot product grows in training', _growth, _DOT, 1
  ),
  _Claim('the effective rank falls in training', _growth, _RANK, -1),
)
_OF_IN_SAMPLE = (
  _Claim('the dot product stays flat in training', _growth, _DOT, 0),
)
_OF_DR3 = (
  _Claim('DR3 lowers the dot product', _end, _DOT, -1),
  _Claim('DR3 keeps the effective rank higher', _end, _RANK, 1),
  _raises('average score', study_lib.AVERAGE),
  _raises('final score', study_lib.FINAL),
  _Claim(
    'with DR3 less is lost after the best evaluation', _area_lost, _SCORE, -1
  ),
)
_LAST_SCORE = _raises('last evaluation', study_lib.LAST)
_OF_BACKUPS = _Claim(
  'the dot product grows more than under {other}', _growth, _DOT, 1
)


def findings(study: Study) -> tables.Table:
  """Returns the claims of the paper that the runs of a study are about."""
  rows: list[tables.Row] = []
  for claim, dataset, method, other in _claims(study):
    names = [name for name in (method, other) if name is not None]
    cells = study_lib.on_shared_games(
      [study.measurements(dataset, name, claim.quantity) for name in names]
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
  return tables.build(
    'findings',
    tables.columns('findings'),
    rows,
    early=_EARLY,
    alpha=_ALPHA,
    margin=_MARGIN,
    factor=_FACTOR_MARGIN,
    min_runs=_MIN_RUNS,
  )


def _claims(study: Study) -> Iterator[tuple[_Claim, str, str, str | None]]:
  """Yields each claim with its data set, its method and the other one."""
  last = [_LAST_SCORE] if study_lib.LAST in study.measures else []
  for dataset, method in study.lines:
    there = study.methods_on(dataset)
    if words.has_dr3(method):
      continue
    is_in_sample = method in _IN_SAMPLE
    for claim in _OF_IN_SAMPLE if is_in_sample else _OF_ONE:
      yield claim, dataset, method, None
    for other in () if is_in_sample else _IN_SAMPLE:
      if other in there:
        yield _OF_BACKUPS, dataset, method, other
    dr3 = words.with_dr3(method)
    if dr3 in there:
      for claim in (*_OF_DR3, *last):
        yield claim, dataset, dr3, method


def _row(
  names: Sequence[str], found: statistics.Estimate | statistics.Comparison
) -> tables.Row:
  values = (found.value, found.low, found.high)
  return dict(zip(names, map(float, values), strict=True))


def _measure(claim: _Claim, study: Study, cells: Sequence[Cell]) -> tables.Row:
  """Returns the numbers of a claim, their intervals and the verdict."""
  values = [claim.measure(study, cell) for cell in cells]
  compared = statistics.compare(*values)
  verdict = _verdict(claim, values, compared)

  def statistic(*drawn: Array) -> Array:
    found = [np.atleast_1d(statistics.iqm(one)) for one in drawn]
    return found[0] - found[1] if len(found) == 2 else found[0]

  row = _row(_HERE, compared)
  row |= _row(_IQM, study.bootstrap(statistic, *values)[0])
  if claim.measure == _growth:
    values = [_growth(study, cell, 0.0) for cell in cells]
    from_start = statistics.compare(*values)
    row |= _row(_START, from_start)
    if verdict not in (OPEN, _verdict(claim, values, from_start)):
      verdict = DEPENDS
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
    return TOO_FEW
  low, high = compared.low, compared.high
  margin = np.log(_FACTOR_MARGIN) if claim.is_factor else _MARGIN
  is_equivalent = -margin < low and high < margin
  if claim.side == 0 and is_equivalent:
    return SUPPORTED
  if low * high > 0 and compared.p_value <= _ALPHA:
    return SUPPORTED if claim.side * low > 0 else CONTRADICTED
  return EQUIVALENT if is_equivalent else OPEN


_note = functools.partial(words.say, 'notes')


def notes_of_runs(collection: Collection) -> list[str]:
  """Returns the notes of a page on each game and data set on its own."""
  return [
    *_extent(collection),
    *_unfinished(collection),
    *_unequal_steps(collection),
    *_not_finite(collection),
    *_truncated(collection),
    *_assumed(collection),
    *notes_of_files(collection),
  ]


def notes_of_study(study: Study, collection: Collection) -> list[str]:
  """Returns the notes of a study's page."""
  found = []
  for dataset in study.preset.datasets:
    name = words.dataset_name(dataset)
    if dataset not in study.datasets:
      found.append(_note('no_runs_on', dataset=name))
      continue
    lacking = [
      f'{words.display_name(method)} ({lacks})'
      for method in study.methods
      if (lacks := _lacks(study, dataset, method))
    ]
    if lacking:
      methods = ', '.join(lacking)
      found.append(_note('incomplete', dataset=name, methods=methods))
  if strangers := study.strangers:
    reasons = words.listed(sorted({reason for _, reason in strangers}))
    count, title = len(strangers), study.preset.name
    found.append(_note('strangers', count=count, study=title, reasons=reasons))
  return [*found, *notes_of_files(collection)]


def _lacks(study: Study, dataset: str, method: str) -> str:
  if (dataset, method) not in study.lines:
    return 'no runs'
  cell = study.scores(dataset, method)
  if cell is None:
    return 'no finished runs, so no scores'
  return '; '.join(cell.lacks)


def notes_of_files(collection: Collection) -> Iterator[str]:
  """Yields what is odd about files and ROMs, whatever the report is about."""
  dated = [run.name for run in collection.runs if run.from_future]
  if dated:
    yield _note('from_future', runs=words.listed(dated))
  for run in collection.runs:
    lowest = run.evaluations.get('lowest', pd.Series(dtype=float))
    wrapped = lowest[returns.is_wrapped(lowest.to_numpy(float))]
    if len(wrapped):
      values = {'lowest': wrapped.min(), 'step': wrapped.idxmin()}
      values |= {'count': len(wrapped), 'total': len(lowest)}
      yield _note('wrapped', run=run.name, **values)
  yield from reference.rom_notes(collection.runs)
  yield from reference.data_notes(collection.runs)
  yield from _public(collection)


def _extent(collection: Collection) -> Iterator[str]:
  num_games = len({setting[:2] for setting in collection.settings})
  num_seeds = [len(collection.select(*line)) for line in collection.lines]
  fewest = min(num_seeds)
  if len(collection.runs) == 1:
    yield _note('one_run')
  if max(num_seeds) == 1 and num_games == 1:
    yield _note('one_game_one_seed')
  elif fewest == 1:
    yield _note('one_seed')
  elif fewest < _FEW_SEEDS:
    yield _note('few_seeds', count=fewest)


def _unfinished(collection: Collection) -> Iterator[str]:
  unfinished = [run.name for run in collection.runs if not run.finished]
  if unfinished:
    yield _note('unfinished', runs=', '.join(unfinished))
  for run in collection.runs:
    if run.evaluations.empty:
      yield _note('not_evaluated', run=run.name)
    if not len(run.metrics):
      yield _note('not_measured', run=run.name)


def _unequal_steps(collection: Collection) -> Iterator[str]:
  for setting in collection.settings:
    steps: dict[str, int] = {}
    for method in collection.methods(setting):
      name = words.display_name(method)
      curve = figures.curve_of(collection, setting, method, run_reader.RETURN)
      if curve.last_step is not None:
        steps[name] = curve.last_step
      elif curve.num_seeds:
        yield _note('no_shared_step', setting=setting.label, method=name)
    if len(set(steps.values())) > 1:
      last = ', '.join(f'{name} at {step:,}' for name, step in steps.items())
      yield _note('unequal_steps', setting=setting.label, steps=last)


def _not_finite(collection: Collection) -> Iterator[str]:
  for run in collection.runs:
    for quantity in run_reader.METRICS:
      values = run.series(quantity)
      wrong = values[np.isinf(values)]
      if len(wrong):
        names = {'run': run.name, 'quantity': quantity, 'step': wrong.index[0]}
        counts = {'count': len(wrong), 'total': len(values)}
        yield _note('not_finite', **names, **counts)


def _truncated(collection: Collection) -> Iterator[str]:
  every = [run.evaluations for run in collection.runs]
  count = sum(int(table['truncated'].sum()) for table in every)
  total = sum(int(table['episodes'].sum()) for table in every)
  if count:
    yield _note('truncated', count=count, total=total)


def _assumed(collection: Collection) -> Iterator[str]:
  runs = collection.runs
  names = [run.name for run in runs if 'gamma' not in run.recorded('protocol')]
  if names:
    who = 'every run' if len(names) == len(runs) else ', '.join(names)
    yield _note('no_gamma', runs=who, gamma=tables.DEFAULT_GAMMA)
  if len({reference.plain(run.provenance.get('versions')) for run in runs}) > 1:
    yield _note('versions')


def _public(collection: Collection) -> Iterator[str]:
  """Yields how runs stand to the public ones of the same settings."""
  for run in collection.runs:
    curve = run.series(run_reader.RETURN)
    steps, points = curve.index.to_numpy(), curve.to_numpy()
    methods = reference.public_methods(run.setting, [run.method])
    # With DR3 a run has other settings.
    for method in methods if run.method in reference.COUNTERPARTS else ():
      for found in reference.compare(method, run.setting.game, steps, points):
        verdict = 'outside' if found.is_outside else 'within'
        numbers = dataclasses.asdict(found)
        yield _note('public', run=run.name, verdict=verdict, **numbers)
