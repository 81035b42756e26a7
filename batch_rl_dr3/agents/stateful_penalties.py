"""Penalties that keep a state from step to step.

LabelNoiseFeatureDotPenalty is DR3's penalty with the covariance that label
noise induces (Figure 6). Theorem 3.1 of Kumar et al. 2022 (arXiv:2112.04716)
weights the dot products by Sigma, the fixed point of

  Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M.

Restricted to the last layer, as DR3 itself, G is the mean of
phi (phi - gamma phi')^T and M that of phi phi^T. The paper does not say how it
computes Sigma. Choices made here:

* G and M are running means over batches. Until Sigma is solved for the first
  time it is I: the penalty is FeatureDotPenalty.
* G is damped by a multiple of I, without which directions without features
  have no equation. Its step size is relative to trace M, which bounds M's
  eigenvalues, and so fits features of any size.
* Sigma is scaled to trace D, that of I, so that c0 means the same.
* Where I - eta G is no contraction (linear TD on the features diverges, see
  analysis/td_theory.py) there is no Sigma: the last one stays, and the column
  `label_noise_failures` counts it.

AdaptiveFeatureDotPenalty, beyond the paper, is DR3's with a c0 that fits the
size of a game's features: by dual ascent,

  log c0 <- clip(log c0 + rate * (cosine - target)),

the one at which the mean cosine of consecutive features comes down to a target.
With `normalised` the cosine itself is penalised, a Lagrangian's constraint.
"""

import math
from typing import Annotated, Any, NamedTuple

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import losses
from batch_rl_dr3.agents.penalties import STATELESS, Penalty, State, UpdateBatch
from batch_rl_dr3.config import ranges


class LyapunovSolution(NamedTuple):
  """What `lyapunov_fixed_point` came to."""

  covariance: tf.Tensor  # Sigma [D, D].
  has_converged: tf.Tensor  # bool []


def lyapunov_fixed_point(
  pseudo_hessian: tf.Tensor,
  noise: tf.Tensor,
  step_size: tf.Tensor,
  num_doublings: int = 24,
  tolerance: float = 1e-6,
) -> LyapunovSolution:
  """Returns Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M.

  G and M are float [D, D]; ValueError if they are not. The equation is iterated
  from Sigma = 0. With A = I - eta G, the iterate after 2k rounds is Sigma_2k =
  Sigma_k + A^k Sigma_k (A^k)^T: 24 doublings are 16 million rounds. It ends
  where the norm of A^k, over that of I, is below the tolerance, of whose square
  Sigma's error is. If A^k does not vanish, A is no contraction.
  """
  pseudo_hessian.shape.assert_has_rank(2)
  dimension = pseudo_hessian.shape.as_list()[0]
  pseudo_hessian.shape.assert_is_compatible_with([dimension, dimension])
  noise.shape.assert_is_compatible_with(pseudo_hessian.shape)
  dtype = pseudo_hessian.dtype
  identity = tf.eye(dimension, dtype=dtype)
  power = identity - step_size * pseudo_hessian
  size = tf.norm(identity)

  def goes_on(_: tf.Tensor, power: tf.Tensor) -> tf.Tensor:
    remaining = tf.norm(power)
    # Beyond size / tolerance there is nothing but overflow.
    return (remaining > tolerance * size) & (remaining < size / tolerance)

  def double(covariance: tf.Tensor, power: tf.Tensor) -> tuple[Any, Any]:
    spread = tf.matmul(tf.matmul(power, covariance), power, transpose_b=True)
    return covariance + spread, tf.matmul(power, power)

  covariance, power = tf.while_loop(
    goes_on,
    double,
    (tf.square(step_size) * noise, power),
    maximum_iterations=num_doublings,
  )
  covariance = (covariance + tf.transpose(covariance)) / 2.0
  has_converged = (tf.norm(power) <= tolerance * size) & tf.reduce_all(
    tf.math.is_finite(covariance)
  )
  return LyapunovSolution(covariance, has_converged)


@gin.configurable
@ranges.checked
class LabelNoiseFeatureDotPenalty(Penalty):
  """The mean over the batch of phi(s,a)^T Sigma phi(s',a')."""

  name = 'label_noise_feature_dot_product'

  def __init__(
    self,
    coefficient: float = 0.03,
    stop_gradient: bool = False,
    refresh_period: ranges.Count = 2000,
    decay: float = 0.999,
    relative_step_size: ranges.Positive = 0.1,
    relative_damping: ranges.NonNegative = 0.1,
  ):
    """Creates the penalty.

    Sigma is solved for every `refresh_period` gradient steps; G and M `decay`
    by the step. The relative step size is eta times trace M (all small ones
    give the same Sigma), the relative damping what is added to G's diagonal
    over M's mean eigenvalue.
    """
    super().__init__(coefficient)
    if not 0.0 <= decay < 1.0:
      raise ValueError(f'decay must be in [0, 1), got {decay}.')
    self.moves_next_features = not stop_gradient
    self._stop_gradient = stop_gradient
    self._refresh_period = refresh_period
    self._decay = decay
    self._relative_step_size = relative_step_size
    self._relative_damping = relative_damping

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    weighted = tf.matmul(batch.features, state['covariance'])
    dot_products = losses.feature_dot_product(
      weighted, batch.next_features, self._stop_gradient
    )
    return tf.reduce_mean(dot_products)

  def initial_state(self, num_features: int) -> dict[str, npt.NDArray[Any]]:
    zeros = np.zeros((num_features, num_features), np.float32)
    return {
      'covariance': np.eye(num_features, dtype=np.float32),
      'pseudo_hessian': zeros,
      'noise': zeros,
      'failures': np.zeros((), np.float32),
    }

  def next_state(self, batch: UpdateBatch, state: State) -> State:
    features = tf.stop_gradient(batch.features)
    next_features = tf.stop_gradient(batch.next_features)
    backed_up = batch.discounts[:, tf.newaxis] * next_features
    batch_size = tf.cast(tf.shape(features)[0], tf.float32)

    def running_mean(mean: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
      new = tf.matmul(features, right, transpose_a=True) / batch_size
      return mean + (1.0 - self._decay) * (new - mean)

    means = {
      'pseudo_hessian': running_mean(
        state['pseudo_hessian'], features - backed_up
      ),
      'noise': running_mean(state['noise'], features),
    }
    solved = tf.cond(
      tf.equal((batch.step + 1) % self._refresh_period, 0),
      lambda: self._solve(**means, state=state),
      lambda: {n: tf.identity(state[n]) for n in ('covariance', 'failures')},
    )
    return means | solved

  def _solve(
    self, pseudo_hessian: tf.Tensor, noise: tf.Tensor, state: State
  ) -> dict[str, tf.Tensor]:
    """Returns a new Sigma, and how often there was none."""
    dimension = noise.shape.as_list()[0]
    hessian, noise = (tf.cast(a, tf.float64) for a in (pseudo_hessian, noise))
    trace = tf.linalg.trace(noise)
    damping = self._relative_damping * trace / dimension
    solution = lyapunov_fixed_point(
      hessian + damping * tf.eye(dimension, dtype=tf.float64),
      noise,
      self._relative_step_size / trace,
    )
    solved = solution.covariance
    solved *= dimension / tf.linalg.trace(solved)
    failed = 1.0 - tf.cast(solution.has_converged, tf.float32)
    return {
      'covariance': tf.where(
        solution.has_converged, tf.cast(solved, tf.float32), state['covariance']
      ),
      'failures': state['failures'] + failed,
    }

  def measures(self, batch: UpdateBatch, state: State) -> dict[str, tf.Tensor]:
    dimension = state['covariance'].shape.as_list()[0]
    difference = tf.norm(state['covariance'] - tf.eye(dimension))
    return {
      # 0 for Sigma = I.
      'label_noise_anisotropy': difference / float(np.sqrt(dimension)),
      'label_noise_failures': state['failures'],
    }


@gin.configurable
@ranges.checked
class AdaptiveFeatureDotPenalty(Penalty):
  """DR3's penalty, its coefficient set by dual ascent."""

  name = 'adaptive_feature_dot_product'
  moves_next_features = True

  def __init__(
    self,
    coefficient: float = 0.01,
    target: Annotated[float, ranges.Range(-1, 1)] = 0.5,  # A cosine.
    rate: ranges.Positive = 0.001,
    normalised: bool = False,
    bounds: tuple[float, float] = (1e-6, 10.0),
  ):
    super().__init__(coefficient)
    low, high = bounds
    if not 0.0 < low <= coefficient <= high:
      raise ValueError(
        f'the coefficient must be in the bounds {bounds}, which must be '
        f'positive; got {coefficient}.'
      )
    self._target = target
    self._rate = rate
    self._normalised = normalised
    self._log_bounds = (math.log(low), math.log(high))

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    if self._normalised:
      return _mean_cosine(batch)
    sides = batch.features, batch.next_features
    return tf.reduce_mean(losses.feature_dot_product(*sides))

  def weight(self, state: State) -> tf.Tensor:
    return tf.exp(state['log_coefficient'])

  def initial_state(self, num_features: int) -> dict[str, npt.NDArray[Any]]:
    return {'log_coefficient': np.array(math.log(self.coefficient), np.float32)}

  def next_state(self, batch: UpdateBatch, state: State) -> State:
    excess = tf.stop_gradient(_mean_cosine(batch)) - self._target
    return {
      'log_coefficient': tf.clip_by_value(
        state['log_coefficient'] + self._rate * excess, *self._log_bounds
      )
    }

  def measures(self, batch: UpdateBatch, state: State) -> dict[str, tf.Tensor]:
    return {
      'feature_cosine': _mean_cosine(batch),
      'adaptive_coefficient': self.weight(state),
    }


def _mean_cosine(batch: UpdateBatch) -> tf.Tensor:
  cosines = losses.feature_cosine(batch.features, batch.next_features)
  return tf.reduce_mean(cosines)
