"""Statistics over runs and games: arrays float64 [runs, games, ...] to numbers.

The last axes, such as steps, stay: `iqm` of [runs, games, steps] is [steps].
On a matrix each equals the function of rliable's `metrics` of that name, which
knows one matrix and no further axes (Agarwal et al. 2021, arXiv:2108.13264).
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses

import numpy as np
from numpy import typing as npt

Array = npt.NDArray[np.float64]


def iqm(scores: Array) -> Array:
  """Returns the interquartile mean: without the lowest and highest quarter.

  SciPy's `trim_mean`, which rliable calls, does the same, but most of a
  bootstrap's time would go into its checks.
  """
  pooled = scores.reshape(scores.shape[0] * scores.shape[1], -1).T
  count = pooled.shape[1]
  cut = count // 4
  middle = np.partition(pooled, (cut, count - cut - 1), axis=1)
  means = middle[:, cut : count - cut].mean(axis=1)
  return np.asarray(means.reshape(scores.shape[2:]))


def median(scores: Array) -> Array:
  """Returns the median over games of the mean over runs."""
  return np.asarray(np.median(scores.mean(axis=0), axis=0))


def mean(scores: Array) -> Array:
  """Returns the mean over games of the mean over runs."""
  return np.asarray(scores.mean(axis=(0, 1)))


def optimality_gap(scores: Array) -> Array:
  """Returns how much scores miss 1 by on average, 1 being the most."""
  return np.asarray(1 - np.minimum(scores, 1).mean(axis=(0, 1)))


def performance_profile(scores: Array, thresholds: Array) -> Array:
  """Returns the share of runs whose score is above each threshold.

  Args:
    scores: float64 [runs, games].
    thresholds: float64 [T].

  Returns:
    float64 [T].
  """
  above = scores[..., np.newaxis] > thresholds
  return np.asarray(above.mean(axis=(0, 1)))


def probability_of_improvement(scores: Array, others: Array) -> Array:
  """Returns the mean over games of P(a run scores above one of the others).

  Ties count half.

  Args:
    scores: float64 [runs, games, ...].
    others: float64 [other runs, games, ...].

  Returns:
    float64 [...].
  """
  difference = scores[:, np.newaxis] - others[np.newaxis]
  wins = (np.sign(difference) + 1) / 2
  return np.asarray(wins.mean(axis=(0, 1, 2)))


def area_lost(curves: Array) -> Array:
  """Returns what each run lost against keeping its best evaluation.

  Args:
    curves: float64 [runs, games, steps].

  Returns:
    float64 [runs, games]: from the best evaluation on, the best minus the
    score, summed and divided by the number of all steps.
  """
  best = curves.max(axis=-1, keepdims=True)
  peak = curves.argmax(axis=-1)[..., np.newaxis]
  after = np.arange(curves.shape[-1]) > peak
  return np.asarray(np.where(after, best - curves, 0).mean(axis=-1))


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
