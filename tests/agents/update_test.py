"""One pass over [s; s'] is two passes, one over s and one over s'."""

import numpy as np

import batch_rl_dr3  # noqa: F401

# isort: split
import tensorflow as tf

from batch_rl_dr3.agents import update, value_network


def test_one_pass_equals_two(session):
  rng = np.random.default_rng(0)
  transition = {
    name: tf.constant(rng.integers(0, 2, (5, 10, 10, 4, 1), dtype=np.uint8))
    for name in ('state', 'next_state')
  }
  online, target = (
    value_network.MinAtarNetwork(3, num_atoms=4, seed=seed) for seed in (1, 2)
  )
  for network in (online, target):
    network(transition['state'])
  weights = {update.ONLINE: online.variables, update.TARGET: target.variables}
  session.run(tf.compat.v1.global_variables_initializer())

  def outputs(learns_from_next_features):
    batch = update.build(
      online,
      target,
      weights,
      tf.constant(0, tf.int64),
      transition,
      learns_from_next_features,
    )
    loss = tf.reduce_mean(batch.outputs.features * batch.next_features)
    loss += tf.reduce_mean(tf.square(batch.outputs.atoms))
    return session.run(
      [
        batch.outputs.q_values,
        batch.next_target_outputs.q_values,
        batch.next_features,
        *tf.gradients(loss, online.variables),
      ]
    )

  for one, two in zip(outputs(True), outputs(False), strict=True):
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
