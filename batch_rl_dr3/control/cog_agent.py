"""COG's networks: convolutions over images, then dense layers.

Sizes and initial weights are those of Singh et al.'s code
(github.com/avisingh599/cog, examples/cog.py and rlkit/torch/conv_networks.py).
With images of 48x48x3 and 8 numbers an action:

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

from collections.abc import Sequence
import functools
from typing import Any

import gin
import tensorflow as tf
from tf_agents.agents.sac import tanh_normal_projection_network
from tf_agents.networks import actor_distribution_network

from batch_rl_dr3.config import ranges
from batch_rl_dr3.control import cql_agent, networks

# Filters, stride, and size of the max-pool (1: none) of each convolution.
Convolutions = Sequence[tuple[int, int, int]]
_COGS: Convolutions = ((16, 1, 2), (16, 1, 2), (16, 1, 1))


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


class ImageCriticNetwork(networks.FeatureCriticNetwork):
  """A critic whose action joins after the convolutions."""

  def __init__(
    self,
    input_tensor_spec: Any,
    convolutions: Convolutions = _COGS,
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
  spaces: networks.Spaces,
  convolutions: Convolutions = _COGS,
  encoder_layers: Sequence[int] = (1024, 512, 256),
  layers: Sequence[int] = (256, 256, 256),
  initial_limit: float = 1e-4,
) -> Any:
  """Returns a tanh-Normal policy's network, log std in [-5, 2].

  Arguments are those of `create_cog_agent`.
  """
  dense = [
    tf.keras.layers.Dense(units, 'relu', **_initializers(initial_limit))
    for units in encoder_layers
  ]
  dense[-1].activation = tf.keras.activations.linear
  encoder = tf.keras.Sequential([*_encoder(convolutions), *dense])
  return actor_distribution_network.ActorDistributionNetwork(
    spaces.time_step_spec.observation,
    spaces.action_spec,
    preprocessing_layers=encoder,
    fc_layer_params=tuple(layers),
    continuous_projection_net=functools.partial(
      tanh_normal_projection_network.TanhNormalProjectionNetwork,
      std_transform=lambda x: tf.exp(tf.clip_by_value(x, -5.0, 2.0)),
    ),
  )


@gin.configurable(denylist=['spaces', 'seed'])
@ranges.checked
def create_cog_agent(
  spaces: networks.Spaces,
  seed: ranges.Natural,
  convolutions: Convolutions = _COGS,
  critic_layers: Sequence[int] = (1024, 512, 256),
  encoder_layers: Sequence[int] = (1024, 512, 256),
  actor_layers: Sequence[int] = (256, 256, 256),
  initial_limit: ranges.Positive = 1e-4,
  critic_learning_rate: ranges.Positive = 3e-4,
  actor_learning_rate: ranges.Positive = 1e-4,
  gamma: ranges.Share = 0.99,
) -> cql_agent.DR3CqlSacAgent:
  """Returns CQL with image networks; the defaults are COG's.

  Args:
    spaces: the sizes of the task.
    seed: fixes all that is sampled; weights are drawn by TensorFlow's seed.
    convolutions: filters, stride and max-pool (1: none) of each.
    critic_layers: hidden units of the critics.
    encoder_layers: dense units of the policy's encoder, the last linear.
    actor_layers: hidden units of the policy after its encoder.
    initial_limit: dense weights are first drawn from [-limit, limit].
    critic_learning_rate: Adam's.
    actor_learning_rate: Adam's, also for the entropy's weight.
    gamma: the discount.
  """
  return cql_agent.DR3CqlSacAgent(
    **networks.arguments(
      spaces,
      ImageCriticNetwork(
        (spaces.time_step_spec.observation, spaces.action_spec),
        tuple(convolutions),
        tuple(critic_layers),
        initial_limit,
      ),
      create_image_actor(
        spaces, convolutions, encoder_layers, actor_layers, initial_limit
      ),
      (critic_learning_rate, actor_learning_rate, actor_learning_rate),
    ),
    gamma=gamma,
    target_entropy=-float(spaces.action_size),
    seed=seed,
  )
