"""Offline DQN, with a choice of what is backed up.

`backup` says which policy the a' of the Bellman target r + gamma Q'(s', a')
comes from (Figure 1 of Kumar et al. 2022, arXiv:2112.04716):

  q_learning   argmax_a Q'(s', a), DQN's own.
  sarsa        the next logged action, so that only seen pairs are backed up.
  td           a behaviour policy learnt by supervised learning; it backs up
               actions that are in distribution but may be unseen. It shares no
               weights with the Q-network. `policy_rows` says whether it learns
               from the Q-network's batches ('training') or 'held_out' ones.
  uniform      all actions alike: out of distribution for most logs.
  monte_carlo  no backup: regression on the logged discounted return.

The target is the expectation over that policy, as in the paper's later
revision, or with `sample_next_action` the value of one a' drawn from it.
"""

from typing import Any, Literal, get_args

import gin
import tensorflow as tf

from batch_rl_dr3.agents import losses, networks, offline
from batch_rl_dr3.agents.penalties import UpdateBatch

Backup = Literal['q_learning', 'sarsa', 'td', 'uniform', 'monte_carlo']
BACKUPS = get_args(Backup)
PolicyRows = Literal['training', 'held_out']
_BEHAVIOUR = 'behaviour'  # The network of 'td'.
# Keeps the stream of sampled actions apart from others of the same seed.
_ACTION_STREAM = 104_729


def stateless_fractions(seed: int, step: tf.Tensor, count: int) -> tf.Tensor:
  """Returns draws from [0, 1): float32 [count], a function of (seed, step)."""
  # A named algorithm gives the same bits on every device; the floats that
  # `stateless_uniform` makes of them differ. These are the CPU's: the low 23
  # bits as a fraction.
  bits = tf.random.stateless_uniform(
    [count],
    seed=tf.stack([tf.constant(seed, tf.int64), step]),
    minval=None,
    maxval=None,
    dtype=tf.uint32,
    alg='philox',
  )
  fractions = tf.bitwise.bitwise_and(bits, tf.constant(2**23 - 1, tf.uint32))
  return tf.cast(fractions, tf.float32) * 2.0**-23


def sample_actions(policy: tf.Tensor, fractions: tf.Tensor) -> tf.Tensor:
  """Returns the first a, int32 [B], at which the summed policy exceeds it."""
  # Without the last sum, which rounding may leave below the fraction.
  sums = tf.cumsum(policy, axis=1)[:, :-1]
  is_beyond = sums <= fractions[:, tf.newaxis]
  return tf.reduce_sum(tf.cast(is_beyond, tf.int32), axis=1)


@gin.configurable
class FixedReplayDQNAgent(offline.OfflineAgent):
  """DQN on logged data: the Huber loss of Mnih et al. 2015."""

  def __init__(
    self,
    *args: Any,
    backup: Backup = 'q_learning',
    sample_next_action: bool = False,
    policy_rows: PolicyRows = 'training',
    **kwargs: Any,
  ):
    """Creates the agent; ValueError if options fit neither it nor the data."""
    if backup not in BACKUPS:
      raise ValueError(f'backup must be one of {BACKUPS}, got {backup!r}.')
    if policy_rows not in get_args(PolicyRows):
      raise ValueError(
        f"policy_rows must be 'training' or 'held_out', got {policy_rows!r}."
      )
    if sample_next_action and backup not in ('td', 'uniform'):
      raise ValueError(
        f'sample_next_action is for the backups td and uniform, not {backup}.'
      )
    if policy_rows == 'held_out' and backup != 'td':
      raise ValueError(
        f'policy_rows is for the backup td, not {backup}, which learns no '
        'policy.'
      )
    self._backup = backup
    self._sample_next_action = sample_next_action
    self.is_monte_carlo = backup == 'monte_carlo'
    self.learns_from_held_out = policy_rows == 'held_out'
    super().__init__(*args, **kwargs)

  def _build_networks(self) -> None:
    super()._build_networks()
    if self._backup == 'td':
      self._behaviour = self.network(
        self.num_actions,
        initialiser=networks.glorot_uniform,
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
    self, batch: UpdateBatch, states: tf.Tensor
  ) -> tf.Tensor:
    weights = batch.weights[_BEHAVIOUR]
    features = self._behaviour.features(weights, states)
    return self._behaviour.output(weights, features).q_values

  def _build_auxiliary_losses(self, batch: UpdateBatch) -> dict[str, tf.Tensor]:
    if self._backup != 'td':
      return {}
    rows = offline.HELD_OUT if self.learns_from_held_out else ''
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=batch.transition[f'{rows}action'],
      logits=self._behaviour_logits(batch, batch.transition[f'{rows}state']),
    )
    return {'behaviour_cross_entropy': tf.reduce_mean(cross_entropy)}

  def _combine(self, batch: UpdateBatch, atoms: tf.Tensor) -> tf.Tensor:
    """Returns the Q-values that are regressed: [B, A] from [B, A, K]."""
    return tf.squeeze(atoms, axis=2)

  def _build_next_policy(self, batch: UpdateBatch) -> tf.Tensor:
    batch_size = batch.q_values.shape.as_list()[0]
    if self._backup == 'td':
      logits = self._behaviour_logits(batch, batch.transition['next_state'])
      policy = tf.nn.softmax(logits)
    elif self._backup == 'uniform':
      policy = tf.fill([batch_size, self.num_actions], 1 / self.num_actions)
    elif self._backup == 'q_learning':
      greedy = tf.argmax(self._combine(batch, batch.target_atoms), axis=1)
      return tf.one_hot(greedy, self.num_actions)
    else:  # Monte-Carlo backs nothing up: the logged a' stands in.
      return tf.one_hot(batch.transition['next_action'], self.num_actions)
    if not self._sample_next_action:
      return policy
    fractions = stateless_fractions(
      self._seed + _ACTION_STREAM, batch.step, batch_size
    )
    return tf.one_hot(sample_actions(policy, fractions), self.num_actions)

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    chosen_q = losses.chosen_values(
      self._combine(batch, batch.atoms), batch.transition['action']
    )
    if self._backup == 'monte_carlo':
      return losses.huber(batch.transition['return'], chosen_q)
    next_q = self._combine(batch, batch.target_atoms)
    target = losses.bellman_target(
      batch.transition['reward'],
      batch.transition['terminal'],
      losses.expected_values(next_q, batch.next_policy),
      self.cumulative_gamma,
    )
    return losses.huber(target, chosen_q)
