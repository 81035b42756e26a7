"""What the paper finds, claim by claim, and what the runs of a study say.

Each claim is about one number of a data set, and about the side of zero on
which it lies. A verdict rests on Welch's 95% interval within games and on a
permutation test within games, since a bootstrap of a few runs is too narrow.
Supported or contradicted is a claim whose whole interval is on one side of zero
and whose p-value is at most 0.05; equivalent, one whose whole interval lies
within a margin of no effect. Below three runs of each game there is no verdict.
A growth depends on where it is measured from, so a verdict on one stands only
if the growth from the first measurement says the same.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from batch_rl_dr3.reporting import run_reader, statistics, tables, words
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.reporting.statistics import Array
from batch_rl_dr3.reporting.study import Cell, Study
from batch_rl_dr3.reporting.study_tables import LINE

SUPPORTED, CONTRADICTED, OPEN = 'supported', 'contradicted', 'open'
EQUIVALENT = 'equivalent'
DEPENDS = 'depends on the start'
TOO_FEW = 'no verdict'
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

_Measure = Callable[[Study, Cell], Array]


def _log(values: Array) -> Any:
  return np.log(np.maximum(values, _FLOOR))


def _end(_: Study, cell: Cell) -> Any:
  return _log(cell.values[..., -1])


def _growth_from(share: float, _: Study, cell: Cell) -> Any:
  early = np.searchsorted(cell.steps, share * cell.steps[-1])
  return _log(cell.values[..., -1]) - _log(cell.values[..., early])


def _score(name: str, study: Study, cell: Cell) -> Any:
  return 100 * study.normalised(cell, name)


def _area_lost(study: Study, cell: Cell) -> Any:
  curves = study.normalisation(cell.values, cell.games)
  return 100 * statistics.area_lost(curves)


_growth: _Measure = functools.partial(_growth_from, _EARLY)
_whole_growth: _Measure = functools.partial(_growth_from, 0.0)


@dataclasses.dataclass(frozen=True)
class _Claim:
  """A claim of the paper about one method, or about two.

  Attributes:
    sentence: says it.
    measure: makes float64 [runs, games] of one method's runs.
    quantity: that it is made of, of `run_reader.METRICS` or a return.
    side: of no effect on which the number is to be: 1 above, -1 below, 0
      neither, which only an equivalent number supports.
  """

  sentence: str
  measure: _Measure
  quantity: str
  side: int

  @property
  def is_factor(self) -> bool:
    """Whether the number is the logarithm of a factor."""
    return self.quantity != run_reader.RETURN


_DOT, _RANK = run_reader.DOT_PRODUCT, run_reader.EFFECTIVE_RANK
_SCORE = run_reader.RETURN
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
  *(
    _Claim(f'DR3 raises the {name}', functools.partial(_score, key), _SCORE, 1)
    for key, name in (
      (study_lib.AVERAGE, 'average score'),
      (study_lib.FINAL, 'final score'),
    )
  ),
  _Claim(
    'with DR3 less is lost after the best evaluation', _area_lost, _SCORE, -1
  ),
)
_LAST_SCORE = _Claim(
  'DR3 raises the last evaluation',
  functools.partial(_score, study_lib.LAST),
  _SCORE,
  1,
)
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
    [
      LINE,
      tables.text('claim', 'Claim'),
      tables.Column(('number', 'low', 'high', 'unit'), 'Here', _shown),
      tables.Column('p_value', 'p', _p_value),
      tables.Column('p_holm', 'p, Holm', _p_value),
      tables.text('verdict', 'So it is'),
      tables.Column(
        ('start_number', 'start_low', 'start_high', 'unit'),
        'From the start',
        _shown,
        'known',
      ),
      tables.Column(('iqm', 'iqm_low', 'iqm_high', 'unit'), 'IQM', _shown),
      tables.Column('games', 'Games'),
      tables.Column('runs', 'Runs of each'),
      tables.text('other', 'Beside', when='never'),
    ],
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


def _measure(claim: _Claim, study: Study, cells: Sequence[Cell]) -> tables.Row:
  """Returns the numbers of a claim, their intervals and the verdict."""
  values = [claim.measure(study, cell) for cell in cells]
  compared = _compare(values)
  verdict = _verdict(claim, values, compared)

  def statistic(*drawn: Array) -> Array:
    found = [np.atleast_1d(statistics.iqm(one)) for one in drawn]
    return found[0] - found[1] if len(found) == 2 else found[0]

  iqm = study.bootstrap(statistic, *values)[0]
  row = {
    'number': compared.value,
    'low': compared.low,
    'high': compared.high,
    'iqm': float(iqm.value),
    'iqm_low': float(iqm.low),
    'iqm_high': float(iqm.high),
  }
  if claim.measure == _growth:
    values = [_whole_growth(study, cell) for cell in cells]
    from_start = _compare(values)
    row |= {
      'start_number': from_start.value,
      'start_low': from_start.low,
      'start_high': from_start.high,
    }
    if verdict not in (OPEN, _verdict(claim, values, from_start)):
      verdict = DEPENDS
  if claim.is_factor:
    row = {name: float(np.exp(value)) for name, value in row.items()}
  return row | {
    'unit': 'factor' if claim.is_factor else 'percent',
    'p_value': compared.p_value,
    'verdict': verdict,
  }


def _compare(values: Sequence[Array]) -> statistics.Comparison:
  return statistics.compare(values[0], values[1] if len(values) > 1 else None)


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


def _p_value(value: float) -> str:
  return tables.MISSING if np.isnan(value) else f'{value:.4f}'


def _shown(number: Any, low: Any, high: Any, unit: str) -> str:
  if np.isnan(number):
    return tables.MISSING
  texts = [
    f'x {tables.number(v)}' if unit == 'factor' else f'{v:+.1f}'
    for v in (number, low, high)
  ]
  return texts[0] + ('' if np.isnan(low) else f' ({texts[1]}, {texts[2]})')
