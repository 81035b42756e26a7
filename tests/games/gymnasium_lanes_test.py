"""Environments of gymnasium as lanes: what is seen, and how episodes end."""

import gymnasium
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import collection, gymnasium_lanes, play
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.replay.log import sources


@pytest.fixture(autouse=True)
def short():
  """CartPole whose time runs out after three steps, as Mine/Short-v0."""
  gymnasium.register(
    'Mine/Short-v0',
    'gymnasium.envs.classic_control.cartpole:CartPoleEnv',
    max_episode_steps=3,
  )
  yield
  del gymnasium.registry['Mine/Short-v0']


def test_lanes_show_what_the_environment_does():
  lanes = gymnasium_lanes.create_gymnasium_lanes('CartPole-v1', num_lanes=2)
  assert lanes.game.num_actions == 2
  assert lanes.game.observation_shape == (4,)
  assert lanes.game.observation_dtype == 'float32'
  assert lanes.game.protocol['environment'] == 'CartPole-v1'
  environment = gymnasium.make('CartPole-v1')
  seen, _ = environment.reset(seed=lanes_lib.lane_seed(7, 1))
  both = np.array([0, 1])
  observations = lanes.reset(both, 7)
  for _ in range(30):
    assert observations.dtype == np.float32
    np.testing.assert_array_equal(observations[1], seen)
    step = lanes.step(both, np.array([0, 1]))
    observations = step.observations
    seen, reward, terminal, _, _ = environment.step(1)
    assert step.rewards[1] == reward
    assert step.terminals[1] == step.game_over[1] == terminal
    if terminal:
      break
  assert terminal


def test_a_discrete_observation_is_one_hot():
  lanes = gymnasium_lanes.create_gymnasium_lanes('FrozenLake-v1', num_lanes=1)
  assert lanes.game.observation_shape == (16,)
  (first,) = lanes.reset(np.array([0]), 0)
  np.testing.assert_array_equal(first, np.eye(16, dtype=np.float32)[0])


class Plain(gymnasium.Env):
  """No render_mode, and actions that begin at 5."""

  observation_space = gymnasium.spaces.Box(0, 255, (2, 3), np.uint8)
  action_space = gymnasium.spaces.Discrete(2, start=5)

  def reset(self, *, seed=None, options=None):
    return np.zeros((2, 3), np.uint8), {}

  def step(self, action):
    return np.full((2, 3), action, np.uint8), 0.0, False, False, {}


def test_an_environment_of_ones_own_sees_its_own_actions(monkeypatch):
  monkeypatch.setattr(gymnasium, 'registry', dict(gymnasium.registry))
  gymnasium.register('Plain-v3', Plain)
  lanes = gymnasium_lanes.create_gymnasium_lanes('Plain-v3', num_lanes=1)
  assert lanes.game.observation_dtype == 'uint8'
  lanes.reset(np.array([0]), 0)
  step = lanes.step(np.array([0]), np.array([1]))
  np.testing.assert_array_equal(step.observations, np.full((1, 2, 3), 6))


def test_the_end_of_time_is_a_truncation():
  lanes = gymnasium_lanes.create_gymnasium_lanes('Mine/Short-v0', num_lanes=1)
  assert lanes.game.name == 'Mine-Short-v0'
  states = []

  def policy(seen):
    states.append(seen.copy())
    return np.zeros(len(seen), int)

  (episode,) = play.play(lanes, policy, play.PlayRule(3, 0.0), seed=0)
  assert (episode.length, episode.truncated) == (3, True)
  assert states[0].shape == (1, 4, 1)
  assert states[0].dtype == np.float32


def test_a_log_says_where_time_ran_out(tmp_path):
  """Three steps and the row that is cut before: 0 1 2 [3] 4 5 6 [7] ..."""

  def collect(folder, scale):
    return collection.collect(
      folder,
      0,
      lambda num_lanes: gymnasium_lanes.create_gymnasium_lanes(
        'Mine/Short-v0', num_lanes
      ),
      collection.UniformBehaviour,
      num_rows=10,
      rows_per_file=10,
      reward_scale=scale,
    )

  summary = collect(tmp_path / 'log', 0.25)
  assert summary['game']['observation_dtype'] == 'float32'
  assert (summary['num_rows'], summary['num_transitions']) == (10, 8)
  assert (summary['num_episodes'], summary['return_mean']) == (2, 3.0)
  source = sources.FolderSource(tmp_path / 'log')
  assert source.segment(0).cut_rows == [3, 7]

  terminals = source.column('terminal', 0)
  assert terminals.tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
  rewards = [0.25, 0.25, 0.25, 0, 0.25, 0.25, 0.25, 0, 0.25, 0.25]
  assert source.column('reward', 0).tolist() == rewards
  seen = source.column('observation', 0)
  assert seen.dtype == np.float32
  # The pole swings on from row 2 to 3; with row 4 another episode begins.
  assert np.abs(seen[3] - seen[2]).max() > 0.1
  assert np.abs(seen[4]).max() < 0.05


@pytest.mark.parametrize(
  ('environment', 'message'),
  [
    ('Nope-v1', "cannot make 'Nope-v1'.*--import"),
    ('os:system', "cannot make 'os:system'.*import a module"),
    ('Pendulum-v1', r'Pendulum-v1 has actions of Box.*numbers them'),
  ],
)
def test_what_cannot_be_made_is_named(environment, message):
  with pytest.raises(errors.ConfigError, match=message) as refused:
    gymnasium_lanes.create_gymnasium_lanes(environment)
  # Gin adds a line of its own.
  assert str(refused.value).split('\n')[1].startswith('  In call to')
