"""How sure a statistic is: 95% stratified bootstrap intervals, by rliable.

Runs are resampled within each game, never games and never episodes: episodes
of one run share its network, so they say nothing about another training run.

rliable 1.2.0 draws from NumPy's global generator whatever its `random_state`
says, so that generator is seeded around each call and put back afterwards.
Whole runs are drawn, whatever else an array holds of each: what is resampled
is the number of the run, [runs, games], as for a matrix of scores, and a curve
or a pair of final and best score stays one.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses

import numpy as np
from numpy import typing as npt

CONFIDENCE = 0.95
Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
  """Statistics and the ends of their intervals, all of one shape."""

  value: Array
  low: Array
  high: Array

  def __getitem__(self, index: int) -> 'Estimate':
    """Returns one of the statistics."""
    return Estimate(self.value[index], self.low[index], self.high[index])


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """Resamples runs.

  Attributes:
    num_resamples: how often. With 2,000 the ends of an interval are uncertain
      by about 6% of the statistic's standard error.
    seed: the same seed and scores give the same interval.
  """

  num_resamples: int = 2_000
  seed: int = 0

  def __call__(
    self, statistic: Callable[..., Array], *scores: Array
  ) -> Estimate:
    """Returns a statistic of scores and its 95% percentile interval.

    Args:
      statistic: takes as many arrays as there are `scores`, of their shapes,
        and returns float64 [K].
      *scores: float64 [runs, games, ...] each. Of several, each is resampled
        on its own, as those of independent methods.

    Returns:
      The estimate, float64 [K]. The ends are NaN where one of the `scores` has
      a single run: to draw it again and again says nothing.
    """
    if min(map(len, scores)) < 2:
      value = np.atleast_1d(statistic(*scores))
      unknown = np.full_like(value, np.nan)
      return Estimate(value, unknown, unknown)
    # Imported here because it takes longer than a report of single seeds.
    from rliable import library

    numbers = [_run_numbers(values) for values in scores]

    def resampled(*drawn: npt.NDArray[np.int64]) -> Array:
      return np.atleast_1d(
        statistic(*(_take(v, d) for v, d in zip(scores, drawn, strict=True)))
      )

    with _seeded(self.seed):
      points, ends = library.get_interval_estimates(
        {'': numbers[0] if len(numbers) == 1 else numbers},
        resampled,
        reps=self.num_resamples,
        confidence_interval_size=CONFIDENCE,
      )
    return Estimate(points[''], *ends[''])


def _run_numbers(values: Array) -> npt.NDArray[np.int64]:
  num_runs, num_games = values.shape[:2]
  return np.repeat(np.arange(num_runs)[:, np.newaxis], num_games, axis=1)


def _take(values: Array, runs: npt.NDArray[np.int64]) -> Array:
  return np.asarray(values[runs, np.arange(values.shape[1])])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
  state = np.random.get_state()
  np.random.seed(seed)
  try:
    yield
  finally:
    np.random.set_state(state)


def mean_interval(values: Array) -> tuple[float, float] | None:
  """Returns the 95% interval of a mean over seeds of one game.

  Args:
    values: float64 [S], one value per seed.

  Returns:
    The lower and the upper end; None for fewer than two seeds, or when a
    value is not finite.
  """
  if len(values) < 2 or not np.isfinite(values).all():
    return None
  if np.ptp(values) == 0:
    return float(values[0]), float(values[0])
  found = Bootstrap()(_mean, values[:, np.newaxis])
  return float(found.low[0]), float(found.high[0])


def _mean(values: Array) -> Array:
  return np.asarray(values.mean())
