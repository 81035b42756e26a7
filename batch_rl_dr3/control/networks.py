"""What agents are built of: specs, networks with features, optimisers.

Those for images are COG's, with the sizes and initial weights of Singh et al.'s
code (github.com/avisingh599/cog, examples/cog.py and
rlkit/torch/conv_networks.py). Of images of 48x48x3 and 8 numbers an action:

  layer                            critic           policy
  3x3, 16 filters, max-pool 2         448              448
  3x3, 16 filters, max-pool 2       2,320            2,320
  3x3, 16 filters                   2,320            2,320
  2304 (+ 8, the action) -> 1024  2,368,512        2,360,320
  1024 -> 512                       524,800          524,800
  512 -> 256                        131,328          131,328
  256 -> 256, three times                            197,376
  output                                257            4,112
  all                             3,029,985        3,223,024

The critic's features phi(s, a) are its layer of 256. Deviation: a state is
cropped at random once a gradient step, and all networks see that crop; the
authors' networks crop anew whenever they are called.
"""

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

# Filters, stride, and size of the max-pool (1: none) of each convolution.
Convolutions = Sequence[tuple[int, int, int]]
COGS_CONVOLUTIONS: Convolutions = ((16, 1, 2), (16, 1, 2), (16, 1, 1))


@dataclasses.dataclass(frozen=True)
class Spaces:
  """The sizes of a task, and TF-Agents' specs of these."""

  observation_size: int | tuple[int, ...]  # Of images, their shape.
  action_size: int  # Numbers in [-1, 1].

  @property
  def time_step_spec(self) -> Any:  # noqa: D102
    size = self.observation_size
    shape = [size] if isinstance(size, int) else size
    return ts.time_step_spec(tensor_spec.TensorSpec(shape, tf.float32))

  @property
  def action_spec(self) -> Any:  # noqa: D102
    return tensor_spec.BoundedTensorSpec(
      [self.action_size], tf.float32, -1.0, 1.0
    )

  @property
  def pair_spec(self) -> Any:
    """Of what a critic takes."""
    return self.time_step_spec.observation, self.action_spec


def build(create_agent: Callable[..., Any], task: tasks.Task, seed: int) -> Any:
  """Returns the agent that (spaces, seed) make, else a ConfigError.

  The seed draws its weights.
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
    return self.values(self.features(inputs, training)), network_state


def create_critic(spaces: Spaces, layers: Sequence[int]) -> Any:
  """Returns a critic; the last of its hidden layers are the features."""
  return FeatureCriticNetwork(
    spaces.pair_spec,
    joint_fc_layer_params=tuple(layers),
    kernel_initializer='glorot_uniform',
    last_kernel_initializer='glorot_uniform',
  )


def create_actor(
  spaces: Spaces,
  layers: Sequence[int],
  lowest_log_std: float = -20.0,
  **kwargs: Any,
) -> Any:
  """Returns a network for a tanh-Normal policy, log std up to 2."""

  def project(spec: Any) -> Any:
    return tanh_normal_projection_network.TanhNormalProjectionNetwork(
      spec,
      std_transform=lambda log_std: tf.exp(
        tf.clip_by_value(log_std, lowest_log_std, 2.0)
      ),
    )

  return actor_distribution_network.ActorDistributionNetwork(
    *spaces.pair_spec,
    fc_layer_params=tuple(layers),
    continuous_projection_net=project,
    **kwargs,
  )


def _encoder(convolutions: Convolutions) -> list[Any]:
  """Returns layers that make [B, k] of images [B, h, w, 3] in [0, 255]."""
  layers: list[Any] = [tf.keras.layers.Rescaling(1 / 255)]
  for filters, stride, pool in convolutions:
    # Glorot uniform and biases of 0, as Keras has it.
    layers.append(
      tf.keras.layers.Conv2D(filters, 3, stride, 'same', activation='relu')
    )
    if pool > 1:
      layers.append(tf.keras.layers.MaxPool2D(pool))
  return [*layers, tf.keras.layers.Flatten()]


def _initializers(limit: float) -> dict[str, Any]:
  """Returns a dense layer's; of its own, or Keras draws the same numbers."""
  names = ('kernel_initializer', 'bias_initializer')
  uniform = tf.keras.initializers.RandomUniform
  return {name: uniform(-limit, limit) for name in names}


class ImageCriticNetwork(FeatureCriticNetwork):
  """A critic whose action joins after the convolutions."""

  def __init__(
    self,
    input_tensor_spec: Any,
    convolutions: Convolutions = COGS_CONVOLUTIONS,
    layers: Sequence[int] = (1024, 512, 256),
    initial_limit: float = 1e-4,
    name: str = 'ImageCritic',
  ):
    """Creates the network, of a pair of specs; see `create_cog_agent`."""
    super().__init__(
      input_tensor_spec, joint_fc_layer_params=tuple(layers), name=name
    )
    self._observation_layers = _encoder(convolutions)
    for layer in self._joint_layers:
      for name, initializer in _initializers(initial_limit).items():
        setattr(layer, name, initializer)


def create_image_actor(
  spaces: Spaces,
  convolutions: Convolutions = COGS_CONVOLUTIONS,
  encoder_layers: Sequence[int] = (1024, 512, 256),
  layers: Sequence[int] = (256, 256, 256),
  initial_limit: float = 1e-4,
) -> Any:
  """Returns a tanh-Normal policy of images; see `create_cog_agent`."""
  dense = [
    tf.keras.layers.Dense(units, 'relu', **_initializers(initial_limit))
    for units in encoder_layers
  ]
  dense[-1].activation = tf.keras.activations.linear
  encoder = tf.keras.Sequential([*_encoder(convolutions), *dense])
  return create_actor(spaces, layers, -5.0, preprocessing_layers=encoder)


def random_crops(images: tf.Tensor, seed: tf.Tensor, padding: int) -> tf.Tensor:
  """Returns each image moved by up to `padding` pixels, black where it was.

  Images are [B, h, w, 3] of any number type; the seed is int32 [2].
  """
  _, height, width, _ = images.shape
  corners = tf.random.stateless_uniform(
    [tf.shape(images)[0], 2], seed, maxval=2 * padding + 1, dtype=tf.int32
  )
  edges = [padding, padding]
  padded = tf.pad(images, [[0, 0], edges, edges, [0, 0]])
  rows = tf.gather(padded, corners[:, :1] + tf.range(height), batch_dims=1)
  columns = corners[:, 1:] + tf.range(width)
  cropped = tf.gather(rows, columns, axis=2, batch_dims=1)
  return tf.ensure_shape(cropped, images.shape)


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

  Unless they are given, rewards are 0, and discounts 1, which are 0 where an
  episode ended; float32 [B].
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
