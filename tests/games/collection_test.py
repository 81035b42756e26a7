import gzip
import typing

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import collection
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.replay.log import checkpoint_format, sources

pytestmark = pytest.mark.usefixtures('clear_gin')


class ThreeStepLanes:
  """One lane of 3-step episodes that earn 5 a step, with stacks of 4."""

  num_lanes = group_size = 1
  game = lanes_lib.Game('fake', 'three', 2, (1,), 4, None, {})

  def reset(self, which, seed=None):
    before = self._time if seed is None else -1
    self._time = 10 * (before // 10 + 1)
    return np.array([[self._time]], np.uint8)

  def step(self, which, actions):
    self._time += 1
    game_over = np.array([self._time % 10 == 3])
    terminals = game_over | (self._time == self.life)
    observations = np.array([[self._time]], np.uint8)
    return lanes_lib.Step(observations, np.array([5.0]), terminals, game_over)

  def close(self):
    pass

  life = None


class Recorder:
  """A behaviour that writes down what it is told, and plays 0, 1, 0, 1."""

  log: typing.ClassVar[list] = []

  def __init__(self, game, seed):
    type(self).log = []

  def begin_episode(self, observation):
    self.log.append(('begin', int(observation[0])))
    return len(self.log) % 2

  def step(self, reward, observation):
    self.log.append(('step', reward, int(observation[0])))
    return len(self.log) % 2

  def end_episode(self, reward):
    self.log.append(('end', reward))


def read(folder, name, suffix=0):
  with gzip.open(checkpoint_format.file_path(folder, name, suffix)) as file:
    return np.load(file)


def collect_three(folder, **kwargs):
  kwargs = {
    'create_lanes': lambda num_lanes: ThreeStepLanes(),
    'behaviour': Recorder,
    'num_rows': 13,
    'rows_per_file': 100,
    **kwargs,
  }
  return collection.collect(folder, 0, **kwargs)


def test_rows_are_those_of_dopamines_runner(tmp_path):
  summary = collect_three(tmp_path / 'log')
  # Padding of 3 rows, 3 transitions, padding, 3 transitions: 12 rows; the
  # 13th would be padding.
  folder = tmp_path / 'log'
  observations = read(folder, 'observation')[:, 0].tolist()
  assert observations == [0, 0, 0, 0, 1, 2, 0, 0, 0, 10, 11, 12]
  # Rewards are clipped, for the behaviour too.
  assert read(folder, 'reward').tolist() == [0, 0, 0, 1, 1, 1] * 2
  assert read(folder, 'terminal').tolist() == [0, 0, 0, 0, 0, 1] * 2
  assert read(folder, 'action').tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1]
  # Dopamine's order of calls; the last transition is not answered.
  assert Recorder.log == [
    ('begin', 0),
    ('step', 1.0, 1),
    ('step', 1.0, 2),
    ('end', 1.0),
    ('begin', 10),
    ('step', 1.0, 11),
    ('step', 1.0, 12),
  ]
  assert (summary['num_rows'], summary['num_transitions']) == (12, 6)
  assert (summary['num_episodes'], summary['return_mean']) == (2, 15.0)


def test_a_time_limit_is_logged_as_terminal(tmp_path):
  summary = collect_three(
    tmp_path / 'log', max_agent_steps_per_episode=2, num_rows=10
  )
  assert read(tmp_path / 'log', 'terminal').tolist() == [0, 0, 0, 0, 1] * 2
  assert (summary['num_episodes'], summary['return_max']) == (2, 10.0)


def test_a_lost_life_is_a_terminal_but_no_episode(tmp_path, monkeypatch):
  monkeypatch.setattr(ThreeStepLanes, 'life', 1)
  summary = collect_three(tmp_path / 'log', num_rows=9)
  terminals = [0, 0, 0, 1, 0, 0, 0, 0, 1]
  assert read(tmp_path / 'log', 'terminal').tolist() == terminals
  assert (summary['num_episodes'], summary['return_max']) == (1, 15.0)


def test_episodes_count_in_the_file_where_they_end(tmp_path):
  summary = collect_three(tmp_path / 'log', num_rows=18, rows_per_file=9)
  assert [f['num_rows'] for f in summary['files']] == [9, 9]
  assert [f['num_episodes'] for f in summary['files']] == [1, 2]
  assert sources.FolderSource(tmp_path / 'log').suffixes() == [0, 1]


def test_too_few_rows_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='num_rows'):
    collect_three(tmp_path / 'log', num_rows=3)
