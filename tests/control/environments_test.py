"""Which data fit which environment; play; normalised scores."""

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
