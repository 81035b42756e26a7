"""DR3's penalty with a coefficient that looks for a target.

The paper tunes c0, and its dot products have the scale of the features: a c0
that fits one game or base method need not fit another. Here the multiplier is
found by dual ascent, so that the mean cosine of consecutive features,

  cosine = mean of phi^T phi' / (|phi| |phi'|),

comes down to a target, a number without a scale. What is penalised is DR3's dot
product, so that the multiplier is c0, or with `normalised` the cosine itself,
so that it is the multiplier of a Lagrangian. It is kept positive by its
logarithm:

  log c0 <- clip(log c0 + rate * (cosine - target)).

This is beyond the paper.
"""

import math
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import dr3
from batch_rl_dr3.agents.penalty import STATELESS, Penalty, State, UpdateBatch


@gin.configurable
class AdaptiveFeatureDotPenalty(Penalty):
  """DR3's penalty, its coefficient set by dual ascent."""

  name = 'adaptive_feature_dot_product'
  moves_next_features = True

  def __init__(
    self,
    coefficient: float = 0.01,
    target: float = 0.5,
    rate: float = 0.001,
    normalised: bool = False,
    bounds: tuple[float, float] = (1e-6, 10.0),
  ):
    """Creates the penalty.

    Args:
      coefficient: the multiplier at the first step, > 0.
      target: the mean cosine to come down to.
      rate: of the multiplier's logarithm, a step and a unit of cosine.
      normalised: whether the cosine is penalised in place of the dot product.
      bounds: the multiplier stays within them.

    Raises:
      ValueError: if a number is out of its range.
    """
    super().__init__(coefficient)
    low, high = bounds
    if not 0.0 < low <= coefficient <= high:
      raise ValueError(
        f'the coefficient must be in the bounds {bounds}, which must be '
        f'positive; got {coefficient}.'
      )
    if not -1.0 <= target <= 1.0 or rate <= 0.0:
      raise ValueError(
        f'target must be a cosine and rate > 0, got {target} and {rate}.'
      )
    self._target = target
    self._rate = rate
    self._normalised = normalised
    self._log_bounds = (math.log(low), math.log(high))

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """See base class."""
    del state
    if self._normalised:
      return _mean_cosine(batch)
    return tf.reduce_mean(
      dr3.feature_dot_product(batch.features, batch.next_features)
    )

  def weight(self, state: State) -> tf.Tensor:
    """See base class."""
    return tf.exp(state['log_coefficient'])

  def initial_state(self, num_features: int) -> dict[str, npt.NDArray[Any]]:
    """See base class."""
    del num_features
    return {'log_coefficient': np.array(math.log(self.coefficient), np.float32)}

  def next_state(self, batch: UpdateBatch, state: State) -> State:
    """See base class."""
    excess = tf.stop_gradient(_mean_cosine(batch)) - self._target
    return {
      'log_coefficient': tf.clip_by_value(
        state['log_coefficient'] + self._rate * excess, *self._log_bounds
      )
    }

  def measures(self, batch: UpdateBatch, state: State) -> dict[str, tf.Tensor]:
    """See base class."""
    return {
      'feature_cosine': _mean_cosine(batch),
      'adaptive_coefficient': self.weight(state),
    }


def _mean_cosine(batch: UpdateBatch) -> tf.Tensor:
  return tf.reduce_mean(dr3.feature_cosine(batch.features, batch.next_features))
