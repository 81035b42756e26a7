"""What a discrete run measures, on training rows and on held-out ones."""

import numpy as np
import pytest

import batch_rl_dr3  # noqa: F401
from batch_rl_dr3.agents import bellman
from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.training import discrete

HELD_OUT = {
  'held_out_loss_bellman',
  'held_out_feature_dot_product',
  'held_out_mean_q',
}


def test_held_out_columns_by_hand(make_agent, held_out_store):
  agent = make_agent(
    bellman.FixedReplayDQNAgent, held_out_store=held_out_store, gamma=0.9
  )
  sample = discrete.AgentSample(agent, 0, 1, 64)
  measured = sample.measure()
  assert set(sample.columns) == set(measured)
  assert {n for n in measured if n.startswith('held_out_')} == HELD_OUT
  batch = sample._held_out[0]
  assert len(batch['indices']) == 32
  assert set(batch['indices']) <= set(held_out_store.valid_indices())
  features, next_features = (
    agent.features(batch[name]) for name in ('state', 'next_state')
  )
  kernel, bias = agent.run(agent.online_convnet.variables[-2:])
  q, next_q = features @ kernel + bias, next_features @ kernel + bias
  chosen = q[np.arange(32), batch['action']]
  # At step 0 the target network is the online network.
  targets = batch['reward'] + 0.9 * next_q.max(1) * (1 - batch['terminal'])
  errors = np.abs(targets - chosen)
  huber = np.where(errors <= 1, 0.5 * errors**2, errors - 0.5)
  expected = {
    'held_out_loss_bellman': huber.mean(),
    'held_out_feature_dot_product': (features * next_features).sum(1).mean(),
    'held_out_mean_q': chosen.mean(),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(measured[name], value, rtol=1e-4)


def test_features_of_both_samples(make_agent, held_out_store):
  agent = make_agent(bellman.FixedReplayDQNAgent, held_out_store=held_out_store)
  sample = discrete.AgentSample(agent, 0, 1, 24)
  measured = sample.measure_features()
  assert set(measured) == set(sample.feature_columns)
  features = agent.features(sample._states)
  assert features.shape == (24, 128)
  assert measured['dead_fraction'] == np.mean((features == 0).all(axis=0))
  assert measured['dead_fraction'] <= measured['dormant_fraction'] < 1
  held_out = agent.features(sample._held_out_states)
  assert measured['held_out_effective_rank'] == feature_measures.effective_rank(
    held_out
  )


def test_without_held_out_rows_there_are_no_such_columns(make_agent):
  sample = discrete.AgentSample(
    make_agent(bellman.FixedReplayDQNAgent), 0, 1, 24
  )
  for columns in (sample.columns, sample.feature_columns):
    assert not any('held_out' in name for name in columns)


def test_single_transitions_have_no_return_to_regress_on(
  make_agent, held_out_store
):
  agent = make_agent(
    bellman.FixedReplayDQNAgent,
    backup='monte_carlo',
    held_out_store=held_out_store,
  )
  measured = discrete.AgentSample(agent, 0, 1, 24).measure()
  names = {n for n in measured if n.startswith('held_out_')}
  assert names == HELD_OUT - {'held_out_loss_bellman'}


@pytest.mark.parametrize('policy_rows', ['training', 'held_out'])
def test_what_is_measured_is_the_sample_alone(
  make_agent, held_out_store, policy_rows
):
  # The step number moves on and names other batches; the sample stays.
  agent = make_agent(
    bellman.FixedReplayDQNAgent,
    backup='td',
    policy_rows=policy_rows,
    held_out_store=held_out_store,
  )
  sample = discrete.AgentSample(agent, 0, 2, 24)
  before = sample.measure()
  agent.gradient_steps.load(5, agent._sess)
  assert sample.measure() == before
