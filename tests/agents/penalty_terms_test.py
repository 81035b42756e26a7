"""The pure functions behind the penalties: CQL, DR3, effective rank."""

import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents import losses


def test_conservative_by_hand(session):
  # Equal values: log 3. Values (0, log 3): log(1 + 3) - log 3 = log(4/3).
  q_values = tf.constant([[5.0, 5.0, 5.0], [0.0, np.log(3.0), -1e9]])
  values = session.run(losses.conservative(q_values, tf.constant([1, 1])))
  np.testing.assert_allclose(values, [np.log(3.0), np.log(4 / 3)], rtol=1e-6)


def test_conservative_gradient_is_softmax_minus_the_data(session):
  q_values = tf.constant([[0.0, np.log(3.0)]], tf.float32)
  loss = losses.conservative(q_values, tf.constant([0]))
  gradient = session.run(tf.gradients(loss, q_values)[0])
  np.testing.assert_allclose(gradient, [[0.25 - 1.0, 0.75]], rtol=1e-6)


def test_conservative_refuses_another_batch_size():
  with pytest.raises(ValueError):
    losses.conservative(tf.zeros([2, 3]), tf.zeros([3], tf.int32))


def test_feature_dot_product_by_hand(session):
  # 1*3 + 2*4 = 11; 0*5 + -1*6 = -6.
  dots = losses.feature_dot_product(
    tf.constant([[1.0, 2.0], [0.0, -1.0]]),
    tf.constant([[3.0, 4.0], [5.0, 6.0]]),
  )
  np.testing.assert_allclose(session.run(dots), [11.0, -6.0])


@pytest.mark.parametrize('stop_gradient', [False, True])
def test_feature_dot_product_gradient(session, stop_gradient):
  features = tf.constant([[1.0, 2.0]])
  next_features = tf.constant([[3.0, 4.0]])
  dots = losses.feature_dot_product(features, next_features, stop_gradient)
  first, second = tf.gradients(
    dots, [features, next_features], unconnected_gradients='zero'
  )
  np.testing.assert_allclose(session.run(first), [[3.0, 4.0]])
  expected = [[0.0, 0.0]] if stop_gradient else [[1.0, 2.0]]
  np.testing.assert_allclose(session.run(second), expected)


def test_feature_dot_product_refuses_another_dimension():
  with pytest.raises(ValueError):
    losses.feature_dot_product(tf.zeros([2, 3]), tf.zeros([2, 4]))


@pytest.mark.parametrize('shape', [(2, 5), (5, 2), (4, 4)])
def test_effective_rank_penalty_equals_singular_values(session, shape):
  features = np.random.default_rng(2).normal(size=shape)
  sigma = np.linalg.svd(features, compute_uv=False)
  value = session.run(
    losses.effective_rank_penalty(tf.constant(features, tf.float32))
  )
  np.testing.assert_allclose(value, sigma[0] ** 2 - sigma[-1] ** 2, rtol=1e-4)


def test_effective_rank_penalty_by_hand(session):
  # Singular values 3 and 2: 9 - 4.
  value = losses.effective_rank_penalty(tf.constant([[3.0, 0.0], [0.0, 2.0]]))
  np.testing.assert_allclose(session.run(value), 5.0, rtol=1e-6)


def test_effective_rank_penalty_gradient_by_finite_differences(session):
  features = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
  placeholder = tf.compat.v1.placeholder(tf.float32, [3, 4])
  value = losses.effective_rank_penalty(placeholder)
  gradient = session.run(
    tf.gradients(value, placeholder)[0], {placeholder: features}
  )
  for index in ((0, 0), (1, 2), (2, 3)):
    step = np.zeros((3, 4), np.float32)
    step[index] = 1e-2
    up = session.run(value, {placeholder: features + step})
    down = session.run(value, {placeholder: features - step})
    np.testing.assert_allclose(gradient[index], (up - down) / 2e-2, rtol=1e-2)


def test_effective_rank_penalty_refuses_a_vector():
  with pytest.raises(ValueError):
    losses.effective_rank_penalty(tf.zeros([3]))
