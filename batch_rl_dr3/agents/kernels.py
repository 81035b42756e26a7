"""Plain functions' arithmetic, arranged to be fast on a CPU.

A fully connected layer's gradient by its input is dy W^T, for which TensorFlow
transposes W inside oneDNN: 1.6 times the time, on a wide W (7,744 x 512, batch
64), of (W dy^T)^T, the same sums with W as it lies in memory.

The quantile Huber loss is computed by sorting, in N log N. For one prediction p
it is a sum over targets of a function of u = target - p that is linear below
-kappa, quadratic up to 0 and up to kappa, and linear above. Of sorted targets,
each stretch is a range, and its sums of u and u^2 are differences of prefix
sums, in float64 and about the targets' mean for float32's precision. That takes
an eighth of the time of the loss over [N, M] pairs, a tenth of a training step.
XLA fuses those passes and sorts badly: under `compiling` it is
`losses.quantile_huber` itself.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
from typing import Any

import tensorflow as tf

from batch_rl_dr3.agents import losses

_is_compiling = contextvars.ContextVar('is_compiling', default=False)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
  """Marks what is built within as compiled by XLA."""
  token = _is_compiling.set(True)
  try:
    yield
  finally:
    _is_compiling.reset(token)


@tf.custom_gradient
def _matmul(
  inputs: tf.Tensor, kernel: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
  def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    by_inputs = tf.transpose(tf.matmul(kernel, tf.transpose(upstream)))
    return by_inputs, tf.matmul(inputs, upstream, transpose_a=True)

  return tf.matmul(inputs, kernel), gradient


def matmul(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
  """Returns inputs [B, D] times a kernel [D, N], a tensor or a variable."""
  return _matmul(inputs, tf.convert_to_tensor(kernel))


def pair_features(
  network: Any,
  weights: Sequence[Any],
  states: tf.Tensor,
  next_states: tf.Tensor,
  in_one_pass: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns a `ValueNetwork`'s features of s and of s', float32 [B, D] each.

  One pass pays where gradients flow through both: kernels are then read, and
  their gradients written, once.
  """
  if in_one_pass:
    both = network.features(weights, tf.concat([states, next_states], axis=0))
    return tf.split(both, 2)
  return tuple(network.features(weights, s) for s in (states, next_states))


def quantile_huber(
  target: tf.Tensor, prediction: tf.Tensor, kappa: float = 1.0
) -> tf.Tensor:
  """Returns `losses.quantile_huber`, with no gradient into the target."""
  target.shape.assert_has_rank(2)
  prediction.shape.assert_has_rank(2)
  target.shape[:1].assert_is_compatible_with(prediction.shape[:1])
  if _is_compiling.get():
    return losses.quantile_huber(target, prediction, kappa)
  target = tf.stop_gradient(target)

  @tf.custom_gradient
  def loss(
    prediction: tf.Tensor,
  ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    value, slope = _value_and_slope(target, prediction, kappa)
    return value, lambda upstream: upstream[:, tf.newaxis] * slope

  return loss(prediction)


def _value_and_slope(
  target: tf.Tensor, prediction: tf.Tensor, kappa: float
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the loss [B] and its derivative [B, N]."""
  num_quantiles = prediction.shape.as_list()[1]
  num_targets = target.shape.as_list()[1]
  taus = (tf.range(num_quantiles, dtype=tf.float64) + 0.5) / num_quantiles
  counts, sums, squares = _sum_stretches(target, prediction, kappa)
  below, above = 1.0 - taus, taus  # The weight of an error by its sign.
  huber = below * (
    0.5 * squares[:, 1] - kappa * (sums[:, 0] + 0.5 * kappa * counts[:, 0])
  ) + above * (
    0.5 * squares[:, 2] + kappa * (sums[:, 3] - 0.5 * kappa * counts[:, 3])
  )
  slope = below * (sums[:, 1] - kappa * counts[:, 0]) + above * (
    sums[:, 2] + kappa * counts[:, 3]
  )
  scale = 1.0 / (kappa * num_targets)
  return (
    tf.cast(scale * tf.reduce_sum(huber, axis=1), tf.float32),
    tf.cast(-scale * slope, tf.float32),
  )


def _sum_stretches(
  target: tf.Tensor, prediction: tf.Tensor, kappa: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns how many targets, and the sums of u and u^2: [B, 4, N] each.

  The four are u < -kappa, -kappa <= u < 0, 0 <= u < kappa, kappa <= u.
  """
  num_quantiles = prediction.shape.as_list()[1]
  ascending = tf.cast(tf.sort(target, axis=1), tf.float64)
  centre = tf.reduce_mean(ascending, axis=1, keepdims=True)
  ascending -= centre
  centred = tf.cast(prediction, tf.float64) - centre
  bounds = tf.searchsorted(
    ascending, tf.concat([centred - kappa, centred, centred + kappa], axis=1)
  )
  powers = [tf.ones_like(ascending), ascending, tf.square(ascending)]
  prefix_sums = tf.cumsum(tf.stack(powers, axis=2), axis=1)
  prefix_sums = tf.pad(prefix_sums, [[0, 0], [1, 0], [0, 0]])  # [B, M + 1, 3]
  first, last = (
    tf.repeat(end, num_quantiles, axis=1)
    for end in (prefix_sums[:, :1], prefix_sums[:, -1:])
  )
  inner = tf.gather(prefix_sums, bounds, batch_dims=1)
  edges = tf.concat([first, inner, last], axis=1)
  rise = edges[:, num_quantiles:] - edges[:, :-num_quantiles]
  counts, sums, squares = tf.unstack(
    tf.reshape(rise, [-1, 4, num_quantiles, 3]), axis=3
  )
  shift = centred[:, tf.newaxis]
  return (
    counts,
    sums - counts * shift,
    squares - 2.0 * shift * sums + counts * tf.square(shift),
  )
