"""Value networks for Atari and MinAtar, one class for every agent.

DQN, REM and QR-DQN differ only in how many outputs the last layer has per
action: one value, K heads, or N quantiles. Layer names, order and padding are
Dopamine's, so that its TF checkpoints have the same variables.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import gin
import tensorflow as tf

from batch_rl_dr3.agents import kernels

# From atoms, float32 [B, A, K], to Q-values, [B, A].
QValues = Callable[[tf.Tensor], tf.Tensor]
# Keeps the layer norm's division finite.
_NORM_EPSILON = 1e-5


class NetworkOutput(NamedTuple):
  """What a value network says of a batch of states, in float32.

  Attributes:
    q_values: [B, A], what the agent says that its atoms stand for.
    features: [B, D], the penultimate layer after its ReLU: the paper's phi.
      One row serves all actions of a state.
    atoms: [B, A, K], the outputs per action: REM's heads, QR-DQN's quantiles,
      or (K = 1) the Q-value.
  """

  q_values: tf.Tensor
  features: tf.Tensor
  atoms: tf.Tensor


def mean_of_atoms(atoms: tf.Tensor) -> tf.Tensor:
  """Returns the Q-values of heads or quantiles, their mean."""
  return tf.reduce_mean(atoms, axis=2)


def glorot_uniform(seed: int | None) -> tf.keras.initializers.Initializer:
  """Returns Keras' default initialiser, which Dopamine's DQN uses."""
  return tf.keras.initializers.GlorotUniform(seed=seed)


def scaled_uniform(seed: int | None) -> tf.keras.initializers.Initializer:
  """Returns uniform fan-in scaling by 1/sqrt(3), as in batch_rl's REM and QR.

  It is also Dopamine's choice for its distributional networks.
  """
  return tf.keras.initializers.VarianceScaling(
    scale=3.0**-0.5, mode='fan_in', distribution='uniform', seed=seed
  )


class ValueNetwork(tf.keras.Model):
  """Convolutions, one hidden layer (the features), and a linear last layer.

  With `layer_norm` the features are relu(scale * normalised(W x + b) + offset)
  (arXiv:1607.06450); scale and offset are learnt.
  """

  # (filters, kernel size, stride) of each convolution; units of the features.
  convolutions: tuple[tuple[int, int, int], ...]
  num_features: int
  scale: float  # Observations are divided by it.
  # What the layers compute in; weights and outputs are float32 all the same.
  arithmetic_dtype = tf.float32

  def __init__(
    self,
    num_actions: int,
    num_atoms: int = 1,
    initialiser: Callable[
      [int | None], tf.keras.initializers.Initializer
    ] = glorot_uniform,
    seed: int | None = None,
    name: str | None = None,
    layer_norm: bool = False,
    q_values: QValues = mean_of_atoms,
  ):
    """Creates the layers.

    Args:
      num_actions: A.
      num_atoms: K, outputs per action, of which `q_values` makes a Q-value.
      initialiser: makes a kernel initialiser from a seed.
      seed: makes the initial weights a function of (seed, layer) alone.
      name: the variables' scope.
      layer_norm: whether the feature layer is normalised before its ReLU.
      q_values: of the atoms.
    """
    super().__init__(name=name)
    self.num_actions = num_actions
    self.num_atoms = num_atoms
    self.q_values = q_values
    seeds = iter(
      None if seed is None else seed * 1000 + layer
      for layer in range(len(self.convolutions) + 2)
    )
    self.convolution_layers = [
      tf.keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding='same',
        kernel_initializer=initialiser(next(seeds)),
        name='Conv',
      )
      for filters, kernel_size, stride in self.convolutions
    ]
    self.feature_layer = tf.keras.layers.Dense(
      self.num_features,
      kernel_initializer=initialiser(next(seeds)),
      name='fully_connected',
    )
    self.norm_layer = None
    if layer_norm:
      self.norm_layer = tf.keras.layers.LayerNormalization(name='layer_norm')
    self.last_layer = tf.keras.layers.Dense(
      num_actions * num_atoms,
      kernel_initializer=initialiser(next(seeds)),
      name='fully_connected',
    )

  def build(self, input_shape: Sequence[int | None]) -> None:
    """Creates the variables for states of a shape, in Dopamine's order."""
    height, width, *channels = tf.TensorShape(input_shape).as_list()[1:]
    depth = math.prod(channels)
    for layer in self.convolution_layers:
      _build_layer(layer, (None, height, width, depth))
      height, width = (-(-side // layer.strides[0]) for side in (height, width))
      depth = layer.filters
    _build_layer(self.feature_layer, (None, height * width * depth))
    if self.norm_layer is not None:
      _build_layer(self.norm_layer, (None, self.num_features))
    _build_layer(self.last_layer, (None, self.num_features))
    self.built = True

  def call(self, states: tf.Tensor) -> NetworkOutput:
    """Returns the values and features of states [B, height, ..., stack]."""
    return self.output(self.weights, self.features(self.weights, states))

  def features(self, weights: Sequence[Any], states: tf.Tensor) -> tf.Tensor:
    """Returns the features under given weights: float32 [B, D]."""
    weights = self._as_arithmetic(weights)
    activations = tf.cast(states, self.arithmetic_dtype) / self.scale
    if states.shape.rank > 4:  # Channels and stacked frames are one axis.
      _, height, width, *channels = states.shape.as_list()
      activations = tf.reshape(
        activations, [-1, height, width, math.prod(channels)]
      )
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    num_convolutions = len(self.convolution_layers)
    for layer, (kernel, bias) in zip(
      self.convolution_layers, pairs[:num_convolutions], strict=True
    ):
      convolved = tf.nn.conv2d(activations, kernel, layer.strides, 'SAME')
      activations = tf.nn.relu(tf.nn.bias_add(convolved, bias))
    kernel, bias = pairs[num_convolutions]
    flat = tf.reshape(activations, [-1, kernel.shape.as_list()[0]])
    hidden = tf.nn.bias_add(kernels.matmul(flat, kernel), bias)
    if self.norm_layer is not None:
      hidden = _normalise(hidden, *pairs[num_convolutions + 1])
    return tf.cast(tf.nn.relu(hidden), tf.float32)

  def output(
    self, weights: Sequence[Any], features: tf.Tensor
  ) -> NetworkOutput:
    """Returns what the last layer makes of features, under given weights."""
    kernel, bias = self._as_arithmetic(weights[-2:])
    inputs = tf.cast(features, self.arithmetic_dtype)
    atoms = tf.reshape(
      tf.nn.bias_add(kernels.matmul(inputs, kernel), bias),
      [-1, self.num_actions, self.num_atoms],
    )
    atoms = tf.cast(atoms, tf.float32)
    return NetworkOutput(self.q_values(atoms), features, atoms)

  def _as_arithmetic(self, weights: Sequence[Any]) -> list[tf.Tensor]:
    return [tf.cast(weight, self.arithmetic_dtype) for weight in weights]


def _normalise(
  hidden: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor
) -> tf.Tensor:
  mean, variance = tf.nn.moments(hidden, axes=[1], keepdims=True)
  return tf.nn.batch_normalization(
    hidden, mean, variance, offset, scale, _NORM_EPSILON
  )


def _build_layer(
  layer: tf.keras.layers.Layer, input_shape: tuple[int | None, ...]
) -> None:
  with tf.name_scope(layer.name):
    layer.build(input_shape)


@gin.configurable
class NatureNetwork(ValueNetwork):
  """The network of Mnih et al. 2015, with SAME padding as in Dopamine."""

  convolutions = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
  num_features = 512
  scale = 255.0


@gin.configurable
class MinAtarNetwork(ValueNetwork):
  """The network of Young and Tian 2019 (arXiv:1903.03176), padded to SAME.

  Observations are 0 or 1 and are not scaled.
  """

  convolutions = ((16, 3, 1),)
  num_features = 128
  scale = 1.0
