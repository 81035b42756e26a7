import gzip
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset
from batch_rl_dr3.runs import atomic

GAMMA = 0.9
FIELDS = (
  'states',
  'actions',
  'rewards',
  'next_states',
  'next_actions',
  'next_rewards',
  'terminals',
)


@pytest.fixture
def log(tmp_path, logs):
  """Three files: 200, 200 and fewer rows."""
  logs.write_log(tmp_path / 'log', logs.make_transitions(450))
  return tmp_path / 'log'


@pytest.fixture
def open_store(tmp_path, logs):
  def call(folder, subset=Subset(), **kwargs):  # noqa: B008
    kwargs = {
      'cache_dir': tmp_path / 'cache',
      'observation_shape': logs.SHAPE,
      'num_actions': logs.NUM_ACTIONS,
      'stack_size': logs.STACK_SIZE,
      **kwargs,
    }
    return replay_store.open_store(folder, subset=subset, **kwargs)

  return call


def _local_valid(store, segment, update_horizon):
  rows = store.valid_indices(update_horizon)
  end = segment.first_row + segment.num_rows
  inside = (rows >= segment.first_row) & (rows < end)
  return (rows[inside] - segment.first_row).tolist()


def _check_batches(store, segment, buffer, indices, update_horizon):
  """Asserts equality with Dopamine's batch at all of `indices`."""
  expected = buffer.sample_transition_batch(len(indices), indices)
  rows = np.array(indices) + segment.first_row
  batch = store.gather(rows, update_horizon, GAMMA)
  np.testing.assert_array_equal(batch.indices, rows)
  ends = batch.terminals == 1
  for name, array in zip(FIELDS, expected[:-1], strict=True):
    ours = getattr(batch, name)
    assert ours.dtype == array.dtype, name
    assert ours.shape == array.shape, name
    if name.startswith('next') and segment.num_rows < buffer._replay_capacity:
      # Undefined in Dopamine; of a prefix, the row behind may be absent.
      ours, array = ours[~ends], array[~ends]
    np.testing.assert_array_equal(ours, array, err_msg=name)


def _check_equals_dopamine(logs, store, folder, update_horizon):
  assert store.segments
  for segment in store.segments:
    buffer = logs.load_with_dopamine(
      folder, segment.suffix, update_horizon, store.observation_shape, GAMMA
    )
    indices = logs.valid_with_dopamine(buffer)
    assert _local_valid(store, segment, update_horizon) == indices
    if indices:
      _check_batches(store, segment, buffer, indices, update_horizon)


@pytest.mark.parametrize('update_horizon', [1, 3])
# The DQN Replay Dataset was saved with the cursor at its last row; a training
# checkpoint of Dopamine's has it anywhere.
@pytest.mark.parametrize('cursor', [0, 199, 77])
def test_files_of_dopamine_equal_dopamine(
  tmp_path, logs, open_store, cursor, update_horizon
):
  logs.write_with_dopamine(
    tmp_path / 'log',
    logs.make_transitions(440),
    update_horizon=update_horizon,
    cursor=cursor,
  )
  store = open_store(tmp_path / 'log')
  assert len(store.segments) >= 2
  _check_equals_dopamine(logs, store, tmp_path / 'log', update_horizon)


@pytest.mark.parametrize('update_horizon', [1, 3])
def test_partly_filled_buffers_equal_dopamine(
  tmp_path, logs, open_store, update_horizon
):
  folder = tmp_path / 'log'
  logs.write_with_dopamine(
    folder,
    logs.make_transitions(100),
    update_horizon=update_horizon,
    final=True,
  )
  # What lies behind the rows added is not data and is not judged as such.
  rewards = logs.read_array(folder / '$store$_reward_ckpt.0.gz')
  rewards[-1] = np.nan
  logs.write_array(folder / '$store$_reward_ckpt.0.gz', rewards)
  store = open_store(folder)
  (segment,) = store.segments
  assert segment.num_rows == segment.add_count < segment.num_rows_in_source
  assert not segment.is_circular
  _check_equals_dopamine(logs, store, folder, update_horizon)


def test_our_files_equal_dopamine(log, logs, open_store):
  store = open_store(log)
  assert [s.num_rows for s in store.segments][:2] == [200, 200]
  assert 0 < store.segments[2].num_rows < 200
  for suffix in range(3):  # Without the pickle, Dopamine loads them too.
    assert logs.load_with_dopamine(log, suffix).add_count > 0
  _check_equals_dopamine(logs, store, log, update_horizon=1)


def test_longer_horizons_do_not_run_over_the_cursor(tmp_path, logs, open_store):
  folder = tmp_path / 'log'
  transitions = logs.make_transitions(440, episode_length=10**9)
  logs.write_with_dopamine(folder, transitions, cursor=77)
  store = open_store(folder)
  segment = store.segments[1]
  buffer = logs.load_with_dopamine(folder, segment.suffix, 3)
  # Loaded, Dopamine keeps the file's range for 1 step: 76-80.
  theirs = set(logs.valid_with_dopamine(buffer))
  assert theirs - set(_local_valid(store, segment, 3)) == {74, 75}


@pytest.mark.parametrize('update_horizon', [1, 3])
@pytest.mark.parametrize('cursor', [0, 199])
def test_prefixes_equal_dopamine_stopped_early(
  tmp_path, logs, open_store, cursor, update_horizon
):
  folder = tmp_path / 'log'
  logs.write_with_dopamine(folder, logs.make_transitions(440), cursor=cursor)
  store = open_store(folder, Subset('prefix', 0.5))
  assert {s.num_rows for s in store.segments} == {100}
  for segment in store.segments:
    assert not segment.read_to_end
    buffer = logs.load_with_dopamine(
      folder, segment.suffix, update_horizon, gamma=GAMMA
    )
    buffer.add_count = np.array(100)
    indices = logs.valid_with_dopamine(buffer)
    assert _local_valid(store, segment, update_horizon) == indices
    _check_batches(store, segment, buffer, indices, update_horizon)


def test_atari_frames_equal_dopamine(tmp_path, logs, open_store):
  transitions = logs.make_transitions(60, shape=(84, 84))
  logs.write_log(tmp_path / 'log', transitions, rows_per_file=40)
  store = open_store(tmp_path / 'log', observation_shape=(84, 84))
  _check_equals_dopamine(logs, store, tmp_path / 'log', update_horizon=1)


def test_first_takes_whole_files_and_then_a_part(log, open_store):
  store = open_store(log, Subset('first', 0.5))
  total = sum(s.num_rows for s in open_store(log).segments)
  assert [s.suffix for s in store.segments] == [0, 1]
  assert [s.num_rows for s in store.segments] == [200, total // 2 - 200]
  assert [s.read_to_end for s in store.segments] == [True, False]
  assert store.manifest['unused_suffixes'] == [2]


def test_pickles_beside_the_arrays_are_never_opened(tmp_path, logs, open_store):
  folder = tmp_path / 'log'
  logs.write_with_dopamine(folder, logs.make_transitions(420))
  pickles = list(folder.glob('episode_end_indices*'))
  assert pickles  # Dopamine did write them.
  executed = tmp_path / 'executed'

  class Bomb:
    def __reduce__(self):
      return open, (str(executed), 'w')

  for path in pickles:
    path.write_bytes(gzip.compress(pickle.dumps(Bomb())))
  open_store(folder).gather([10])
  assert not executed.exists()


def test_manifest(log, logs, open_store, caplog):
  for path in log.glob('*.1.gz'):
    path.unlink()
  for _ in range(2):  # Not only when the store is built.
    caplog.clear()
    store = open_store(log)
    assert 'no files of suffix 1;' in caplog.text
  manifest = store.manifest
  assert manifest['missing_suffixes'] == [1]
  assert manifest['source'] == str(log)
  assert manifest['subset'] == {'rule': 'all', 'fraction': 1.0}
  assert [file['suffix'] for file in manifest['files']] == [0, 2]
  assert manifest['files'][0] == {
    'suffix': 0,
    'first_row': 0,
    'num_rows': 200,
    'num_rows_in_source': 200,
    'add_count': 200,
    'invalid_range': [199, 0, 1, 2, 3],
    'read_to_end': True,
  }
  assert manifest['arrays']['observation']['shape'] == [
    store.num_rows,
    *logs.SHAPE,
  ]
  assert len(store.data_hash) == 64


def test_rebuilding_gives_the_same_store(log, open_store, tmp_path):
  first = open_store(log)
  again = open_store(log, cache_dir=tmp_path / 'other')
  assert first.data_hash == again.data_hash
  copy = tmp_path / 'copy'
  shutil.copytree(log, copy)  # Where the data lies does not matter.
  assert open_store(copy).data_hash == first.data_hash
  prefix = open_store(log, Subset('prefix', 0.5))
  assert prefix.data_hash != first.data_hash


def test_a_store_is_built_once(log, open_store, monkeypatch):
  first = open_store(log)
  monkeypatch.setattr(replay_store, '_Build', None)
  assert open_store(log).data_hash == first.data_hash


def test_changed_data_is_another_store(log, logs, open_store):
  before = open_store(log)
  path = checkpoint_format.file_path(log, 'action', 0)
  logs.write_array(path, np.zeros(200, np.int32))
  os.utime(path, ns=(0, 0))
  assert open_store(log).data_hash != before.data_hash


def test_builds_at_the_same_time_give_one_store(log, open_store, tmp_path):
  hashes = []
  threads = [
    threading.Thread(target=lambda: hashes.append(open_store(log).data_hash))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(hashes) == 4
  assert len(set(hashes)) == 1
  assert len([p for p in (tmp_path / 'cache').iterdir() if p.is_dir()]) == 1


def test_the_loser_of_a_race_discards_its_own(
  log, open_store, tmp_path, monkeypatch
):
  """Where file locks do not work, the first rename wins."""
  rename = os.rename
  winners = []

  def lose(temporary, folder):
    if temporary.suffix == '.building' and not winners:
      winners.append(folder)
      shutil.copytree(temporary, folder)
    rename(temporary, folder)

  monkeypatch.setattr(os, 'rename', lose)
  open_store(log)
  (folder,) = winners
  assert [p for p in (tmp_path / 'cache').iterdir() if p.is_dir()] == [folder]


_KILLED_BUILD = """
import os, sys
from batch_rl_dr3.replay.store import store
from batch_rl_dr3.replay.store.subset import Subset
def die(*unused):
  os.kill(os.getpid(), 9)
store._Build._manifest = die
store.open_store(sys.argv[1], sys.argv[2], Subset(), (12, 10), 6, 4)
"""


def test_a_killed_build_leaves_no_store(log, open_store, tmp_path):
  cache = tmp_path / 'cache'
  process = subprocess.run(
    [sys.executable, '-c', _KILLED_BUILD, str(log), str(cache)], check=False
  )
  assert process.returncode == -9
  (leftover,) = (path for path in cache.iterdir() if path.is_dir())
  assert leftover.name.endswith('.building')
  store = open_store(log)
  assert store.num_rows == sum(s.num_rows for s in store.segments)
  assert not leftover.exists()


def test_a_failed_build_leaves_no_store(log, open_store, tmp_path):
  path = checkpoint_format.file_path(log, 'observation', 2)
  content = path.read_bytes()
  path.write_bytes(content[:-20])
  with pytest.raises(errors.DataError, match=r'observation_ckpt\.2\.gz'):
    open_store(log)
  # What is whole is kept until the log is mended, and goes when it changes.
  leftovers = [p for p in (tmp_path / 'cache').iterdir() if p.is_dir()]
  assert {p.suffix for p in leftovers} <= {'.building'}
  path.write_bytes(content)
  store = open_store(log)
  folders = [p for p in (tmp_path / 'cache').iterdir() if p.is_dir()]
  assert folders == [store.folder]


def test_a_full_disk_is_a_write_error(log, open_store, tmp_path, monkeypatch):
  def full_disk(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'posix_fallocate', full_disk)
  with pytest.raises(atomic.FileError, match='No space left'):
    open_store(log)
  assert not [p for p in (tmp_path / 'cache').iterdir() if p.is_dir()]


def test_a_cache_that_cannot_be_made_is_a_write_error(
  log, open_store, tmp_path
):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(errors.WriteError, match='file'):
    open_store(log, cache_dir=tmp_path / 'file' / 'cache')


def test_a_damaged_store_is_named(log, open_store, tmp_path):
  open_store(log)
  (manifest,) = (tmp_path / 'cache').glob('*/manifest.json')
  np.save(manifest.parent / '0' / 'reward.npy', np.zeros(3, np.float32))
  with pytest.raises(errors.DataError, match='Delete that folder'):
    open_store(log)
  manifest.write_text('{')
  with pytest.raises(errors.DataError, match='Delete that folder'):
    open_store(log)


def test_data_of_another_game_is_refused(log, open_store):
  for _ in range(2):  # While building, and of a store that is there.
    with pytest.raises(errors.DataError, match='another game'):
      open_store(log, observation_shape=(84, 84))
    with pytest.raises(errors.DataError, match='another game'):
      open_store(log, num_actions=4)
    with pytest.raises(errors.DataError, match='another game'):
      open_store(log, observation_dtype=np.float32)
    open_store(log)


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('action', -1, 'action -1'),
    ('terminal', 2, 'terminal flag 2'),
    ('reward', 1.5, 'reward'),
    ('reward', np.nan, 'reward'),
  ],
)
def test_values_out_of_range_are_refused(
  log, logs, open_store, name, value, message
):
  path = checkpoint_format.file_path(log, name, 1)
  array = logs.read_array(path)
  array[50] = value
  logs.write_array(path, array)
  with pytest.raises(errors.DataError, match=message) as caught:
    open_store(log)
  assert path.name in str(caught.value)


def test_files_that_disagree_are_refused(log, logs, open_store):
  path = checkpoint_format.file_path(log, 'reward', 1)
  logs.write_array(path, logs.read_array(path)[:-1])
  with pytest.raises(errors.DataError, match='differ in their number of rows'):
    open_store(log)


def test_files_of_two_games_are_refused(log, logs, open_store):
  path = checkpoint_format.file_path(log, 'observation', 1)
  logs.write_array(path, logs.read_array(path)[:, :, 1:])
  with pytest.raises(errors.DataError, match=r'observation_ckpt\.1\.gz'):
    open_store(log)


def test_other_dtypes_are_refused(log, logs, open_store):
  path = checkpoint_format.file_path(log, 'action', 1)
  logs.write_array(path, logs.read_array(path).astype(np.int64))
  with pytest.raises(errors.DataError, match='int64'):
    open_store(log)


def test_data_without_a_transition_is_refused(tmp_path, logs, open_store):
  transitions = logs.make_transitions(6, episode_length=1)
  logs.write_log(tmp_path / 'log', transitions, rows_per_file=6)
  store = open_store(tmp_path / 'log')
  with pytest.raises(errors.DataError, match='no transition of 3 steps'):
    store.valid_indices(3)


def test_an_empty_last_buffer_is_unused(log, logs, open_store):
  logs.write_array(log / 'add_count_ckpt.2.gz', np.array(0))
  # As Dopamine has it of a buffer that nothing was added to.
  logs.write_array(log / 'invalid_range_ckpt.2.gz', np.zeros(4, np.int64))
  store = open_store(log)
  assert store.manifest['unused_suffixes'] == [2]
  assert [s.suffix for s in store.segments] == [0, 1]


def _expected_returns(logs, transitions, gamma):
  """Returns-to-go of the whole run, padding included, row by row."""
  rewards, terminals = [], []
  at_start = True
  for transition in transitions:
    padding = [0] * (logs.STACK_SIZE - 1) * at_start
    rewards += [*padding, transition.reward]
    terminals += [*padding, transition.terminal]
    at_start = transition.terminal
  returns, value = [], np.nan
  for reward, terminal in zip(rewards[::-1], terminals[::-1], strict=True):
    value = reward if terminal else reward + gamma * value
    returns.append(value)
  return np.array(returns[::-1])


def test_returns_cross_files(log, logs, open_store):
  store = open_store(log)
  expected = _expected_returns(logs, logs.make_transitions(450), GAMMA)
  returns = store.returns_to_go(GAMMA)
  np.testing.assert_allclose(returns, expected, rtol=1e-6, atol=1e-6)
  assert not store.terminals[199]
  assert np.isfinite(returns[199])


@pytest.mark.parametrize('cursor', [199, 77])
def test_returns_follow_time_and_not_rows(tmp_path, logs, open_store, cursor):
  folder = tmp_path / 'log'
  transitions = logs.make_transitions(600)
  buffer = logs.write_with_dopamine(folder, transitions, cursor=cursor)
  store = open_store(folder)
  expected = _expected_returns(logs, transitions, GAMMA)
  assert len(expected) == buffer.add_count
  returns = store.returns_to_go(GAMMA)
  last = store.segments[-1]
  for segment in store.segments:
    times = slice(segment.add_count - segment.num_rows, segment.add_count)
    ours = returns[segment.rows_in_time()]
    # The last file's last episode ends outside the store.
    known = segment is not last or np.isfinite(ours)
    np.testing.assert_allclose(
      ours[known], expected[times][known], rtol=1e-6, atol=1e-6
    )
  assert np.isfinite(returns).mean() > 0.8


def test_returns_do_not_cross_gaps_and_prefixes(log, open_store):
  prefix = open_store(log, Subset('prefix', 0.5))
  for segment in prefix.segments:
    end = segment.first_row + segment.num_rows
    assert prefix.terminals[end - 1] or np.isnan(
      prefix.returns_to_go(GAMMA)[end - 1]
    )
  for path in log.glob('*.1.gz'):
    path.unlink()
  returns = open_store(log).returns_to_go(GAMMA)
  assert np.isnan(returns[199])


def test_the_data_modules_do_not_need_tensorflow():
  code = (
    'from batch_rl_dr3.replay.store import store;'
    'import sys; from batch_rl_dr3.replay.log import log_writer;'
    'assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_manifest_is_plain_json(log, open_store, tmp_path):
  open_store(log)
  (path,) = pathlib.Path(tmp_path / 'cache').glob('*/manifest.json')
  assert json.loads(path.read_text())['format_version'] == 3
