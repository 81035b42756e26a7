import numpy as np

from batch_rl_dr3.agents import bellman, networks

# isort: split
import tensorflow as tf


def test_mixture_is_convex_and_a_function_of_seed_and_step(session):
  def weights(seed, step):
    return session.run(
      bellman.mixture_weights(seed, tf.constant(step, tf.int64), 200)
    )

  first = weights(0, 5)
  assert first.shape == (200,)
  assert (first >= 0).all()
  np.testing.assert_allclose(first.sum(), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(first, weights(0, 5))
  draws = tf.random.stateless_uniform([200], seed=[bellman._MIXTURE_STREAM, 5])
  np.testing.assert_array_equal(
    first, session.run(draws / tf.reduce_sum(draws))
  )
  assert (first != weights(0, 6)).any()
  assert (first != weights(1, 5)).any()


def test_loss_uses_one_mixture_on_both_sides(make_agent):
  agent = make_agent(bellman.FixedReplayREMAgent, num_heads=4, gamma=0.9)
  with agent.graph.as_default():
    mixture = bellman.mixture_weights(0, agent.gradient_steps.read_value(), 4)
  batch, atoms, target_atoms, mixture = agent.run(
    [
      dict(agent._replay.transition),
      agent.batch.atoms,
      agent.batch.target_atoms,
      mixture,
    ]
  )
  chosen = (atoms @ mixture)[np.arange(32), batch['action']]
  target = batch['reward'] + 0.9 * (target_atoms @ mixture).max(axis=1) * (
    1 - batch['terminal']
  )
  error = np.abs(target - chosen)
  loss = np.where(error <= 1, 0.5 * error**2, error - 0.5)
  np.testing.assert_allclose(
    agent.measure()['loss_bellman'], loss.mean(), rtol=1e-5
  )


def test_one_head_equals_dqn(make_agent, weights):
  class OneHead(bellman.FixedReplayREMAgent):
    initialiser = staticmethod(networks.glorot_uniform)

  one_head = make_agent(OneHead, num_heads=1)
  plain = make_agent(bellman.FixedReplayDQNAgent)
  steps = one_head.make_train_step(), plain.make_train_step()
  for _ in range(4):
    losses = [step()['loss_total'] for step in steps]
    np.testing.assert_allclose(*losses, rtol=1e-5)
  first, second = weights(one_head), weights(plain)
  for name in second:
    np.testing.assert_allclose(
      first[name], second[name], rtol=1e-4, atol=1e-6, err_msg=name
    )


def test_acting_uses_the_mean_of_the_heads(make_agent):
  agent = make_agent(bellman.FixedReplayREMAgent, num_heads=4)
  atoms, q_values = agent.run([agent.batch.atoms, agent.batch.q_values])
  np.testing.assert_allclose(q_values, atoms.mean(axis=2), rtol=1e-4, atol=1e-6)
