"""Linear TD-learning on given features: when it cannot converge.

Linear TD repeats w <- w + eta (b - G w) with b = Phi^T r and

  G = sum_i phi_i (phi_i - gamma_i phi'_i)^T,

phi_i = phi(s_i, a_i), phi'_i = phi(s'_i, a'_i), gamma_i = gamma (1 - terminal):
where an episode ends nothing is backed up. Proposition 3.2 of Kumar et al. 2022
(arXiv:2112.04716) says that it does not converge if

  sum_i phi_i^T phi'_i >= (1 / gamma) sum_i phi_i^T phi_i,

which is trace(G) <= 0. With >, an eigenvalue has a negative real part, so that
w diverges for every eta > 0. With =, the proposition needs b or w_0 in general
position. The condition is not necessary: an eigenvalue can be negative while
the trace is positive.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from batch_rl_dr3.analysis import feature_measures

FloatArray = npt.NDArray[np.floating[Any]]


class Features(NamedTuple):
  """The two sides of every Bellman backup; other shapes are a ValueError."""

  features: FloatArray  # [N, D], phi(s, a).
  next_features: FloatArray  # [N, D], phi(s', a').
  discounts: FloatArray  # [N], gamma (1 - terminal).


def divergence_ratio(sides: Features) -> float:
  """Returns Proposition 3.2's ratio, 1 - trace(G) / sum |phi|^2."""
  phi, backed_up = _check(sides)
  dots, norms = np.sum(phi * backed_up), np.sum(phi * phi)
  return float(feature_measures.divergence_ratio(dots, norms))


def update_matrix(sides: Features) -> npt.NDArray[np.float64]:
  """Returns G: float64 [D, D]."""
  phi, backed_up = _check(sides)
  return phi.T @ (phi - backed_up)


def lowest_real_part(sides: Features) -> float:
  """Returns the lowest real part of G's eigenvalues; diverges if negative."""
  return float(np.linalg.eigvals(update_matrix(sides)).real.min())


def iterate(
  sides: Features,
  rewards: FloatArray,
  start: FloatArray,
  step_size: float,
  num_steps: int,
) -> npt.NDArray[np.float64]:
  """Returns the weights of linear TD, [num_steps + 1, D] from `start` on."""
  matrix = update_matrix(sides)
  target = np.asarray(sides.features, np.float64).T @ rewards
  weights = [np.asarray(start, np.float64)]
  for _ in range(num_steps):
    weights.append(weights[-1] + step_size * (target - matrix @ weights[-1]))
  return np.stack(weights)


def _check(
  sides: Features,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
  """Returns phi_i and gamma_i phi'_i, both float64 [N, D]."""
  phi, successors, discounts = (np.asarray(a, np.float64) for a in sides)
  if phi.ndim != 2 or successors.shape != phi.shape:
    raise ValueError(
      'the features of both sides must have one shape [N, D], got '
      f'{phi.shape} and {successors.shape}.'
    )
  if discounts.shape != phi.shape[:1]:
    raise ValueError(
      f'discounts must have the shape {phi.shape[:1]}, got {discounts.shape}.'
    )
  return phi, discounts[:, np.newaxis] * successors


def stationary_covariance(
  pseudo_hessian: FloatArray, noise: FloatArray, step_size: float
) -> npt.NDArray[np.float64]:
  """Returns Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M, all [D, D].

  The discrete Lyapunov equation of Theorem 3.1 (arXiv:2112.04716).

  Raises:
    ValueError: if the shapes differ, or I - eta G is no contraction, so that
      noise adds up without end.
  """
  hessian, noise = (np.asarray(a, np.float64) for a in (pseudo_hessian, noise))
  if hessian.ndim != 2 or not hessian.shape == hessian.T.shape == noise.shape:
    raise ValueError(
      'G and M must be square matrices of one shape, got '
      f'{hessian.shape} and {noise.shape}.'
    )
  transition = np.eye(len(hessian)) - step_size * hessian
  radius = float(np.abs(np.linalg.eigvals(transition)).max())
  if radius >= 1.0:
    raise ValueError(
      f'I - eta G has the spectral radius {radius:.6g}; there is a stationary '
      'covariance only below 1.'
    )
  covariance = scipy.linalg.solve_discrete_lyapunov(
    transition, step_size**2 * noise
  )
  return (covariance + covariance.T) / 2
