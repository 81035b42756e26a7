"""Penalties: what an agent's gin list adds to its Bellman loss.

  FixedReplayREMAgent.penalties = [@FeatureDotPenalty()]
  FeatureDotPenalty.coefficient = 0.03

The agent minimises mean(Bellman loss) + sum of coefficient * penalty(batch).
A penalty whose coefficient is 0 is measured but is no part of the training
graph, so that it cannot change training by a single bit.
"""

import abc
from typing import NamedTuple

import gin
import tensorflow as tf

from batch_rl_dr3.losses import conservative, dr3, rank


class UpdateBatch(NamedTuple):
  """The tensors of one gradient step that penalties may use.

  Attributes:
    q_values: float32 [B, A], the online network's values at s.
    features: float32 [B, D], phi(s, a) by the online network.
    next_features: float32 [B, D], phi(s', a') by the online network.
    actions: int32 [B], the logged actions.
    next_policy: float32 [B, A], the distribution of the a' that the Bellman
      backup uses: one-hot for the greedy and the logged action.
    terminals: float32 [B], 1 where the episode ends with this transition.
  """

  q_values: tf.Tensor
  features: tf.Tensor
  next_features: tf.Tensor
  actions: tf.Tensor
  next_policy: tf.Tensor
  terminals: tf.Tensor


class Penalty(abc.ABC):
  """A scalar function of a batch, with a name and a coefficient.

  Attributes:
    name: how logs, columns and summaries call it.
    coefficient: its weight in the total loss, >= 0.
    moves_next_features: whether its gradient flows into phi(s', a').
  """

  name: str
  moves_next_features = False

  def __init__(self, coefficient: float):
    if coefficient < 0:
      raise ValueError(
        f'{type(self).__name__}.coefficient must be >= 0, got {coefficient}.'
      )
    self.coefficient = coefficient

  @abc.abstractmethod
  def __call__(self, batch: UpdateBatch) -> tf.Tensor:
    """Returns the penalty before its coefficient: float32 scalar."""


@gin.configurable
class FeatureDotPenalty(Penalty):
  """DR3: the mean over the batch of phi(s,a)^T phi(s',a').

  Eq. 7 of Kumar et al. 2022 (arXiv:2112.04716) with Sigma = I, restricted to
  the last layer as in Section 4.
  """

  name = 'feature_dot_product'

  def __init__(
    self,
    coefficient: float = 0.03,
    stop_gradient: bool = False,
    mask_terminals: bool = False,
    absolute: bool = False,
    same_action_only: bool = False,
  ):
    """Creates the penalty.

    Args:
      coefficient: c0. 0.03 is what the authors' follow-up work uses on Atari
        with CQL.
      stop_gradient: no gradient into phi(s', a') (Table A.1).
      mask_terminals: count transitions that end an episode as 0: their s' is
        no state. The authors' code does not mask, and neither does the
        default.
      absolute: |phi^T phi'|, as in the authors' code. The same as without for
        features after a ReLU, which are never negative.
      same_action_only: weight each dot product by the probability that the
        backup's a' is a. With one head per action the gradients of Q(s, a)
        and Q(s', a') by the last layer have disjoint support unless a = a':
        this is their literal dot product.
    """
    super().__init__(coefficient)
    self.stop_gradient = stop_gradient
    self.moves_next_features = not stop_gradient
    self.mask_terminals = mask_terminals
    self.absolute = absolute
    self.same_action_only = same_action_only

  def __call__(self, batch: UpdateBatch) -> tf.Tensor:
    """See base class."""
    dot_products = dr3.feature_dot_product(
      batch.features, batch.next_features, self.stop_gradient
    )
    if self.absolute:
      dot_products = tf.abs(dot_products)
    if self.mask_terminals:
      dot_products *= 1.0 - batch.terminals
    if self.same_action_only:
      num_actions = batch.next_policy.shape.as_list()[1]
      dot_products *= tf.reduce_sum(
        tf.one_hot(batch.actions, num_actions) * batch.next_policy, axis=1
      )
    return tf.reduce_mean(dot_products)


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

  def __call__(self, batch: UpdateBatch) -> tf.Tensor:
    """See base class."""
    return tf.reduce_mean(
      conservative.conservative(batch.q_values, batch.actions)
    )


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

  def __call__(self, batch: UpdateBatch) -> tf.Tensor:
    """See base class."""
    return rank.effective_rank_penalty(batch.features)
