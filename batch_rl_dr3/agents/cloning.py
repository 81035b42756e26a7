"""Discrete behaviour cloning: the policy of the log, by classification.

The baseline of a table: what is learnt without rewards. The network's outputs
are logits, and acting is greedy in them; penalties act on its features as on a
Q-network's. `loss_bellman` is the cross-entropy, mean_q the mean logit of the
logged action; nothing is backed up, so that a' is the target network's greedy
action, which only penalties and metrics see.
"""

import gin
import tensorflow as tf

from batch_rl_dr3.agents import offline
from batch_rl_dr3.agents.penalties import UpdateBatch


@gin.configurable
class FixedReplayBCAgent(offline.OfflineAgent):
  """Minimises -log softmax(logits(s))_a of the logged actions."""

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=batch.actions, logits=batch.q_values
    )
