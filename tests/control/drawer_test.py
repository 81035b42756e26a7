"""The drawer as it is played, and scripted play as it is logged."""

import pathlib

import gymnasium
import gymnasium.utils.env_checker
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import cog, drawer, tasks


def play(start, scripts, num_episodes, num_steps):
  """Plays scripts and returns each episode's last info."""
  env = drawer.DrawerEnv(start)
  random = np.random.default_rng(0)
  infos = []
  for seed in range(num_episodes):
    env.reset(seed=seed)
    actions = drawer.scripted_actions(env, scripts, random)
    for _ in range(num_steps):
      *_, info = env.step(next(actions))
    infos.append(info)
  env.close()
  return infos


@pytest.mark.filterwarnings('ignore')
def test_it_is_a_gymnasium_environment():
  env = drawer.DrawerEnv('closed')
  gymnasium.utils.env_checker.check_env(env, skip_render_check=True)
  env.close()


def test_an_episode_is_a_function_of_its_seed():
  env = drawer.DrawerEnv('blocked')
  played = []
  for seed in (3, 4, 3):
    first, _ = env.reset(seed=seed)
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 4))
    images = [env.step(action.astype(np.float32))[0] for action in actions]
    played.append(np.stack([first, *images]))
  assert (played[0] == played[2]).all()
  assert (played[0] != played[1]).any()
  env.close()


def test_a_script_grasps_from_an_open_drawer():
  infos = play('open', ['grasp'], 8, 30)
  assert sum(info['success'] for info in infos) >= 7


def test_a_script_has_no_memory():
  """A new script at every step: what is cloned from images is in the scene."""
  env = drawer.DrawerEnv('open')
  random = np.random.default_rng(0)
  env.reset(seed=0)
  for _ in range(20):
    action = next(drawer.scripted_actions(env, ['grasp'], random))
    *_, info = env.step(action)
  assert info['success']
  env.close()


def test_scripts_open_and_close_and_grasp_nothing():
  opened = play('closed', ['open'], 4, 40)
  closed = play('open', ['close'], 4, 40)
  assert min(info['opening'] for info in opened) > 0.14
  assert max(info['opening'] for info in closed) < 0.02
  assert not any(info['success'] for info in opened + closed)


def test_a_block_keeps_the_drawer_shut_until_it_is_moved():
  (shut,) = play('blocked', ['open'], 1, 40)
  (opened,) = play('blocked', ['clear', 'open'], 1, 80)
  assert shut['opening'] < 0.01
  assert opened['opening'] > 0.1


def test_a_closed_drawer_lets_nobody_grasp():
  assert not any(i['success'] for i in play('closed', ['grasp'], 3, 40))


@pytest.mark.slow
def test_the_parts_together_solve_both_tasks_and_chance_does_not():
  opened = play('closed', ['open', 'grasp'], 100, 40)
  blocked = play('blocked', ['clear', 'open', 'grasp'], 100, 60)
  assert sum(info['success'] for info in opened) >= 80
  assert sum(info['success'] for info in blocked) >= 80
  env = drawer.DrawerEnv('closed')
  random = np.random.default_rng(0)
  num_grasped = 0
  for seed in range(100):
    env.reset(seed=seed)
    for _ in range(40):
      *_, info = env.step(random.uniform(-1, 1, 4).astype(np.float32))
    num_grasped += info['success']
  assert num_grasped < 2


@pytest.mark.parametrize(
  ('name', 'length'), [('DrawerOpenGrasp', 40), ('DrawerBlockedGrasp', 60)]
)
def test_gymnasium_knows_both_tasks(name, length):
  env = gymnasium.make(f'batch_rl_dr3/{name}-v0')
  env.reset(seed=0)
  action = np.zeros(4, np.float32)
  ends = [env.step(action)[2:4] for _ in range(length)]
  assert ends == [(False, False)] * (length - 1) + [(False, True)]
  assert env.unwrapped.is_blocked == (name == 'DrawerBlockedGrasp')
  env.close()


def test_an_unknown_start_is_refused():
  with pytest.raises(errors.ConfigError, match='ajar'):
    drawer.DrawerEnv('ajar')


def collect(folder, game='drawer-blocked-grasp', **kwargs):
  return drawer.collect_scripted(
    pathlib.Path(folder),
    tasks.find(game, tasks.COG),
    0,
    150,
    kwargs.pop('on_progress', lambda rows, returns: None),
    num_steps=25,
    **kwargs,
  )


def test_scripts_fill_a_store(tmp_path):
  seen = []
  summary = collect(
    tmp_path / 'store', on_progress=lambda *now: seen.append(str(now))
  )
  assert seen[-2:] == ['(125, [1.0])', '(150, [1.0, 1.0])']
  assert summary['num_episodes'] == 6
  assert summary['num_prior_episodes'] == 4
  assert summary['return_mean'] == 1.0
  manifest, arrays = cog.read(tmp_path / 'store')
  assert manifest['num_prior_trajectories'] == 4
  assert manifest['scripts']['game'] == 'drawer-blocked-grasp'
  assert arrays['images'].shape == (6 * 26, 48, 48, 3)
  assert np.abs(arrays['actions']).max() <= 0.9
  # Nothing is grasped in prior data; the task's ends with the cube in the air.
  assert arrays['rewards'][:100].sum() == 0
  assert arrays['rewards'][[124, 149]].tolist() == [1.0, 1.0]
  assert collect(tmp_path / 'again') == summary
  _, again = cog.read(tmp_path / 'again')
  assert (again['images'] == arrays['images']).all()


def test_what_cannot_be_collected_leaves_nothing(tmp_path):
  def stop(num_rows, returns):
    if num_rows == 25:
      raise errors.PreemptedError

  with pytest.raises(errors.PreemptedError):
    collect(tmp_path / 'store', on_progress=stop)
  with pytest.raises(errors.ConfigError, match='data convert --cog'):
    collect(tmp_path / 'store', game='widow250-pick-tray')
  assert not list(tmp_path.iterdir())
