"""Tasks of images as they are played, and scripted play as it is logged."""

import pathlib
import sys
import textwrap

import gymnasium
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import cog, environments, manipulation, tasks

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


def collect(folder, game='drawer-blocked-grasp', **kwargs):
  return manipulation.collect_scripted(
    pathlib.Path(folder),
    tasks.find(game, tasks.COG),
    0,
    150,
    kwargs.pop('should_stop', lambda: False),
    lambda rows, returns: None,
    num_steps=25,
    **kwargs,
  )


def test_scripts_fill_a_store(tmp_path):
  summary = collect(tmp_path / 'store')
  assert summary['num_episodes'] == 6
  assert summary['num_prior_episodes'] == 4
  assert summary['return_mean'] == 1.0
  store = cog.read(tmp_path / 'store')
  assert store.num_prior == 4
  assert store.images.shape == (6 * 26, 48, 48, 3)
  assert np.abs(store.actions).max() <= 0.9
  # Nothing is grasped in prior data; the task's ends with the cube in the air.
  assert store.rewards[:100].sum() == 0
  assert store.rewards[[124, 149]].tolist() == [1.0, 1.0]
  collect(tmp_path / 'again')
  assert (cog.read(tmp_path / 'again').images == store.images).all()


def test_what_cannot_be_collected_leaves_nothing(tmp_path):
  with pytest.raises(errors.PreemptedError):
    collect(tmp_path / 'store', should_stop=lambda: True)
  with pytest.raises(errors.ConfigError, match='data convert --cog'):
    collect(tmp_path / 'store', game='widow250-pick-tray')
  assert not list(tmp_path.iterdir())
