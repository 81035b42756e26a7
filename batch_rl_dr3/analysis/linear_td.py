"""Linear TD-learning on given features: when it cannot converge.

Linear TD repeats w <- w + eta (b - G w) with b = Phi^T r and

  G = sum_i phi_i (phi_i - gamma phi'_i)^T,

phi_i = phi(s_i, a_i) and phi'_i = phi(s'_i, a'_i). Proposition 3.2 of Kumar et
al. 2022 (arXiv:2112.04716) says that it does not converge if

  sum_i phi_i^T phi'_i >= (1 / gamma) sum_i phi_i^T phi_i.

What stands behind it is that the condition is trace(G) <= 0, the sum of G's
eigenvalues:

* With >, one of them has a negative real part. I - eta G then has an
  eigenvalue outside the unit circle for every step size eta > 0, and w
  diverges from all starting points but those of one hyperplane.
* With =, all real parts may be 0. An imaginary pair diverges as above. If all
  eigenvalues are 0, w grows no faster than a polynomial; in the extreme case
  of G = 0 it is w_0 + k eta b, which stands still if b = 0. So at the
  boundary the proposition needs b or w_0 to be in general position.
* The condition is sufficient and not necessary: an eigenvalue can be negative
  while the trace is positive.

At a transition that ends an episode nothing is backed up and phi'_i counts as
0; so `discounts`, gamma (1 - terminal_i), take the place of gamma.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


class Features(NamedTuple):
  """The two sides of every Bellman backup.

  Attributes:
    features: float [N, D], phi(s, a).
    next_features: float [N, D], phi(s', a').
    discounts: float [N], gamma (1 - terminal).
  """

  features: FloatArray
  next_features: FloatArray
  discounts: FloatArray


def divergence_ratio(sides: Features) -> float:
  """Returns sum_i gamma_i phi_i^T phi'_i / sum_i phi_i^T phi_i.

  It is 1 - trace(G) / sum |phi|^2: from 1 on, Proposition 3.2's condition
  holds. Features that are all 0 satisfy it with equality: 1.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  phi, backed_up = _check(sides)
  norms = float(np.sum(phi * phi))
  return float(np.sum(phi * backed_up)) / norms if norms else 1.0


def update_matrix(sides: Features) -> npt.NDArray[np.float64]:
  """Returns G: float64 [D, D].

  Raises:
    ValueError: if the shapes do not fit together.
  """
  phi, backed_up = _check(sides)
  return phi.T @ (phi - backed_up)


def lowest_real_part(sides: Features) -> float:
  """Returns the lowest real part of G's eigenvalues; diverges if negative.

  If it is positive, linear TD converges for step sizes that are small enough.
  """
  return float(np.linalg.eigvals(update_matrix(sides)).real.min())


def iterate(
  sides: Features,
  rewards: FloatArray,
  start: FloatArray,
  step_size: float,
  num_steps: int,
) -> npt.NDArray[np.float64]:
  """Returns the weights of linear TD, step by step.

  Args:
    sides: the features of the data.
    rewards: float [N].
    start: float [D], w_0.
    step_size: eta.
    num_steps: K.

  Returns:
    float64 [K + 1, D], from w_0 on.
  """
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
