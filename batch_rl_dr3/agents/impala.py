"""The residual network of IMPALA (arXiv:1802.01561), as Dopamine has it."""

from collections.abc import Sequence
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.agents import networks
from batch_rl_dr3.config import ranges

_STACKS = (16, 32, 32)  # Filters of each.
_NUM_BLOCKS = 2  # In a stack, of two convolutions each.


@gin.configurable
class ImpalaNetwork(networks.ValueNetwork):
  """Three stacks: a convolution, max pooling and two residual blocks each.

  The parameters are those of Dopamine's ImpalaDQNNetwork, width its nn_scale.
  Deviation: the agent's initialiser is every layer's, where Dopamine's residual
  blocks have Flax's default.
  """

  num_features = 512
  scale = 255.0

  @ranges.checked
  def __init__(self, num_actions: int, width: ranges.Count = 1, **kwargs: Any):
    """Creates a network with `width` times the filters; see ValueNetwork."""
    super().__init__(num_actions, **kwargs)
    # The pooling halves what the first convolution of a stack puts out.
    self.convolutions = tuple(
      (filters * width, 3, 2 if layer == 0 else 1)
      for filters in _STACKS
      for layer in range(1 + 2 * _NUM_BLOCKS)
    )

  def _convolve(
    self, layers: Sequence[tuple[Any, Any]], activations: tf.Tensor
  ) -> tf.Tensor:
    remaining = iter(layers)

    def convolve(inputs: tf.Tensor) -> tf.Tensor:
      kernel, bias = next(remaining)
      return tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, 1, 'SAME'), bias)

    for _ in _STACKS:
      activations = tf.nn.max_pool2d(convolve(activations), 3, 2, 'SAME')
      for _ in range(_NUM_BLOCKS):
        hidden = convolve(tf.nn.relu(activations))
        activations += convolve(tf.nn.relu(hidden))
    return tf.nn.relu(activations)
