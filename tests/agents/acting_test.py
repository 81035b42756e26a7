"""Acting from checkpoints: this package's, Dopamine's and TF-Slim's."""

import numpy as np
import pytest

from batch_rl_dr3.agents import bellman, checkpoint_weights, networks
from batch_rl_dr3.config import errors


def actor_of(prefix, num_actions=3, network=networks.MinAtarNetwork):
  return checkpoint_weights.Actor(
    network, str(prefix), num_actions, (10, 10, 4), 1
  )


def random_states(num_states, shape=(10, 10, 4), stack_size=1):
  return np.random.default_rng(0).integers(
    0, 2, (num_states, *shape, stack_size), dtype=np.uint8
  )


@pytest.mark.parametrize(
  ('agent_class', 'kwargs'),
  [
    (bellman.FixedReplayDQNAgent, {}),
    (bellman.FixedReplayREMAgent, {'num_heads': 7}),
    (bellman.FixedReplayQRCQLAgent, {'num_quantiles': 5}),
  ],
)
def test_says_what_the_agent_says(make_agent, tmp_path, agent_class, kwargs):
  agent = make_agent(agent_class, **kwargs)
  train_step = agent.make_train_step()
  for _ in range(20):
    train_step()
  agent.save(str(tmp_path / 'tf_ckpt-0'))
  actor = actor_of(tmp_path / 'tf_ckpt-0')
  states = random_states(50)
  with agent.graph.as_default():
    expected = agent.online_convnet(states)
  q_values, features = agent.run([expected.q_values, expected.features])
  outputs = actor.outputs(states)
  np.testing.assert_allclose(outputs.q_values, q_values, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(outputs.features, features, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(
    actor.greedy_actions(states), outputs.q_values.argmax(axis=1)
  )
  assert (actor.greedy_actions(states) == q_values.argmax(axis=1)).all()


def test_the_mean_over_atoms_is_taken_action_by_action():
  # 2 actions of 3 atoms: the kernel's columns 0-2 are action 0's.
  kernel = np.array([[1, 2, 6, -1, 0, 1]], np.float32)
  bias = np.array([0, 3, 0, 1, 1, 4], np.float32)
  mean_kernel, mean_bias = checkpoint_weights.mean_over_atoms([kernel, bias], 2)
  np.testing.assert_array_equal(mean_kernel, [[3, 0]])
  np.testing.assert_array_equal(mean_bias, [1, 2])


def save_as(prefix, weights, layers, names):
  """Writes a checkpoint with the variables of another program."""
  import tensorflow as tf

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = [
      tf.compat.v1.get_variable(f'Online/{layer}/{name}', initializer=weight)
      for (layer, name), weight in zip(
        ((layer, name) for layer in layers for name in names),
        weights,
        strict=True,
      )
    ]
    tf.compat.v1.get_variable('Target/Conv/weights', initializer=0.0)
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, str(prefix))
  return variables


@pytest.fixture(scope='module')
def dopamine_folder(tmp_path_factory):
  """A checkpoint of Dopamine's own DQN, and what it says of some states."""
  import gin
  import tensorflow as tf

  from batch_rl_dr3.config import dopamine_compat

  folder = tmp_path_factory.mktemp('dopamine')
  gin.parse_config('WrappedReplayBuffer.replay_capacity = 50')
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    agent = dopamine_compat.DQNAgent(session, num_actions=3)
    agent.bundle_and_checkpoint(str(folder), 4)
    states = random_states(4, (84, 84), 4) * 200
    q_values = session.run(agent.online_convnet(tf.constant(states)).q_values)
  gin.clear_config()
  return folder, states, q_values


def atari_actor(prefix):
  network = networks.NatureNetwork
  return checkpoint_weights.Actor(network, str(prefix), 3, (84, 84), 4)


def test_plays_dopamines_checkpoint(dopamine_folder):
  folder, states, q_values = dopamine_folder
  actor = atari_actor(folder / 'tf_ckpt-4')
  np.testing.assert_allclose(
    actor.outputs(states).q_values, q_values, rtol=1e-4, atol=1e-6
  )


def test_the_number_of_threads_changes_no_bit(dopamine_folder):
  folder, _, _ = dopamine_folder
  states = random_states(16, (84, 84), 4) * 200

  def q_values(num_threads):
    network = networks.NatureNetwork
    prefix = str(folder / 'tf_ckpt-4')
    actor = checkpoint_weights.Actor(
      network, prefix, 3, (84, 84), 4, num_threads
    )
    return actor.outputs(states).q_values

  one = q_values(1)
  for num_threads in (2, 5):
    np.testing.assert_array_equal(q_values(num_threads), one)


def test_plays_a_checkpoint_with_slims_names(dopamine_folder, tmp_path):
  folder, states, q_values = dopamine_folder
  weights = checkpoint_weights.read(str(folder / 'tf_ckpt-4'))
  save_as(
    tmp_path / 'tf_ckpt-0',
    weights,
    ['Conv', 'Conv_1', 'Conv_2', 'fully_connected', 'fully_connected_1'],
    ['weights', 'biases'],
  )
  actor = atari_actor(tmp_path / 'tf_ckpt-0')
  np.testing.assert_allclose(
    actor.outputs(states).q_values, q_values, rtol=1e-4, atol=1e-6
  )


def test_other_files_and_networks_are_named(make_agent, tmp_path):
  agent = make_agent(bellman.FixedReplayDQNAgent)
  agent.save(str(tmp_path / 'tf_ckpt-0'))
  with pytest.raises(errors.DataError, match='no multiple'):
    actor_of(tmp_path / 'tf_ckpt-0', num_actions=2)
  with pytest.raises(errors.DataError, match='does not fit'):
    atari_actor(tmp_path / 'tf_ckpt-0')
  with pytest.raises(errors.DataError, match='tf_ckpt-1'):
    actor_of(tmp_path / 'tf_ckpt-1')
  (tmp_path / 'tf_ckpt-2.index').write_bytes(b'\x80\x04K\x01.')
  with pytest.raises(errors.DataError, match='tf_ckpt-2'):
    actor_of(tmp_path / 'tf_ckpt-2')
  save_as(tmp_path / 'tf_ckpt-3', [np.zeros(2, np.float32)], ['lstm'], ['w'])
  with pytest.raises(errors.DataError, match='Online/lstm/w'):
    actor_of(tmp_path / 'tf_ckpt-3')


def save_last_layer(prefix, kernel, bias):
  """Writes a MinAtar network whose features are all 1 in any state."""
  weights = [
    np.zeros((3, 3, 4, 16), np.float32),
    np.zeros(16, np.float32),
    np.zeros((1600, 128), np.float32),
    np.ones(128, np.float32),
    np.asarray(kernel, np.float32),
    np.asarray(bias, np.float32),
  ]
  checkpoint_weights.write(str(prefix), weights)


def test_categorical_q_values_are_means_of_the_support(tmp_path):
  # 2 actions of 3 returns, -10, 0 and 10. The logits of action 0 have the
  # higher mean, log(9) / 3, but their mass lies evenly on -10 and 10: 0.
  # Action 1 has 0.1, 0.1 and 0.8: 7.
  bias = np.log([9.0, 1.0, 9.0, 0.1, 0.1, 0.8])
  save_last_layer(tmp_path / 'tf_ckpt-0', np.zeros((128, 6)), bias)

  def actor(q_values_of):
    return checkpoint_weights.Actor(
      networks.MinAtarNetwork,
      str(tmp_path / 'tf_ckpt-0'),
      2,
      (10, 10, 4),
      1,
      q_values_of=q_values_of,
    )

  categorical = actor(networks.categorical_q_values((-10.0, 10.0)))
  states = random_states(2)
  outputs = categorical.outputs(states)
  np.testing.assert_allclose(outputs.q_values, [[0, 7]] * 2, atol=1e-5)
  assert categorical.num_atoms == 3
  assert list(categorical.greedy_actions(states)) == [1, 1]
  assert list(actor(None).greedy_actions(states)) == [0, 0]


def test_categorical_q_values_are_dopamines(tmp_path):
  from dopamine.discrete_domains import atari_lib
  import tensorflow as tf

  from batch_rl_dr3.config import dopamine_compat  # noqa: F401

  states = random_states(4, (84, 84), 4) * 200
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    support = tf.linspace(-10.0, 10.0, 51)
    network = atari_lib.RainbowNetwork(3, 51, support, name='Online')
    q_values = network(tf.constant(states)).q_values
    session.run(tf.compat.v1.global_variables_initializer())
    expected = session.run(q_values)
    prefix = tf.compat.v1.train.Saver(network.weights).save(
      session, str(tmp_path / 'tf_ckpt-0')
    )
  actor = checkpoint_weights.Actor(
    networks.NatureNetwork,
    prefix,
    3,
    (84, 84),
    4,
    q_values_of=networks.categorical_q_values((-10.0, 10.0)),
  )
  np.testing.assert_allclose(
    actor.outputs(states).q_values, expected, rtol=1e-4, atol=1e-5
  )


def test_an_agents_own_q_values_act_as_they_train(make_agent, tmp_path):
  class CategoricalAgent(bellman.FixedReplayQRCQLAgent):
    q_values = staticmethod(networks.categorical_q_values((-2.0, 2.0)))

  agent = make_agent(CategoricalAgent, num_quantiles=5)
  agent.make_train_step()()
  agent.save(str(tmp_path / 'tf_ckpt-0'))
  states = random_states(20)
  with agent.graph.as_default():
    output = agent.online_convnet(states)
  q_values, atoms = agent.run([output.q_values, output.atoms])
  exponents = np.exp(atoms)
  np.testing.assert_allclose(
    q_values,
    (exponents * [-2, -1, 0, 1, 2]).sum(2) / exponents.sum(2),
    rtol=1e-4,
    atol=1e-6,
  )
  # CQL's penalty and the metrics see the same values.
  batch_q, actions = agent.run([agent.batch.q_values, agent.batch.actions])
  measured = agent.measure()
  np.testing.assert_allclose(
    measured['mean_q'], batch_q[np.arange(32), actions].mean(), rtol=1e-4
  )
  actor = actor_of(tmp_path / 'tf_ckpt-0', network=agent.acting_network)
  np.testing.assert_allclose(
    actor.outputs(states).q_values, q_values, rtol=1e-4, atol=1e-6
  )
