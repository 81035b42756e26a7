"""CQL against TF-Agents' own, and where it goes beyond it."""

import math

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.agents.cql import cql_sac_agent

from batch_rl_dr3.control import cql_agent, critics


def test_sampled_conservative_by_hand():
  """log(e^1 / e^-1 + e^2 / e^0) - 0.5 = log(2 e^2) - 0.5 = 2.1931."""
  value = cql_agent.sampled_conservative(
    tf.constant([[1.0, 2.0]]), tf.constant([[-1.0, 0.0]]), tf.constant([0.5])
  )
  np.testing.assert_allclose(value, [2.0 + math.log(2.0) - 0.5], rtol=1e-6)
  # With T = 2: log(e^(2+1) + e^(4)) / 2 - 0.5.
  value = cql_agent.sampled_conservative(
    tf.constant([[1.0, 2.0]]),
    tf.constant([[-1.0, 0.0]]),
    tf.constant([0.5]),
    2.0,
  )
  expected = math.log(math.exp(3) + math.exp(4)) / 2 - 0.5
  np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_no_gradient_flows_into_the_densities():
  densities = tf.Variable([[0.1, 0.2]])
  with tf.GradientTape() as tape:
    value = cql_agent.sampled_conservative(
      tf.constant([[1.0, 2.0]]), densities, tf.constant([0.5])
    )
  assert tape.gradient(value, densities) is None


def test_shapes_must_fit():
  with pytest.raises(ValueError):
    cql_agent.sampled_conservative(
      tf.zeros((2, 3)), tf.zeros((2, 4)), tf.zeros(2)
    )


def test_without_additions_it_is_the_parents_loss(make_cql, batch, monkeypatch):
  """The parent's loss, run on our agent with the seeds that ours draws."""

  def uniform(shape, minval, maxval, seed):
    return minval + (maxval - minval) * tf.random.stateless_uniform(shape, seed)

  agent = make_cql(next_proposals=False)
  monkeypatch.setattr(tf.random, 'uniform', uniform)
  time_steps, policy_steps, next_time_steps = batch
  with agent._seeds.purpose('conservative'):
    expected = cql_sac_agent.CqlSacAgent._cql_loss(
      agent, time_steps, policy_steps.action
    )
  np.testing.assert_allclose(
    agent._conservative(time_steps, policy_steps.action, next_time_steps),
    expected,
    rtol=1e-5,
  )


def test_bounds_given_one_by_one_have_the_same_density(make_cql, batch):
  """TF-Agents' own takes d times too much: -2.77 in place of -1.39."""
  agent = make_cql()
  spec = agent.action_spec
  for bounds in ((-1.0, 1.0), (np.full(2, -1.0), np.full(2, 1.0))):
    agent._action_spec = type(spec)(spec.shape, spec.dtype, *bounds)
    with agent._seeds.purpose('test'):
      actions, densities = agent._proposals(batch[0], batch[2])
    assert actions.shape == (6, 15, 2)  # 5 from pi(s), pi(s') and uniform.
    np.testing.assert_allclose(densities[:, 10:], -2 * math.log(2.0), rtol=1e-6)
    assert np.abs(actions[:, 10:]).max() <= 1.0


def test_max_q_backup_takes_the_smaller_maximum(make_cql, batch):
  agent = make_cql(max_q_backup=True, num_backup_samples=7)
  time_steps, policy_steps, next_time_steps = batch
  with agent._seeds.purpose('critic'):
    samples, _ = agent._sample_and_transpose_actions_and_log_probs(
      next_time_steps, 7
    )
  targets = agent._target_critic_network_1, agent._target_critic_network_2
  values = np.array(
    [
      [
        [float(critic((s[None], a[None]))[0][0]) for a in actions]
        for s, actions in zip(next_time_steps.observation, samples, strict=True)
      ]
      for critic in targets
    ]
  )  # [critics, B, samples]
  smaller = values.max(axis=2).argmin(axis=0)
  best = [values[c, i].argmax() for i, c in enumerate(smaller)]
  expected_actions = [samples[i, k].numpy() for i, k in enumerate(best)]
  target = next_time_steps.reward + 0.9 * next_time_steps.discount * (
    values.max(axis=2).min(axis=0)
  )
  pairs = (time_steps.observation, policy_steps.action)
  expected = sum(
    np.mean((target - critic(pairs)[0]) ** 2) for critic in agent.critics
  )
  found = agent._critic_loss_with_optional_entropy_term(
    time_steps,
    policy_steps.action,
    next_time_steps,
    td_errors_loss_fn=tf.math.squared_difference,
    gamma=0.9,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  with agent._seeds.purpose('critic'):
    actions, _ = agent._backup(next_time_steps)
  np.testing.assert_allclose(actions, expected_actions, rtol=1e-5)


@pytest.mark.slow
def test_lagrange_with_weight_and_clamp(make_cql, batch):
  """alpha' (w gap - tau), alpha' = exp(min(log alpha', 0))."""
  agent = make_cql(
    use_lagrange_cql_alpha=True,
    cql_tau=2.0,
    conservative_weight=5.0,
    log_cql_alpha_clipping=(-5.0, 0.0),
  )
  plain = make_cql()
  states, (actions, *_), next_states = batch
  weighted = float(agent._conservative(states, actions, next_states))
  gap = float(plain._conservative(states, actions, next_states))
  np.testing.assert_allclose(weighted, 5.0 * gap, rtol=1e-5)
  parts = agent.loss(batch).extra
  assert float(parts['cql_alpha']) == 1.0  # 1.5 before the clamp.
  np.testing.assert_allclose(
    parts['loss_cql_alpha'], -(weighted - 2.0), rtol=1e-5
  )


@pytest.mark.slow
def test_the_policy_clones_the_data_at_first(make_cql, batch):
  """alpha log pi(a') - log pi(a_data), for num_bc_steps gradient steps."""
  agent = make_cql(num_bc_steps=3)
  time_steps, policy_steps, _ = batch
  distribution = agent.policy.distribution(time_steps).action
  with agent._seeds.purpose('actor'):
    sampled = distribution.sample((), seed=agent._seeds())
  expected = tf.reduce_mean(
    distribution.log_prob(sampled) - distribution.log_prob(policy_steps.action)
  )
  found = agent.actor_loss(time_steps, policy_steps.action)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  agent.train_step_counter.assign(3)
  assert abs(float(agent.actor_loss(time_steps, policy_steps.action)) - found)


def test_noise_on_rewards_is_refused(make_cql):
  with pytest.raises(ValueError, match='reward_noise_variance'):
    make_cql(reward_noise_variance=0.1)


def test_seeds_depend_on_step_purpose_and_call_alone():
  step = tf.Variable(4, dtype=tf.int64)

  def draw(purpose, seed=0):
    seeds = critics.StepSeeds(seed, step)
    with seeds.purpose(purpose):
      return [tuple(seeds().numpy()) for _ in range(2)]

  first = draw('critic')
  assert first == draw('critic')
  others = [*first, *draw('actor'), *draw('critic', seed=1)]
  step.assign(5)
  others += draw('critic')
  assert len(set(others)) == 8
  with pytest.raises(RuntimeError, match='purpose'):
    critics.StepSeeds(0, step)()


def test_the_agent_is_a_cql_sac_agent():
  assert issubclass(cql_agent.DR3CqlSacAgent, cql_sac_agent.CqlSacAgent)
