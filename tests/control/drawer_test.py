import gymnasium
import gymnasium.utils.env_checker
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import drawer


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
