"""What the paper finds, claim by claim, and what the runs of a study say.

Each claim is about one number of a data set, and about the side of zero on
which it lies. A claim is supported if the whole 95% interval of its number is
on that side, contradicted if it is wholly on the other, and else left open; so
is one of which a method has a single run of each game, as that has no interval.
"""

from collections.abc import Callable, Iterator
import dataclasses
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
# The share of training after which growth and fall are measured: what the
# features do in their first steps is the same for all methods.
_EARLY = 0.05
_FLOOR = 1e-9  # Of quantities whose logarithm is taken.
# Methods that do not choose the action of their backup by their own values.
_IN_SAMPLE = ('sarsa', 'regression')


@dataclasses.dataclass(frozen=True)
class _Claim:
  """A claim of the paper about one method, or about two.

  Attributes:
    sentence: says it.
    of_run: makes float64 [runs, games] of one method's runs.
    quantity: that `of_run` is made of, of `scores.METRICS` or a return.
    is_factor: whether the number is the logarithm of a factor.
    is_above: whether it is to be above zero.
  """

  sentence: str
  of_run: Callable[[study_lib.Cell, reference.Normalisation], statistics.Array]
  quantity: str
  is_factor: bool
  is_above: bool


def _growth(cell: study_lib.Cell, _: reference.Normalisation) -> Any:
  early = np.searchsorted(cell.steps, _EARLY * cell.steps[-1])
  return _log(cell.values[..., -1]) - _log(cell.values[..., early])


def _last(cell: study_lib.Cell, _: reference.Normalisation) -> Any:
  return _log(cell.values[..., -1])


def _log(values: statistics.Array) -> Any:
  return np.log(np.maximum(values, _FLOOR))


def _score(name: str) -> Callable[..., Any]:
  def score(cell: study_lib.Cell, scale: reference.Normalisation) -> Any:
    return 100 * scale(study_lib.measure(cell, name), cell.games)

  return score


def _area_lost(cell: study_lib.Cell, scale: reference.Normalisation) -> Any:
  return 100 * statistics.area_lost(scale(cell.values, cell.games))


_DOT, _RANK = run_reader.DOT_PRODUCT, run_reader.EFFECTIVE_RANK
_OF_ONE = (
  _Claim(
    'features co-adapt: their dot product grows in training',
    _growth,
    _DOT,
    is_factor=True,
    is_above=True,
  ),
  _Claim(
    'the effective rank falls in training',
    _growth,
    _RANK,
    is_factor=True,
    is_above=False,
  ),
)
_OF_DR3 = (
  _Claim(
    'DR3 lowers the dot product',
    _last,
    _DOT,
    is_factor=True,
    is_above=False,
  ),
  _Claim(
    'DR3 keeps the effective rank higher',
    _last,
    _RANK,
    is_factor=True,
    is_above=True,
  ),
  _Claim(
    'DR3 raises the average score',
    _score(study_lib.AVERAGE),
    run_reader.RETURN,
    is_factor=False,
    is_above=True,
  ),
  _Claim(
    'DR3 raises the final score',
    _score(study_lib.FINAL),
    run_reader.RETURN,
    is_factor=False,
    is_above=True,
  ),
  _Claim(
    'with DR3 less is lost after the best evaluation',
    _area_lost,
    run_reader.RETURN,
    is_factor=False,
    is_above=False,
  ),
)
_OF_BACKUPS = (
  _Claim(
    'the dot product grows more than under {other}',
    _growth,
    _DOT,
    is_factor=True,
    is_above=True,
  ),
)


def findings(
  study: study_lib.Study,
  normalisation: reference.Normalisation,
  bootstrap: statistics.Bootstrap,
) -> tables.Table:
  """Returns the claims of the paper that the runs of a study are about.

  Args:
    study: the runs.
    normalisation: the scale of scores.
    bootstrap: makes the intervals.
  """
  rows = []
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
  return tables.build(
    'findings',
    'What the paper finds, and what these runs say',
    'A factor (x) is that between the interquartile means of the logarithms of '
    'a quantity, over runs and games: at the end of training and at the '
    f'first measurement from {_EARLY:.0%} of it on, or at the end with DR3 and '
    'without. Others are '
    'differences of interquartile means of normalised scores, in percent. In '
    'brackets: 95% stratified bootstrap intervals. Supported, contradicted: '
    'the interval lies on one side of no effect; open: it does not, or there '
    'is one run of each game and so no interval.',
    'No run has finished yet.',
    [
      study_tables.LINE,
      tables.text('claim', 'Claim'),
      tables.Column(('number', 'low', 'high', 'unit'), 'Here', _shown),
      tables.text('verdict', 'So it is'),
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
    if method not in _IN_SAMPLE:
      yield from ((claim, dataset, method, None) for claim in _OF_ONE)
      for other in _IN_SAMPLE:
        if other in there:
          yield from ((c, dataset, method, other) for c in _OF_BACKUPS)
    if methods.with_dr3(method) in there:
      yield from (
        (claim, dataset, methods.with_dr3(method), method) for claim in _OF_DR3
      )


def _cell(
  study: study_lib.Study, claim: _Claim, dataset: str, method: str
) -> study_lib.Cell | None:
  """Returns the finished runs of a method, None without any."""
  cell = study.scores(dataset, method)
  if cell is not None and claim.quantity != run_reader.RETURN:
    return study.curve(dataset, method, claim.quantity)
  return cell


def _measure(
  claim: _Claim,
  cells: list[study_lib.Cell],
  normalisation: reference.Normalisation,
  bootstrap: statistics.Bootstrap,
) -> dict[str, Any]:
  """Returns the number of a claim, its interval and the verdict."""
  values = [claim.of_run(cell, normalisation) for cell in cells]

  def statistic(*drawn: statistics.Array) -> statistics.Array:
    found = [np.atleast_1d(statistics.iqm(one)) for one in drawn]
    return found[0] - found[1] if len(found) == 2 else found[0]

  estimate = bootstrap(statistic, *values)[0]

  def to_number(value: Any) -> float:
    return float(np.exp(value) if claim.is_factor else value)

  low, high = float(estimate.low), float(estimate.high)
  side = 1 if claim.is_above else -1
  verdict = OPEN
  if low * high > 0:
    verdict = SUPPORTED if side * low > 0 else CONTRADICTED
  return {
    'number': to_number(estimate.value),
    'low': to_number(low),
    'high': to_number(high),
    'unit': 'factor' if claim.is_factor else 'percent',
    'verdict': verdict,
  }


def _shown(number: Any, low: Any, high: Any, unit: str) -> str:
  if unit == 'factor':
    texts = [f'x {tables.number(v)}' for v in (number, low, high)]
  else:
    texts = [f'{v:+.1f}' for v in (number, low, high)]
  ends = '' if np.isnan(low) else f' ({texts[1]}, {texts[2]})'
  return f'{texts[0]}{ends}'
