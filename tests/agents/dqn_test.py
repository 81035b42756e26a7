import numpy as np
import pytest
import scipy.special

from batch_rl_dr3.agents import dqn, value_network
from batch_rl_dr3.config import dopamine_compat

# isort: split
import tensorflow as tf

GAMMA = 0.9


def outputs(agent):
  """Returns the batch and the networks' Q-values on it."""
  return agent.run(
    {
      **{
        name: agent._replay.transition[name]
        for name in agent._replay.transition
      },
      'q': agent._replay_net_outputs.q_values,
      'target_q': agent._replay_next_target_net_outputs.q_values,
    }
  )


def huber(error):
  error = np.abs(error)
  return np.where(error <= 1, 0.5 * error**2, error - 0.5)


def expected_loss(batch, next_values):
  targets = batch['reward'] + GAMMA * next_values * (1 - batch['terminal'])
  chosen = batch['q'][np.arange(32), batch['action']]
  return huber(targets - chosen)


@pytest.mark.parametrize('backup', ['q_learning', 'sarsa'])
def test_loss_of_bootstrapped_backups_by_hand(make_agent, backup):
  agent = make_agent(dqn.FixedReplayDQNAgent, backup=backup, gamma=GAMMA)
  batch = outputs(agent)
  next_values = {
    'q_learning': batch['target_q'].max(axis=1),
    'sarsa': batch['target_q'][np.arange(32), batch['next_action']],
  }[backup]
  np.testing.assert_allclose(
    agent.measure()['loss_bellman'],
    np.mean(expected_loss(batch, next_values)),
    rtol=1e-5,
  )


def test_td_backs_up_the_expectation_under_the_learnt_policy(make_agent):
  agent = make_agent(dqn.FixedReplayDQNAgent, backup='td', gamma=GAMMA)
  batch = outputs(agent)
  with agent.graph.as_default():
    logits, next_logits = agent.run(
      [
        agent._behaviour(agent._replay.states).q_values,
        agent._behaviour(agent._replay.next_states).q_values,
      ]
    )
  policy = scipy.special.softmax(next_logits, axis=1)
  measured = agent.measure()
  np.testing.assert_allclose(
    measured['loss_bellman'],
    np.mean(expected_loss(batch, np.sum(policy * batch['target_q'], axis=1))),
    rtol=1e-5,
  )
  log_policy = scipy.special.log_softmax(logits, axis=1)
  np.testing.assert_allclose(
    measured['loss_behaviour_cross_entropy'],
    -np.mean(log_policy[np.arange(32), batch['action']]),
    rtol=1e-5,
  )


def test_td_learns_the_behaviour_policy(make_agent):
  agent = make_agent(dqn.FixedReplayDQNAgent, backup='td')
  before = agent.measure()['loss_behaviour_cross_entropy']
  step = agent.make_train_step()
  for _ in range(150):
    step()
  assert agent.measure()['loss_behaviour_cross_entropy'] < 0.9 * before


def test_monte_carlo_regresses_the_logged_return(make_agent, store):
  agent = make_agent(dqn.FixedReplayDQNAgent, backup='monte_carlo', gamma=GAMMA)
  batch = outputs(agent)
  # The return by walking the store to the end of the episode.
  returns = []
  for row in batch['indices']:
    total, discount = 0.0, 1.0
    while True:
      total += discount * store.rewards[row]
      discount *= GAMMA
      if store.terminals[row]:
        break
      row += 1
    returns.append(total)
  chosen = batch['q'][np.arange(32), batch['action']]
  np.testing.assert_allclose(
    agent.measure()['loss_bellman'],
    np.mean(huber(np.array(returns) - chosen)),
    rtol=1e-5,
  )


def test_an_unknown_backup_is_refused(make_agent):
  with pytest.raises(ValueError, match='q_learning'):
    make_agent(dqn.FixedReplayDQNAgent, backup='double')


def test_q_learning_equals_dopamines_dqn(make_agent, weights):
  """Same weights, same batches: Dopamine's own train op, three steps."""
  ours = make_agent(dqn.FixedReplayDQNAgent, gamma=GAMMA)
  replay_store = ours._store

  class DopaminesAgent(dopamine_compat.DQNAgent):
    def _build_replay_buffer(self, use_staging):
      from batch_rl_dr3.replay import fixed_replay_buffer

      self.step = tf.compat.v1.placeholder(tf.int64, [])
      return fixed_replay_buffer.FixedReplayBuffer(
        replay_store, self.step, seed=0, gamma=GAMMA, stack_size=1
      )

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    dopamines = DopaminesAgent(
      session,
      3,
      observation_shape=ours.observation_shape,
      stack_size=1,
      network=value_network.MinAtarNetwork,
      gamma=GAMMA,
      optimizer=tf.compat.v1.train.AdamOptimizer(1e-3),
    )
    initial = weights(ours)
    variables = {
      v.name: v
      for v in tf.compat.v1.global_variables()
      if v.name in initial and 'Adam' not in v.name and 'power' not in v.name
    }
    assert len(variables) == 12
    for name, variable in variables.items():
      variable.load(initial[name], session)
    step = ours.make_train_step()
    for number in range(3):
      session.run(dopamines._train_op, {dopamines.step: number})
      step()
    trained = weights(ours)
    for name, variable in variables.items():
      np.testing.assert_allclose(
        session.run(variable), trained[name], rtol=1e-5, atol=1e-7
      )
    kernel = next(n for n in variables if n.startswith('Online'))
    assert (trained[kernel] != initial[kernel]).any()
