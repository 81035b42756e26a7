"""What agents are built of: specs, networks with features, optimisers."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import tensorflow as tf
from tf_agents.agents.ddpg import critic_network
from tf_agents.agents.sac import tanh_normal_projection_network
from tf_agents.networks import actor_distribution_network
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import policy_step, trajectory
from tf_agents.trajectories import time_step as ts

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import tasks


@dataclasses.dataclass(frozen=True)
class Spaces:
  """How many numbers an observation and an action, in [-1, 1], of a task have.

  TF-Agents' specs are made of them; of images, observation_size is the shape.
  """

  observation_size: int | tuple[int, ...]
  action_size: int

  @property
  def time_step_spec(self) -> Any:
    """TF-Agents' spec of what a policy sees."""
    size = self.observation_size
    shape = [size] if isinstance(size, int) else size
    return ts.time_step_spec(tensor_spec.TensorSpec(shape, tf.float32))

  @property
  def action_spec(self) -> Any:
    """TF-Agents' spec of an action."""
    return tensor_spec.BoundedTensorSpec(
      [self.action_size], tf.float32, -1.0, 1.0
    )


def build(create_agent: Callable[..., Any], task: tasks.Task, seed: int) -> Any:
  """Returns the agent that (spaces, seed) make; the seed draws its weights.

  Raises:
    ConfigError: if a binding is wrong.
  """
  tf.keras.utils.set_random_seed(seed)
  spaces = Spaces(task.observation_shape, task.action_size)
  try:
    return create_agent(spaces=spaces, seed=seed)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(
      f'cannot build the agent: {error}. Check its gin bindings.'
    ) from error


class FeatureCriticNetwork(critic_network.CriticNetwork):
  """TF-Agents' Q(s, a) whose features, what its last layer takes, are known."""

  def __init__(
    self, input_tensor_spec: Any, name: str = 'FeatureCritic', **kwargs: Any
  ):
    """Creates the network; a ValueError if `last_layer` is given."""
    if kwargs.get('last_layer') is not None:
      raise ValueError(
        'FeatureCriticNetwork takes no last_layer: copies would share it.'
      )
    super().__init__(input_tensor_spec, name=name, **kwargs)

  def features(self, inputs: Any, training: bool = False) -> tf.Tensor:
    """Returns phi(s, a), float32 [B, D], for inputs (s, a)."""
    observations, actions = inputs
    return self.join(self.encode(observations, training), actions, training)

  @property
  def has_encoder(self) -> bool:
    """Whether observations pass weights of their own before actions join."""
    return any(layer.weights for layer in self._observation_layers)

  def encode(self, observations: Any, training: bool = False) -> tf.Tensor:
    """Returns what the actions are joined to, float32 [B, k]."""
    codes = tf.cast(tf.nest.flatten(observations)[0], tf.float32)
    for layer in self._observation_layers:
      codes = layer(codes, training=training)
    return codes

  def join(
    self, codes: tf.Tensor, actions: Any, training: bool = False
  ) -> tf.Tensor:
    """Returns phi of what `encode` returned and of actions, float32 [B, D]."""
    actions = tf.cast(tf.nest.flatten(actions)[0], tf.float32)
    for layer in self._action_layers:
      actions = layer(actions, training=training)
    joint = tf.concat([codes, actions], 1)
    for layer in self._joint_layers[:-1]:
      joint = layer(joint, training=training)
    return joint

  def values(self, features: tf.Tensor) -> tf.Tensor:
    """Returns Q, float32 [B], of features, float32 [B, D]."""
    return tf.reshape(self._joint_layers[-1](features), [-1])

  def call(  # noqa: D102
    self,
    inputs: Any,
    step_type: Any = (),
    network_state: Any = (),
    training: bool = False,
  ) -> tuple[tf.Tensor, Any]:
    del step_type
    return self.values(self.features(inputs, training)), network_state


def create_critic(spaces: Spaces, layers: Sequence[int]) -> Any:
  """Returns a critic; the last of its hidden layers are the features."""
  return FeatureCriticNetwork(
    (spaces.time_step_spec.observation, spaces.action_spec),
    joint_fc_layer_params=tuple(layers),
    kernel_initializer='glorot_uniform',
    last_kernel_initializer='glorot_uniform',
  )


def create_actor(spaces: Spaces, layers: Sequence[int]) -> Any:
  """Returns a network for a tanh-Normal policy, log std in [-20, 2]."""

  def project(spec: Any) -> Any:
    return tanh_normal_projection_network.TanhNormalProjectionNetwork(
      spec,
      std_transform=lambda log_std: tf.exp(
        tf.clip_by_value(log_std, -20.0, 2.0)
      ),
    )

  return actor_distribution_network.ActorDistributionNetwork(
    spaces.time_step_spec.observation,
    spaces.action_spec,
    fc_layer_params=tuple(layers),
    continuous_projection_net=project,
  )


def adam(learning_rate: float) -> Any:
  """Returns an Adam whose slots a checkpoint holds."""
  return tf.keras.optimizers.legacy.Adam(learning_rate)


def arguments(
  spaces: Spaces,
  critic_network: Any,
  actor_network: Any,
  learning_rates: Sequence[float],
) -> dict[str, Any]:
  """Returns what all agents take; rates are of critics, actor and alpha."""
  critic, actor, alpha = (adam(rate) for rate in learning_rates)
  return {
    'time_step_spec': spaces.time_step_spec,
    'action_spec': spaces.action_spec,
    'critic_network': critic_network,
    'actor_network': actor_network,
    'critic_optimizer': critic,
    'actor_optimizer': actor,
    'alpha_optimizer': alpha,
    'train_step_counter': tf.Variable(0, dtype=tf.int64, trainable=False),
  }


def time_steps(
  observations: tf.Tensor,
  rewards: tf.Tensor | None = None,
  discounts: tf.Tensor | None = None,
) -> ts.TimeStep:
  """Returns steps in the middle of an episode, by rewards that led there.

  Rewards, float32 [B], are 0 and discounts, 0 where an episode ended, are 1
  unless they are given.
  """
  size = tf.shape(observations)[:1]
  return ts.TimeStep(
    tf.fill(size, ts.StepType.MID),
    tf.zeros(size) if rewards is None else rewards,
    tf.ones(size) if discounts is None else discounts,
    observations,
  )


def transition(columns: Sequence[tf.Tensor]) -> Any:
  """Returns a batch of transitions from `data.COLUMNS`, each [B, ...].

  Only a terminal ends the discounted sum: an episode that ran out of time is
  bootstrapped like any other.
  """
  observations, actions, rewards, next_observations, terminals = columns
  return trajectory.Transition(
    time_steps(observations),
    policy_step.PolicyStep(actions, (), ()),
    time_steps(next_observations, rewards, 1.0 - terminals),
  )
