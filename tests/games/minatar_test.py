import minatar as upstream
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import minatar, play

NUM_CHANNELS = {
  'asterix': 4,
  'breakout': 4,
  'freeway': 7,
  'seaquest': 10,
  'space_invaders': 6,
}


@pytest.mark.parametrize('game_name', minatar.GAMES)
def test_equals_minatars_own_environment(game_name):
  lanes = minatar.create_minatar_lanes(game_name, num_lanes=2)
  assert lanes.game.name == game_name
  assert lanes.game.num_actions == 6
  assert lanes.game.observation_shape == (10, 10, NUM_CHANNELS[game_name])
  assert lanes.game.stack_size == 1
  environment = upstream.Environment(game_name)
  environment.seed(lanes_lib.lane_seed(7, 1))
  environment.reset()
  both = np.array([0, 1])
  observations = lanes.reset(both, 7)
  assert observations.dtype == np.uint8
  generator = np.random.default_rng(0)
  for _ in range(500):
    np.testing.assert_array_equal(observations[1], environment.state())
    actions = generator.integers(6, size=2)
    reward, terminal = environment.act(actions[1])
    step = lanes.step(both, actions)
    observations = step.observations
    assert step.rewards[1] == reward
    assert step.terminals[1] == step.game_over[1] == terminal
    if terminal:
      environment.reset()
    over = np.flatnonzero(step.game_over)
    if len(over):
      observations[over] = lanes.reset(over)


def test_a_seed_forgets_what_was_played():
  lanes = minatar.create_minatar_lanes('asterix', num_lanes=3)

  def episodes(seed):
    return play.play(
      lanes, lambda s: s.sum((1, 2, 3, 4)) % 6, play.PlayRule(300, 0.3), seed
    )

  first = episodes(0)
  assert episodes(1) != first
  assert episodes(0) == first


def test_actions_stick():
  lanes = minatar.create_minatar_lanes('breakout', 1, 1.0)
  lane = np.array([0])
  lanes.reset(lane, 0)
  before = lanes.step(lane, np.array([1])).observations
  # All actions stick to the first, the no-op: the paddle stays at column 4.
  assert before[0, 9, 4, 0] == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'game_name': 'Breakout'}, 'space_invaders'),
    ({'game_name': 'breakout', 'num_lanes': 0}, 'num_lanes'),
    (
      {'game_name': 'breakout', 'sticky_action_probability': 2.0},
      'sticky_action_probability',
    ),
  ],
)
def test_wrong_settings_are_refused(arguments, message):
  with pytest.raises(errors.ConfigError, match=message):
    minatar.create_minatar_lanes(**arguments)
