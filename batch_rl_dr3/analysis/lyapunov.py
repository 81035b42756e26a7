"""The covariance that noisy TD-learning settles into around a fixed point."""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

FloatArray = npt.NDArray[np.floating[Any]]


def stationary_covariance(
  pseudo_hessian: FloatArray, noise: FloatArray, step_size: float
) -> npt.NDArray[np.float64]:
  """Returns Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M.

  The discrete Lyapunov equation of Theorem 3.1 of Kumar et al. 2022
  (arXiv:2112.04716), by SciPy's solver.

  Args:
    pseudo_hessian: float [D, D], G.
    noise: float [D, D], M, symmetric and positive semi-definite.
    step_size: eta.

  Returns:
    float64 [D, D], symmetric.

  Raises:
    ValueError: if the shapes differ, or I - eta G is no contraction, so that
      noise adds up without end.
  """
  hessian, noise = (np.asarray(a, np.float64) for a in (pseudo_hessian, noise))
  if hessian.ndim != 2 or hessian.shape != hessian.T.shape:
    raise ValueError(f'G must be a square matrix, got {hessian.shape}.')
  if noise.shape != hessian.shape:
    raise ValueError(
      f'G and M must have one shape, got {hessian.shape} and {noise.shape}.'
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
