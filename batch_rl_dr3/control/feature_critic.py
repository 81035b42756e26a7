"""TF-Agents' critic network, with its features."""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import tensorflow as tf
from tf_agents.agents.ddpg import critic_network


class FeatureCriticNetwork(critic_network.CriticNetwork):
  """A critic Q(s, a) whose features phi(s, a) can be asked for.

  The features are what its last layer, a linear one, takes. Everything else
  is TF-Agents' `CriticNetwork`.
  """

  def __init__(
    self, input_tensor_spec: Any, name: str = 'FeatureCritic', **kwargs: Any
  ):
    """Creates the network; its variables appear when it is first called.

    Args:
      input_tensor_spec: the specs of (observation, action).
      name: the network's name.
      **kwargs: further arguments of `CriticNetwork`.

    Raises:
      ValueError: if `last_layer` is given: `copy()` would share it between
        the online and the target network.
    """
    if kwargs.get('last_layer') is not None:
      raise ValueError(
        'FeatureCriticNetwork takes no last_layer: copies would share it.'
      )
    super().__init__(input_tensor_spec, name=name, **kwargs)
    # A callable, not a list: Keras would wrap and track a list.
    self._on_features: Callable[[tf.Tensor], None] | None = None

  def features(self, inputs: Any, training: bool = False) -> tf.Tensor:
    """Returns phi(s, a), float32 [B, D], for inputs (s, a)."""
    observations, actions = (
      tf.cast(tf.nest.flatten(part)[0], tf.float32) for part in inputs
    )
    for layer in self._observation_layers:
      observations = layer(observations, training=training)
    for layer in self._action_layers:
      actions = layer(actions, training=training)
    joint = tf.concat([observations, actions], 1)
    for layer in self._joint_layers[:-1]:
      joint = layer(joint, training=training)
    return joint

  def values(self, features: tf.Tensor) -> tf.Tensor:
    """Returns Q, float32 [B], of features, float32 [B, D]."""
    return tf.reshape(self._joint_layers[-1](features), [-1])

  def call(
    self,
    inputs: Any,
    step_type: Any = (),
    network_state: Any = (),
    training: bool = False,
  ) -> tuple[tf.Tensor, Any]:
    """Returns Q, float32 [B], and the network state as it came."""
    del step_type
    features = self.features(inputs, training)
    if self._on_features is not None:
      self._on_features(features)
    return self.values(features), network_state

  @contextlib.contextmanager
  def recording(self) -> Iterator[list[tf.Tensor]]:
    """Yields a list that takes the features of every call in the block."""
    recorded: list[tf.Tensor] = []
    self._on_features = recorded.append
    try:
      yield recorded
    finally:
      self._on_features = None
