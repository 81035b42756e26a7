import types

import numpy as np
import pytest
import scipy.special

from batch_rl_dr3.agents import bellman, networks
from batch_rl_dr3.config import dopamine_compat, errors

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
      'q': agent.batch.q_values,
      'target_q': agent.batch.target_q_values,
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
  agent = make_agent(bellman.FixedReplayDQNAgent, backup=backup, gamma=GAMMA)
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
  agent = make_agent(bellman.FixedReplayDQNAgent, backup='td', gamma=GAMMA)
  batch = outputs(agent)
  with agent.graph.as_default():
    logits, next_logits = agent.run(
      [
        agent._behaviour(agent._replay.transition['state']).q_values,
        agent._behaviour(agent._replay.transition['next_state']).q_values,
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
  agent = make_agent(bellman.FixedReplayDQNAgent, backup='td')
  before = agent.measure()['loss_behaviour_cross_entropy']
  step = agent.make_train_step()
  for _ in range(150):
    step()
  assert agent.measure()['loss_behaviour_cross_entropy'] < 0.9 * before


def test_monte_carlo_regresses_the_logged_return(make_agent, store):
  agent = make_agent(
    bellman.FixedReplayDQNAgent, backup='monte_carlo', gamma=GAMMA
  )
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


def test_uniform_backs_up_the_mean_over_actions(make_agent):
  agent = make_agent(bellman.FixedReplayDQNAgent, backup='uniform', gamma=GAMMA)
  batch = outputs(agent)
  np.testing.assert_allclose(
    agent.measure()['loss_bellman'],
    np.mean(expected_loss(batch, batch['target_q'].mean(axis=1))),
    rtol=1e-5,
  )


def test_sampled_actions_by_hand(session):
  # Cumulative sums 0.25, 0.75, 1 and 0, 1, 1: an action of probability 0 is
  # never taken, and a fraction that equals a sum belongs to the next action.
  policy = tf.constant([[0.25, 0.5, 0.25]] * 5 + [[0.0, 1.0, 0.0]] * 2)
  fractions = tf.constant([0.0, 0.125, 0.25, 0.75, 0.875, 0.0, 0.99])
  np.testing.assert_array_equal(
    session.run(bellman.sample_actions(policy, fractions)),
    [0, 0, 1, 2, 2, 1, 1],
  )


@pytest.mark.parametrize('backup', ['td', 'uniform'])
def test_a_sampled_backup_backs_up_the_action_drawn(make_agent, backup):
  agent = make_agent(
    bellman.FixedReplayDQNAgent,
    backup=backup,
    sample_next_action=True,
    gamma=GAMMA,
    seed=3,
  )
  policy = np.full((32, 3), 1 / 3)
  for step in range(2):
    batch = outputs(agent)
    with agent.graph.as_default():
      fractions, logits = agent.run(
        [
          bellman.stateless_fractions(
            3 + 104_729, tf.constant(step, tf.int64), 32
          ),
          agent._behaviour(agent._replay.transition['next_state']).q_values
          if backup == 'td'
          else tf.zeros([32, 3]),
        ]
      )
    policy = scipy.special.softmax(logits, axis=1)
    actions = np.sum(np.cumsum(policy, 1)[:, :2] <= fractions[:, None], axis=1)
    assert len(set(actions)) == 3
    next_values = batch['target_q'][np.arange(32), actions]
    measured = agent.measure()
    np.testing.assert_allclose(
      measured['loss_bellman'],
      np.mean(expected_loss(batch, next_values)),
      rtol=1e-5,
    )
    # What penalties and metrics take for a' is the same action.
    np.testing.assert_allclose(
      measured['mean_target_q'], next_values.mean(), rtol=1e-5
    )
    agent.make_train_step()()


def test_a_policy_of_held_out_rows_sees_no_other(
  make_agent, held_out_store, weights
):
  agent, other = (
    make_agent(
      bellman.FixedReplayDQNAgent,
      backup='td',
      policy_rows=policy_rows,
      held_out_store=held_out_store,
    )
    for policy_rows in ('held_out', 'training')
  )
  rows = agent.run(agent._transition_tensors['held_out_indices'])
  assert len(set(rows)) > 1
  batch = held_out_store.gather(rows)
  with agent.graph.as_default():
    logits = agent.run(agent._behaviour(tf.constant(batch.states)).q_values)
  log_policy = scipy.special.log_softmax(logits, axis=1)
  np.testing.assert_allclose(
    agent.measure()['loss_behaviour_cross_entropy'],
    -np.mean(log_policy[np.arange(32), batch.actions]),
    rtol=1e-5,
  )
  # The value function's batches, and so its first step, are the same.
  agent.make_train_step()(), other.make_train_step()()
  trained, others = weights(agent), weights(other)
  online = [n for n in trained if n.startswith('Online/') and 'Adam' not in n]
  for name in online:
    np.testing.assert_array_equal(trained[name], others[name])
  behaviour = [n for n in trained if n.startswith('Behaviour/')]
  assert any((trained[n] != others[n]).any() for n in behaviour)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'backup': 'sarsa', 'sample_next_action': True}, 'td and uniform'),
    ({'backup': 'uniform', 'policy_rows': 'held_out'}, 'learns no policy'),
    ({'backup': 'td', 'policy_rows': 'held_out'}, 'no held-out transitions'),
  ],
)
def test_options_that_mean_nothing_are_refused(make_agent, options, match):
  with pytest.raises(ValueError, match=match):
    make_agent(bellman.FixedReplayDQNAgent, **options)


@pytest.mark.parametrize(
  ('options', 'match'),
  [
    ({'backup': 'double'}, r'DQNAgent\.backup is .* one of q_learning, sarsa'),
    ({'backup': 'td', 'policy_rows': 'other'}, 'one of training, held_out'),
  ],
)
def test_an_unknown_name_is_refused(make_agent, options, match):
  with pytest.raises(errors.ConfigError, match=match):
    make_agent(bellman.FixedReplayDQNAgent, **options)


def test_q_learning_equals_dopamines_dqn(make_agent, weights):
  """Same weights, same batches: Dopamine's own train op, three steps."""
  ours = make_agent(bellman.FixedReplayDQNAgent, gamma=GAMMA)
  replay_store = ours._store

  class DopaminesAgent(dopamine_compat.DQNAgent):
    def _build_replay_buffer(self, use_staging):
      from batch_rl_dr3.replay import batches

      self.step = tf.compat.v1.placeholder(tf.int64, [])
      transition = batches.FixedReplayBuffer(
        replay_store, self.step, seed=0, gamma=GAMMA, stack_size=1
      ).transition
      # Dopamine's buffers have an attribute each, in the plural.
      return types.SimpleNamespace(
        **{f'{name}s': tensor for name, tensor in transition.items()}
      )

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    dopamines = DopaminesAgent(
      session,
      3,
      observation_shape=ours.observation_shape,
      stack_size=1,
      network=networks.MinAtarNetwork,
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
