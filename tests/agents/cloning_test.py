import numpy as np
import scipy.special

from batch_rl_dr3.agents import bellman, penalties


def test_the_loss_is_the_cross_entropy_of_the_logged_actions(make_agent):
  agent = make_agent(
    bellman.FixedReplayBCAgent, penalties=[penalties.FeatureDotPenalty(0.1)]
  )
  logits, actions = agent.run([agent.batch.q_values, agent.batch.actions])
  log_policy = scipy.special.log_softmax(logits, axis=1)
  measured = agent.measure()
  np.testing.assert_allclose(
    measured['loss_bellman'],
    -np.mean(log_policy[np.arange(32), actions]),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    measured['loss_total'],
    measured['loss_bellman'] + 0.1 * measured['feature_dot_product'],
    rtol=1e-5,
  )


def test_it_learns_the_policy_and_neither_rewards_nor_a_backup(make_agent):
  agent = make_agent(bellman.FixedReplayBCAgent)
  before = agent.measure()['loss_bellman']
  step = agent.make_train_step()
  for _ in range(150):
    step()
  assert agent.measure()['loss_bellman'] < 0.9 * before
  batch = agent.replay.batch_at(agent.replay.draw(32, seed=0))
  other = {**batch, 'reward': batch['reward'] + 5.0}
  first, second = agent.measure([batch]), agent.measure([other])
  assert first['gradient_norm'] == second['gradient_norm']
