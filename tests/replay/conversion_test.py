import dataclasses
import types

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import conversion
from batch_rl_dr3.replay.log import log_writer, sources


def read_all(folder, element, dtype, shape=()):
  source = sources.FolderSource(folder)
  rows = np.concatenate([source.column(element, s) for s in source.suffixes()])
  assert (rows.dtype, rows.shape[1:]) == (dtype, shape)
  return rows


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
  found = conversion.episodes(sources.FolderSource(tmp_path / 'a'), 4)
  count = conversion.write_log(found, tmp_path / 'b', 4, 50)
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
  found = conversion.episodes(source, 4)
  count = conversion.write_minari(found, 'test/log-v0', 6, 'a test')
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
    conversion.write_minari(
      conversion.episodes(source, 4), 'test/log-v0', 6, 'a test'
    )


def test_an_empty_tail_is_no_episode(tmp_path):
  writer = log_writer.LogWriter(tmp_path, (3, 3), 1, 10)
  for row in range(10):
    writer.add(np.ones((3, 3), np.uint8), 0, 0.0, row in (4, 9))
  writer.close()
  found = list(conversion.episodes(sources.FolderSource(tmp_path), 1))
  assert [len(e.actions) for e in found] == [5, 5]


@pytest.fixture
def minari(tmp_path, monkeypatch):
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
  return pytest.importorskip('minari')


def test_what_minari_was_given_comes_back(logs, play, tmp_path, minari):
  logs.write_log(tmp_path / 'a', play, rows_per_file=37)
  found = conversion.episodes(sources.FolderSource(tmp_path / 'a'), 4)
  count = conversion.write_minari(found, 'test/log-v0', 6, 'a test')
  dataset = minari.load_dataset('test/log-v0')
  assert _from_minari(dataset, tmp_path / 'b', 4, 37) == count
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


def _from_minari(dataset, folder, stack_size, rows_per_file):
  found = conversion.minari_episodes(dataset, stack_size)
  return conversion.write_log(found, folder, stack_size, rows_per_file)


def write_minari(minari, episodes, start=0, space=None):
  """Writes (observations [T + 1, ...], rewards, is_truncated) of each."""
  import gymnasium
  from minari.data_collector import EpisodeBuffer

  def buffer(number, observations, rewards, is_truncated):
    ends = np.arange(len(rewards)) == len(rewards) - 1
    return EpisodeBuffer(
      id=number,
      observations=observations,
      actions=start + np.arange(len(rewards)) % 3,
      rewards=np.array(rewards),
      terminations=ends & (not is_truncated),
      truncations=ends & is_truncated,
    )

  shape = episodes[0][0].shape[1:]
  return minari.create_dataset_from_buffers(
    'test/play-v0',
    [buffer(n, *episode) for n, episode in enumerate(episodes)],
    action_space=space or gymnasium.spaces.Discrete(3, start=start),
    observation_space=gymnasium.spaces.Box(0, 255, shape, np.uint8),
    jpeg_encoding=False,
  )


@pytest.mark.parametrize('axis', [None, 1, -1])
def test_stacks_are_undone_and_rewards_clipped(minari, tmp_path, axis):
  frames = np.arange(1, 8, dtype=np.uint8)[:, None, None] * np.ones(
    (7, 5, 5), np.uint8
  )
  observations = frames[1:]
  if axis is not None:
    observations = np.stack([frames[:-1], frames[1:]], axis)
  dataset = write_minari(
    minari,
    [
      (observations, [0.0, 3.0, -2.0, 0.5, 1.0], False),
      (observations[:4], [1.0, 0.0, 7.0], True),
      (observations[:3], [0.0, 1.0], False),
    ],
    start=2,
  )
  assert _from_minari(dataset, tmp_path / 'log', 2, 100) == 3

  def read(name, dtype):
    return read_all(tmp_path / 'log', name, dtype).tolist()

  # A row of padding begins each episode; observations begin with frame 2.
  pixels = read_all(tmp_path / 'log', 'observation', np.uint8, (5, 5))[:, 0, 0]
  assert pixels.tolist() == [0, 2, 3, 4, 5, 6, 0, 2, 3, 4, 0, 2, 3]
  assert read('action', np.int32) == [0, 0, 1, 2, 0, 1, 0, 0, 1, 2, 0, 0, 1]
  rewards = [0, 0, 1, -1, 0.5, 1, 0, 1, 0, 1, 0, 0, 1]
  assert read('reward', np.float32) == rewards
  # The truncated episode has no terminal, and the file ends with it.
  terminals = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
  assert read('terminal', np.uint8) == terminals
  source = sources.FolderSource(tmp_path / 'log')
  assert [source.segment(s).num_rows for s in source.suffixes()] == [10, 3]


def test_minari_that_the_format_does_not_hold_is_named(minari, tmp_path):
  import gymnasium

  frames = np.ones((4, 5, 5), np.uint8)
  whole = write_minari(minari, [(frames, [0.0] * 3, False)])
  [episode] = whole.iterate_episodes()
  box = gymnasium.spaces.Box(-1, 1)
  for spaces, change, told in (
    (box, {}, 'discrete'),
    (whole.action_space, {'observations': frames[:-1]}, '3 observations for 3'),
    (whole.action_space, {'observations': frames / 2}, 'frames of uint8'),
    (whole.action_space, {'truncations': np.array([1, 0, 0])}, 'before its'),
    (whole.action_space, None, 'no episode'),
  ):
    episodes = []
    if change is not None:
      episodes = [dataclasses.replace(episode, **change)]
    dataset = types.SimpleNamespace(
      id='test/play-v0',
      action_space=spaces,
      total_episodes=len(episodes),
      iterate_episodes=lambda episodes=episodes: iter(episodes),
    )
    with pytest.raises(errors.DataError, match=told):
      _from_minari(dataset, tmp_path / 'log', 4, 100)
  assert not (tmp_path / 'log').exists()


def test_frames_that_stop_being_stacks_are_named(minari, tmp_path):
  stacks = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2)
  stacks = np.concatenate([stacks[:-1], stacks[1:]], 1)
  dataset = write_minari(
    minari, [(stacks, [0.0] * 4, False), (stacks[::-1], [0.0] * 4, False)]
  )
  with pytest.raises(errors.DataError, match=r'episode 1: .*no stacks of 2'):
    _from_minari(dataset, tmp_path / 'log', 2, 100)
