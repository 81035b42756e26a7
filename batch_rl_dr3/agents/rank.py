"""The effective-rank penalty that DR3 is compared with."""

import tensorflow as tf


def effective_rank_penalty(features: tf.Tensor) -> tf.Tensor:
  """Returns sigma_max(Phi)^2 - sigma_min(Phi)^2 of a batch of features.

  Kumar et al. 2021 (arXiv:2010.14498), Section 6. The squared singular values
  are the eigenvalues of the smaller Gram matrix, [B, B] or [D, D], which is
  cheaper than a singular value decomposition of [B, D] and has a gradient.

  Args:
    features: float32 [B, D].

  Returns:
    float32 scalar, >= 0.

  Raises:
    ValueError: if the rank is not 2.
  """
  features.shape.assert_has_rank(2)
  batch_size, dimension = features.shape.as_list()
  gram = tf.matmul(
    features,
    features,
    transpose_a=dimension < batch_size,
    transpose_b=dimension >= batch_size,
  )
  eigenvalues = tf.linalg.eigvalsh(gram)  # In ascending order.
  return eigenvalues[-1] - eigenvalues[0]
