"""DR3's penalty with the covariance that label noise induces (Figure 6).

Theorem 3.1 of Kumar et al. 2022 (arXiv:2112.04716) weights the dot products
by Sigma, the fixed point of Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M,
with M = sum_i grad Q_i grad Q_i^T for label noise. Restricted to the last
layer, as DR3 itself, grad Q is phi:

  penalty = mean of phi(s, a)^T Sigma phi(s', a'),
  G = mean of phi (phi - gamma phi')^T,  M = mean of phi phi^T.

The paper's text does not say how it computes Sigma. Choices made here:

* G and M are running means over batches, and Sigma is solved for every so
  many steps. Until the first time it is I: the penalty is FeatureDotPenalty.
* G is damped by a multiple of I, without which directions in which there are
  no features would have no equation, and its step size is relative to trace M,
  which bounds M's eigenvalues, so that it fits features of any size.
* Sigma is scaled to trace D, that of I, so that c0 means the same.
* Where I - eta G is no contraction (linear TD on the features diverges, see
  analysis/linear_td.py) there is no Sigma: the last one stays, and the column
  `label_noise_failures` counts it.

No gradient flows into Sigma.
"""

from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import dr3, lyapunov
from batch_rl_dr3.agents.penalty import STATELESS, Penalty, State, UpdateBatch


@gin.configurable
class LabelNoiseFeatureDotPenalty(Penalty):
  """The mean over the batch of phi(s,a)^T Sigma phi(s',a')."""

  name = 'label_noise_feature_dot_product'

  def __init__(
    self,
    coefficient: float = 0.03,
    stop_gradient: bool = False,
    refresh_period: int = 2000,
    decay: float = 0.999,
    relative_step_size: float = 0.1,
    relative_damping: float = 0.1,
  ):
    """Creates the penalty.

    Args:
      coefficient: c0.
      stop_gradient: no gradient into phi(s', a').
      refresh_period: gradient steps between solutions for Sigma.
      decay: of the running means of G and M, a step.
      relative_step_size: eta times trace M. Small ones all give the same
        Sigma up to its scale.
      relative_damping: what is added to G's diagonal, over M's mean
        eigenvalue.

    Raises:
      ValueError: if a number is out of its range.
    """
    super().__init__(coefficient)
    if refresh_period < 1:
      raise ValueError(f'refresh_period must be >= 1, got {refresh_period}.')
    if not 0.0 <= decay < 1.0:
      raise ValueError(f'decay must be in [0, 1), got {decay}.')
    if relative_step_size <= 0.0 or relative_damping < 0.0:
      raise ValueError(
        'relative_step_size must be > 0 and relative_damping >= 0, got '
        f'{relative_step_size} and {relative_damping}.'
      )
    self.moves_next_features = not stop_gradient
    self._stop_gradient = stop_gradient
    self._refresh_period = refresh_period
    self._decay = decay
    self._relative_step_size = relative_step_size
    self._relative_damping = relative_damping

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """See base class."""
    dot_products = dr3.feature_dot_product(
      tf.matmul(batch.features, state['covariance']),
      batch.next_features,
      self._stop_gradient,
    )
    return tf.reduce_mean(dot_products)

  def initial_state(self, num_features: int) -> dict[str, npt.NDArray[Any]]:
    """See base class."""
    zeros = np.zeros((num_features, num_features), np.float32)
    return {
      'covariance': np.eye(num_features, dtype=np.float32),
      'pseudo_hessian': zeros,
      'noise': zeros,
      'failures': np.zeros((), np.float32),
    }

  def next_state(self, batch: UpdateBatch, state: State) -> State:
    """See base class."""
    features = tf.stop_gradient(batch.features)
    next_features = tf.stop_gradient(batch.next_features)
    backed_up = batch.discounts[:, tf.newaxis] * next_features
    batch_size = tf.cast(tf.shape(features)[0], tf.float32)

    def running_mean(mean: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
      new = tf.matmul(features, right, transpose_a=True) / batch_size
      return mean + (1.0 - self._decay) * (new - mean)

    hessian = running_mean(state['pseudo_hessian'], features - backed_up)
    noise = running_mean(state['noise'], features)
    is_due = tf.equal((batch.step + 1) % self._refresh_period, 0)
    covariance, failures = tf.cond(
      is_due,
      lambda: self._refreshed(hessian, noise, state),
      lambda: (
        tf.identity(state['covariance']),
        tf.identity(state['failures']),
      ),
    )
    return {
      'covariance': covariance,
      'pseudo_hessian': hessian,
      'noise': noise,
      'failures': failures,
    }

  def _refreshed(
    self, hessian: tf.Tensor, noise: tf.Tensor, state: State
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns Sigma and how often there was none, once solved for again."""
    dimension = noise.shape.as_list()[0]
    hessian, noise = tf.cast(hessian, tf.float64), tf.cast(noise, tf.float64)
    trace = tf.linalg.trace(noise)
    damping = self._relative_damping * trace / dimension
    solution = lyapunov.fixed_point(
      hessian + damping * tf.eye(dimension, dtype=tf.float64),
      noise,
      self._relative_step_size / trace,
    )
    solved = solution.covariance
    solved *= dimension / tf.linalg.trace(solved)
    covariance = tf.where(
      solution.has_converged,
      tf.cast(solved, tf.float32),
      state['covariance'],
    )
    failed = 1.0 - tf.cast(solution.has_converged, tf.float32)
    return covariance, state['failures'] + failed

  def measures(self, batch: UpdateBatch, state: State) -> dict[str, tf.Tensor]:
    """See base class. `label_noise_anisotropy` is 0 for Sigma = I."""
    del batch
    covariance = state['covariance']
    dimension = covariance.shape.as_list()[0]
    difference = tf.norm(covariance - tf.eye(dimension))
    return {
      'label_noise_anisotropy': difference / float(np.sqrt(dimension)),
      'label_noise_failures': state['failures'],
    }
