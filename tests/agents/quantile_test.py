import numpy as np

from batch_rl_dr3.agents import bellman


def test_loss_equals_a_float64_rederivation(make_agent):
  agent = make_agent(bellman.FixedReplayQRCQLAgent, num_quantiles=5, gamma=0.9)
  batch, atoms, target_atoms = agent.run(
    [
      dict(agent._replay.transition),
      agent.batch.atoms,
      agent.batch.target_atoms,
    ]
  )
  atoms, target_atoms = atoms.astype(float), target_atoms.astype(float)
  losses = []
  for b in range(32):
    greedy = target_atoms[b].mean(axis=1).argmax()
    target = (
      batch['reward'][b]
      + 0.9 * (1 - batch['terminal'][b]) * target_atoms[b, greedy]
    )
    loss = 0.0
    for i, theta in enumerate(atoms[b, batch['action'][b]]):
      u = target - theta
      rho = np.where(np.abs(u) <= 1, 0.5 * u**2, np.abs(u) - 0.5)
      loss += np.mean(np.abs((i + 0.5) / 5 - (u < 0)) * rho)
    losses.append(loss)
  np.testing.assert_allclose(
    agent.measure()['loss_bellman'], np.mean(losses), rtol=1e-5
  )


def test_the_default_penalty_is_cqls_on_the_mean_of_the_quantiles(make_agent):
  agent = make_agent(bellman.FixedReplayQRCQLAgent, num_quantiles=5)
  assert [p.name for p in agent.penalties] == ['conservative']
  actions, atoms = agent.run(
    [agent._replay.transition['action'], agent.batch.atoms]
  )
  q_values = atoms.mean(axis=2)
  expected = np.log(np.exp(q_values).sum(axis=1))
  expected -= q_values[np.arange(32), actions]
  np.testing.assert_allclose(
    agent.measure()['loss_conservative'], expected.mean(), rtol=1e-5
  )


def test_an_empty_list_is_plain_qr_dqn(make_agent):
  agent = make_agent(bellman.FixedReplayQRCQLAgent, penalties=[])
  measured = agent.measure()
  assert measured['loss_total'] == measured['loss_bellman']


def test_cql_raises_the_logged_actions(make_agent):
  agent = make_agent(bellman.FixedReplayQRCQLAgent, num_quantiles=5)
  before = agent.measure()['loss_conservative']
  step = agent.make_train_step()
  for _ in range(100):
    step()
  assert agent.measure()['loss_conservative'] < 0.9 * before
