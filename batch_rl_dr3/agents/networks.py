"""Value networks, alike for all agents but for the outputs per action.

Layer names, order and padding are Dopamine's, so that its TF checkpoints have
the same variables.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any, NamedTuple

import gin
import tensorflow as tf

from batch_rl_dr3.agents import kernels
from batch_rl_dr3.config import ranges

# From atoms, float32 [B, A, K], to Q-values, [B, A].
QValues = Callable[[tf.Tensor], tf.Tensor]
# Keeps the layer norm's division finite.
_NORM_EPSILON = 1e-5
_IMPALA_STACKS = (16, 32, 32)  # Filters of each.
_IMPALA_BLOCKS = 2  # In a stack, of two convolutions each.


class NetworkOutput(NamedTuple):
  """What a value network says of a batch of states, in float32."""

  q_values: tf.Tensor  # [B, A], what the agent says that atoms stand for.
  features: tf.Tensor  # [B, D], phi: the last hidden layer after its ReLU.
  atoms: tf.Tensor  # [B, A, K], REM's heads or QR-DQN's quantiles.


def mean_of_atoms(atoms: tf.Tensor) -> tf.Tensor:
  """Returns the Q-values of heads or quantiles."""
  return tf.reduce_mean(atoms, axis=2)


def categorical_q_values(support: tuple[float, float]) -> QValues:
  """Returns what makes Q-values of logits: the mean of softmax(logits).

  They stand for evenly spaced returns from end to end of `support`
  (arXiv:1707.06887).
  """

  def q_values(atoms: tf.Tensor) -> tf.Tensor:
    returns = tf.linspace(*support, atoms.shape.as_list()[2])
    return tf.reduce_sum(tf.nn.softmax(atoms, axis=2) * returns, axis=2)

  return q_values


def glorot_uniform(seed: int | None) -> tf.keras.initializers.Initializer:
  """Returns Keras' default initialiser, which Dopamine's DQN uses."""
  return tf.keras.initializers.GlorotUniform(seed=seed)


def scaled_uniform(seed: int | None) -> tf.keras.initializers.Initializer:
  """Returns fan-in scaling by 1/sqrt(3), batch_rl's for REM and QR-DQN."""
  return tf.keras.initializers.VarianceScaling(
    scale=3.0**-0.5, mode='fan_in', distribution='uniform', seed=seed
  )


class ValueNetwork(tf.keras.Model):
  """Convolutions, one hidden layer (the features), and a linear last layer.

  With `layer_norm` the features are relu(scale * normalised(W x + b) + offset)
  (arXiv:1607.06450); scale and offset are learnt.
  """

  # (filters, kernel size, stride) of each convolution; units of the features.
  convolutions: Sequence[tuple[int, int, int]]
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
    """Creates a network without variables, of A actions with K atoms each.

    `initialiser` makes a kernel initialiser from a seed; with `seed` initial
    weights are a function of (seed, layer) alone. `name` is their scope.
    """
    super().__init__(name=name)
    self.num_actions = num_actions
    self.num_atoms = num_atoms
    self.q_values = q_values
    self._initialiser = initialiser
    self._seed = seed
    self._has_layer_norm = layer_norm

  def build(self, input_shape: Sequence[int | None]) -> None:
    """Creates the variables for states of a shape, in Dopamine's order."""
    shape = tf.TensorShape(input_shape).as_list()[1:]
    kernel_shapes = self._encoder_shapes(shape)
    kernel_shapes.append((self.num_features, self.num_actions * self.num_atoms))
    # States are integers, and Keras would make weights of the same type.
    add_weight = functools.partial(self.add_weight, dtype=tf.float32)
    for layer, shape in enumerate(kernel_shapes):
      if self._has_layer_norm and layer == len(kernel_shapes) - 1:
        with tf.name_scope('layer_norm'):
          add_weight('gamma', shape[:1], initializer='ones')
          add_weight('beta', shape[:1], initializer='zeros')
      seed = None if self._seed is None else self._seed * 1000 + layer
      with tf.name_scope('Conv' if len(shape) == 4 else 'fully_connected'):
        add_weight('kernel', shape, initializer=self._initialiser(seed))
        add_weight('bias', shape[-1:], initializer='zeros')
    self.built = True

  def _encoder_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the kernels' up to the features' layer, for states of a shape."""
    height, width, *channels = shape
    depth = math.prod(channels)
    kernel_shapes: list[tuple[int, ...]] = []
    for filters, size, stride in self.convolutions:
      kernel_shapes.append((size, size, depth, filters))
      height, width = (-(-side // stride) for side in (height, width))
      depth = filters
    return [*kernel_shapes, (height * width * depth, self.num_features)]

  def call(self, states: tf.Tensor) -> NetworkOutput:
    """Returns what is said of states [B, height, ..., stack]."""
    return self.output(self.weights, self.features(self.weights, states))

  def features(self, weights: Sequence[Any], states: tf.Tensor) -> tf.Tensor:
    """Returns the features under given weights: float32 [B, D]."""
    weights = self._as_arithmetic(weights)
    activations = tf.cast(states, self.arithmetic_dtype) / self.scale
    if states.shape.rank > 4:  # Channels and stacked frames are one axis.
      _, height, width, *channels = states.shape.as_list()
      shape = [-1, height, width, math.prod(channels)]
      activations = tf.reshape(activations, shape)
    *layers, _ = zip(weights[::2], weights[1::2], strict=True)
    norm = layers.pop() if self._has_layer_norm else None
    *layers, (kernel, bias) = layers
    activations = self._encode(layers, activations)
    flat = tf.reshape(activations, [-1, kernel.shape.as_list()[0]])
    hidden = tf.nn.bias_add(kernels.matmul(flat, kernel), bias)
    if norm is not None:
      scale, offset = norm
      mean, variance = tf.nn.moments(hidden, axes=[1], keepdims=True)
      hidden = tf.nn.batch_normalization(
        hidden, mean, variance, offset, scale, _NORM_EPSILON
      )
    return tf.cast(tf.nn.relu(hidden), tf.float32)

  def _encode(
    self, layers: Sequence[tuple[Any, Any]], activations: tf.Tensor
  ) -> tf.Tensor:
    """Returns what the features' layer takes, of any shape [B, ...]."""
    for (*_, stride), (kernel, bias) in zip(
      self.convolutions, layers, strict=True
    ):
      convolved = tf.nn.conv2d(activations, kernel, stride, 'SAME')
      activations = tf.nn.relu(tf.nn.bias_add(convolved, bias))
    return activations

  def output(
    self, weights: Sequence[Any], features: tf.Tensor
  ) -> NetworkOutput:
    """Returns what the last layer makes of features, under given weights."""
    kernel, bias = self._as_arithmetic(weights[-2:])
    inputs = tf.cast(features, self.arithmetic_dtype)
    outputs = tf.nn.bias_add(kernels.matmul(inputs, kernel), bias)
    atoms = tf.reshape(outputs, [-1, self.num_actions, self.num_atoms])
    atoms = tf.cast(atoms, tf.float32)
    return NetworkOutput(self.q_values(atoms), features, atoms)

  def _as_arithmetic(self, weights: Sequence[Any]) -> list[tf.Tensor]:
    return [tf.cast(weight, self.arithmetic_dtype) for weight in weights]


@gin.configurable
class NatureNetwork(ValueNetwork):
  """The network of Mnih et al. 2015, with SAME padding as in Dopamine."""

  convolutions = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
  num_features = 512
  scale = 255.0


@gin.configurable
class MinAtarNetwork(ValueNetwork):
  """The network of Young and Tian 2019 (arXiv:1903.03176), padded to SAME."""

  convolutions = ((16, 3, 1),)
  num_features = 128
  scale = 1.0  # Observations are 0 or 1.

  @ranges.checked
  def __init__(
    self,
    num_actions: int,
    num_features: ranges.Count = num_features,
    **kwargs: Any,
  ):
    super().__init__(num_actions, **kwargs)
    self.num_features = num_features


@gin.configurable
class MLPNetwork(ValueNetwork):
  """Dense `layers` with ReLUs over a state's numbers; the last are features."""

  scale = 1.0

  @ranges.checked
  def __init__(
    self, num_actions: int, layers: Sequence[int] = (256, 256), **kwargs: Any
  ):
    if not layers or min(layers) < 1:
      raise ValueError(
        f'MLPNetwork.layers is {layers!r}; it must hold the units of one or '
        'more hidden layers'
      )
    super().__init__(num_actions, **kwargs)
    self._hidden = tuple(layers)
    self.num_features = layers[-1]

  def _encoder_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.pairwise((math.prod(shape), *self._hidden)))

  def _encode(
    self, layers: Sequence[tuple[Any, Any]], activations: tf.Tensor
  ) -> tf.Tensor:
    size = math.prod(activations.shape.as_list()[1:])
    activations = tf.reshape(activations, [-1, size])
    for kernel, bias in layers:
      hidden = kernels.matmul(activations, kernel)
      activations = tf.nn.relu(tf.nn.bias_add(hidden, bias))
    return activations


@gin.configurable
class ImpalaNetwork(ValueNetwork):
  """Three stacks: a convolution, max pooling and two residual blocks each.

  arXiv:1802.01561 with the parameters of Dopamine's ImpalaDQNNetwork; `width`
  multiplies the filters. Deviation: the agent's initialiser is every layer's,
  where Dopamine's residual blocks have Flax's default.
  """

  num_features = 512
  scale = 255.0

  @ranges.checked
  def __init__(self, num_actions: int, width: ranges.Count = 1, **kwargs: Any):
    super().__init__(num_actions, **kwargs)
    # The pooling halves what the first convolution of a stack puts out.
    self.convolutions = tuple(
      (filters * width, 3, 2 if layer == 0 else 1)
      for filters in _IMPALA_STACKS
      for layer in range(1 + 2 * _IMPALA_BLOCKS)
    )

  def _encode(
    self, layers: Sequence[tuple[Any, Any]], activations: tf.Tensor
  ) -> tf.Tensor:
    remaining = iter(layers)

    def convolve(inputs: tf.Tensor) -> tf.Tensor:
      kernel, bias = next(remaining)
      return tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, 1, 'SAME'), bias)

    for _ in _IMPALA_STACKS:
      activations = tf.nn.max_pool2d(convolve(activations), 3, 2, 'SAME')
      for _ in range(_IMPALA_BLOCKS):
        hidden = convolve(tf.nn.relu(activations))
        activations += convolve(tf.nn.relu(hidden))
    return tf.nn.relu(activations)
