import numpy as np
import pytest

import batch_rl_dr3  # noqa: F401

# isort: split
import tensorflow as tf

from batch_rl_dr3.agents import kernels, losses


@pytest.mark.parametrize('kappa', [0.5, 1.0, 2.0])
@pytest.mark.parametrize(('scale', 'shift'), [(0.1, 0), (2, 0), (50, 1000)])
def test_equals_the_loss_over_all_pairs(session, kappa, scale, shift):
  rng = np.random.default_rng(1)
  target = tf.constant(shift + scale * rng.normal(size=(5, 7)), tf.float32)
  prediction = tf.constant(shift + scale * rng.normal(size=(5, 9)), tf.float32)
  both = [
    module.quantile_huber(target, prediction, kappa)
    for module in (losses, kernels)
  ]
  values, gradients = session.run(
    [both, [tf.gradients(loss, prediction)[0] for loss in both]]
  )
  np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_equal_targets_and_predictions_cost_nothing(session):
  # All u are 0: no loss and no slope, at the joint of two stretches.
  values = tf.constant([[3.0, 3.0, 3.0]])
  loss = kernels.quantile_huber(values, tf.identity(values))
  assert session.run(loss).tolist() == [0.0]
  prediction = tf.constant([[3.0, 4.0, 2.0]])
  loss = kernels.quantile_huber(values, prediction)
  # tau 0.5: u = -1, huber 0.5, weight 0.5; tau 5/6: u = 1, weight 5/6.
  np.testing.assert_allclose(session.run(loss), [0.25 + 5 / 12], rtol=1e-6)
  gradient = session.run(tf.gradients(loss, prediction)[0])
  np.testing.assert_allclose(gradient, [[0.0, 0.5, -5 / 6]], atol=1e-6)


def test_no_gradient_into_targets(session):
  target = tf.constant([[1.0, 2.0]])
  loss = kernels.quantile_huber(target, tf.constant([[0.0]]))
  assert tf.gradients(loss, target) == [None]


def test_refuses_another_batch_size():
  with pytest.raises(ValueError):
    kernels.quantile_huber(tf.zeros([2, 3]), tf.zeros([3, 3]))
