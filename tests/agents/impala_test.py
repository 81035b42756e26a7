"""The IMPALA network is Dopamine's: parameter by parameter, value by value."""

import numpy as np
import pytest

from batch_rl_dr3.agents import bellman, checkpoint_weights, networks
from batch_rl_dr3.config import errors

# isort: split
import tensorflow as tf


@pytest.fixture(scope='module')
def dopamines():
  """Returns Dopamine's network of a width, by its JAX implementation."""
  import jax

  from batch_rl_dr3.config import dopamine_compat  # noqa: F401

  # isort: split
  from dopamine.jax import networks as jax_networks

  state = np.random.default_rng(0).integers(0, 256, (84, 84, 4), dtype=np.uint8)

  def make(width):
    network = jax_networks.ImpalaDQNNetwork(num_actions=5, nn_scale=width)
    return jax, network, state

  return make


def flat_weights(parameters):
  """Returns Flax's kernels and biases in the order in which they are used."""
  stacks = [parameters['encoder'][f'_stacks_{i}'] for i in range(3)]
  layers = [stack[f'Conv_{i}'] for stack in stacks for i in range(5)]
  layers += [parameters[f'Dense_{i}'] for i in range(2)]
  return [
    np.asarray(layer[name]) for layer in layers for name in ('kernel', 'bias')
  ]


@pytest.mark.parametrize('width', [1, 2])
def test_the_parameters_are_as_many_as_dopamines(session, dopamines, width):
  jax, network, state = dopamines(width)
  shapes = jax.eval_shape(network.init, jax.random.PRNGKey(0), state)
  expected = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  ours = networks.ImpalaNetwork(5, width=width)
  ours(tf.zeros([1, 84, 84, 4], tf.uint8))
  sizes = [np.prod(v.shape.as_list()) for v in ours.variables]
  assert sum(sizes) == expected
  # At width 1, convolutions from 4 to 16, 16 to 16 (4 times), 16 to 32 and 32
  # to 32 channels (9 times), 9 * in * out + out each: 592 + 4 * 2,320 + 4,640 +
  # 9 * 9,248; the features of 11 * 11 * 32: 3,872 * 512 + 512; 512 * 5 + 5.
  if width == 1:
    assert sum(sizes) == 97_744 + 1_982_976 + 2_565


def test_the_values_are_dopamines(session, dopamines):
  jax, network, state = dopamines(1)
  parameters = network.init(jax.random.PRNGKey(1), state)
  expected = network.apply(parameters, state).q_values
  ours = networks.ImpalaNetwork(5, name='Online')
  output = ours(tf.constant(state[np.newaxis]))
  weights = flat_weights(parameters['params'])
  for variable, weight in zip(ours.variables, weights, strict=True):
    variable.load(weight, session)
  np.testing.assert_allclose(
    session.run(output.q_values)[0], expected, rtol=1e-4, atol=1e-5
  )


def test_a_layer_norm_stands_before_the_features(session):
  network = networks.ImpalaNetwork(3, layer_norm=True, name='Online')
  output = network(tf.zeros([2, 10, 10, 4], tf.uint8))
  assert output.features.shape.as_list() == [2, 512]
  names = [v.name for v in network.variables]
  assert len(names) == 2 * (15 + 1 + 1 + 1)
  assert names[28] == 'Online/Conv_14/kernel:0'
  assert names[32:34] == [
    'Online/layer_norm/gamma:0',
    'Online/layer_norm/beta:0',
  ]


def test_it_learns_and_its_checkpoint_acts(make_agent, tmp_path):
  def make_network(*args, **kwargs):
    return networks.ImpalaNetwork(*args, layer_norm=True, **kwargs)

  agent = make_agent(bellman.FixedReplayDQNAgent, network=make_network)
  before = agent.measure()['loss_bellman']
  step = agent.make_train_step()
  for _ in range(20):
    step()
  assert agent.measure()['loss_bellman'] < before
  prefix = str(tmp_path / 'tf_ckpt-0')
  agent.save(prefix)
  assert len(checkpoint_weights.read(prefix)) == 36
  actor = checkpoint_weights.Actor(
    agent.acting_network, prefix, 3, (10, 10, 4), 1
  )
  states = np.random.default_rng(0).integers(
    0, 2, (20, 10, 10, 4, 1), dtype=np.uint8
  )
  with agent.graph.as_default():
    q_values = agent.online_convnet(tf.constant(states)).q_values
  np.testing.assert_allclose(
    actor.outputs(states).q_values, agent.run(q_values), rtol=1e-4, atol=1e-5
  )


def test_a_width_below_one_is_refused():
  with pytest.raises(errors.ConfigError, match=r'ImpalaNetwork\.width'):
    networks.ImpalaNetwork(3, width=0)
