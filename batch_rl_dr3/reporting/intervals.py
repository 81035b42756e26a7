"""How sure a mean over seeds is."""

import numpy as np
from numpy import typing as npt

CONFIDENCE = 0.95
_NUM_RESAMPLES = 10_000


def mean_interval(
  values: npt.NDArray[np.float64], seed: int = 0
) -> tuple[float, float] | None:
  """Returns the 95% percentile bootstrap interval of a mean over seeds.

  Seeds are resampled, not episodes: episodes of one seed share its network,
  so they say nothing about another training run.

  Args:
    values: float64 [S], one value per seed.
    seed: of the resampling; the same values give the same interval.

  Returns:
    The lower and the upper end; None for fewer than two seeds, or when a
    value is not finite.
  """
  if len(values) < 2 or not np.isfinite(values).all():
    return None
  if np.ptp(values) == 0:
    return float(values[0]), float(values[0])
  # Imported here because it takes longer than a report of single seeds.
  from scipy import stats

  result = stats.bootstrap(
    (values,),
    np.mean,
    confidence_level=CONFIDENCE,
    n_resamples=_NUM_RESAMPLES,
    method='percentile',
    random_state=np.random.default_rng(seed),
  )
  interval = result.confidence_interval
  return float(interval.low), float(interval.high)
