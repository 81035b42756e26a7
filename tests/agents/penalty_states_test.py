"""Penalties with a state, inside agents."""

import numpy as np
import pytest

from batch_rl_dr3.agents import bellman, stateful_penalties
from batch_rl_dr3.analysis import td_theory

# isort: split
import tensorflow as tf

STATES = ('label_noise_feature_dot_product/', 'adaptive_feature_dot_product/')


@pytest.fixture
def make_stateful(make_agent):
  def make(coefficient=0.03, **kwargs):
    label_noise = stateful_penalties.LabelNoiseFeatureDotPenalty(
      coefficient, refresh_period=2, decay=0.5
    )
    adaptive = stateful_penalties.AdaptiveFeatureDotPenalty(
      0.01, target=0.2, rate=0.1, normalised=True
    )
    return make_agent(
      bellman.FixedReplayDQNAgent,
      penalties=[label_noise, adaptive] if coefficient else [label_noise],
      # As in pure_step_test: with 1e-8, rounding moves weights.
      optimizer=tf.compat.v1.train.AdamOptimizer(1e-3, epsilon=3.125e-4),
      target_update_period=2,
      **kwargs,
    )

  return make


def train(agent, num_steps):
  step = agent.make_train_step()
  return [step() for _ in range(num_steps)]


def test_states_follow_the_features_before_each_step(make_stateful, weights):
  agent = make_stateful()
  replay = agent.replay
  features, next_features = (
    agent.features(states)
    for states in agent.run(
      [replay.transition['state'], replay.transition['next_state']]
    )
  )
  terminals = agent.run(replay.transition['terminal'])
  measured = agent.measure()
  train(agent, 1)
  after = weights(agent)
  noise = features.T @ features / 32
  backed_up = 0.99 * (1 - terminals[:, None]) * next_features
  hessian = features.T @ (features - backed_up) / 32
  scale = np.abs(noise).max()
  for name, expected in (('noise', noise), ('pseudo_hessian', hessian)):
    np.testing.assert_allclose(
      after[f'{STATES[0]}{name}:0'], 0.5 * expected, atol=1e-4 * scale
    )
  # log c <- log 0.01 + 0.1 (cosine - 0.2).
  cosines = np.sum(features * next_features, axis=1) / (
    np.linalg.norm(features, axis=1) * np.linalg.norm(next_features, axis=1)
  )
  np.testing.assert_allclose(measured['feature_cosine'], cosines.mean(), 1e-5)
  np.testing.assert_allclose(
    after[f'{STATES[1]}log_coefficient:0'],
    np.log(0.01) + 0.1 * (cosines.mean() - 0.2),
    rtol=1e-5,
  )
  np.testing.assert_array_equal(after[f'{STATES[0]}covariance:0'], np.eye(128))


def test_covariance_and_coefficient_are_those_of_the_state(
  make_stateful, weights
):
  agent = make_stateful()
  train(agent, 2)
  state = weights(agent)
  hessian, noise, covariance = (
    state[f'{STATES[0]}{name}:0'].astype(np.float64)
    for name in ('pseudo_hessian', 'noise', 'covariance')
  )
  damping = 0.1 * np.trace(noise) / 128
  expected = td_theory.stationary_covariance(
    hessian + damping * np.eye(128), noise, 0.1 / np.trace(noise)
  )
  expected *= 128 / np.trace(expected)
  np.testing.assert_allclose(
    covariance, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
  )
  measured = agent.measure()
  assert measured['label_noise_anisotropy'] > 0.1
  # The total has the adaptive coefficient as it is by now.
  assert measured['adaptive_coefficient'] > 0.01
  np.testing.assert_allclose(
    measured['loss_total'],
    measured['loss_bellman']
    + 0.03 * measured['loss_label_noise_feature_dot_product']
    + measured['adaptive_coefficient']
    * measured['loss_adaptive_feature_dot_product'],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    measured['loss_adaptive_feature_dot_product'],
    measured['feature_cosine'],
    rtol=1e-6,
  )


def test_restoring_goes_on_bit_for_bit(make_stateful, weights, tmp_path):
  straight, resumed = make_stateful(), make_stateful()
  train(straight, 3)
  straight.save(str(tmp_path / 'tf_ckpt-0'))
  train(straight, 4)
  resumed.restore(str(tmp_path / 'tf_ckpt-0'))
  train(resumed, 4)
  first, second = weights(straight), weights(resumed)
  assert first.keys() == second.keys()
  for state in STATES:
    assert any(name.startswith(state) for name in first)
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.slow
def test_with_coefficient_zero_training_is_bit_identical(
  make_stateful, make_agent, weights
):
  with_zero = make_stateful(coefficient=0.0)
  without = make_agent(
    bellman.FixedReplayDQNAgent,
    optimizer=tf.compat.v1.train.AdamOptimizer(1e-3, epsilon=3.125e-4),
    target_update_period=2,
  )
  train(with_zero, 4)
  train(without, 4)
  expected, found = weights(without), weights(with_zero)
  for name in expected:
    np.testing.assert_array_equal(expected[name], found[name], err_msg=name)


@pytest.mark.slow
def test_compiled_steps_equal_the_plain_graphs(make_stateful, weights):
  plain, compiled = make_stateful(), make_stateful()
  train(plain, 3)
  compiled.make_compiled_steps('cpu')(3)
  first, second = weights(plain), weights(compiled)
  assert first.keys() == second.keys()
  for name in first:
    scale = max(1.0, np.abs(first[name]).max())
    np.testing.assert_allclose(
      first[name], second[name], rtol=1e-4, atol=2e-5 * scale, err_msg=name
    )
