"""Offline QR-DQN with the conservative penalty: the CQL of Atari.

The base is QR-DQN (arXiv:1710.10044) as in CQL's own Atari experiments; the
conservative penalty acts on the mean of the quantiles. Whether the DR3 paper
ran CQL on QR-DQN or on DQN is not known: for the second, give
FixedReplayDQNAgent a ConservativePenalty.
"""

from collections.abc import Sequence
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.agents import (
  bellman,
  offline,
  quantile_sums,
  update,
  value_network,
)
from batch_rl_dr3.agents import penalties as penalties_lib
from batch_rl_dr3.replay.store import store as replay_store


@gin.configurable
class FixedReplayQRCQLAgent(offline.OfflineAgent):
  """QR-DQN on logged data; without further word its penalty is CQL's."""

  initialiser = staticmethod(value_network.scaled_uniform)

  def __init__(
    self,
    sess: tf.compat.v1.Session | None,
    num_actions: int,
    store: replay_store.ReplayStore,
    num_quantiles: int = 200,
    kappa: float = 1.0,
    penalties: Sequence[penalties_lib.Penalty] | None = None,
    **kwargs: Any,
  ):
    """Creates the agent.

    Args:
      sess: see OfflineAgent.
      num_actions: see OfflineAgent.
      store: see OfflineAgent.
      num_quantiles: N, quantiles per action.
      kappa: where the quantile Huber loss turns linear.
      penalties: the penalties; None is [ConservativePenalty()], and an empty
        list is plain QR-DQN.
      **kwargs: see OfflineAgent.
    """
    self.num_atoms = num_quantiles
    self._kappa = kappa
    if penalties is None:
      penalties = [penalties_lib.ConservativePenalty()]
    super().__init__(sess, num_actions, store, penalties=penalties, **kwargs)

  def _build_bellman_loss(
    self, batch: update.Update, next_policy: tf.Tensor
  ) -> tf.Tensor:
    """See base class."""
    next_quantiles = bellman.expected_values(
      batch.next_target_outputs.atoms, next_policy
    )
    target = bellman.bellman_target(
      batch.transition['reward'],
      batch.transition['terminal'],
      next_quantiles,
      self.cumulative_gamma,
    )
    chosen = bellman.chosen_values(
      batch.outputs.atoms, batch.transition['action']
    )
    # Compilers fuse the loss over all pairs; without one, sorting is faster.
    module = bellman if batch.is_compiled else quantile_sums
    return module.quantile_huber(target, chosen, self._kappa)
