"""The stock path: Dopamine's DQNAgent and replay buffer, with the same loss.

This is what the agents would be without the package: batches by Dopamine's
`WrappedReplayBuffer`, the online network called once for s and once for s',
losses written out with TensorFlow's own operations. Weights, losses and
gradients are those of the package's agents, which a test compares.
"""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import networks
from batch_rl_dr3.config import dopamine_compat
from batch_rl_dr3.replay.store import store as replay_store

_Output = collections.namedtuple('_Output', ['q_values', 'features', 'atoms'])


class _Network(tf.keras.Model):
  """The layers of a `ValueNetwork`, as Keras calls them."""

  def __init__(
    self,
    like: type[networks.ValueNetwork],
    num_actions: int,
    num_atoms: int,
    name: str,
  ):
    super().__init__(name=name)
    self.shape = (-1, num_actions, num_atoms)
    self.scale = like.scale
    self.convolutions = [
      tf.keras.layers.Conv2D(
        filters, size, strides=stride, padding='same', activation='relu'
      )
      for filters, size, stride in like.convolutions
    ]
    self.flatten = tf.keras.layers.Flatten()
    self.dense = tf.keras.layers.Dense(like.num_features, activation='relu')
    self.last = tf.keras.layers.Dense(num_actions * num_atoms)

  def call(self, states: tf.Tensor) -> _Output:
    x = tf.cast(states, tf.float32) / self.scale
    if states.shape.rank > 4:
      x = tf.squeeze(x, axis=-1)
    for layer in self.convolutions:
      x = layer(x)
    features = self.dense(self.flatten(x))
    atoms = tf.reshape(self.last(features), self.shape)
    return _Output(tf.reduce_mean(atoms, axis=2), features, atoms)


class StockAgent(dopamine_compat.DQNAgent):
  """REM or QR-DQN + CQL, each with DR3, on Dopamine as it comes."""

  def __init__(
    self,
    sess: tf.compat.v1.Session,
    num_actions: int,
    store: replay_store.ReplayStore,
    method: str,
    like: type[networks.ValueNetwork],
    num_atoms: int,
    alpha: float,
    c0: float,
    constant_batch: Mapping[str, npt.NDArray[Any]] | None = None,
    **kwargs: Any,
  ):
    """Builds the agent and fills its buffer.

    Args:
      sess: the session.
      num_actions: int, A.
      store: whose rows the buffer is filled with.
      method: 'rem' or 'cql'.
      like: whose layers the networks have.
      num_atoms: int, K.
      alpha: the coefficient of the conservative penalty; for 'cql'.
      c0: the coefficient of the feature dot product.
      constant_batch: a batch to learn from in place of the buffer's.
      **kwargs: Dopamine's.
    """
    self._store = store
    self._method = method
    self._like = like
    self._num_atoms = num_atoms
    self._alpha = alpha
    self._c0 = c0
    self._constant_batch = constant_batch
    super().__init__(
      sess,
      num_actions,
      observation_shape=store.observation_shape,
      stack_size=store.stack_size,
      eval_mode=True,
      **kwargs,
    )
    if constant_batch is None:
      for row in range(store.num_rows):
        self._replay.add(
          store.frames([row])[0],
          store.actions[row],
          store.rewards[row],
          store.terminals[row],
        )

  def _create_network(self, name: str) -> tf.keras.Model:
    return _Network(self._like, self.num_actions, self._num_atoms, name)

  def _build_replay_buffer(self, use_staging: bool) -> Any:
    replay = dopamine_compat.WrappedReplayBuffer(
      self.observation_shape,
      self.stack_size,
      use_staging,
      replay_capacity=self._store.num_rows + 1,
      update_horizon=self.update_horizon,
      gamma=self.gamma,
    )
    if self._constant_batch is not None:
      for name, array in self._constant_batch.items():
        # A constant would be folded into the graph that is measured.
        tensor = tf.compat.v1.placeholder_with_default(array, array.shape)
        setattr(replay, name if name == 'indices' else f'{name}s', tensor)
    return replay

  def _build_networks(self) -> None:
    super()._build_networks()
    self._replay_next_net_outputs = self.online_convnet(
      self._replay.next_states
    )

  def _build_train_op(self) -> tf.Operation:
    loss = self._rem() if self._method == 'rem' else self._cql()
    if self._c0:
      dot = self._replay_net_outputs.features * (
        self._replay_next_net_outputs.features
      )
      loss += self._c0 * tf.reduce_mean(tf.reduce_sum(dot, axis=1))
    self.loss = loss
    return self.optimizer.minimize(loss)

  def _chosen(self, values: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
    one_hot = tf.one_hot(actions, self.num_actions)
    if values.shape.rank == 3:
      one_hot = one_hot[:, :, None]
    return tf.reduce_sum(values * one_hot, axis=1)

  def _target(self, next_values: tf.Tensor) -> tf.Tensor:
    not_over = 1.0 - tf.cast(self._replay.terminals, tf.float32)
    rewards = self._replay.rewards
    if next_values.shape.rank == 2:
      rewards, not_over = rewards[:, None], not_over[:, None]
    return tf.stop_gradient(
      rewards + self.cumulative_gamma * not_over * next_values
    )

  def _rem(self) -> tf.Tensor:
    # One mixture for a graph; the package's agents draw one for each step.
    mixture = np.full(self._num_atoms, 1 / self._num_atoms, np.float32)
    weights = tf.compat.v1.placeholder_with_default(mixture, mixture.shape)
    q_values = tf.tensordot(self._replay_net_outputs.atoms, weights, axes=1)
    next_q_values = tf.tensordot(
      self._replay_next_target_net_outputs.atoms, weights, axes=1
    )
    losses = tf.compat.v1.losses.huber_loss(
      self._target(tf.reduce_max(next_q_values, axis=1)),
      self._chosen(q_values, self._replay.actions),
      reduction=tf.losses.Reduction.NONE,
    )
    return tf.reduce_mean(losses)

  def _cql(self) -> tf.Tensor:
    outputs = self._replay_net_outputs
    next_outputs = self._replay_next_target_net_outputs
    greedy = tf.argmax(next_outputs.q_values, axis=1)
    target = self._target(self._chosen(next_outputs.atoms, greedy))
    chosen = self._chosen(outputs.atoms, self._replay.actions)
    errors = target[:, None, :] - chosen[:, :, None]
    absolute = tf.abs(errors)
    huber = tf.where(absolute <= 1.0, 0.5 * tf.square(errors), absolute - 0.5)
    taus = (tf.range(self._num_atoms, dtype=tf.float32) + 0.5) / self._num_atoms
    weights = tf.abs(taus[None, :, None] - tf.cast(errors < 0, tf.float32))
    quantile = tf.reduce_sum(tf.reduce_mean(weights * huber, 2), 1)
    gap = tf.reduce_logsumexp(outputs.q_values, axis=1) - self._chosen(
      outputs.q_values, self._replay.actions
    )
    return tf.reduce_mean(quantile) + self._alpha * tf.reduce_mean(gap)
