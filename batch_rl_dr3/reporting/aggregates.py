"""Statistics over runs and games: arrays float64 [runs, games, ...] to numbers.

The last axes, such as steps, stay: `iqm` of [runs, games, steps] is [steps].
On a matrix each equals the function of rliable's `metrics` of that name, which
knows one matrix and no further axes (Agarwal et al. 2021, arXiv:2108.13264).
"""

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
