"""COG's networks and agent, and images as they are learnt from."""

import pathlib

import gin
import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents import penalties
from batch_rl_dr3.config import errors
from batch_rl_dr3.control import cog, cql_agent, networks
from batch_rl_dr3.training import control as runner

SMALL = {
  'convolutions': ((2, 2, 2), (2, 1, 1)),
  'critic_layers': (8, 4),
  'encoder_layers': (8, 4),
  'actor_layers': (4,),
  'initial_limit': 0.3,
}


@pytest.fixture
def make_store(tmp_path):
  """Writes a store of the drawer's sizes: 8 prior and 4 task trajectories."""

  def make(image_size=48, num_actions=4, game='drawer-open-grasp'):
    rng = np.random.default_rng(0)
    shape = (6, image_size, image_size, 3)
    trajectories = [
      cog.Trajectory(
        rng.integers(0, 256, shape, dtype=np.uint8),
        np.float32(rng.uniform(-0.9, 0.9, (5, num_actions))),
        np.array([0, 0, 0, 1, 1], np.float32),
        np.zeros(5, np.float32),
      )
      for _ in range(12)
    ]
    parts = [cog.PRIOR] * 8 + [cog.TASK] * 4
    cog.write(
      tmp_path / 'store',
      zip(parts, trajectories, strict=True),
      scripts={'game': game},
    )
    return str(tmp_path / 'store')

  return make


@pytest.fixture
def make_agent():
  """Makes small agents with the same first weights, of images [8, 8, 3]."""

  def make(size=(8, 8, 3), coefficient=0.0, **kwargs):
    tf.keras.utils.set_random_seed(0)
    gin.parse_config(
      """
      DR3CqlSacAgent.use_lagrange_cql_alpha = False
      DR3CqlSacAgent.cql_alpha = 1.0
      DR3CqlSacAgent.num_cql_samples = 1
      DR3CqlSacAgent.include_critic_entropy_term = False
      DR3CqlSacAgent.target_update_tau = 0.005
      DR3CqlSacAgent.num_bc_steps = 3
      DR3CqlSacAgent.penalties = [@FeatureDotPenalty()]
      """
    )
    gin.bind_parameter('FeatureDotPenalty.coefficient', coefficient)
    spaces = networks.Spaces(size, 4)
    agent = cql_agent.create_cog_agent(spaces, seed=0, **(SMALL | kwargs))
    agent.initialize()
    return agent

  return make


def test_networks_have_the_sizes_of_cogs():
  spaces = networks.Spaces((48, 48, 3), 8)
  critic = networks.ImageCriticNetwork(
    (spaces.time_step_spec.observation, spaces.action_spec)
  )
  actor = networks.create_image_actor(spaces)
  for network in (critic, actor):
    network.create_variables()
  convolutions = [448, 2_320, 2_320]
  sizes = [
    [k.shape.num_elements() + b.shape.num_elements() for k, b in _pairs(n)]
    for n in (critic, actor)
  ]
  # 2304 = 12 * 12 * 16 numbers; the critic's action joins them.
  dense = [2_368_512, 524_800, 131_328, 257]
  assert sorted(sizes[0]) == sorted(convolutions + dense)
  assert sum(sizes[0]) == 3_029_985
  dense = [2_360_320, 524_800, 131_328, 65_792, 65_792, 65_792, 4_112]
  assert sorted(sizes[1]) == sorted(convolutions + dense)
  assert sum(sizes[1]) == 3_223_024
  features = critic.features((tf.zeros((2, 48, 48, 3)), tf.zeros((2, 8))))
  assert features.shape == (2, 256)


def _pairs(network):
  variables = network.trainable_variables
  return zip(variables[::2], variables[1::2], strict=True)


def test_dense_weights_start_small_and_layers_differ():
  spaces = networks.Spaces((8, 8, 3), 4)
  critic = networks.ImageCriticNetwork(
    (spaces.time_step_spec.observation, spaces.action_spec), layers=(8, 8, 8)
  )
  critic.create_variables()
  dense = [v for v in critic.trainable_variables if v.shape.rank < 4][:8]
  kernels = [v.numpy() for v in dense if v.shape == (8, 8)]
  assert all(0 < np.abs(v).max() <= 1e-4 for v in dense[:6])
  assert (kernels[0] != kernels[1]).any()


def test_the_critics_loss_by_hand(make_agent):
  """Two pixels: dense layers alone, so that NumPy can follow."""
  agent = make_agent((1, 2, 3), 0.5, convolutions=(), critic_layers=(2, 2))
  rng = np.random.default_rng(1)
  states, next_states = rng.integers(0, 256, (2, 3, 1, 2, 3))
  actions = np.float32(rng.uniform(-0.9, 0.9, (3, 4)))
  rewards = np.array([1.0, 0.0, 2.0], np.float32)
  terminals = np.array([0.0, 0.0, 1.0], np.float32)
  batch = networks.transition(
    [
      tf.constant(column, tf.float32)
      for column in (states, actions, rewards, next_states, terminals)
    ]
  )
  with agent._seeds.purpose('critic'):
    next_actions, _ = agent._actions_and_log_probs(batch[2])

  def passed(critic, pixels, acted):
    layers = list(_pairs(critic))
    joined = np.concatenate([pixels.reshape(3, 6) / 255, acted], axis=1)
    for kernel, bias in layers[:-1]:
      joined = np.maximum(joined @ kernel.numpy() + bias.numpy(), 0)
    kernel, bias = layers[-1]
    return joined, (joined @ kernel.numpy() + bias.numpy())[:, 0]

  q_next = np.minimum(
    *(
      passed(critic, next_states, next_actions.numpy())[1]
      for critic in agent.critics  # The targets begin as copies.
    )
  )
  target = rewards + 0.99 * (1 - terminals) * q_next
  expected = 0.0
  for critic in agent.critics:
    features, q_values = passed(critic, states, actions)
    next_features, _ = passed(critic, next_states, next_actions.numpy())
    expected += 0.5 * np.mean((target - q_values) ** 2)
    expected += 0.5 * np.mean(np.sum(features * next_features, axis=1))
  parts = agent.loss(batch).extra
  found = parts['loss_critic'] - parts['loss_conservative']
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gradients_of_dr3_reach_the_convolutions_by_both_factors(make_agent):
  """Doubling both ways: the whole gradient is the sum of two, none of them 0.

  A factor that is stopped takes its gradient along.
  """
  agent = make_agent()
  critic = agent.critics[0]
  rng = np.random.default_rng(2)
  inputs = [
    (
      tf.constant(rng.uniform(0, 255, (4, 8, 8, 3)), tf.float32),
      tf.constant(rng.uniform(-1, 1, (4, 4)), tf.float32),
    )
    for _ in range(2)
  ]
  kernels = [v for v in critic.trainable_variables if v.shape.rank == 4]

  def gradients(stop):
    with tf.GradientTape() as tape:
      factors = [critic.features(pair) for pair in inputs]
      if stop is not None:
        factors[stop] = tf.stop_gradient(factors[stop])
      batch = penalties.UpdateBatch(
        *(None, *factors, None, None, tf.zeros(4), tf.ones(4), tf.constant(0))
      )
      value = penalties.FeatureDotPenalty(coefficient=1.0)(batch)
    return tape.gradient(value, kernels)

  whole, first, second = gradients(None), gradients(1), gradients(0)
  for a, b, c in zip(whole, first, second, strict=True):
    assert min(np.abs(b).max(), np.abs(c).max()) > 0
    np.testing.assert_allclose(a, b + c, rtol=1e-3, atol=1e-6)


def test_crops_move_images_and_are_a_function_of_the_seed():
  pixels = tf.constant(
    np.random.default_rng(0).integers(1, 256, (40, 6, 6, 3)), tf.uint8
  )
  crops = [
    networks.random_crops(pixels, tf.constant(seed), 2).numpy()
    for seed in ([0, 1], [0, 1], [0, 2])
  ]
  assert (crops[0] == crops[1]).all()
  assert (crops[0] != crops[2]).any()
  padded = np.pad(pixels.numpy(), [(0, 0), (2, 2), (2, 2), (0, 0)])
  seen = set()
  for image, crop in zip(padded, crops[0], strict=True):
    (place,) = [
      (i, j)
      for i in range(5)
      for j in range(5)
      if (image[i : i + 6, j : j + 6] == crop).all()
    ]
    seen.add(place)
  assert {i for i, _ in seen} == {j for _, j in seen} == set(range(5))


def test_a_share_of_each_part_is_kept_by_seed(make_store):
  path = make_store()
  _, arrays = cog.read(pathlib.Path(path))
  kept = []
  for seed in (0, 0, 1):
    loader = cog.ImageData(fraction=0.25, fraction_seed=seed)
    task, loaded = loader.load(path, '', 'drawer-open-grasp')
    assert task.suite == 'cog'
    assert loaded.manifest['num_prior_trajectories_kept'] == 2
    assert loaded.manifest['num_trajectories_kept'] == 3
    assert len(loaded) == 15
    # Prior rewards are 0.
    assert loaded.rewards.tolist() == [0.0] * 10 + [0.0, 0.0, 0.0, 1.0, 1.0]
    kept.append(loaded)
  assert kept[0].manifest['hash'] == kept[1].manifest['hash']
  assert kept[0].manifest['hash'] != kept[2].manifest['hash']
  assert (kept[0].images == kept[1].images).all()
  assert kept[0].images.shape == (18, 48, 48, 3)
  mapped = cog.ImageData(fraction=0.25, max_resident_gigabytes=0.0)
  _, on_disk = mapped.load(path, '', 'drawer-open-grasp')
  assert isinstance(on_disk.images, np.memmap)
  rows = tf.constant([0, 4, 5, 14])
  for column, other in zip(
    *(runner.read_images(data, rows) for data in (kept[0], on_disk)),
    strict=True,
  ):
    np.testing.assert_array_equal(column, other)
  # The last image of a trajectory is the next one of its last step alone.
  trajectories = arrays['trajectories']
  ends = {int(first + length) for first, _, length in trajectories}
  assert not ends & set(on_disk.positions.tolist())


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    ({'image_size': 32}, r'images \[32, 32, 3\]'),
    ({'num_actions': 8}, '8 numbers an action'),
  ],
)
def test_data_of_another_task_are_refused(make_store, make, match):
  path = make_store(**make)
  with pytest.raises(errors.DataError, match=match):
    cog.ImageData().load(path, '', 'drawer-open-grasp')


@pytest.mark.parametrize('name', ['images.npy', 'rewards.npy', 'manifest.json'])
def test_damage_is_named(make_store, tmp_path, name):
  path = make_store()
  content = bytearray((tmp_path / 'store' / name).read_bytes())
  content[len(content) // 2] ^= 64
  (tmp_path / 'store' / name).write_bytes(content)
  with pytest.raises(errors.DataError):
    cog.ImageData().load(path, '', 'drawer-open-grasp')


def test_other_folders_and_games_are_refused(make_store, tmp_path):
  with pytest.raises(errors.DataError, match='no store of images'):
    cog.ImageData().load(str(tmp_path), '', 'drawer-open-grasp')
  with pytest.raises(errors.ConfigError, match='drawer-blocked-grasp'):
    cog.ImageData().load(make_store(), '', 'hopper')


def test_play_of_another_task_is_refused(make_store):
  path = make_store(game='drawer-blocked-grasp')
  with pytest.raises(errors.DataError, match='not of drawer-open-grasp'):
    cog.ImageData().load(path, '', 'drawer-open-grasp')


@pytest.mark.parametrize('binding', [{'fraction': 0.0}, {'padding': -1}])
def test_a_setting_out_of_range_is_named(binding):
  with pytest.raises(
    errors.ConfigError, match=f'ImageData.{next(iter(binding))}'
  ):
    cog.ImageData(**binding)


@pytest.mark.slow
def test_a_run_that_was_left_ends_as_the_whole_one(
  make_agent, make_store, tmp_path
):
  path = make_store()
  _, loaded = cog.ImageData().load(path, '', 'drawer-open-grasp')

  def make():
    agent = make_agent((48, 48, 3), 0.001)
    assert isinstance(agent, cql_agent.DR3CqlSacAgent)
    return runner.ControlLearner(agent, loaded, 8, 3, 1, 8)

  whole = make()
  whole.make_train_steps()(3)
  whole.save(str(tmp_path / 'left'))
  whole.make_train_steps()(3)
  other = make()
  other.restore(str(tmp_path / 'left'))
  other.make_train_steps()(3)
  for a, b in zip(
    whole.agent.critics[1].variables + whole.agent._actor_network.variables,
    other.agent.critics[1].variables + other.agent._actor_network.variables,
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert whole.measure() == other.measure()
