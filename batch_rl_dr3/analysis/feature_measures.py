"""Measures of features: effective rank, dormant share, Proposition 3.2's ratio.

Training, reports and checkpoint selection all use these definitions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def effective_rank(
  features: npt.NDArray[np.floating[Any]], delta: float = 0.01
) -> int:
  """Returns srank_delta(Phi) of features [N, D], a row per state-action pair.

  The smallest k for which the k largest singular values sum to at least
  (1 - delta) of all; 0 if every feature is zero. Kumar et al. 2021
  (arXiv:2010.14498), Eq. 1.
  """
  features = np.asarray(features)
  if features.ndim != 2 or not np.isfinite(features).all():
    raise ValueError(
      'effective_rank needs a finite [N, D] matrix, got shape '
      f'{features.shape}.'
    )
  if not 0.0 <= delta < 1.0:
    raise ValueError(f'delta must be in [0, 1), got {delta}.')
  singular_values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
  total = singular_values.sum()
  if total == 0.0:
    return 0
  shares = np.cumsum(singular_values) / total
  return min(
    int(np.searchsorted(shares, 1.0 - delta, side='left')) + 1, len(shares)
  )


def dormant_fraction(
  features: npt.NDArray[np.floating[Any]], tau: float = 0.025
) -> float:
  """Returns the share of features [N, D], a row per state, that are dormant.

  Their mean |phi_i| is at most tau times its mean over all features; at tau 0
  they are dead. Sokar et al. 2023 (arXiv:2302.12902), Definition 3.1.
  """
  activity = np.abs(np.asarray(features, np.float64)).mean(axis=0)
  return float(np.mean(activity <= tau * activity.mean()))


def divergence_ratio(
  discounted_dot_product: npt.ArrayLike, feature_norm_squared: npt.ArrayLike
) -> npt.NDArray[np.float64]:
  """Returns Proposition 3.2's ratio: from 1 on, linear TD does not converge.

  sum_i gamma_i phi_i^T phi'_i / sum_i phi_i^T phi_i, see `td_theory`; 1 for
  features that are all 0. Both are sums or means over the same transitions.
  """
  dots, norms = np.broadcast_arrays(
    np.asarray(discounted_dot_product, np.float64),
    np.asarray(feature_norm_squared, np.float64),
  )
  return np.divide(dots, norms, out=np.ones(dots.shape), where=norms != 0)
