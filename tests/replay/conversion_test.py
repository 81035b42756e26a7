import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import conversion
from batch_rl_dr3.replay.log import log_writer, sources


def read_all(folder, element, dtype, shape=()):
  source = sources.FolderSource(folder)
  return np.concatenate(
    [
      block
      for suffix in source.suffixes()
      for block in source.rows(element, suffix, dtype, shape)
    ]
  )


@pytest.fixture
def play(logs):
  """100 transitions; the last episode does not end."""
  transitions = logs.make_transitions(100, episode_length=9)
  transitions[-1] = transitions[-1]._replace(terminal=0)
  return transitions


def test_episodes_are_what_was_played(logs, play, tmp_path):
  logs.write_log(tmp_path, play, rows_per_file=37)
  found = list(conversion.episodes(sources.FolderSource(tmp_path), 4))
  assert [e.is_whole for e in found] == [True] * (len(found) - 1) + [False]
  for name in ('observation', 'action', 'reward'):
    np.testing.assert_array_equal(
      np.concatenate([getattr(e, f'{name}s') for e in found]),
      np.array([getattr(t, name) for t in play], dtype=None),
    )
  ends = np.cumsum([len(e.actions) for e in found]) - 1
  np.testing.assert_array_equal(
    ends[:-1], np.flatnonzero([t.terminal for t in play])
  )


def test_a_log_written_anew_has_the_same_rows_in_other_files(
  logs, play, tmp_path
):
  logs.write_log(tmp_path / 'a', play, rows_per_file=37)
  count = conversion.to_log(
    sources.FolderSource(tmp_path / 'a'), tmp_path / 'b', 4, 50
  )
  assert count == sum(t.terminal for t in play) + 1
  assert sources.FolderSource(tmp_path / 'b').suffixes() == [0, 1, 2]
  for element, dtype, shape in (
    ('observation', np.uint8, logs.SHAPE),
    ('action', np.int32, ()),
    ('reward', np.float32, ()),
    ('terminal', np.uint8, ()),
  ):
    np.testing.assert_array_equal(
      read_all(tmp_path / 'a', element, dtype, shape),
      read_all(tmp_path / 'b', element, dtype, shape),
    )


def test_a_file_with_its_oldest_rows_in_the_middle_is_refused(
  logs, play, tmp_path
):
  logs.write_with_dopamine(tmp_path, play, capacity=60, cursor=20)
  with pytest.raises(errors.DataError, match='cursor at row 20'):
    list(conversion.episodes(sources.FolderSource(tmp_path), 4))


def test_minari_reads_the_same_episodes(logs, play, tmp_path, monkeypatch):
  minari = pytest.importorskip('minari')
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
  monkeypatch.setattr(conversion, '_FRAMES_PER_UPDATE', 30)
  logs.write_log(tmp_path / 'log', play, rows_per_file=37)
  source = sources.FolderSource(tmp_path / 'log')
  count = conversion.to_minari(source, 'test/log-v0', 4, 6, 'A test.')
  dataset = minari.load_dataset('test/log-v0')
  assert (dataset.total_episodes, dataset.total_steps) == (count, 100)
  for theirs, ours in zip(
    dataset.iterate_episodes(), conversion.episodes(source, 4), strict=True
  ):
    np.testing.assert_array_equal(theirs.observations[:-1], ours.observations)
    assert not theirs.observations[-1].any()
    np.testing.assert_array_equal(theirs.actions, ours.actions)
    np.testing.assert_array_equal(theirs.rewards, ours.rewards)
    assert theirs.terminations[-1] == ours.is_whole
    assert theirs.truncations[-1] != ours.is_whole
    assert not theirs.terminations[:-1].any()
  with pytest.raises(errors.ConfigError, match='Minari'):
    conversion.to_minari(source, 'test/log-v0', 4, 6, 'A test.')


def test_an_empty_tail_is_no_episode(tmp_path):
  writer = log_writer.LogWriter(tmp_path, (3, 3), 1, 10)
  for row in range(10):
    writer.add(np.ones((3, 3), np.uint8), 0, 0.0, row in (4, 9))
  writer.close()
  found = list(conversion.episodes(sources.FolderSource(tmp_path), 1))
  assert [len(e.actions) for e in found] == [5, 5]
