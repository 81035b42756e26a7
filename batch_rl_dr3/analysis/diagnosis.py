"""Looks for co-adaptation in the features and Q-values of any value network.

Of arrays alone it takes the columns of metrics.csv, by the same definitions,
and besides them the spectra, two more ranks and how far Q is from the returns.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.analysis import feature_measures, td_theory

Array = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class LoggedOutputs:
  """What a value network says of N logged transitions."""

  features: Array  # [N, D], phi(s, a).
  next_features: Array  # [N, D], phi(s', a').
  discounts: Array  # [N], gamma^n (1 - terminal).
  q_values: Array | None  # [N], Q(s, a); None if they are not known.
  # [N], the discounted return that was logged from (s, a) on, NaN where the
  # episode was cut; None if it is not known.
  returns: Array | None = None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What `diagnose` finds."""

  outputs: LoggedOutputs
  measures: dict[str, float]  # By name, as in metrics.csv where it has them.
  singular_values: npt.NDArray[np.float64]  # [min(N, D)], descending.
  # [D], of G / N (see `td_theory`), by descending real part.
  eigenvalues: npt.NDArray[np.complex128]


def diagnose(outputs: LoggedOutputs) -> Diagnosis:
  """Measures features and Q-values.

  `threshold_rank` counts the singular values of Phi / sqrt(N) above 0.01 (Lyle
  et al. 2022, arXiv:2204.09560); `pca_rank`, the principal components that
  hold 99% of the variance (Yang et al. 2020, arXiv:1909.12255).

  Raises:
    ValueError: if the shapes do not fit together or a feature is not finite.
  """
  phi, phi_next, discounts = (
    np.asarray(array, np.float64)
    for array in (outputs.features, outputs.next_features, outputs.discounts)
  )
  if not (np.isfinite(phi).all() and np.isfinite(phi_next).all()):
    raise ValueError('a feature is not a finite number.')
  sides = td_theory.Features(phi, phi_next, discounts)
  matrix = td_theory.update_matrix(sides) / len(phi)
  eigenvalues = np.linalg.eigvals(matrix).astype(np.complex128)
  eigenvalues = eigenvalues[np.argsort(-eigenvalues.real)]
  singular_values = np.linalg.svd(phi, compute_uv=False)
  dots = np.sum(phi * phi_next, axis=1)
  squared_norms = np.sum(phi * phi, axis=1)
  discounted = float(np.mean(discounts * dots))
  measures = {
    'feature_dot_product': float(dots.mean()),
    'feature_cosine': float(cosines(phi, phi_next).mean()),
    'feature_norm': float(np.sqrt(squared_norms).mean()),
    'feature_norm_squared': float(squared_norms.mean()),
    'discounted_dot_product': discounted,
    'divergence_ratio': float(
      feature_measures.divergence_ratio(discounted, squared_norms.mean())
    ),
    'lowest_eigenvalue_of_G': float(eigenvalues[-1].real),
    'effective_rank': feature_measures.effective_rank(phi),
    'threshold_rank': int(np.sum(singular_values > 0.01 * np.sqrt(len(phi)))),
    'pca_rank': _pca_rank(phi),
    'dormant_fraction': feature_measures.dormant_fraction(phi),
    'dead_fraction': feature_measures.dormant_fraction(phi, tau=0.0),
  }
  if outputs.q_values is not None:
    measures['mean_q'] = float(np.mean(outputs.q_values))
    if outputs.returns is not None:
      measures |= _against_returns(outputs.q_values, outputs.returns)
  return Diagnosis(outputs, measures, singular_values, eigenvalues)


def measure_features(
  features: Array,
  next_features: Array,
  discounts: Array | float = 0.99,
  q_values: Array | None = None,
  returns: Array | None = None,
) -> dict[str, float]:
  """Returns the measures of `diagnose` for arrays as `LoggedOutputs` has them.

  `discounts` may be one number, and without Q-values there is no `mean_q`.
  """
  discounts = np.broadcast_to(discounts, len(features))
  return diagnose(
    LoggedOutputs(features, next_features, discounts, q_values, returns)
  ).measures


def cosines(phi: Array, phi_next: Array) -> Array:
  """Returns float64 [N], 0 where one of the two features is 0."""
  norms = np.linalg.norm(phi, axis=1) * np.linalg.norm(phi_next, axis=1)
  dots = np.sum(phi * phi_next, axis=1)
  return np.divide(dots, norms, out=np.zeros(len(phi)), where=norms > 0)


def compare_outputs(before: Array, after: Array) -> dict[str, float]:
  """Returns how far two networks' Q-values [N, A] of N states are apart.

  `q_change` is the mean of |Q - Q_before| over that of |Q_before|,
  `actions_changed` the share of states with another greedy action.
  """
  change, size = np.abs(after - before).mean(), np.abs(before).mean()
  is_other = after.argmax(axis=1) != before.argmax(axis=1)
  return {
    'q_change': float(change / max(size, 1e-12)),
    'actions_changed': float(is_other.mean()),
  }


def _pca_rank(phi: Array) -> int:
  variances = np.linalg.svd(phi - phi.mean(axis=0), compute_uv=False) ** 2
  if not variances.sum():
    return 0
  shares = np.cumsum(variances) / variances.sum()
  return int(np.searchsorted(shares, 0.99)) + 1


def _against_returns(q_values: Array, returns: Array) -> dict[str, float]:
  known = np.isfinite(returns)
  q, target = np.asarray(q_values)[known], np.asarray(returns)[known]
  if not len(q):
    return {}
  measures = {
    'mean_return': float(target.mean()),
    'q_bias': float(np.mean(q - target)),
    'q_error': float(np.mean(np.abs(q - target))),
  }
  if np.ptp(q) and np.ptp(target):
    measures['q_correlation'] = float(np.corrcoef(q, target)[0, 1])
  return measures
