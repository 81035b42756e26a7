"""BRAC: divergences by hand, value penalty, alpha, warm start."""

import math

import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import brac_agent


def test_kl_is_the_mean_log_ratio():
  """((-1 + 2) + (-3 + 2)) / 2 = 0 and ((0 - 1) + (2 - 1)) / 2 = 0; shifted."""
  ours = tf.constant([[-1.0, 0.5], [-3.0, 2.0]])
  behaviours = tf.constant([[-2.0, 1.0], [-2.5, 1.0]])
  np.testing.assert_allclose(
    brac_agent.kl(ours, behaviours), [0.25, 0.25], rtol=1e-6
  )


def test_mmd_by_hand():
  """One action each at L1 distance 2: 1 - 2 exp(-2 / 20) + 1."""
  one, other = tf.zeros((1, 1, 2)), tf.ones((1, 1, 2))
  expected = 2.0 - 2.0 * math.exp(-0.1)
  np.testing.assert_allclose(brac_agent.mmd(one, other), [expected], rtol=1e-5)
  np.testing.assert_allclose(brac_agent.mmd(one, one), [0.0], atol=1e-7)
  # Two of ours, 0 and 2 away: k11 = (1 + 1 + 2e^-.1) / 4, k12 = (1 + e^-.1)/2.
  two = tf.concat([one, other], axis=0)
  e = math.exp(-0.1)
  np.testing.assert_allclose(
    brac_agent.mmd(two, other), [(1 + e) / 2 - (1 + e) + 1.0], rtol=1e-4
  )


@pytest.mark.parametrize('divergence', ['kl', 'mmd'])
@pytest.mark.parametrize('value_penalty', [False, True])
def test_the_backup(make_brac, batch, divergence, value_penalty):
  """min Q'(s', a') less alpha D(s'), or without it."""
  agent = make_brac(
    divergence=divergence, value_penalty=value_penalty, alpha=0.4
  )
  time_steps, policy_steps, next_time_steps = batch
  with agent._seeds.purpose('critic'):
    actions, distance = agent._actions_and_log_probs(next_time_steps)
  assert distance.shape == (6,)
  following = (next_time_steps.observation, actions)
  target = tf.minimum(
    agent._target_critic_network_1(following)[0],
    agent._target_critic_network_2(following)[0],
  )
  if value_penalty:
    target -= 0.4 * distance
  target = next_time_steps.reward + 0.9 * next_time_steps.discount * target
  pairs = (time_steps.observation, policy_steps.action)
  expected = sum(
    np.mean((target - critic(pairs)[0]) ** 2) for critic in agent.critics
  )
  found = agent.critic_loss(
    time_steps,
    policy_steps.action,
    next_time_steps,
    td_errors_loss_fn=tf.math.squared_difference,
    gamma=0.9,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  with agent._seeds.purpose('critic'):
    np.testing.assert_array_equal(agent._backup(next_time_steps)[0], actions)


def test_the_policy_sees_no_q_before_its_warm_start_is_over(make_brac, batch):
  agent = make_brac(alpha=0.4, num_warm_start_steps=2)
  time_steps = batch[0]
  with agent._seeds.purpose('actor'):
    actions, distance = agent._actions_and_log_probs(time_steps, True)
  np.testing.assert_allclose(
    agent.actor_loss(time_steps), 0.4 * np.mean(distance), rtol=1e-4
  )
  agent.train_step_counter.assign(2)
  with agent._seeds.purpose('actor'):
    actions, distance = agent._actions_and_log_probs(time_steps, True)
  values = [c((time_steps.observation, actions))[0] for c in agent.critics]
  np.testing.assert_allclose(
    agent.actor_loss(time_steps),
    np.mean(0.4 * distance - tf.minimum(*values)),
    rtol=1e-4,
  )


@pytest.mark.slow
@pytest.mark.parametrize('train_alpha', [False, True])
def test_alpha_is_fixed_or_holds_the_divergence(make_brac, batch, train_alpha):
  agent = make_brac(
    alpha=0.4, train_alpha=train_alpha, target_divergence=-100.0
  )
  agent.train(batch)
  alpha = float(tf.exp(agent._log_alpha))
  if train_alpha:  # The divergence is above its target: alpha has to grow.
    assert alpha > 1.0
  else:
    np.testing.assert_allclose(alpha, 0.4, rtol=1e-6)


@pytest.mark.slow
def test_the_behaviour_policy_is_not_trained(make_brac, batch):
  agent = make_brac()
  agent.loss(batch)
  before = [v.numpy() for v in agent.behaviour_network.variables]
  agent.train(batch)
  for one, other in zip(before, agent.behaviour_network.variables, strict=True):
    np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize(
  ('binding', 'error'),
  [
    ({'divergence': 'wasserstein'}, ValueError),
    ({'alpha': 0.0}, errors.ConfigError),
    ({'num_divergence_samples': 0}, errors.ConfigError),
    ({'target_update_tau': 2.0}, errors.ConfigError),
  ],
)
def test_settings_out_of_range_are_refused(make_brac, binding, error):
  with pytest.raises(error, match=next(iter(binding))):
    make_brac(**binding)
