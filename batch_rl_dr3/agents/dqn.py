"""Offline DQN, with four ways to back up values.

`backup` is the a' of the Bellman target r + gamma Q'(s', a') (Figure 1 of
Kumar et al. 2022, arXiv:2112.04716):

  q_learning   argmax_a Q'(s', a), DQN's own.
  sarsa        the next logged action, so that only seen pairs are backed up.
  td           the expectation over a behaviour policy learnt by supervised
               learning; it backs up actions that are in distribution but may
               be unseen. As in the later revision of the paper, the
               expectation is exact, not sampled. The policy trains on the
               same batches; it shares no weights with the Q-network.
  monte_carlo  no backup: regression on the logged discounted return.
"""

from typing import Any, Literal

import gin
import tensorflow as tf

from batch_rl_dr3.agents import bellman, offline, update, value_network

Backup = Literal['q_learning', 'sarsa', 'td', 'monte_carlo']
BACKUPS = ('q_learning', 'sarsa', 'td', 'monte_carlo')
_BEHAVIOUR = 'behaviour'  # The network of 'td'.


@gin.configurable
class FixedReplayDQNAgent(offline.OfflineAgent):
  """DQN on logged data: the Huber loss of Mnih et al. 2015."""

  def __init__(self, *args: Any, backup: Backup = 'q_learning', **kwargs: Any):
    """Creates the agent.

    Args:
      *args: see OfflineAgent.
      backup: 'q_learning', 'sarsa', 'td' or 'monte_carlo'.
      **kwargs: see OfflineAgent.

    Raises:
      ValueError: if the backup is none of the four.
    """
    if backup not in BACKUPS:
      raise ValueError(f'backup must be one of {BACKUPS}, got {backup!r}.')
    self._backup = backup
    super().__init__(*args, **kwargs)

  def _needs_monte_carlo_returns(self) -> bool:
    return self._backup == 'monte_carlo'

  def _build_networks(self) -> None:
    super()._build_networks()
    if self._backup == 'td':
      self._behaviour = self.network(
        self.num_actions,
        initialiser=value_network.glorot_uniform,
        seed=self._seed + 1,
        name='Behaviour',
      )
      self._behaviour(self.state_ph)  # Creates its variables.

  def _networks(self) -> dict[str, tf.keras.Model]:
    networks = super()._networks()
    if self._backup == 'td':
      networks[_BEHAVIOUR] = self._behaviour
    return networks

  def _behaviour_logits(
    self, batch: update.Update, states: tf.Tensor
  ) -> tf.Tensor:
    """Returns the learnt behaviour policy's logits: float32 [B, A]."""
    weights = batch.weights[_BEHAVIOUR]
    features = self._behaviour.features(weights, states)
    return self._behaviour.output(weights, features).q_values

  def _build_auxiliary_losses(
    self, batch: update.Update
  ) -> dict[str, tf.Tensor]:
    if self._backup != 'td':
      return {}
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=batch.transition['action'],
      logits=self._behaviour_logits(batch, batch.transition['state']),
    )
    return {'behaviour_cross_entropy': tf.reduce_mean(cross_entropy)}

  def _combine(self, batch: update.Update, atoms: tf.Tensor) -> tf.Tensor:
    """Returns the Q-values that are regressed: [B, A] from [B, A, K]."""
    del batch
    return tf.squeeze(atoms, axis=2)

  def _build_next_policy(self, batch: update.Update) -> tf.Tensor:
    """See base class. Monte-Carlo backs nothing up: the logged a' stands in."""
    if self._backup == 'td':
      return tf.nn.softmax(
        self._behaviour_logits(batch, batch.transition['next_state'])
      )
    if self._backup == 'q_learning':
      greedy = tf.argmax(
        self._combine(batch, batch.next_target_outputs.atoms), axis=1
      )
      return tf.one_hot(greedy, self.num_actions)
    return tf.one_hot(batch.transition['next_action'], self.num_actions)

  def _build_bellman_loss(
    self, batch: update.Update, next_policy: tf.Tensor
  ) -> tf.Tensor:
    """See base class."""
    chosen_q = bellman.chosen_values(
      self._combine(batch, batch.outputs.atoms), batch.transition['action']
    )
    if self._backup == 'monte_carlo':
      return bellman.huber(batch.transition['return'], chosen_q)
    next_values = bellman.expected_values(
      self._combine(batch, batch.next_target_outputs.atoms), next_policy
    )
    target = bellman.bellman_target(
      batch.transition['reward'],
      batch.transition['terminal'],
      next_values,
      self.cumulative_gamma,
    )
    return bellman.huber(target, chosen_q)
