"""Offline QR-DQN with the conservative penalty: the CQL of Atari.

The base is QR-DQN (arXiv:1710.10044) as in CQL's own Atari experiments; the
conservative penalty acts on the quantiles' mean. Whether the DR3 paper ran CQL
on QR-DQN or on DQN is not known: for DQN, give FixedReplayDQNAgent a
ConservativePenalty.
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


@gin.configurable
class FixedReplayQRCQLAgent(offline.OfflineAgent):
  """QR-DQN on logged data, with CQL's penalty by default."""

  initialiser = staticmethod(networks.scaled_uniform)

  def __init__(
    self,
    *args: Any,
    num_quantiles: int = 200,
    kappa: float = 1.0,
    penalties: Sequence[Penalty] | None = None,
    **kwargs: Any,
  ):
    """Creates the agent; penalties=[] is plain QR-DQN."""
    self.num_atoms = num_quantiles
    self._kappa = kappa
    kwargs['penalties'] = (
      [ConservativePenalty()] if penalties is None else penalties
    )
    super().__init__(*args, **kwargs)

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    target = losses.bellman_target(
      batch.transition['reward'],
      batch.transition['terminal'],
      losses.expected_values(batch.target_atoms, batch.next_policy),
      self.cumulative_gamma,
    )
    chosen = losses.chosen_values(batch.atoms, batch.actions)
    return kernels.quantile_huber(target, chosen, self._kappa)
