import threading

import gin
import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.config import dopamine_compat, errors
from batch_rl_dr3.replay import batches
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset

BATCH_SIZE = 8


@pytest.fixture(scope='module')
def store(tmp_path_factory, logs):
  folder = tmp_path_factory.mktemp('replay')
  logs.write_log(folder / 'log', logs.make_transitions(450))
  return replay_store.open_store(
    folder / 'log', folder / 'cache', Subset(), logs.SHAPE, logs.NUM_ACTIONS, 4
  )


class Sampler:
  """A buffer in a graph and a session of its own."""

  def __init__(self, store, seed=1, **kwargs):
    kwargs = {'batch_size': BATCH_SIZE, 'gamma': 0.9, **kwargs}
    with tf.Graph().as_default() as graph:
      self.step = tf.compat.v1.placeholder(tf.int64, [])
      self.buffer = batches.FixedReplayBuffer(store, self.step, seed, **kwargs)
    self.session = tf.compat.v1.Session(graph=graph)

  def __call__(self, step):
    return self.session.run(self.buffer.transition, {self.step: step})


def test_tensors_have_dopamine_names_shapes_and_dtypes(store, logs):
  with tf.Graph().as_default():
    ours = batches.FixedReplayBuffer(store, tf.constant(0), 0)
    theirs = dopamine_compat.WrappedReplayBuffer(
      logs.SHAPE, 4, replay_capacity=20
    )
  assert list(ours.transition) == list(theirs.transition)
  for name, tensor in theirs.transition.items():
    assert ours.transition[name].shape == tensor.shape, name
    if name != 'indices':
      assert ours.transition[name].dtype == tensor.dtype, name
  assert 'return' not in ours.transition


@pytest.mark.parametrize('update_horizon', [1, 3])
def test_batches_are_the_transitions_at_their_indices(store, update_horizon):
  sampler = Sampler(store, update_horizon=update_horizon)
  batch = sampler(5)
  valid = store.valid_indices(update_horizon)
  assert np.isin(batch['indices'], valid).all()
  expected = store.gather(batch['indices'], update_horizon, 0.9)
  for ours, array in zip(batch.values(), expected, strict=True):
    np.testing.assert_array_equal(ours, array)
  at_indices = sampler.buffer.batch_at(batch['indices'])
  assert list(at_indices) == list(batch)
  np.testing.assert_array_equal(at_indices['state'], batch['state'])


def test_a_batch_depends_on_seed_and_step_alone(store):
  first, second, other = Sampler(store), Sampler(store), Sampler(store, seed=2)
  for step in (0, 1, 10**10):
    batch = first(step)
    again = second(step)
    for name, array in batch.items():
      np.testing.assert_array_equal(array, again[name])
    assert (batch['indices'] != first(step + 1)['indices']).any()
    assert (batch['indices'] != other(step)['indices']).any()


def test_the_next_batch_is_read_ahead_and_no_batch_twice(store, monkeypatch):
  sampler = Sampler(store)
  expected = [sampler(step)['indices'].tolist() for step in range(6)]
  asked, gather = [], store.gather
  in_background = threading.Event()

  def recorded(rows, *args):
    asked.append(np.asarray(rows).tolist())
    if threading.current_thread().name.startswith('read_ahead'):
      in_background.set()
    return gather(rows, *args)

  monkeypatch.setattr(store, 'gather', recorded)
  sampler = Sampler(store)
  asked.clear()  # One row was read for the tensors' shapes.
  for step in (0, 1, 2):
    in_background.clear()
    assert sampler(step)['indices'].tolist() == expected[step]
    assert in_background.wait(60)
  assert asked == expected[:4]
  # Steps that do not follow each other are right all the same.
  for step in (0, 5, 5, 2):
    assert sampler(step)['indices'].tolist() == expected[step]


def test_sampling_is_uniform_over_valid_rows(store):
  sampler = Sampler(store, batch_size=2000)
  counts = np.zeros(store.num_rows)
  for step in range(10):
    np.add.at(counts, sampler(step)['indices'], 1)
  valid = store.valid_indices()
  assert sampler.buffer.num_valid == len(valid)
  assert counts.sum() == counts[valid].sum() == 20_000
  mean = 20_000 / len(valid)
  chi_square = ((counts[valid] - mean) ** 2 / mean).sum()
  # Mean len(valid), standard deviation sqrt(2 len(valid)).
  assert abs(chi_square - len(valid)) < 5 * np.sqrt(2 * len(valid))


def test_one_session_call_can_run_several_steps(store):
  with tf.Graph().as_default() as graph:
    buffer = batches.FixedReplayBuffer(
      store, tf.constant(0, tf.int64), 1, batch_size=BATCH_SIZE
    )
    _, rows = tf.while_loop(
      lambda step, _: step < 3,
      lambda step, rows: (
        step + 1,
        tf.concat([rows, buffer.transition_at(step)['indices']], 0),
      ),
      (tf.constant(0, tf.int64), tf.zeros([0], tf.int64)),
      shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
    )
  with tf.compat.v1.Session(graph=graph) as session:
    fused = session.run(rows)
  sampler = Sampler(store)
  expected = [sampler(step)['indices'] for step in range(3)]
  np.testing.assert_array_equal(fused, np.concatenate(expected))


def test_monte_carlo_returns(store):
  sampler = Sampler(store, monte_carlo=True)
  returns = store.returns_to_go(0.9)
  valid = store.valid_indices()
  assert sampler.buffer.num_valid == np.isfinite(returns[valid]).sum()
  batch = sampler(3)
  np.testing.assert_array_equal(batch['return'], returns[batch['indices']])
  assert sampler.buffer.transition['return'].shape == (BATCH_SIZE,)
  assert sampler.buffer.transition['return'].dtype == tf.float32


def test_monte_carlo_needs_an_episode(tmp_path, logs):
  transitions = [t._replace(terminal=0) for t in logs.make_transitions(50)]
  logs.write_log(tmp_path / 'log', transitions)
  store = replay_store.open_store(
    tmp_path / 'log', tmp_path, Subset(), logs.SHAPE, logs.NUM_ACTIONS, 4
  )
  with pytest.raises(errors.DataError, match='no episode ends'):
    Sampler(store, monte_carlo=True)


def test_wrong_arguments_are_refused(store):
  with pytest.raises(errors.ConfigError, match='batch_size'):
    Sampler(store, batch_size=0)
  with pytest.raises(errors.ConfigError, match='stack'):
    Sampler(store, stack_size=2)


def test_gin_binds_the_batch_size_alone(store):
  with gin.unlock_config():
    gin.parse_config('FixedReplayBuffer.batch_size = 5')
  try:
    with tf.Graph().as_default():
      buffer = batches.FixedReplayBuffer(store, tf.constant(0, tf.int64), 0)
    assert buffer.transition['state'].shape[0] == buffer.batch_size == 5
    with pytest.raises(ValueError, match='gamma'):
      gin.bind_parameter('FixedReplayBuffer.gamma', 0.5)
  finally:
    gin.clear_config()
