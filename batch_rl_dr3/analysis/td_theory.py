"""The paper's two theorems on TD-learning (arXiv:2112.04716); docs/theory.md.

Proposition 3.2: linear TD on given features, w <- w + eta (b - G w) with b =
Phi^T r, phi_i = phi(s_i, a_i), phi'_i = phi(s'_i, a'_i), gamma_i = gamma (1 -
terminal), as nothing is backed up where an episode ends, and

  G = sum_i phi_i (phi_i - gamma_i phi'_i)^T,

does not converge where trace(G) <= 0, that is

  sum_i phi_i^T phi'_i >= (1 / gamma) sum_i phi_i^T phi_i.

Theorem 3.1: of theta <- theta - eta g(theta) + eta eps, eps ~ N(0, M), with

  g = sum_i grad Q_i delta_i,  delta_i = Q_i - r_i - gamma Q'_i,

around a theta* where every TD error delta_i is 0. With n data and d > n
parameters, the span V of the grad Q_i is invariant under G = dg/dtheta = sum_i
grad Q_i (grad Q_i - gamma grad Q'_i)^T, and label noise M = sum_i grad Q_i grad
Q_i^T lies in it. In V noise is contracted to the covariance Sigma of the
discrete Lyapunov equation. In the null space of G nothing acts to first order;
to second order the mean moves by

  drift = -eta P field,  field = sum_i H_i Sigma (grad Q_i - gamma grad Q'_i)

a step, H_i the Hessian of Q_i and P the projection onto the null space along
V. That is not the gradient of Eq. 4, which `FixedPoint.regulariser` is.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from batch_rl_dr3.analysis import feature_measures

Array = npt.NDArray[np.floating[Any]]


class Features(NamedTuple):
  """The two sides of every Bellman backup; other shapes are a ValueError."""

  features: Array  # [N, D], phi(s, a).
  next_features: Array  # [N, D], phi(s', a').
  discounts: Array  # [N], gamma (1 - terminal).


def divergence_ratio(sides: Features) -> float:
  """Returns Proposition 3.2's ratio, 1 - trace(G) / sum |phi|^2."""
  phi, backed_up = _check(sides)
  dots, norms = np.sum(phi * backed_up), np.sum(phi * phi)
  return float(feature_measures.divergence_ratio(dots, norms))


def update_matrix(sides: Features) -> Array:
  """Returns G: float64 [D, D]."""
  phi, backed_up = _check(sides)
  return phi.T @ (phi - backed_up)


def lowest_real_part(sides: Features) -> float:
  """Returns the lowest real part of G's eigenvalues: below 0, w diverges."""
  return float(np.linalg.eigvals(update_matrix(sides)).real.min())


def iterate(
  sides: Features,
  rewards: Array,
  start: Array,
  step_size: float,
  num_steps: int,
) -> Array:
  """Returns the weights of linear TD, [num_steps + 1, D] from `start` on."""
  matrix = update_matrix(sides)
  target = np.asarray(sides.features, np.float64).T @ rewards
  weights = [np.asarray(start, np.float64)]
  for _ in range(num_steps):
    weights.append(weights[-1] + step_size * (target - matrix @ weights[-1]))
  return np.stack(weights)


def _check(
  sides: Features,
) -> tuple[Array, Array]:
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
  pseudo_hessian: Array, noise: Array, step_size: float
) -> Array:
  """Returns Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M, all [D, D].

  ValueError if the shapes differ, or I - eta G is no contraction, so that noise
  adds up without end.
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


@dataclasses.dataclass(frozen=True)
class Network:
  """Q(x) = v^T tanh(W x), of one vector of parameters, theta = (W, v)."""

  num_inputs: int  # m
  num_hidden: int  # h

  @property
  def num_parameters(self) -> int:  # noqa: D102
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
    return np.stack([self.weighted_gradient(theta, inputs, r) for r in rows])

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
  values, next_values = (
    network.values(theta, i) for i in (inputs, next_inputs)
  )
  rewards = values - gamma * next_values
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
    """Computes them; a ValueError if theta is no fixed point, or TD leaves it.

    That is, in the span of the gradients, against the theorem's condition (1).
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
    inner = stationary_covariance(
      basis.T @ self.pseudo_hessian @ basis,
      basis.T @ self.noise @ basis,
      step_size,
    )
    self.covariance = basis @ inner @ basis.T

  def null_projection(self) -> Array:
    """Returns P [d, d], onto G's null space along V."""
    # G = J^T D with the gradients J and their differences D, both [n, d]: P =
    # I - J^T (D J^T)^-1 D.
    along = self.gradients.T
    inverse = np.linalg.inv(self._differences @ along)
    return np.eye(len(self.theta)) - along @ inverse @ self._differences

  def slowest_rate(self) -> float:
    """Returns eta times the lowest real part of G's nonzero eigenvalues."""
    inner = self._differences @ self.gradients.T
    return self.step_size * float(np.linalg.eigvals(inner).real.min())

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
