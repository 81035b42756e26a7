"""The penalties that DR3 is combined or compared with."""

import gin
import tensorflow as tf

from batch_rl_dr3.agents import conservative, rank
from batch_rl_dr3.agents.penalty import STATELESS, Penalty, State, UpdateBatch


@gin.configurable
class ConservativePenalty(Penalty):
  """CQL: the mean of logsumexp_a Q(s,a) - Q(s,a_data) (arXiv:2006.04779)."""

  name = 'conservative'

  def __init__(self, coefficient: float = 4.0):
    """Creates the penalty.

    Args:
      coefficient: CQL's alpha. 4.0 is the authors' for QR-DQN on 1% of the
        data, 1.0 on 10%.
    """
    super().__init__(coefficient)

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """See base class."""
    del state
    return tf.reduce_mean(
      conservative.conservative(batch.q_values, batch.actions)
    )


@gin.configurable
class FeatureNormPenalty(Penalty):
  """The mean of |phi(s,a)|^2: smaller features, with no word of s'.

  Not in the paper. It is what DR3 comes to where phi(s', a') equals phi(s, a),
  and tells the size of the features from their co-adaptation.
  """

  name = 'feature_norm_squared'

  def __init__(self, coefficient: float = 0.03):
    """Creates the penalty.

    Args:
      coefficient: its weight; DR3's c0 is what to compare with.
    """
    super().__init__(coefficient)

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """See base class."""
    del state
    squares = tf.reduce_sum(tf.square(batch.features), axis=1)
    return tf.reduce_mean(squares)


@gin.configurable
class EffectiveRankPenalty(Penalty):
  """sigma_max^2 - sigma_min^2 of the batch's features (arXiv:2010.14498)."""

  name = 'effective_rank_penalty'

  def __init__(self, coefficient: float = 0.001):
    """Creates the penalty.

    Args:
      coefficient: 0.001 is reported by third parties for the paper's Atari
        runs.
    """
    super().__init__(coefficient)

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """See base class."""
    del state
    return rank.effective_rank_penalty(batch.features)
