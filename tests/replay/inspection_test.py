"""Summaries and diagnoses of logs whose every number is known."""

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import inspection
from batch_rl_dr3.replay.log import log_writer, sources

SHAPE = (12, 10)


def moving_frames(num, seed=0):
  """Returns frames in which a bright row wanders over a fixed background."""
  rng = np.random.default_rng(seed)
  background = rng.integers(0, 50, SHAPE, dtype=np.uint8)
  frames = np.repeat(background[None], num, axis=0)
  position = np.arange(num) // 8 % SHAPE[0]
  frames[np.arange(num), position] = 255
  return frames


def write(folder, frames, rewards, ends, actions=None, rows_per_file=60):
  writer = log_writer.LogWriter(folder, SHAPE, 4, rows_per_file)
  for i, frame in enumerate(frames):
    action = 0 if actions is None else actions[i]
    writer.add(frame, action, float(rewards[i]), i in ends)
  writer.close()
  return list(inspection.summarise(sources.FolderSource(folder)))


def faults(summaries, **kwargs):
  return list(inspection.faults(summaries, **kwargs))


def notes(summaries, **kwargs):
  return list(inspection.traits(summaries, **kwargs))


def test_a_summary_by_hand(tmp_path):
  # Rows: 3 padding, 10 (episode 0), 3 padding, 12 (episode 1), 3 padding, 29
  # of episode 2: 60; the second file holds its last 9.
  rewards = np.zeros(60)
  rewards[[2, 12, 15, 40]] = 1, 1, -0.5, 1
  first, second = write(tmp_path, moving_frames(60), rewards, {9, 21})
  assert (first.segment.suffix, first.segment.num_rows) == (0, 60)
  assert first.num_padding_rows == 9
  # Episode 0's ends are not both in the file: its start is row 0.
  np.testing.assert_array_equal(first.episode_lengths, [12])
  np.testing.assert_array_equal(first.episode_returns, [0.5])
  assert first.reward_range == (-0.5, 1.0)
  assert first.starts_with_padding
  assert first.ends_in_episode
  # All but padding, row 3 (by the cursor's range 59, 0, 1, 2, 3) and row 59.
  assert first.num_valid == 60 - 9 - 2
  assert (second.segment.num_rows, second.num_padding_rows) == (9, 0)
  assert not second.starts_with_padding


def test_a_sound_log_has_no_faults_and_its_traits_are_named(tmp_path):
  summaries = write(tmp_path, moving_frames(100), np.zeros(100), {29, 49, 99})
  assert faults(summaries, num_actions=1) == []
  found = ' '.join(notes(summaries, max_agent_steps_per_episode=20))
  assert 'from file to file at 0-1' in found
  assert '9 rows are the zero padding' in found
  # The episode of rows 30-49 lasts 20 agent steps.
  assert '1 episodes last the 20 agent steps' in found


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    ({'rewards': np.full(50, 5.0)}, 'not clipped: 0 to 5'),
    ({'actions': [7] * 50}, 'action 7 in a game of 3'),
    ({'frames': np.full((50, *SHAPE), 9, np.uint8)}, 'all the same'),
  ],
)
def test_faults_are_named(tmp_path, change, expected):
  log = {'frames': moving_frames(50), 'rewards': np.zeros(50), 'ends': {49}}
  log = {**log, **change}
  [summary] = write(tmp_path, **log)
  assert any(expected in m for m in faults([summary], num_actions=3))


def test_shuffled_rows_are_noticed(tmp_path):
  frames = moving_frames(59 * 2)
  order = np.random.default_rng(0).permutation(len(frames))
  sound = write(tmp_path / 'a', frames, np.zeros(118), set())
  shuffled = write(tmp_path / 'b', frames[order], np.zeros(118), set())
  assert faults(sound) == []
  assert any('not in time order' in message for message in faults(shuffled))


def test_a_file_that_repeats_another_is_noticed(tmp_path):
  half = moving_frames(57)
  # Each half with its 3 rows of padding fills one file.
  summaries = write(
    tmp_path, np.concatenate([half, half]), np.zeros(114), {56, 113}
  )
  assert faults(summaries) == ['file 1 begins with the frames of file 0.']


def test_the_table_sums_up(tmp_path):
  summaries = write(tmp_path, moving_frames(100), np.zeros(100), {29, 49, 99})
  lines = list(inspection.table(summaries))
  assert len(lines) == len(summaries) + 2
  total = lines[-1].split()
  assert total[0] == 'all'
  assert int(total[1]) == sum(s.segment.num_rows for s in summaries)


def test_a_log_without_whole_episodes_has_a_table(tmp_path):
  summaries = write(tmp_path, moving_frames(50), np.zeros(50), set())
  assert list(inspection.table(summaries))[-1].split() == [
    'all',
    '53',
    f'{summaries[0].num_valid / 53:.2%}',
    '0',
    '0.0',
  ]


def _summaries_of_all_frames(folder, **kwargs):
  source = sources.FolderSource(folder)
  return list(inspection.summarise(source, all_frames=True, **kwargs))


def test_all_frames_are_looked_at(tmp_path, monkeypatch):
  monkeypatch.setattr(inspection, '_WINDOW_ROWS', 50)
  frames = moving_frames(200)
  frames[97:197] = np.random.default_rng(0).permutation(frames[97:197])
  first_only = write(tmp_path, frames, np.zeros(200), set(), rows_per_file=203)
  assert faults(first_only) == []
  counts = []
  [summary] = _summaries_of_all_frames(tmp_path, on_rows=counts.append)
  assert sum(counts) == 203
  # Of the short stretch at the end nothing is said.
  assert [change.first_row for change in summary.changes] == [
    0,
    50,
    100,
    150,
  ]
  [fault] = faults([summary])
  assert 'file 0: from row 100 on' in fault
  assert 'in 2 of 4 stretches' in fault
  assert 'not in time order' in fault


def test_a_stale_last_row_is_named(tmp_path):
  frames = moving_frames(57)
  sound, _ = write(tmp_path / 'a', frames, np.zeros(57), set(), None, 59)
  whole, _ = _summaries_of_all_frames(tmp_path / 'a')
  assert sound.last_change is not None  # A short file is read whole.
  assert not any('stale' in note for note in notes([whole]))
  frames[55] = 255 - frames[55]
  write(tmp_path / 'b', frames, np.zeros(57), set(), None, 59)
  summaries = _summaries_of_all_frames(tmp_path / 'b')
  [note] = [note for note in notes(summaries) if 'stale' in note]
  assert 'in files 0:' in note


def test_episodes_without_their_padding_are_a_fault(tmp_path, logs):
  # Blank rows of a game whose states are one frame, read as stacks of 4.
  writer = log_writer.LogWriter(tmp_path, SHAPE, 1, 60)
  for i, frame in enumerate(moving_frames(60)):
    writer.add(frame, 0, 0.0, i in {19, 39})
  writer.close()
  [summary] = inspection.summarise(sources.FolderSource(tmp_path), 4)
  [fault] = faults([summary])
  assert '2 episodes do not begin with blank frames' in fault


def test_an_empty_buffer_is_named(tmp_path, logs):
  write(tmp_path, moving_frames(50), np.zeros(50), set())
  logs.write_array(tmp_path / 'add_count_ckpt.0.gz', np.array(0))
  with pytest.raises(errors.DataError, match=r'file 0 of .* holds no rows'):
    list(inspection.summarise(sources.FolderSource(tmp_path)))
