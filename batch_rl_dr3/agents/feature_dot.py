"""DR3's penalty, with Sigma = I."""

import gin
import tensorflow as tf

from batch_rl_dr3.agents import dr3
from batch_rl_dr3.agents.penalty import STATELESS, Penalty, State, UpdateBatch


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

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """See base class."""
    del state
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
