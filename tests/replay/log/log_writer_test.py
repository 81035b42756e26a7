import os

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, log_writer, sources
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset
from batch_rl_dr3.runs import atomic
from batch_rl_dr3.runs.place import local_file


def _arrays(folder, logs):
  return {
    path.name: logs.read_array(path)
    for path in sorted(folder.iterdir())
    if 'episode_end_indices' not in path.name
  }


@pytest.mark.parametrize('update_horizon', [1, 3])
@pytest.mark.parametrize('rows_per_file', [50, 61])
def test_files_equal_those_of_dopamine(
  tmp_path, logs, rows_per_file, update_horizon
):
  # Short episodes, so that padding rows cross file boundaries too.
  transitions = logs.make_transitions(500, episode_length=6)
  logs.write_log(
    tmp_path / 'ours',
    transitions,
    rows_per_file,
    close=False,
    update_horizon=update_horizon,
  )
  logs.write_with_dopamine(
    tmp_path / 'dopamine', transitions, rows_per_file, update_horizon
  )
  ours = _arrays(tmp_path / 'ours', logs)
  dopamine = _arrays(tmp_path / 'dopamine', logs)
  assert len(ours) >= 6 * (500 // rows_per_file)
  assert ours.keys() == dopamine.keys()
  for name, array in ours.items():
    np.testing.assert_array_equal(array, dopamine[name], err_msg=name)
    assert array.dtype == dopamine[name].dtype, name


def test_the_last_file_is_short_and_its_count_starts_again(tmp_path, logs):
  transitions = logs.make_transitions(260)
  transitions = [t._replace(terminal=0) for t in transitions]
  writer = logs.write_log(tmp_path / 'log', transitions)
  assert writer.num_rows_added == 3 + 260
  arrays = _arrays(tmp_path / 'log', logs)
  assert arrays['$store$_observation_ckpt.1.gz'].shape == (63, *logs.SHAPE)
  assert arrays['add_count_ckpt.1.gz'] == 63
  assert arrays['invalid_range_ckpt.1.gz'].tolist() == [62, 0, 1, 2, 3]
  # The same rows are valid in a buffer of the file's size and a larger one.
  folder = tmp_path / 'log'
  small = logs.load_with_dopamine(folder, 1)
  large = logs.dopamine_buffer(200)
  large.load(str(folder), 1)
  assert logs.valid_with_dopamine(small) == list(range(4, 62))
  assert logs.valid_with_dopamine(large) == list(range(4, 62))


def test_atari_frames_and_closing_without_rows(tmp_path, logs):
  transitions = logs.make_transitions(9, shape=(84, 84))
  transitions = [t._replace(terminal=0) for t in transitions]
  logs.write_log(tmp_path, transitions, rows_per_file=12)
  assert sources.FolderSource(tmp_path).suffixes() == [0]
  path = checkpoint_format.file_path(tmp_path, 'observation', 0)
  rows = np.concatenate(
    list(checkpoint_format.read_rows(local_file(path), np.uint8, (84, 84)))
  )
  assert not rows[:3].any()
  np.testing.assert_array_equal(rows[3:], [t.observation for t in transitions])


def test_wrong_uses_are_refused(tmp_path, logs):
  with pytest.raises(errors.ConfigError, match='4 rows a file'):
    log_writer.LogWriter(tmp_path, (3,), 4, rows_per_file=4)
  writer = log_writer.LogWriter(tmp_path, (3,), 4, rows_per_file=5)
  with pytest.raises(ValueError, match='shape'):
    writer.add(np.zeros(2, np.uint8), 0, 0.0, False)
  logs.write_log(tmp_path / 'log', logs.make_transitions(9))
  with pytest.raises(errors.WriteError, match='holds a log already'):
    logs.write_log(tmp_path / 'log', logs.make_transitions(9))


def test_a_failed_write_leaves_nothing_behind(tmp_path, logs, monkeypatch):
  def full_disk(*unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full_disk)
  with pytest.raises(atomic.FileError, match='No space left'):
    logs.write_log(tmp_path / 'log', logs.make_transitions(9))
  assert list((tmp_path / 'log').iterdir()) == []


def test_an_episode_that_is_cut_keeps_its_last_transition(tmp_path):
  """Rows 1 to 3 are cut before 4; of a file's ends nothing is sampled."""
  writer = log_writer.LogWriter(tmp_path / 'log', (2,), 1, 20, np.float32)
  for number, terminal in ((0, True), (1, False), (2, False), (3, False)):
    writer.add(np.full(2, number / 8, np.float32), number, 0.5, terminal)
  writer.cut(np.full(2, 4 / 8, np.float32))
  for number, terminal in ((5, False), (6, True), (7, False)):
    writer.add(np.full(2, number / 8, np.float32), number, 0.25, terminal)
  writer.close()
  source = sources.FolderSource(tmp_path / 'log')
  assert source.segment(0).cut_rows == [4]
  names = [version[0] for version in source.fingerprint()]
  assert 'cut_rows_ckpt.0.gz' in names
  store = replay_store.open_store(
    source, tmp_path / 'cache', Subset(), (2,), 8, 1, np.float32
  )
  rows = store.valid_indices()
  assert rows.tolist() == [1, 2, 3, 5, 6]
  batch = store.gather(rows)
  assert batch.states.dtype == np.float32
  assert batch.states.shape == (5, 2, 1)
  np.testing.assert_array_equal(batch.actions, [1, 2, 3, 5, 6])
  np.testing.assert_array_equal(batch.terminals, [0, 0, 0, 0, 1])
  following = batch.next_states[:4, 0, 0] * 8
  np.testing.assert_array_equal(following, [2, 3, 4, 6])
  # 0.25 + 0.5 * 0.25; nothing is known of what follows row 3.
  returns = store.returns_to_go(0.5)[rows]
  np.testing.assert_array_equal(returns, [np.nan] * 3 + [0.375, 0.25])
