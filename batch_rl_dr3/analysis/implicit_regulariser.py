"""Theorem 3.1: what noisy TD-learning regularises at a TD fixed point.

Kumar et al. 2022 (arXiv:2112.04716) study theta <- theta - eta g(theta) + eta
eps, eps ~ N(0, M), with the TD pseudo-gradient

  g = sum_i grad Q_i delta_i,  delta_i = Q_i - r_i - gamma Q'_i,

around a theta* where every TD error delta_i is 0, here in float64 with second
derivatives by hand. With n data and d > n parameters, the span V of the grad
Q_i is invariant under G = dg/dtheta = sum_i grad Q_i (grad Q_i - gamma grad
Q'_i)^T, and label noise M = sum_i grad Q_i grad Q_i^T lies in it. In V noise is
contracted to the covariance Sigma of the discrete Lyapunov equation. In the
null space of G nothing acts to first order; to second order the mean moves by

  drift = -eta P field,  field = sum_i H_i Sigma (grad Q_i - gamma grad Q'_i)

a step, H_i the Hessian of Q_i and P the projection onto the null space along
V. That is not the gradient of Eq. 4: docs/theory.md says why, and measures both
(`FixedPoint.regulariser` is Eq. 4 as printed).
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from batch_rl_dr3.analysis import linear_td

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Network:
  """Q(x) = v^T tanh(W x); its parameters are one vector, theta = (W, v)."""

  num_inputs: int  # m
  num_hidden: int  # h

  @property
  def num_parameters(self) -> int:
    """The length of theta."""
    return self.num_hidden * (self.num_inputs + 1)

  def _hidden(self, theta: Array, inputs: Array) -> tuple[Array, Array]:
    """Returns tanh(W x), [..., n, h], and v, [..., 1, h]."""
    split = self.num_hidden * self.num_inputs
    kernel = theta[..., :split].reshape(
      *theta.shape[:-1], self.num_hidden, self.num_inputs
    )
    hidden = np.tanh(np.tensordot(kernel, inputs, axes=(-1, 1)))
    return np.swapaxes(hidden, -1, -2), theta[..., np.newaxis, split:]

  def values(self, theta: Array, inputs: Array) -> Array:
    """Returns Q [..., n] of theta [..., d] and inputs [n, m]."""
    hidden, last = self._hidden(theta, inputs)
    return np.sum(hidden * last, axis=-1)

  def weighted_gradient(
    self, theta: Array, inputs: Array, weights: Array
  ) -> Array:
    """Returns sum_i weights_i dQ_i/dtheta: [..., d] of weights [..., n]."""
    hidden, last = self._hidden(theta, inputs)
    weights = weights[..., np.newaxis]
    slopes = weights * last * (1.0 - hidden**2)
    by_kernel = np.tensordot(np.swapaxes(slopes, -1, -2), inputs, axes=(-1, 0))
    flat = by_kernel.reshape(*theta.shape[:-1], -1)
    return np.concatenate([flat, np.sum(weights * hidden, axis=-2)], axis=-1)

  def gradients(self, theta: Array, inputs: Array) -> Array:
    """Returns dQ/dtheta [n, d] of one theta."""
    rows = np.eye(len(inputs))
    return np.stack(
      [self.weighted_gradient(theta, inputs, row) for row in rows]
    )

  def hessians(self, theta: Array, inputs: Array) -> Array:
    """Returns d^2 Q/dtheta^2 [n, d, d] of one theta."""
    hidden, last = self._hidden(theta, inputs)
    slopes = 1.0 - hidden**2
    curvatures = -2.0 * hidden * slopes * last
    num_inputs, split = self.num_inputs, self.num_hidden * self.num_inputs
    result = np.zeros((len(inputs), self.num_parameters, self.num_parameters))
    for unit in range(self.num_hidden):
      rows = slice(unit * num_inputs, (unit + 1) * num_inputs)
      curved = curvatures[:, unit, np.newaxis] * inputs
      result[:, rows, rows] = curved[..., np.newaxis] * inputs[:, np.newaxis, :]
      mixed = slopes[:, unit, np.newaxis] * inputs
      result[:, rows, split + unit] = mixed
      result[:, split + unit, rows] = mixed
    return result


class Problem(NamedTuple):
  """Data of which a given theta is a TD fixed point."""

  network: Network
  inputs: Array  # [n, m], the (s_i, a_i).
  next_inputs: Array  # [n, m], the (s'_i, a'_i).
  rewards: Array  # [n]
  gamma: float


def problem_at(
  network: Network,
  theta: Array,
  inputs: Array,
  next_inputs: Array,
  gamma: float,
) -> Problem:
  """Returns the problem with the rewards that make theta a fixed point."""
  rewards = network.values(theta, inputs) - gamma * network.values(
    theta, next_inputs
  )
  return Problem(network, inputs, next_inputs, rewards, gamma)


def pseudo_gradient(problem: Problem, theta: Array) -> Array:
  """Returns g [..., d] of theta [..., d]."""
  network = problem.network
  errors = (
    network.values(theta, problem.inputs)
    - problem.rewards
    - problem.gamma * network.values(theta, problem.next_inputs)
  )
  return network.weighted_gradient(theta, problem.inputs, errors)


class FixedPoint:
  """The theorem's quantities at a theta where every TD error is 0."""

  def __init__(
    self,
    problem: Problem,
    theta: Array,
    step_size: float,
    noise_scale: float = 1.0,
  ):
    """Computes them for eta and the standard deviation of the labels' noise.

    Raises:
      ValueError: if theta is no fixed point, or TD leaves it in the span of the
        gradients, against condition (1) of the theorem.
    """
    if np.abs(pseudo_gradient(problem, theta)).max() > 1e-9:
      raise ValueError('theta is no fixed point: a TD error is not 0.')
    network = problem.network
    self.problem = problem
    self.theta = theta
    self.step_size = step_size
    self.noise_scale = noise_scale
    self.gradients = network.gradients(theta, problem.inputs)  # [n, d]
    self.next_gradients = network.gradients(theta, problem.next_inputs)
    self._differences = self.gradients - problem.gamma * self.next_gradients
    self._hessians = network.hessians(theta, problem.inputs)
    self.pseudo_hessian = self.gradients.T @ self._differences  # G [d, d]
    self.noise = noise_scale**2 * self.gradients.T @ self.gradients  # M [d, d]
    # Sigma [d, d] lies in V, and is solved for there, in n dimensions.
    basis = scipy.linalg.orth(self.gradients.T)
    inner = linear_td.stationary_covariance(
      basis.T @ self.pseudo_hessian @ basis,
      basis.T @ self.noise @ basis,
      step_size,
    )
    self.covariance = basis @ inner @ basis.T

  def null_projection(self) -> Array:
    """Returns P [d, d], onto G's null space along V.

    G = J^T D with the gradients J and their differences D, both [n, d]: P = I
    - J^T (D J^T)^-1 D.
    """
    along = self.gradients.T
    inverse = np.linalg.inv(self._differences @ along)
    return np.eye(len(self.theta)) - along @ inverse @ self._differences

  def slowest_rate(self) -> float:
    """Returns eta times the lowest real part of G's nonzero eigenvalues."""
    inner = self._differences @ self.gradients.T
    return self.step_size * float(np.linalg.eigvals(inner).real.min())

  def first_term(self) -> float:
    """Returns sum_i grad Q_i^T Sigma grad Q_i."""
    return float(np.sum(self.gradients @ self.covariance * self.gradients))

  def regulariser(self) -> float:
    """Returns R_TD(theta*) of Eq. 4."""
    mixed = self.gradients @ self.covariance
    return self.step_size * float(np.sum(mixed * self._differences))

  def regulariser_gradient(self) -> Array:
    """Returns Eq. 4's gradient [d]; Sigma is constant in it."""
    vectors = (
      2.0 * self.gradients - self.problem.gamma * self.next_gradients
    ) @ self.covariance
    return self.step_size * self._contract(vectors)

  def _contract(self, vectors: Array) -> Array:
    """Returns sum_i H_i vectors_i."""
    return np.einsum('nab,nb->a', self._hessians, vectors)

  def first_field(self) -> Array:
    """Returns sum_i H_i Sigma grad Q_i, all there is in supervised learning."""
    return self._contract(self.gradients @ self.covariance)

  def field(self) -> Array:
    """Returns sum_i H_i Sigma (grad Q_i - gamma grad Q'_i), [d]."""
    return self._contract(self._differences @ self.covariance)

  def dr3_gradient(
    self, stop_gradient: bool, covariance: Array | None = None
  ) -> Array:
    """Returns the gradient of DR3's Delta = sum_i grad Q_i^T Sigma grad Q'_i.

    With the gradient stopped (grad Q'_i is constant), gamma Delta takes the
    second term out of the field exactly; without, H'_i Sigma grad Q_i is added
    to it. `covariance` takes the place of the point's own Sigma.
    """
    sigma = self.covariance if covariance is None else covariance
    result = self._contract(self.next_gradients @ sigma)
    if not stop_gradient:
      network, inputs = self.problem.network, self.problem.next_inputs
      result += np.einsum(
        'nab,nb->a',
        network.hessians(self.theta, inputs),
        self.gradients @ sigma,
      )
    return result


def simulate_drift(
  point: FixedPoint,
  num_chains: int,
  num_steps: int,
  burn_in: int,
  seed: int,
  extra_gradient: Array | None = None,
) -> Array:
  """Returns the mean movement [d] along G's null space per noisy TD step.

  An even number of chains start at the fixed point and take Eq. 3's step, in
  pairs with opposite noise, so that what is odd in it cancels. The covariance
  settles in `burn_in` steps; `extra_gradient` [d] is added to g.
  """
  rng = np.random.default_rng(seed)
  thetas = np.repeat(point.theta[np.newaxis], num_chains, axis=0)
  extra: Array | float = 0.0 if extra_gradient is None else extra_gradient
  projection = point.null_projection()
  settled = thetas
  for step in range(burn_in + num_steps):
    if step == burn_in:
      settled = thetas
    half = rng.normal(size=(num_chains // 2, len(point.gradients)))
    noise = point.noise_scale * np.concatenate([half, -half]) @ point.gradients
    gradient = pseudo_gradient(point.problem, thetas) + extra
    thetas = thetas - point.step_size * (gradient - noise)
  return projection @ (thetas - settled).mean(axis=0) / num_steps
