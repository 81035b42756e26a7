"""One pass over [s; s'] is two passes, one over s and one over s'."""

import numpy as np

import batch_rl_dr3  # noqa: F401

# isort: split
import tensorflow as tf

from batch_rl_dr3.agents import kernels, networks


def test_one_pass_equals_two(session):
  rng = np.random.default_rng(0)
  states, next_states = (
    tf.constant(rng.integers(0, 2, (5, 10, 10, 4, 1), dtype=np.uint8))
    for _ in range(2)
  )
  online = networks.MinAtarNetwork(3, num_atoms=4, seed=1)
  online(states)
  session.run(tf.compat.v1.global_variables_initializer())

  def outputs(in_one_pass):
    features, next_features = kernels.pair_features(
      online, online.variables, states, next_states, in_one_pass
    )
    output = online.output(online.variables, features)
    loss = tf.reduce_mean(features * next_features)
    loss += tf.reduce_mean(tf.square(output.atoms))
    return session.run(
      [
        output.q_values,
        next_features,
        *tf.gradients(loss, online.variables),
      ]
    )

  for one, two in zip(outputs(True), outputs(False), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
