"""DR3: the explicit regulariser on the features of consecutive pairs."""

import tensorflow as tf


def feature_dot_product(
  features: tf.Tensor,
  next_features: tf.Tensor,
  stop_gradient: bool = False,
) -> tf.Tensor:
  """Returns phi(s, a)^T phi(s', a') of every transition.

  Eq. 7 of Kumar et al. 2022 (arXiv:2112.04716), before the sum over the data.

  Args:
    features: float32 [B, D], penultimate-layer features of (s, a).
    next_features: float32 [B, D], features of (s', a') by the same online
      network.
    stop_gradient: whether the second factor is a constant for the gradient
      (Table A.1's ablation). By default gradients flow into both, as the
      paper's DR3 has it.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the two shapes are not the same [B, D].
  """
  features.shape.assert_has_rank(2)
  features.shape.assert_is_compatible_with(next_features.shape)
  if stop_gradient:
    next_features = tf.stop_gradient(next_features)
  return tf.reduce_sum(features * next_features, axis=1)


def feature_cosine(features: tf.Tensor, next_features: tf.Tensor) -> tf.Tensor:
  """Returns phi^T phi' / (|phi| |phi'|) of every transition.

  It is 0 where a feature vector is 0.

  Args:
    features: float32 [B, D].
    next_features: float32 [B, D]. Gradients flow into both.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the two shapes are not the same [B, D].
  """
  return feature_dot_product(
    tf.nn.l2_normalize(features, axis=1),
    tf.nn.l2_normalize(next_features, axis=1),
  )
