"""A small log of MinAtar-sized frames, and agents on it."""

import contextlib

import numpy as np
import pytest

OBSERVATION_SHAPE = (10, 10, 4)
NUM_ACTIONS = 3


@pytest.fixture(scope='session')
def log(tmp_path_factory):
  """300 random rows in two files, episodes of 15 steps, one action of 3."""
  from batch_rl_dr3.replay.log import log_writer

  folder = tmp_path_factory.mktemp('log')
  writer = log_writer.LogWriter(folder, OBSERVATION_SHAPE, 1, 150)
  rng = np.random.default_rng(0)
  for row in range(300):
    writer.add(
      rng.integers(0, 2, OBSERVATION_SHAPE, dtype=np.uint8),
      int(rng.integers(NUM_ACTIONS)),
      float(rng.integers(-1, 2)),
      row % 15 == 14,
    )
  writer.close()
  return folder


@pytest.fixture(scope='session')
def open_part(log, tmp_path_factory):
  """Opens the part of the log that a subset names."""
  from batch_rl_dr3.replay.store import store as replay_store

  cache = tmp_path_factory.mktemp('cache')
  return lambda part: replay_store.open_store(
    log,
    cache,
    part,
    OBSERVATION_SHAPE,
    NUM_ACTIONS,
    stack_size=1,
  )


@pytest.fixture(scope='session')
def store(open_part):
  """All rows of the log."""
  from batch_rl_dr3.replay.store import subset

  return open_part(subset.Subset('all'))


@pytest.fixture(scope='session')
def held_out_store(open_part):
  """40 transitions from behind the first 10% of each file."""
  from batch_rl_dr3.replay.store import subset

  return open_part(subset.Subset('prefix', 0.1).held_out(40))


@pytest.fixture
def make_agent(store):
  """Makes agents, each in a graph of its own, on MinAtar's network."""
  import tensorflow as tf

  from batch_rl_dr3.agents import networks
  from batch_rl_dr3.config import dopamine_compat  # noqa: F401

  with contextlib.ExitStack() as stack:

    def make(agent_class, **kwargs):
      defaults = {
        'observation_shape': OBSERVATION_SHAPE,
        'stack_size': 1,
        'network': networks.MinAtarNetwork,
        'optimizer': tf.compat.v1.train.AdamOptimizer(1e-3),
      }
      with tf.Graph().as_default():
        session = stack.enter_context(tf.compat.v1.Session())
        agent = agent_class(
          session, NUM_ACTIONS, store, **{**defaults, **kwargs}
        )
      agent.graph = session.graph
      agent.run = session.run
      return agent

    yield make


@pytest.fixture
def weights():
  """Reads every variable of an agent, by name."""

  def read(agent):
    with agent._sess.graph.as_default():
      import tensorflow as tf

      variables = tf.compat.v1.global_variables()
    return {
      v.name: value
      for v, value in zip(variables, agent._sess.run(variables), strict=True)
    }

  return read


@pytest.fixture
def batch():
  """Makes the batch; its parts can be given."""

  import tensorflow as tf

  from batch_rl_dr3.agents import penalties

  def make(**changes):
    values = {
      'q_values': tf.constant([[1.0, 1.0], [0.0, 2.0]]),
      'features': tf.constant([[1.0, 2.0], [3.0, 0.0]]),
      'next_features': tf.constant([[1.0, 1.0], [-4.0, 1.0]]),
      'actions': tf.constant([0, 1]),
      'next_policy': tf.constant([[0.25, 0.75], [1.0, 0.0]]),
      'terminals': tf.constant([1.0, 0.0]),
      'discounts': tf.constant([0.0, 0.5]),
      'step': tf.constant(0, tf.int64),
    }
    return penalties.UpdateBatch(**{**values, **changes})

  return make
