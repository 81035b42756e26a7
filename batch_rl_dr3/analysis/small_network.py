"""A Q-function small enough to have its second derivatives by hand."""

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Network:
  """Q(x) = v^T tanh(W x), its parameters in one vector theta = (W, v).

  Attributes:
    num_inputs: m.
    num_hidden: h.
  """

  num_inputs: int
  num_hidden: int

  @property
  def num_parameters(self) -> int:
    """Returns d = h m + h."""
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
    """Returns Q: float64 [..., n] of theta [..., d] and inputs [n, m]."""
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
    """Returns dQ/dtheta: float64 [n, d], of one theta."""
    return np.stack(
      [
        self.weighted_gradient(theta, inputs, row)
        for row in np.eye(len(inputs))
      ]
    )

  def hessians(self, theta: Array, inputs: Array) -> Array:
    """Returns d^2 Q/dtheta^2: float64 [n, d, d], of one theta."""
    hidden, last = self._hidden(theta, inputs)
    slopes = 1.0 - hidden**2
    curvatures = -2.0 * hidden * slopes * last
    num_inputs, split = self.num_inputs, self.num_hidden * self.num_inputs
    result = np.zeros((len(inputs), self.num_parameters, self.num_parameters))
    for unit in range(self.num_hidden):
      rows = slice(unit * num_inputs, (unit + 1) * num_inputs)
      result[:, rows, rows] = (
        curvatures[:, unit, np.newaxis, np.newaxis]
        * inputs[:, :, np.newaxis]
        * inputs[:, np.newaxis, :]
      )
      mixed = slopes[:, unit, np.newaxis] * inputs
      result[:, rows, split + unit] = mixed
      result[:, split + unit, rows] = mixed
    return result


class Problem(NamedTuple):
  """Data of which a given theta is a TD fixed point.

  Attributes:
    network: Q.
    inputs: float64 [n, m], the (s_i, a_i).
    next_inputs: float64 [n, m], the (s'_i, a'_i).
    rewards: float64 [n].
    gamma: the discount.
  """

  network: Network
  inputs: Array
  next_inputs: Array
  rewards: Array
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
  """Returns g: float64 [..., d] of theta [..., d]."""
  network = problem.network
  errors = (
    network.values(theta, problem.inputs)
    - problem.rewards
    - problem.gamma * network.values(theta, problem.next_inputs)
  )
  return network.weighted_gradient(theta, problem.inputs, errors)
