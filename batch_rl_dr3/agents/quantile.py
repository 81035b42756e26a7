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

from batch_rl_dr3.agents import kernels, losses, networks, offline
from batch_rl_dr3.agents.penalties import (
  ConservativePenalty,
  Penalty,
  UpdateBatch,
)
from batch_rl_dr3.replay.store import store as replay_store


@gin.configurable
class FixedReplayQRCQLAgent(offline.OfflineAgent):
  """QR-DQN on logged data; without further word its penalty is CQL's."""

  initialiser = staticmethod(networks.scaled_uniform)

  def __init__(
    self,
    sess: tf.compat.v1.Session | None,
    num_actions: int,
    store: replay_store.ReplayStore,
    num_quantiles: int = 200,
    kappa: float = 1.0,
    penalties: Sequence[Penalty] | None = None,
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
      penalties = [ConservativePenalty()]
    super().__init__(sess, num_actions, store, penalties=penalties, **kwargs)

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    """See base class."""
    next_quantiles = losses.expected_values(
      batch.target_atoms, batch.next_policy
    )
    target = losses.bellman_target(
      batch.transition['reward'],
      batch.transition['terminal'],
      next_quantiles,
      self.cumulative_gamma,
    )
    chosen = losses.chosen_values(batch.atoms, batch.actions)
    return kernels.quantile_huber(target, chosen, self._kappa)
