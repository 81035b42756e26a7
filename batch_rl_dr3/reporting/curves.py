"""One quantity of one method over gradient steps, seeds side by side."""

from collections.abc import Collection as Container
import dataclasses

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.reporting import scores

Replicate = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """A quantity at the gradient steps at which every seed has it.

  A mean over seeds that come and go would jump for that reason alone, so a
  step that one seed lacks is left out.

  Attributes:
    steps: int64 [T], gradient steps, rising.
    values: float64 [S, T], one row per seed; NaN where not finite.
    replicates: the logged run and the seed of each row.
  """

  steps: npt.NDArray[np.int64]
  values: npt.NDArray[np.float64]
  replicates: tuple[Replicate, ...]

  @property
  def num_seeds(self) -> int:
    """How many runs the curve is made of."""
    return len(self.replicates)

  @property
  def mean(self) -> npt.NDArray[np.float64]:
    """Float64 [T], over seeds; NaN where any seed is not finite."""
    return np.asarray(self.values.mean(axis=0))

  @property
  def last(self) -> float:
    """The mean at the last step, NaN if there is none."""
    return float(self.mean[-1]) if self.steps.size else float('nan')

  @property
  def last_step(self) -> int | None:
    """The last step, None if there is none."""
    return int(self.steps[-1]) if self.steps.size else None


def curve(
  collection: scores.Collection,
  setting: scores.Setting,
  method: str,
  quantity: str,
  replicates: Container[Replicate] | None = None,
) -> Curve:
  """Returns a quantity of a method over gradient steps.

  Args:
    collection: the runs.
    setting: which game and data set.
    method: which method.
    quantity: one of `scores.METRICS`, or `scores.RETURN`.
    replicates: only these logged runs and seeds; None for all.

  Returns:
    The curve, without the seeds that have no value at all.
  """
  series: dict[Replicate, pd.Series] = {}
  for run in collection.select(setting, method):
    values = run.series(quantity)
    if len(values) and (replicates is None or run.replicate in replicates):
      series[run.replicate] = values
  if not series:
    return Curve(np.zeros(0, np.int64), np.zeros((0, 0)), ())
  steps = np.asarray(
    sorted(set.intersection(*(set(s.index) for s in series.values()))),
    np.int64,
  )
  values = np.stack([s.reindex(steps).to_numpy(float) for s in series.values()])
  values = np.where(np.isfinite(values), values, np.nan)
  return Curve(steps, values, tuple(series))


def at_last_common_step(a: Curve, b: Curve) -> tuple[int, float, float] | None:
  """Returns the last step that both curves have, and their means there."""
  common = np.intersect1d(a.steps, b.steps)
  if not common.size:
    return None
  step = common[-1]
  return (
    int(step),
    float(a.mean[a.steps == step][0]),
    float(b.mean[b.steps == step][0]),
  )
