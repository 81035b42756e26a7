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

from batch_rl_dr3.reporting import (
  methods,
  reference,
  run_reader,
  statistics,
  study_tables,
  tables,
)
from batch_rl_dr3.reporting import study as study_lib

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

_Measure = Callable[[study_lib.Cell, reference.Normalisation], statistics.Array]


@dataclasses.dataclass(frozen=True)
class _Claim:
  """A claim of the paper about one method, or about two.

  Attributes:
    sentence: says it.
    measure: makes float64 [runs, games] of one method's runs.
    quantity: that it is made of, of `run_reader.METRICS` or a return.
    side: of no effect on which the number is to be: 1 above, -1 below, 0
      neither, which only an equivalent number supports.
    from_start: `measure` from the first measurement on, of a growth.
  """

  sentence: str
  measure: _Measure
  quantity: str
  side: int
  from_start: _Measure | None = None

  @property
  def is_factor(self) -> bool:
    """Whether the number is the logarithm of a factor."""
    return self.quantity != run_reader.RETURN


def _growth(share: float, cell: study_lib.Cell, _: Any) -> Any:
  early = np.searchsorted(cell.steps, share * cell.steps[-1])
  return _log(cell.values[..., -1]) - _log(cell.values[..., early])


def _end(cell: study_lib.Cell, _: Any) -> Any:
  return _log(cell.values[..., -1])


def _log(values: statistics.Array) -> Any:
  return np.log(np.maximum(values, _FLOOR))


def _score(
  name: str, cell: study_lib.Cell, scale: reference.Normalisation
) -> Any:
  return 100 * scale(study_lib.measure(cell, name), cell.games)


def _area_lost(cell: study_lib.Cell, scale: reference.Normalisation) -> Any:
  return 100 * statistics.area_lost(scale(cell.values, cell.games))


_DOT, _RANK = run_reader.DOT_PRODUCT, run_reader.EFFECTIVE_RANK
_LATE_GROWTH = functools.partial(_growth, _EARLY)
_WHOLE_GROWTH = functools.partial(_growth, 0.0)


def _growth_claim(sentence: str, quantity: str, side: int) -> _Claim:
  return _Claim(sentence, _LATE_GROWTH, quantity, side, _WHOLE_GROWTH)


def _score_claim(sentence: str, name: str) -> _Claim:
  measure = functools.partial(_score, name)
  return _Claim(sentence, measure, run_reader.RETURN, 1)


_OF_ONE = (
  _growth_claim(
    'features co-adapt: their dot product grows in training', _DOT, 1
  ),
  _growth_claim('the effective rank falls in training', _RANK, -1),
)
_OF_IN_SAMPLE = (
  _growth_claim('the dot product stays flat in training', _DOT, 0),
)
_OF_DR3 = (
  _Claim('DR3 lowers the dot product', _end, _DOT, -1),
  _Claim('DR3 keeps the effective rank higher', _end, _RANK, 1),
  _score_claim('DR3 raises the average score', study_lib.AVERAGE),
  _score_claim('DR3 raises the final score', study_lib.FINAL),
  _Claim(
    'with DR3 less is lost after the best evaluation',
    _area_lost,
    run_reader.RETURN,
    -1,
  ),
)
_LAST_SCORE = _score_claim('DR3 raises the last evaluation', study_lib.LAST)
_OF_BACKUPS = (
  _growth_claim('the dot product grows more than under {other}', _DOT, 1),
)


def findings(
  study: study_lib.Study,
  normalisation: reference.Normalisation,
  bootstrap: statistics.Bootstrap,
) -> tables.Table:
  """Returns the claims of the paper that the runs of a study are about."""
  rows: list[dict[str, Any]] = []
  for claim, dataset, method, other in _claims(study):
    cells = study_lib.on_shared_games(
      [
        _cell(study, claim, dataset, name)
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
          'claim': claim.sentence.format(
            other=methods.display_name(other or '')
          ),
          'games': len(cells[0].games),
          'runs': min(cell.num_runs for cell in cells),
        }
        | _measure(claim, cells, normalisation, bootstrap)
      )
  adjusted = statistics.holm([row['p_value'] for row in rows])
  for row, p_value in zip(rows, adjusted, strict=True):
    row['p_holm'] = p_value
  return tables.build(
    'findings',
    'What the paper finds, and what these runs say',
    'Mean over runs and games; of a factor (x) the geometric one: a quantity '
    'at the end of training over that at the first measurement from '
    f'{_EARLY:.0%} of it on (from the start: at the first of all), or at the '
    'end with DR3 over that without. Others are differences of normalised '
    "scores, in percent. In brackets: Welch's 95% intervals within games; p: a "
    'permutation test within games, and the same by Holm for the number of '
    'claims on this page. Supported, contradicted: the interval lies on one '
    f'side of no effect and p is at most {_ALPHA:g}; equivalent: it lies '
    f'within {_MARGIN:g} points, or a factor of {_FACTOR_MARGIN:g}, of none; '
    f'{DEPENDS}: from the first measurement on, the verdict is another; '
    f'{TOO_FEW}: fewer than {_MIN_RUNS} runs of each game. IQM: the '
    'interquartile mean with its 95% stratified bootstrap interval (rliable), '
    'which is too narrow below ten runs of each game.',
    'No run has finished yet.',
    [
      study_tables.LINE,
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
  )


def _claims(
  study: study_lib.Study,
) -> Iterator[tuple[_Claim, str, str, str | None]]:
  """Yields each claim with its data set, its method and the other one."""
  for dataset, method in study.lines:
    there = study.methods_on(dataset)
    if methods.has_dr3(method):
      continue
    of_one = _OF_IN_SAMPLE if method in _IN_SAMPLE else _OF_ONE
    yield from ((claim, dataset, method, None) for claim in of_one)
    if method not in _IN_SAMPLE:
      for other in _IN_SAMPLE:
        if other in there:
          yield from ((c, dataset, method, other) for c in _OF_BACKUPS)
    if methods.with_dr3(method) in there:
      last = [_LAST_SCORE] if study_lib.LAST in study.measures else []
      yield from (
        (claim, dataset, methods.with_dr3(method), method)
        for claim in (*_OF_DR3, *last)
      )


def _cell(
  study: study_lib.Study, claim: _Claim, dataset: str, method: str
) -> study_lib.Cell | None:
  """Returns the finished runs of a method, None without any."""
  if claim.quantity == run_reader.RETURN:
    return study.scores(dataset, method)
  return study.measurements(dataset, method, claim.quantity)


def _measure(
  claim: _Claim,
  cells: list[study_lib.Cell],
  normalisation: reference.Normalisation,
  bootstrap: statistics.Bootstrap,
) -> dict[str, Any]:
  """Returns the numbers of a claim, their intervals and the verdict."""
  values = [claim.measure(cell, normalisation) for cell in cells]
  compared = _compare(values)
  verdict = _verdict(claim, values, compared)

  def statistic(*drawn: statistics.Array) -> statistics.Array:
    found = [np.atleast_1d(statistics.iqm(one)) for one in drawn]
    return found[0] - found[1] if len(found) == 2 else found[0]

  iqm = bootstrap(statistic, *values)[0]
  row = {
    'number': compared.value,
    'low': compared.low,
    'high': compared.high,
    'iqm': float(iqm.value),
    'iqm_low': float(iqm.low),
    'iqm_high': float(iqm.high),
  }
  if claim.from_start is not None:
    values = [claim.from_start(cell, normalisation) for cell in cells]
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


def _compare(values: Sequence[statistics.Array]) -> statistics.Comparison:
  return statistics.compare(values[0], values[1] if len(values) > 1 else None)


def _verdict(
  claim: _Claim,
  values: Sequence[statistics.Array],
  compared: statistics.Comparison,
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
  if unit == 'factor':
    texts = [f'x {tables.number(v)}' for v in (number, low, high)]
  else:
    texts = [f'{v:+.1f}' for v in (number, low, high)]
  ends = '' if np.isnan(low) else f' ({texts[1]}, {texts[2]})'
  return f'{texts[0]}{ends}'
