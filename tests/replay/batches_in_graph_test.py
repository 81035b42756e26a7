"""What the graph gathers is what NumPy gathers, bit for bit."""

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import batches

# isort: split
import tensorflow as tf

from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset


@pytest.fixture(scope='module')
def stores(tmp_path_factory, logs):
  """By name: files that wrap around, a prefix, MinAtar's shape, no stack."""
  folder = tmp_path_factory.mktemp('table')

  def opened(name, stack_size=4, subset=None, shape=logs.SHAPE, **kwargs):
    return replay_store.open_store(
      folder / name,
      folder / 'cache',
      Subset('all') if subset is None else subset,
      shape,
      logs.NUM_ACTIONS,
      stack_size,
      **kwargs,
    )

  # A cursor in the middle: stacks run from a file's last row into its first.
  logs.write_with_dopamine(
    folder / 'wrapped', logs.make_transitions(700), cursor=73
  )
  logs.write_log(folder / 'prefix', logs.make_transitions(450))
  minatar = logs.make_transitions(300, shape=(10, 10, 4))
  logs.write_log(folder / 'minatar', minatar)
  return {
    'wrapped': opened('wrapped'),
    'prefix': opened('prefix', subset=Subset('prefix', 0.4)),
    'three frames': opened('wrapped', stack_size=3),
    'minatar': opened('minatar', stack_size=1, shape=(10, 10, 4)),
  }


@pytest.mark.parametrize('update_horizon', [1, 3])
@pytest.mark.parametrize(
  'name', ['wrapped', 'prefix', 'three frames', 'minatar']
)
def test_every_valid_row_equals_numpys_gather(
  session, stores, name, update_horizon
):
  store = stores[name]
  rows = store.valid_indices(update_horizon)
  if name == 'wrapped':  # There are stacks that wrap.
    first_rows = np.array([segment.first_row for segment in store.segments])
    assert np.isin(rows, first_rows).any()
  table = batches.TableVariables(store, rows, None)
  gathered = batches.gather(
    table.tensors,
    tf.constant(rows),
    store.observation_shape,
    store.stack_size,
    update_horizon,
    0.9,
  )
  table.load(session)
  expected = store.gather(rows, update_horizon, 0.9)
  for name, ours, theirs in zip(
    expected._fields, session.run(gathered), expected, strict=True
  ):
    assert ours.dtype == theirs.dtype, name
    np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_batches_in_the_graph_are_those_by_numpy(session, stores):
  store = stores['wrapped']
  step = tf.compat.v1.placeholder(tf.int64, [])
  by_numpy, in_graph = (
    batches.FixedReplayBuffer(
      store, step, 1, gamma=0.9, monte_carlo=True, in_graph=in_graph
    )
    for in_graph in (False, True)
  )
  assert by_numpy.table is None
  in_graph.table.load(session)
  assert list(in_graph.transition) == list(by_numpy.transition)
  for number in (0, 1, 10**10):
    ours, theirs = session.run(
      [in_graph.transition, by_numpy.transition], {step: number}
    )
    for name, array in theirs.items():
      np.testing.assert_array_equal(ours[name], array, err_msg=name)
  for name, tensor in by_numpy.transition.items():
    assert in_graph.transition[name].shape == tensor.shape, name


def test_the_table_is_no_part_of_what_is_saved(session, stores):
  batches.FixedReplayBuffer(
    stores['minatar'],
    tf.constant(0, tf.int64),
    0,
    stack_size=1,
    in_graph=True,
  )
  assert tf.compat.v1.global_variables() == []
  # Nor are the rows part of the graph.
  assert tf.compat.v1.get_default_graph().as_graph_def().ByteSize() < 100_000


def test_frames_that_are_not_in_memory_are_gathered_by_numpy(
  session, tmp_path, logs
):
  logs.write_log(tmp_path / 'log', logs.make_transitions(100))
  store = replay_store.open_store(
    tmp_path / 'log',
    tmp_path,
    Subset('all'),
    logs.SHAPE,
    logs.NUM_ACTIONS,
    4,
    max_resident_bytes=0,
  )
  buffer = batches.FixedReplayBuffer(
    store, tf.constant(0, tf.int64), 0, in_graph=True
  )
  assert buffer.table is None
  assert session.run(buffer.transition['state']).shape == (32, *logs.SHAPE, 4)


@pytest.mark.parametrize('room', [0, 10**6])
def test_a_device_holds_what_it_has_room_for(session, tmp_path, logs, room):
  """Frames on the disk are copied to the device, if they fit."""
  logs.write_log(tmp_path / 'log', logs.make_transitions(100))
  store = replay_store.open_store(
    tmp_path / 'log',
    tmp_path,
    Subset('all'),
    logs.SHAPE,
    logs.NUM_ACTIONS,
    4,
    max_resident_bytes=0,
  )
  assert store.num_frame_bytes == store.num_rows * 120
  by_numpy, on_device = (
    batches.FixedReplayBuffer(
      store,
      tf.constant(3, tf.int64),
      0,
      in_graph=room is not None,
      max_device_bytes=room,
    )
    for room in (None, room)
  )
  if not room:
    assert on_device.table is None
    return
  on_device.table.load(session)
  ours, theirs = session.run([on_device.transition, by_numpy.transition])
  for name, array in theirs.items():
    np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.fixture(scope='module')
def open_damaged(tmp_path_factory, logs):
  """Opens a store whose second half of frames cannot be decompressed."""
  folder = tmp_path_factory.mktemp('damaged')
  logs.write_log(folder / 'log', logs.make_transitions(300))

  def opened(max_resident_bytes):
    return replay_store.open_store(
      folder / 'log',
      folder / 'cache',
      Subset('all'),
      logs.SHAPE,
      logs.NUM_ACTIONS,
      4,
      max_resident_bytes=max_resident_bytes,
      codec='zstd',
    )

  opened(0)
  shard = max((folder / 'cache').rglob('observation-*.zst'))
  content = shard.read_bytes()
  half = len(content) // 2
  shard.write_bytes(content[:half] + bytes(half + len(content) % 2))
  return opened


def test_damage_found_while_the_table_is_filled_is_named(session, open_damaged):
  replay = batches.FixedReplayBuffer(
    open_damaged(1 << 20), tf.constant(0, tf.int64), seed=0, in_graph=True
  )
  with pytest.raises(errors.DataError, match='zst is damaged'):
    replay.table.load(session)


def test_damage_found_while_sampling_is_named(session, open_damaged):
  replay = batches.FixedReplayBuffer(
    open_damaged(0), tf.constant(0, tf.int64), seed=0
  )
  sample = batches.raising()(lambda: session.run(replay.transition['state']))
  with pytest.raises(errors.DataError, match='zst is damaged'):
    sample()
