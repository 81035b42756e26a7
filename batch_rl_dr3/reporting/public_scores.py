"""Holds runs against the scores that others have published on this protocol.

`published/references.csv` ships beside this module, a row a number, in points
or normalised as its column says:

- takuseno/d3rlpy-benchmarks (MIT), commit 1771c9b2: ten seeds a method and
  game, evaluated every 125,000 gradient steps of 12.5 million. QR-CQL has the
  settings of `atari/cql_1pct.gin`; its 1% of the data are whole episodes, which
  `Subset.rule='episodes'` draws, too.
- Table 1 of the DR3 paper (arXiv:2112.04716): interquartile means over 17
  games, in percent, with 95% intervals.
- Table 1 of the Decision Transformer's paper (arXiv:2106.01345), in percent of
  a human's score.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
from numpy import typing as npt
import pandas as pd
from scipy import stats

# The published method that a method of ours repeats.
COUNTERPARTS = {'cql': 'QR-CQL'}
_CONFIDENCE = 0.99
# Between evaluations of the published curves, in gradient steps.
_INTERVAL = 125_000


@functools.cache
def references() -> pd.DataFrame:
  """Returns references.csv, whose columns are its own description."""
  path = pathlib.Path(__file__).parent / 'published' / 'references.csv'
  return pd.read_csv(path, dtype={'source': str, 'game': str})


def prediction_interval(values: npt.ArrayLike) -> tuple[float, float]:
  """Returns where one more normal draw lies with 99%, by Student's t.

  mean -+ t s sqrt(1 + 1 / n): wider than the range of n draws, outside which
  one more lies in 2 of n + 1 cases.

  Args:
    values: float64 [n], at least two.
  """
  sample = np.asarray(values, float)
  low, high = stats.t.interval(
    _CONFIDENCE,
    len(sample) - 1,
    loc=sample.mean(),
    scale=sample.std(ddof=1) * np.sqrt(1 + 1 / len(sample)),
  )
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class PublicComparison:
  """A run's score and those of the seeds that others have published.

  Attributes:
    measure: 'average' over training up to `gradient_steps`, or the 'score'
      there.
    value: the run's, in points.
    mean: of the published seeds.
    low: of the interval in which one more seed is expected.
    high: likewise.
  """

  method: str
  game: str
  measure: str
  gradient_steps: int
  value: float
  mean: float
  low: float
  high: float

  @property
  def is_outside(self) -> bool:
    """Whether the run's settings or data are likely to be others."""
    return not self.low <= self.value <= self.high


def compare(
  method: str,
  game: str,
  gradient_steps: npt.NDArray[Any],
  returns: npt.NDArray[np.float64],
) -> list[PublicComparison]:
  """Returns a run's comparisons at the gradient steps that it has reached.

  Args:
    method: of references.csv, such as 'QR-CQL'.
    game: as ALE spells it in camel case, such as 'Breakout'.
    gradient_steps: int [evaluations], ascending.
    returns: mean undiscounted return of each evaluation, in points.
  """
  table = references()
  table = table[
    (table['method'] == method)
    & (table['game'] == game)
    & (table['normalisation'] == 'none')
  ]
  found = []
  for (measure, steps), rows in table.groupby(
    ['measure', 'gradient_steps'], sort=False
  ):
    reached = returns[gradient_steps <= steps]
    if not len(reached) or gradient_steps[-1] <= steps - _INTERVAL:
      continue
    value = reached.mean() if measure == 'average' else reached[-1]
    seeds = rows['value'].to_numpy(float)
    found.append(
      PublicComparison(
        method,
        game,
        measure,
        int(steps),
        float(value),
        float(seeds.mean()),
        *prediction_interval(seeds),
      )
    )
  return found
