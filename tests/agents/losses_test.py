import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents import losses


def test_huber_by_hand(session):
  # errors 0.5, -3, 0, 1: 0.5 * 0.25, 3 - 0.5, 0, 0.5 * 1.
  loss = losses.huber(
    tf.constant([1.5, 0.0, 2.0, 1.0]), tf.constant([1.0, 3.0, 2.0, 0.0])
  )
  np.testing.assert_allclose(session.run(loss), [0.125, 2.5, 0.0, 0.5])


def test_huber_equals_the_one_dopamine_uses(session):
  rng = np.random.default_rng(0)
  target, prediction = rng.normal(size=(2, 64), scale=2).astype(np.float32)
  ours = losses.huber(tf.constant(target), tf.constant(prediction))
  dopamines = tf.compat.v1.losses.huber_loss(
    target, prediction, reduction=tf.compat.v1.losses.Reduction.NONE
  )
  np.testing.assert_allclose(*session.run([ours, dopamines]), rtol=1e-6)


def test_huber_refuses_broadcasting():
  with pytest.raises(ValueError):
    losses.huber(tf.zeros([4]), tf.zeros([4, 1]))


def test_bellman_target_by_hand_for_values_and_for_quantiles(session):
  rewards = tf.constant([1.0, -1.0])
  terminals = tf.constant([0, 1], tf.uint8)
  # 1 + 0.5 * 4 = 3; the terminal keeps its reward alone.
  values = losses.bellman_target(
    rewards, terminals, tf.constant([4.0, 7.0]), 0.5
  )
  np.testing.assert_allclose(session.run(values), [3.0, -1.0])
  quantiles = losses.bellman_target(
    rewards, terminals, tf.constant([[4.0, 6.0], [7.0, 9.0]]), 0.5
  )
  np.testing.assert_allclose(session.run(quantiles), [[3.0, 4.0], [-1.0, -1.0]])


def test_bellman_target_passes_no_gradient(session):
  next_values = tf.constant([4.0, 7.0])
  target = losses.bellman_target(tf.zeros([2]), tf.zeros([2]), next_values, 0.9)
  assert tf.gradients(target, next_values) == [None]


def test_bellman_target_refuses_another_batch_size():
  with pytest.raises(ValueError):
    losses.bellman_target(tf.zeros([2]), tf.zeros([2]), tf.zeros([3]), 0.9)


def test_chosen_and_expected_values_by_hand(session):
  values = tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
  chosen = losses.chosen_values(values, tf.constant([2, 0]))
  np.testing.assert_allclose(session.run(chosen), [3.0, 4.0])
  # 0.5 * 1 + 0.5 * 3 = 2; 0.25 * 4 + 0.75 * 5 = 4.75.
  policy = tf.constant([[0.5, 0.0, 0.5], [0.25, 0.75, 0.0]])
  expected = losses.expected_values(values, policy)
  np.testing.assert_allclose(session.run(expected), [2.0, 4.75])
  atoms = tf.stack([values, 10.0 * values], axis=2)
  expected_atoms = losses.expected_values(atoms, policy)
  np.testing.assert_allclose(
    session.run(expected_atoms), [[2.0, 20.0], [4.75, 47.5]]
  )


def test_quantile_huber_by_hand(session):
  # N = 2, taus 0.25 and 0.75; one target, 1; predictions 0 and 3.
  # u = 1: huber 0.5, weight 0.25 -> 0.125.
  # u = -2: huber 1.5, weight |0.75 - 1| = 0.25 -> 0.375. Sum 0.5.
  loss = losses.quantile_huber(tf.constant([[1.0]]), tf.constant([[0.0, 3.0]]))
  np.testing.assert_allclose(session.run(loss), [0.5])


@pytest.mark.parametrize('kappa', [0.5, 1.0, 2.0])
def test_quantile_huber_equals_a_float64_rederivation(session, kappa):
  rng = np.random.default_rng(1)
  target = rng.normal(size=(5, 7), scale=2)
  prediction = rng.normal(size=(5, 9), scale=2)
  expected = np.zeros(5)
  for b in range(5):
    for i in range(9):
      tau = (i + 0.5) / 9
      for j in range(7):
        u = target[b, j] - prediction[b, i]
        huber = (
          0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
        )
        expected[b] += abs(tau - (u < 0)) * huber / kappa / 7
  loss = losses.quantile_huber(
    tf.constant(target, tf.float32), tf.constant(prediction, tf.float32), kappa
  )
  np.testing.assert_allclose(session.run(loss), expected, rtol=1e-5)


def test_quantile_huber_moves_quantiles_apart(session):
  # With targets spread around equal predictions, low quantiles are pushed
  # down (positive gradient) and high ones up.
  prediction = tf.constant([[0.0, 0.0, 0.0]])
  loss = losses.quantile_huber(
    tf.constant([[-1.0, 0.5, -0.5, 1.0]]), prediction
  )
  gradient = session.run(tf.gradients(loss, prediction)[0])[0]
  assert gradient[0] > 0 > gradient[2]
  np.testing.assert_allclose(gradient[1], 0.0, atol=1e-6)


def test_quantile_huber_refuses_another_batch_size():
  with pytest.raises(ValueError):
    losses.quantile_huber(tf.zeros([2, 3]), tf.zeros([3, 3]))
