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

from batch_rl_dr3.agents import offline
from batch_rl_dr3.losses import bellman
from batch_rl_dr3.networks import value_network

Backup = Literal['q_learning', 'sarsa', 'td', 'monte_carlo']
BACKUPS = ('q_learning', 'sarsa', 'td', 'monte_carlo')


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
      behaviour = self.network(
        self.num_actions,
        initialiser=value_network.glorot_uniform,
        seed=self._seed + 1,
        name='Behaviour',
      )
      self._behaviour_logits = behaviour(self._replay.states).q_values
      self._next_behaviour_logits = behaviour(self._replay.next_states).q_values

  def _build_auxiliary_losses(self) -> dict[str, tf.Tensor]:
    if self._backup != 'td':
      return {}
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=self._replay.actions, logits=self._behaviour_logits
    )
    return {'behaviour_cross_entropy': tf.reduce_mean(cross_entropy)}

  def _combine(self, atoms: tf.Tensor) -> tf.Tensor:
    """Returns the Q-values that are regressed: [B, A] from [B, A, K]."""
    return tf.squeeze(atoms, axis=2)

  def _build_next_policy(self) -> tf.Tensor:
    """See base class. Monte-Carlo backs nothing up: the logged a' stands in."""
    if self._backup == 'td':
      return tf.nn.softmax(self._next_behaviour_logits)
    if self._backup == 'q_learning':
      greedy = tf.argmax(
        self._combine(self._replay_next_target_net_outputs.atoms), axis=1
      )
      return tf.one_hot(greedy, self.num_actions)
    return tf.one_hot(self._replay.next_actions, self.num_actions)

  def _build_bellman_loss(self) -> tf.Tensor:
    """See base class."""
    chosen_q = bellman.chosen_values(
      self._combine(self._replay_net_outputs.atoms), self._replay.actions
    )
    if self._backup == 'monte_carlo':
      return bellman.huber(self._replay.returns, chosen_q)
    next_values = bellman.expected_values(
      self._combine(self._replay_next_target_net_outputs.atoms),
      self._next_policy,
    )
    target = bellman.bellman_target(
      self._replay.rewards,
      self._replay.terminals,
      next_values,
      self.cumulative_gamma,
    )
    return bellman.huber(target, chosen_q)
