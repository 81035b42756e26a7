import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents.stateful_penalties import LabelNoiseFeatureDotPenalty
from batch_rl_dr3.analysis import td_theory
from batch_rl_dr3.config import errors

PHI = np.array([[1.0, 2.0], [3.0, 0.0]])
BACKED_UP = np.array([[0.0, 0.0], [-2.0, 0.5]])  # The first ends its episode.


def tensors(state):
  return {name: tf.constant(value) for name, value in state.items()}


def test_before_the_first_solution_it_is_dr3(session, batch):
  penalty = LabelNoiseFeatureDotPenalty()
  state = tensors(penalty.initial_state(2))
  # Dot products 1*1 + 2*1 = 3 and 3*-4 = -12.
  np.testing.assert_allclose(session.run(penalty(batch(), state)), -4.5)
  measured = session.run(penalty.measures(batch(), state))
  assert measured == {'label_noise_anisotropy': 0, 'label_noise_failures': 0}


def test_value_by_hand(session, batch):
  penalty = LabelNoiseFeatureDotPenalty()
  state = tensors(penalty.initial_state(2))
  state['covariance'] = tf.constant([[2.0, 1.0], [1.0, 0.0]])
  # (1, 2) Sigma = (4, 1) and (3, 0) Sigma = (6, 3): 4 + 1, -24 + 3.
  np.testing.assert_allclose(session.run(penalty(batch(), state)), (5 - 21) / 2)
  # |((1, 1), (1, -1))| / sqrt(2).
  measured = session.run(penalty.measures(batch(), state))
  assert measured['label_noise_anisotropy'] == pytest.approx(2**0.5)


@pytest.mark.parametrize('stop_gradient', [False, True])
def test_gradient_by_hand(session, batch, stop_gradient):
  penalty = LabelNoiseFeatureDotPenalty(stop_gradient=stop_gradient)
  state = tensors(penalty.initial_state(2))
  state['covariance'] = tf.constant([[2.0, 1.0], [1.0, 0.0]])
  made = batch()
  gradients = tf.gradients(
    penalty(made, state),
    [made.features, made.next_features],
    unconnected_gradients='zero',
  )
  first, second = session.run(gradients)
  # Sigma (1, 1) = (3, 1), Sigma (-4, 1) = (-7, -4); halved by the mean.
  np.testing.assert_allclose(first, np.array([[3, 1], [-7, -4]]) / 2)
  expected = np.zeros((2, 2)) if stop_gradient else [[2, 0.5], [3, 1.5]]
  np.testing.assert_allclose(second, expected)


def test_the_running_means_by_hand(session, batch):
  penalty = LabelNoiseFeatureDotPenalty(decay=0.9)
  state = tensors(penalty.initial_state(2))
  state['noise'] = tf.constant([[10.0, 0.0], [0.0, 10.0]])
  after = session.run(penalty.next_state(batch(), state))
  # M: ((1, 2; 2, 4) + (9, 0; 0, 0)) / 2; G: phi^T (phi - gamma phi') / 2.
  np.testing.assert_allclose(
    after['noise'], 0.9 * 10 * np.eye(2) + 0.1 * PHI.T @ PHI / 2, rtol=1e-6
  )
  np.testing.assert_allclose(
    after['pseudo_hessian'],
    0.1 * PHI.T @ (PHI - BACKED_UP) / 2,
    rtol=1e-5,
  )
  np.testing.assert_array_equal(after['covariance'], np.eye(2))


def test_at_its_period_the_covariance_is_scipys(session, batch):
  penalty = LabelNoiseFeatureDotPenalty(
    refresh_period=5, decay=0.0, relative_step_size=0.1, relative_damping=0.1
  )
  state = tensors(penalty.initial_state(2))
  early = penalty.next_state(batch(step=tf.constant(3, tf.int64)), state)
  due = penalty.next_state(batch(step=tf.constant(4, tf.int64)), state)
  early, due = session.run([early, due])
  np.testing.assert_array_equal(early['covariance'], np.eye(2))
  noise = PHI.T @ PHI / 2
  hessian = PHI.T @ (PHI - BACKED_UP) / 2
  damped = hessian + 0.1 * np.trace(noise) / 2 * np.eye(2)
  expected = td_theory.stationary_covariance(
    damped, noise, 0.1 / np.trace(noise)
  )
  expected *= 2 / np.trace(expected)
  np.testing.assert_allclose(due['covariance'], expected, rtol=1e-5)
  assert np.trace(due['covariance']) == pytest.approx(2)
  assert due['failures'] == 0


def test_where_linear_td_diverges_the_last_covariance_stays(session, batch):
  penalty = LabelNoiseFeatureDotPenalty(refresh_period=1, decay=0.0)
  state = tensors(penalty.initial_state(2))
  state['covariance'] = tf.constant([[1.5, 0.0], [0.0, 0.5]])
  made = batch(
    next_features=tf.constant(3 * PHI, tf.float32),
    discounts=tf.constant([0.9, 0.9]),
  )
  after = session.run(penalty.next_state(made, state))
  np.testing.assert_array_equal(after['covariance'], np.diag([1.5, 0.5]))
  assert after['failures'] == 1
  assert np.isfinite(after['pseudo_hessian']).all()


def test_without_any_feature_the_last_covariance_stays(session, batch):
  penalty = LabelNoiseFeatureDotPenalty(refresh_period=1, decay=0.0)
  state = tensors(penalty.initial_state(2))
  made = batch(features=tf.zeros([2, 2]), next_features=tf.zeros([2, 2]))
  after = session.run(penalty.next_state(made, state))
  np.testing.assert_array_equal(after['covariance'], np.eye(2))
  assert after['failures'] == 1


@pytest.mark.parametrize(
  ('wrong', 'error'),
  [
    ({'refresh_period': 0}, errors.ConfigError),
    ({'decay': 1.0}, ValueError),
    ({'relative_step_size': 0.0}, errors.ConfigError),
    ({'relative_damping': -1.0}, errors.ConfigError),
  ],
)
def test_numbers_out_of_range_are_refused(wrong, error):
  with pytest.raises(error, match=next(iter(wrong))):
    LabelNoiseFeatureDotPenalty(**wrong)
