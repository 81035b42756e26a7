"""What all offline agents share, tested on REM and QR-DQN."""

import numpy as np
import pytest

from batch_rl_dr3.agents import bellman, penalties
from batch_rl_dr3.config import errors


def train(agent, num_steps):
  step = agent.make_train_step()
  return [step() for _ in range(num_steps)]


def assert_same_weights(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize(
  ('agent_class', 'kwargs'),
  [
    (bellman.FixedReplayREMAgent, {'num_heads': 5}),
    (bellman.FixedReplayDQNAgent, {}),
  ],
)
@pytest.mark.parametrize(
  'penalty', [penalties.FeatureDotPenalty, penalties.EffectiveRankPenalty]
)
def test_coefficient_zero_is_bit_identical_to_no_penalty(
  make_agent, weights, agent_class, kwargs, penalty
):
  without = make_agent(agent_class, **kwargs)
  with_zero = make_agent(agent_class, penalties=[penalty(0.0)], **kwargs)
  train(without, 5)
  train(with_zero, 5)
  assert_same_weights(weights(without), weights(with_zero))


def test_same_seed_same_weights_and_other_seed_others(make_agent, weights):
  agents = [
    make_agent(bellman.FixedReplayREMAgent, num_heads=5, seed=seed)
    for seed in (3, 3, 4)
  ]
  for agent in agents:
    train(agent, 5)
  first, second, other = map(weights, agents)
  assert_same_weights(first, second)
  kernel = next(name for name in first if name.endswith('kernel:0'))
  assert (first[kernel] != other[kernel]).any()


def test_restoring_goes_on_bit_for_bit(make_agent, weights, tmp_path):
  def make():
    return make_agent(
      bellman.FixedReplayREMAgent,
      num_heads=5,
      penalties=[penalties.FeatureDotPenalty(0.1)],
      target_update_period=4,
    )

  straight, broken_off = make(), make()
  train(straight, 9)
  train(broken_off, 6)
  broken_off.save(str(tmp_path / 'tf_ckpt-0'))
  resumed = make()
  resumed.restore(str(tmp_path / 'tf_ckpt-0'))
  assert resumed.num_gradient_steps() == 6
  train(resumed, 3)
  assert_same_weights(weights(straight), weights(resumed))


def test_total_is_bellman_plus_weighted_penalties(make_agent):
  agent = make_agent(
    bellman.FixedReplayQRCQLAgent,
    num_quantiles=7,
    penalties=[
      penalties.ConservativePenalty(2.0),
      penalties.FeatureDotPenalty(0.5),
      penalties.EffectiveRankPenalty(0.0),
    ],
  )
  parts = train(agent, 1)[0]
  assert parts.keys() == {
    'loss_total',
    'loss_bellman',
    'loss_conservative',
    'loss_feature_dot_product',
    'loss_effective_rank_penalty',
  }
  np.testing.assert_allclose(
    parts['loss_total'],
    parts['loss_bellman']
    + 2.0 * parts['loss_conservative']
    + 0.5 * parts['loss_feature_dot_product'],
    rtol=1e-5,
  )


def test_dr3_lowers_the_feature_dot_product(make_agent):
  def trained(coefficient):
    agent = make_agent(
      bellman.FixedReplayDQNAgent,
      penalties=[penalties.FeatureDotPenalty(coefficient)],
    )
    train(agent, 60)
    return agent.measure()['feature_dot_product']

  small, large = trained(0.001), trained(0.1)
  assert large < 0.5 * small < 0.5 * trained(0.0)


def test_metrics_measure_the_next_batch_and_change_nothing(make_agent, weights):
  agent = make_agent(bellman.FixedReplayDQNAgent)
  train(agent, 2)
  before = weights(agent)
  measured = agent.measure()
  assert measured == agent.measure()
  assert_same_weights(before, weights(agent))
  parts = train(agent, 1)[0]
  np.testing.assert_allclose(
    parts['loss_total'], measured['loss_total'], rtol=1e-6
  )
  assert set(measured) >= {
    'feature_dot_product',
    'feature_norm_squared',
    'mean_q',
    'mean_target_q',
    'gradient_norm',
  }


def test_metrics_by_hand(make_agent, store):
  agent = make_agent(bellman.FixedReplayDQNAgent)
  replay = agent._replay
  states, next_states, terminals = agent.run(
    [
      replay.transition['state'],
      replay.transition['next_state'],
      replay.transition['terminal'],
    ]
  )
  features, next_features = agent.features(states), agent.features(next_states)
  measured = agent.measure()
  np.testing.assert_allclose(
    measured['feature_dot_product'],
    np.mean(np.sum(features * next_features, axis=1)),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    measured['discounted_dot_product'],
    np.mean(0.99 * (1 - terminals) * np.sum(features * next_features, axis=1)),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    measured['feature_norm_squared'],
    np.mean(np.sum(features**2, axis=1)),
    rtol=1e-5,
  )


def test_target_network_follows_at_its_period(make_agent, weights):
  agent = make_agent(bellman.FixedReplayDQNAgent, target_update_period=3)

  def is_synced():
    values = weights(agent)
    online = [n for n in values if n.startswith('Online/') and 'Adam' not in n]
    assert len(online) == 6  # kernels and biases of three layers
    return all(
      (values[n] == values[n.replace('Online', 'Target')]).all() for n in online
    )

  def target():
    return {n: v for n, v in weights(agent).items() if n.startswith('Target/')}

  assert is_synced()  # from the beginning
  initial = target()
  train(agent, 3)
  # Before the copy is needed it is not made: what is measured after 3 steps is
  # measured against the network that these 3 were learnt with.
  assert_same_weights(initial, target())
  third = weights(agent)
  before = agent.measure()
  assert_same_weights(initial, target())
  agent._sess.run(agent._sync_qt_ops)
  assert agent.measure()['mean_target_q'] != before['mean_target_q']
  assert agent.measure()['mean_q'] == before['mean_q']
  train(agent, 1)  # The fourth step begins with the copy.
  for name, value in target().items():
    np.testing.assert_array_equal(
      value, third[name.replace('Target', 'Online')]
    )


def test_a_copy_that_was_made_early_changes_no_step(make_agent, weights):
  """Checkpoints whose target network is copied already go on the same."""
  agents = [
    make_agent(bellman.FixedReplayDQNAgent, target_update_period=3)
    for _ in range(2)
  ]
  for agent in agents:
    train(agent, 3)
  agents[1]._sess.run(agents[1]._sync_qt_ops)
  for agent in agents:
    train(agent, 2)
  assert_same_weights(*map(weights, agents))


def test_a_step_waits_for_the_copy_even_without_a_backup(make_agent, weights):
  # Regression reads no target network; its copy is of the weights before the
  # step all the same.
  agent = make_agent(
    bellman.FixedReplayDQNAgent, backup='monte_carlo', target_update_period=1
  )
  train(agent, 2)
  online = weights(agent)
  train(agent, 1)
  after = weights(agent)
  for name in after:
    if name.startswith('Target/'):
      np.testing.assert_array_equal(
        after[name], online[name.replace('Target', 'Online')]
      )


def test_norms_and_shares_by_hand(make_agent):
  agent = make_agent(
    bellman.FixedReplayQRCQLAgent,
    num_quantiles=3,
    penalties=[
      penalties.ConservativePenalty(2.0),
      penalties.FeatureDotPenalty(0.5),
      penalties.EffectiveRankPenalty(0.0),
    ],
  )
  replay = agent._replay
  states, next_states = agent.run(
    [replay.transition['state'], replay.transition['next_state']]
  )
  features, next_features = agent.features(states), agent.features(next_states)
  measured = agent.measure()
  norms = np.linalg.norm(features, axis=1)
  cosines = np.sum(features * next_features, axis=1) / (
    norms * np.linalg.norm(next_features, axis=1)
  )
  kernel = agent.run(agent.online_convnet.variables[-2])
  assert kernel.shape == (128, 3 * 3)
  expected = {
    'feature_norm': norms.mean(),
    'feature_cosine': cosines.mean(),
    'last_layer_norm': np.sqrt(np.sum(kernel**2)),
    'share_conservative': 2 * measured['loss_conservative'],
    'share_feature_dot_product': 0.5 * measured['feature_dot_product'],
    'share_effective_rank_penalty': 0.0,
  }
  for name, value in expected.items():
    if name.startswith('share_'):
      value /= measured['loss_bellman']
    np.testing.assert_allclose(measured[name], value, rtol=1e-5)
  assert set(agent.metrics) == set(measured)


def test_acting_never_writes_to_the_store(make_agent, store):
  agent = make_agent(bellman.FixedReplayDQNAgent)
  rows = np.arange(store.num_rows)
  before = [store.frames(rows), store.actions.copy()]
  observation = np.ones(agent.observation_shape, np.uint8)
  agent.eval_mode = False  # even then
  agent._train_step = lambda: None
  assert agent.begin_episode(observation) in range(3)
  assert agent.step(1.0, observation) in range(3)
  agent.end_episode(1.0)
  for array, copy in zip(
    (store.frames(rows), store.actions), before, strict=True
  ):
    np.testing.assert_array_equal(array, copy)


def test_features_in_chunks_equal_features_at_once(make_agent):
  agent = make_agent(bellman.FixedReplayDQNAgent)
  states = np.random.default_rng(1).integers(
    0, 2, (300, *agent.observation_shape, 1), dtype=np.uint8
  )
  features = agent.features(states)
  assert features.shape == (300, 128)
  np.testing.assert_allclose(
    features[280:290], agent.features(states[280:290]), rtol=1e-4, atol=1e-6
  )


def test_parameters_without_meaning_offline_are_refused(make_agent):
  with pytest.raises(ValueError, match='min_replay_history'):
    make_agent(bellman.FixedReplayDQNAgent, min_replay_history=1)


def test_two_penalties_of_one_kind_are_refused(make_agent):
  twice = [penalties.FeatureDotPenalty(0.1), penalties.FeatureDotPenalty(0.2)]
  with pytest.raises(ValueError, match='same name'):
    make_agent(bellman.FixedReplayDQNAgent, penalties=twice)


def test_a_checkpoint_of_another_network_is_refused(make_agent, tmp_path):
  make_agent(bellman.FixedReplayDQNAgent).save(str(tmp_path / 'tf_ckpt-0'))
  other = make_agent(bellman.FixedReplayREMAgent, num_heads=5)
  with pytest.raises(errors.DataError, match='no checkpoint of this agent'):
    other.restore(str(tmp_path / 'tf_ckpt-0'))


def test_an_unwritable_checkpoint_is_an_os_error(make_agent, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError):
    make_agent(bellman.FixedReplayDQNAgent).save(str(tmp_path / 'file' / 'x'))


def test_metrics_of_given_batches_are_their_mean(make_agent):
  agent = make_agent(
    bellman.FixedReplayDQNAgent, penalties=[penalties.FeatureDotPenalty(0.1)]
  )
  rows = agent.replay.draw(64, seed=0)
  batches = [agent.replay.batch_at(rows[:32]), agent.replay.batch_at(rows[32:])]
  each = [agent.measure([batch]) for batch in batches]
  together = agent.measure(batches)
  # A share is a ratio of means, not a mean of ratios.
  assert together.pop('share_feature_dot_product') == pytest.approx(
    0.1 * together['feature_dot_product'] / together['loss_bellman']
  )
  for name, value in together.items():
    np.testing.assert_allclose(
      value, np.mean([m[name] for m in each]), rtol=1e-6
    )
  assert each[0]['mean_q'] != each[1]['mean_q']
  # The sample stays while the weights move on.
  train(agent, 5)
  assert agent.measure(batches) != together


def test_learning_by_acting_is_refused(make_agent):
  agent = make_agent(bellman.FixedReplayDQNAgent)
  agent.eval_mode = False
  with pytest.raises(RuntimeError, match='make_train_step'):
    agent.begin_episode(np.ones(agent.observation_shape, np.uint8))
