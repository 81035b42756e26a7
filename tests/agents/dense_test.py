import numpy as np

import batch_rl_dr3  # noqa: F401

# isort: split
import tensorflow as tf

from batch_rl_dr3.agents import kernels


def test_value_and_gradients_are_those_of_a_product(session):
  rng = np.random.default_rng(0)
  inputs, kernel, weights = (
    tf.constant(rng.normal(size=shape), tf.float32)
    for shape in ((4, 7), (7, 5), (4, 5))
  )

  def value_and_gradients(product):
    loss = tf.reduce_sum(tf.square(product) * weights)
    return [product, *tf.gradients(loss, [inputs, kernel])]

  ours, plain = session.run(
    [
      value_and_gradients(kernels.matmul(inputs, kernel)),
      value_and_gradients(tf.matmul(inputs, kernel)),
    ]
  )
  for a, b in zip(ours, plain, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
