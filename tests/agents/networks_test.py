import functools

import numpy as np
import pytest

from batch_rl_dr3.agents import networks
from batch_rl_dr3.config import dopamine_compat

# isort: split
import tensorflow as tf


@pytest.mark.parametrize(
  ('network', 'state_shape', 'num_features'),
  [
    (networks.NatureNetwork, (84, 84, 4), 512),
    (networks.MinAtarNetwork, (10, 10, 6, 1), 128),
    (
      functools.partial(networks.MinAtarNetwork, num_features=512),
      (10, 10, 6, 1),
      512,
    ),
  ],
)
@pytest.mark.parametrize('num_atoms', [1, 7])
def test_shapes(session, network, state_shape, num_features, num_atoms):
  output = network(3, num_atoms=num_atoms, name='Online')(
    tf.zeros([2, *state_shape], tf.uint8)
  )
  assert output.q_values.shape.as_list() == [2, 3]
  assert output.features.shape.as_list() == [2, num_features]
  assert output.atoms.shape.as_list() == [2, 3, num_atoms]


def test_one_atom_equals_dopamines_nature_network_variable_by_variable(session):
  states = np.random.default_rng(0).integers(
    0, 256, (2, 84, 84, 4), dtype=np.uint8
  )
  ours = networks.NatureNetwork(5, name='Ours')
  dopamines = dopamine_compat.NatureDQNNetwork(5, name='Dopamines')
  outputs = ours(tf.constant(states)), dopamines(tf.constant(states))
  names = [
    [v.name.split('/', 1)[1] for v in network.variables]
    for network in (ours, dopamines)
  ]
  assert names[0] == names[1]
  session.run(tf.compat.v1.global_variables_initializer())
  for mine, theirs in zip(ours.variables, dopamines.variables, strict=True):
    mine.load(session.run(theirs), session)
  np.testing.assert_allclose(
    *session.run([output.q_values for output in outputs]), rtol=1e-5
  )


def test_features_times_last_layer_are_the_q_values(session):
  network = networks.MinAtarNetwork(3)
  states = np.random.default_rng(0).integers(
    0, 2, (4, 10, 10, 6, 1), dtype=np.uint8
  )
  output = network(tf.constant(states))
  session.run(tf.compat.v1.global_variables_initializer())
  q_values, features, kernel, bias = session.run(
    [output.q_values, output.features, *network.variables[-2:]]
  )
  np.testing.assert_allclose(q_values, features @ kernel + bias, rtol=1e-4)
  assert (features >= 0).all()


@pytest.mark.parametrize(
  'initialiser', [networks.glorot_uniform, networks.scaled_uniform]
)
def test_initial_weights_are_a_function_of_the_seed(session, initialiser):
  made = [
    networks.MinAtarNetwork(3, initialiser=initialiser, seed=seed)
    for seed in (1, 1, 2)
  ]
  for network in made:
    network(tf.zeros([1, 10, 10, 4, 1], tf.uint8))
  session.run(tf.compat.v1.global_variables_initializer())
  first, second, other = (session.run(n.variables) for n in made)
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (first[0] != other[0]).any()


def test_scaled_uniform_has_the_published_bound(session):
  # Uniform with variance scale / fan_in has the bound sqrt(3 scale / fan_in);
  # with scale 1/sqrt(3) and fan_in 300: sqrt(sqrt(3) / 300) = 0.07598.
  values = session.run(networks.scaled_uniform(0)((300, 400)))
  np.testing.assert_allclose(np.abs(values).max(), 0.07598, rtol=1e-2)


def test_layer_norm_stands_before_the_relu_of_the_features(session):
  network = networks.MinAtarNetwork(3, name='Online', layer_norm=True)
  states = np.random.default_rng(0).integers(
    0, 2, (4, 10, 10, 6, 1), dtype=np.uint8
  )
  output = network(tf.constant(states))
  session.run(tf.compat.v1.global_variables_initializer())
  # A kernel of zeros and the biases 1, 2, 3, 4 again and again: mean 2.5 and
  # variance 1.25, so (-1.5, -0.5, 0.5, 1.5) / 1.1180, then 2 x + 1.
  kernel, bias = network.variables[2:4]
  kernel.load(np.zeros(kernel.shape, np.float32), session)
  bias.load(np.tile([1.0, 2.0, 3.0, 4.0], 32).astype(np.float32), session)
  scale, offset = network.variables[4:6]
  scale.load(np.full(128, 2.0, np.float32), session)
  offset.load(np.full(128, 1.0, np.float32), session)
  np.testing.assert_allclose(
    session.run(output.features)[0, :4],
    [0.0, 1 - 1 / 1.1180340, 1 + 1 / 1.1180340, 1 + 3 / 1.1180340],
    rtol=1e-4,
  )
  assert [v.name for v in network.variables] == [
    'Online/Conv/kernel:0',
    'Online/Conv/bias:0',
    'Online/fully_connected/kernel:0',
    'Online/fully_connected/bias:0',
    'Online/layer_norm/gamma:0',
    'Online/layer_norm/beta:0',
    'Online/fully_connected_1/kernel:0',
    'Online/fully_connected_1/bias:0',
  ]


def test_without_layer_norm_the_variables_are_dopamines(session):
  network = networks.MinAtarNetwork(3, name='Online')
  network(tf.zeros([1, 10, 10, 6, 1], tf.uint8))
  assert not any('layer_norm' in v.name for v in network.variables)
  assert len(network.variables) == 6


def test_a_multilayer_perceptron_by_hand(session):
  """s = (1, 2, 3): h = relu(4, -2) = (4, 0); phi = (3, 8.5); Q = (3.5, 17)."""
  network = networks.MLPNetwork(2, layers=(2, 2), name='Online')
  states = np.array([[[1.0], [2.0], [3.0]]], np.float32)
  output = network(tf.constant(states))
  session.run(tf.compat.v1.global_variables_initializer())
  weights = (
    [[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]],
    [0.0, -1.0],
    [[1.0, 2.0], [5.0, 5.0]],
    [-1.0, 0.5],
    [[1.0, 0.0], [0.0, 2.0]],
    [0.5, 0.0],
  )
  for variable, value in zip(network.variables, weights, strict=True):
    variable.load(np.array(value, np.float32), session)
  features, q_values = session.run([output.features, output.q_values])
  np.testing.assert_array_equal(features, [[3.0, 8.5]])
  np.testing.assert_array_equal(q_values, [[3.5, 17.0]])
  names = [v.name.partition('/')[2] for v in network.variables]
  assert names[:3] == [
    'fully_connected/kernel:0',
    'fully_connected/bias:0',
    'fully_connected_1/kernel:0',
  ]
  with pytest.raises(ValueError, match='layers'):
    networks.MLPNetwork(2, layers=())
