"""Agents and batches small enough for arithmetic by hand.

TF-Agents needs TensorFlow's v2 behaviour, which Dopamine switches off for the
whole process, so these tests run in a process of their own:
`tests/control_test.py` starts it.
"""

import os

import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)

# isort: split
import gin
import numpy as np
import pytest

from batch_rl_dr3.config import frameworks

if os.environ.get('BATCH_RL_DR3_CONTINUOUS_TESTS') != '1':
  collect_ignore_glob = ['*_test.py']
else:
  # As every continuous command does.
  frameworks.import_tf_agents()

OBSERVATION_SIZE, ACTION_SIZE, BATCH_SIZE = 3, 2, 6


@pytest.fixture(autouse=True)
def clear_gin():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture(scope='session')
def batch():
  """Six transitions, the last of which ends its episode."""
  import tensorflow as tf

  from batch_rl_dr3.control import networks

  rng = np.random.default_rng(0)

  def normal(*shape):
    return tf.constant(rng.normal(size=(BATCH_SIZE, *shape)), tf.float32)

  return networks.transition(
    [
      normal(OBSERVATION_SIZE),
      tf.tanh(normal(ACTION_SIZE)),
      normal(),
      normal(OBSERVATION_SIZE),
      tf.constant([0.0] * (BATCH_SIZE - 1) + [1.0]),
    ]
  )


def arguments(learning_rate=0.1):
  """What both agents take, with plain SGD and networks of 4 units."""
  import tensorflow as tf

  from batch_rl_dr3.control import networks

  tf.keras.utils.set_random_seed(0)
  spaces = networks.Spaces(OBSERVATION_SIZE, ACTION_SIZE)
  sgd = tf.keras.optimizers.legacy.SGD
  return {
    'time_step_spec': spaces.time_step_spec,
    'action_spec': spaces.action_spec,
    'critic_network': networks.create_critic(spaces, (4, 4)),
    'actor_network': networks.create_actor(spaces, (4,)),
    'critic_optimizer': sgd(learning_rate),
    'actor_optimizer': sgd(learning_rate),
    'alpha_optimizer': sgd(learning_rate),
    'train_step_counter': tf.Variable(0, dtype=tf.int64, trainable=False),
    'gamma': 0.9,
  }


@pytest.fixture
def make_cql():
  """Makes CQL agents with the same first weights."""
  from batch_rl_dr3.control import cql_agent

  def make(learning_rate=0.1, agent=cql_agent.DR3CqlSacAgent, **kwargs):
    made = agent(
      **{
        **arguments(learning_rate),
        'cql_alpha': 1.5,
        'num_cql_samples': 5,
        'include_critic_entropy_term': False,
        'use_lagrange_cql_alpha': False,
        **kwargs,
      },
    )
    made.initialize()
    return made

  return make


@pytest.fixture
def make_brac():
  """Makes BRAC agents with the same first weights."""
  from batch_rl_dr3.control import brac_agent, networks

  def make(learning_rate=0.1, **kwargs):
    shared = arguments(learning_rate)
    spaces = networks.Spaces(OBSERVATION_SIZE, ACTION_SIZE)
    behaviour_network = networks.create_actor(spaces, (4,))
    behaviour_network.create_variables()
    made = brac_agent.DR3BracAgent(
      **{**shared, 'behaviour_network': behaviour_network, **kwargs}
    )
    made.initialize()
    return made

  return make


# Tracing CQL's policy loss takes seconds: it is left to the slow tests.
@pytest.fixture(
  params=[pytest.param('cql', marks=pytest.mark.slow), 'brac'],
)
def make_agent(request):
  """Makes agents of either kind."""
  return request.getfixturevalue(f'make_{request.param}')
