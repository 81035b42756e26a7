"""Which data fit which environment; play; normalised scores."""

import sys
import textwrap

import gymnasium
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import environments, tasks


def test_normalised_scores():
  """Hopper at 1607.0138475 is half way from -20.272305 to 3234.3."""
  hopper = tasks.find('hopper', tasks.D4RL)
  assert hopper.normalised(3234.3) == pytest.approx(100.0)
  assert hopper.normalised(-20.272305) == pytest.approx(0.0)
  assert hopper.normalised(1607.0138475) == pytest.approx(50.0)
  assert tasks.find('antmaze-large-play', tasks.MINARI).normalised(0.25) == 25
  assert tasks.find('kitchen-mixed', tasks.MINARI).normalised(2.0) == 50
  assert tasks.find('hopper', tasks.MINARI).normalised(1.0) is None


@pytest.mark.parametrize('game', ['antmaze-medium-play', 'kitchen-complete'])
def test_scoring_in_another_environment_is_refused(game):
  with pytest.raises(errors.ConfigError, match='cannot be scored'):
    environments.make(tasks.find(game, tasks.D4RL))


def test_an_unknown_game_is_named():
  with pytest.raises(errors.ConfigError, match='pong'):
    tasks.find('pong', tasks.D4RL)


@pytest.mark.parametrize(
  'task',
  [task for task in tasks.TASKS.values() if task.environment],
  ids=lambda task: f'{task.game}-{task.layout}',
)
@pytest.mark.slow
def test_every_environment_has_the_sizes_of_its_data(task):
  environment = environments.make(task)
  observation, _ = environment.reset(seed=0)
  observation = tasks.flatten(observation)
  assert observation.shape == (task.observation_size,)
  assert observation.dtype == np.float32
  assert environment.action_space.shape == (task.action_size,)
  np.testing.assert_array_equal(environment.action_space.low, -1.0)
  np.testing.assert_array_equal(environment.action_space.high, 1.0)
  if task.maze is not None:
    starts = environment.unwrapped.maze.unique_reset_locations
    goals = environment.unwrapped.maze.unique_goal_locations
    assert len(starts) == len(goals) == 1
  environment.close()


def test_episodes_do_not_depend_on_how_many_are_played_at_a_time():
  task = tasks.find('hopper', tasks.D4RL)
  made = [environments.make(task) for _ in range(3)]

  def policy(observations):
    return np.tanh(observations[:, :3]).astype(np.float32)

  def play(num_lanes):
    return environments.play_episodes(made[:num_lanes], policy, 4, seed=5)

  one, three = play(1), play(3)
  assert [e.episode_return for e in one] == [e.episode_return for e in three]
  assert len({e.episode_return for e in one}) == 4
  with pytest.raises(errors.PreemptedError):
    environments.play_episodes(made, policy, 4, 5, should_stop=lambda: True)


ROBOVERSE = """
import types
import numpy as np

class Env:
  action_space = types.SimpleNamespace(shape=(8,))
  observation_space = types.SimpleNamespace(
    spaces={'image': types.SimpleNamespace(shape=(6912,))})
  def _see(self):
    return {'image': np.full(6912, self._value, np.float32), 'state': None}
  def reset(self):
    self._value = np.random.uniform()
    return self._see()
  def step(self, action):
    assert action.shape == (8,)
    return self._see(), float(action[0] > 0), False, {}

def make(name, transpose_image):
  assert name == 'Widow250PickTray-v0', f'no {name}'
  return Env()
"""


@pytest.fixture
def roboverse(tmp_path, monkeypatch):
  """Puts a module of this name on the path; returns its file."""
  path = tmp_path / 'roboverse.py'
  path.write_text(textwrap.dedent(ROBOVERSE))
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'roboverse', raising=False)
  yield path
  sys.modules.pop('roboverse', None)


def test_roboverse_is_played_until_the_time_is_up(roboverse):
  task = tasks.find('widow250-pick-tray', tasks.COG)
  assert task.max_lanes == 1
  env = environments.make(task)

  def play(last):
    first, _ = env.reset(seed=5)
    assert (first.shape, first.dtype) == ((48, 48, 3), np.uint8)
    steps = [env.step(np.ones(8, np.float32)) for _ in range(39)]
    steps.append(env.step(np.full(8, last, np.float32)))
    assert [s[3] for s in steps] == [False] * 39 + [True]
    return first[0, 0, 0], sum(s[1] for s in steps)

  # Success is that of the last step, and a seed fixes the scene.
  assert play(1.0) == (play(-1.0)[0], 1.0)
  assert play(-1.0)[1] == 0.0


@pytest.mark.parametrize(
  ('old', 'new', 'match'),
  [
    ("'Widow250PickTray-v0'", "'Other-v0'", 'cannot make Widow250PickTray-v0'),
    ('(8,)', '(7,)', 'version of COG'),
    ('6912', '49152', 'version of COG'),
    ('import types', 'import nothing_of_the_kind', 'on PYTHONPATH'),
  ],
)
def test_another_roboverse_is_refused(roboverse, old, new, match):
  roboverse.write_text(roboverse.read_text().replace(old, new))
  with pytest.raises(errors.ConfigError, match=match):
    environments.make(tasks.find('widow250-pick-tray', tasks.COG))


def test_no_roboverse_is_said_in_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'roboverse', None)
  with pytest.raises(errors.ConfigError, match='check out github') as caught:
    environments.make(tasks.find('widow250-open-grasp', tasks.COG))
  assert '\n' not in str(caught.value)


def test_the_drawer_is_played_in_lanes():
  task = tasks.find('drawer-open-grasp', tasks.COG)
  assert task.image_shape is not None
  played = []
  for num_lanes in (1, 2):
    lanes = [environments.make(task) for _ in range(num_lanes)]
    assert isinstance(lanes[0], gymnasium.Wrapper)
    shown = []

    def policy(states, shown=shown):
      shown.append(float(states.sum()))
      return np.zeros((len(states), 4), np.float32)

    episodes = environments.play_episodes(lanes, policy, 2, seed=1)
    assert [e.length for e in episodes] == [40, 40]
    assert [e.episode_return for e in episodes] == [0.0, 0.0]
    played.append(sum(shown))
    for lane in lanes:
      lane.close()
  # As many pictures, in other batches.
  np.testing.assert_allclose(played[0], played[1], rtol=1e-6)
