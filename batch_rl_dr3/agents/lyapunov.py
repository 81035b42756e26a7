"""The discrete Lyapunov equation inside a graph."""

from typing import NamedTuple

import tensorflow as tf


class Solution(NamedTuple):
  """What the iteration came to.

  Attributes:
    covariance: [D, D], Sigma.
    has_converged: bool scalar.
  """

  covariance: tf.Tensor
  has_converged: tf.Tensor


def fixed_point(
  pseudo_hessian: tf.Tensor,
  noise: tf.Tensor,
  step_size: tf.Tensor,
  num_doublings: int = 24,
  tolerance: float = 1e-6,
) -> Solution:
  """Returns Sigma = (I - eta G) Sigma (I - eta G)^T + eta^2 M.

  The covariance of Theorem 3.1 of Kumar et al. 2022 (arXiv:2112.04716), by
  iterating the equation from Sigma = 0. With A = I - eta G, the iterate after
  2k rounds is Sigma_2k = Sigma_k + A^k Sigma_k (A^k)^T, so that rounds are
  doubled instead of counted: 24 doublings are 16 million rounds, for three
  products of matrices each. It ends as soon as A^k is negligible.

  Args:
    pseudo_hessian: float [D, D], G. Damp it (add a multiple of I) where it is
      not positive in every direction.
    noise: float of the same shape, M.
    step_size: float scalar, eta.
    num_doublings: doublings at most.
    tolerance: the norm of A^k (Frobenius, over that of I) to end at. What is
      left out of Sigma is of the order of its square.

  Returns:
    The solution, in the arguments' dtype. It has not converged if A^k is not
    negligible at the end, or is not finite: then I - eta G is no contraction
    and there is no covariance to return.

  Raises:
    ValueError: if G is not square, or M's shape is another.
  """
  pseudo_hessian.shape.assert_has_rank(2)
  dimension = pseudo_hessian.shape.as_list()[0]
  pseudo_hessian.shape.assert_is_compatible_with([dimension, dimension])
  noise.shape.assert_is_compatible_with(pseudo_hessian.shape)
  dtype = pseudo_hessian.dtype
  identity = tf.eye(dimension, dtype=dtype)
  power = identity - step_size * pseudo_hessian
  size = tf.norm(identity)

  def goes_on(
    doubling: tf.Tensor, covariance: tf.Tensor, power: tf.Tensor
  ) -> tf.Tensor:
    del covariance
    remaining = tf.norm(power)
    return (
      (doubling < num_doublings)
      & (remaining > tolerance * size)
      # Beyond it there is nothing but overflow.
      & (remaining < size / tolerance)
    )

  def double(
    doubling: tf.Tensor, covariance: tf.Tensor, power: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    spread = tf.matmul(tf.matmul(power, covariance), power, transpose_b=True)
    return doubling + 1, covariance + spread, tf.matmul(power, power)

  _, covariance, power = tf.while_loop(
    goes_on,
    double,
    (tf.constant(0), tf.square(step_size) * noise, power),
    maximum_iterations=num_doublings,
  )
  covariance = (covariance + tf.transpose(covariance)) / 2.0
  has_converged = (tf.norm(power) <= tolerance * size) & tf.reduce_all(
    tf.math.is_finite(covariance)
  )
  return Solution(covariance, has_converged)
