import ale_py
import gin
import numpy as np
import pytest

from batch_rl_dr3.config import dopamine_compat, errors
from batch_rl_dr3.games import atari, play
from batch_rl_dr3.games import lanes as lanes_lib

pytestmark = pytest.mark.usefixtures('clear_gin')

# (lane, return, length) of Breakout's first episodes, see the test.
GOLDEN = [(0, 2.0, 200), (0, 1.0, 185), (1, 2.0, 200), (1, 0.0, 135)]


def create(game_name, num_lanes=1, **bindings):
  gin.parse_config(
    f'atari_lib.create_atari_environment.game_name = {game_name!r}'
  )
  gin.parse_config([f'{k} = {v!r}' for k, v in bindings.items()])
  return atari.create_atari_lanes(num_lanes)


def without_sticky_actions(**bindings):
  return {'create_atari_environment.sticky_actions': False, **bindings}


def seed_emulator(environment, seed):
  """Seeds Dopamine's emulator, which takes it as the ROM is loaded."""
  emulator = environment.environment.unwrapped
  emulator.ale.setInt('random_seed', seed)
  emulator.ale.loadROM(ale_py.roms.get_rom_path(emulator._game))


def assert_equal_to_dopamine(lanes, num_steps, seed, is_sticky=False):
  """Plays lane 1 of 2 beside Dopamine's environment; returns how often."""
  environment = dopamine_compat.create_atari_environment()
  if is_sticky:
    seed_emulator(environment, lanes_lib.lane_seed(seed, 1))
  generator = np.random.default_rng(seed)
  num_terminals, num_games = 0, 0
  expected = environment.reset()
  lane = np.array([1])
  observations = lanes.reset(lane, seed)
  for _ in range(num_steps):
    np.testing.assert_array_equal(observations[0], expected[..., 0])
    action = int(generator.integers(lanes.game.num_actions))
    expected, reward, terminal, _ = environment.step(action)
    step = lanes.step(lane, np.array([action]))
    observations = step.observations
    assert step.rewards[0] == reward
    assert step.terminals[0] == terminal
    assert step.game_over[0] == environment.game_over
    num_terminals += terminal
    if environment.game_over:
      num_games += 1
      expected = environment.reset()
      observations = lanes.reset(lane)
  lanes.close()
  return num_terminals, num_games


@pytest.mark.parametrize(
  ('game_name', 'num_games'), [('Pong', 0), ('Breakout', 2), ('Freeway', 0)]
)
def test_equals_dopamines_preprocessing(game_name, num_games):
  lanes = create(game_name, num_lanes=2, **without_sticky_actions())
  assert isinstance(lanes, atari.AtariLanes)
  assert assert_equal_to_dopamine(lanes, 400, seed=2) == (num_games, num_games)


@pytest.mark.parametrize(
  ('game_name', 'num_games'), [('Pong', 0), ('Breakout', 2)]
)
def test_equals_dopamines_preprocessing_with_sticky_actions(
  game_name, num_games
):
  """The same emulator's seed repeats the same actions on both sides."""
  lanes = create(game_name, num_lanes=2)
  assert lanes.game.protocol['sticky_action_probability'] == 0.25
  played = assert_equal_to_dopamine(lanes, 400, seed=2, is_sticky=True)
  assert played == (num_games, num_games)


def test_equals_dopamine_with_life_loss_terminals():
  lanes = create(
    'Breakout',
    num_lanes=2,
    **without_sticky_actions(
      **{'AtariPreprocessing.terminal_on_life_loss': True}
    ),
  )
  num_terminals, num_games = assert_equal_to_dopamine(lanes, 400, seed=2)
  assert num_games >= 1
  assert num_terminals >= 5 * num_games


def test_equals_dopamine_with_other_skip_and_size():
  lanes = create(
    'Breakout',
    num_lanes=2,
    **without_sticky_actions(
      **{
        'AtariPreprocessing.frame_skip': 3,
        'AtariPreprocessing.screen_size': 42,
      }
    ),
  )
  assert lanes.game.observation_shape == (42, 42)
  assert_equal_to_dopamine(lanes, 100, seed=0)


def test_the_game_is_described_by_dopamines_bindings():
  lanes = create('MsPacman')
  game = lanes.game
  assert (game.suite, game.name) == ('atari', 'MsPacman')
  assert game.num_actions == 9
  assert game.observation_shape == (84, 84)
  assert game.stack_size == 4
  assert len(game.rom_md5) == 32
  assert game.protocol['sticky_action_probability'] == 0.25
  assert game.protocol['frame_skip'] == 4


def test_lanes_that_are_not_named_stand_still():
  lanes = create('Pong', num_lanes=2)
  both = np.array([0, 1])
  first = lanes.reset(both, 0)
  assert first.shape == (2, 84, 84)
  assert first.dtype == np.uint8
  for _ in range(20):
    step = lanes.step(both, np.array([2, 3]))
  assert step.rewards.dtype == np.float32
  np.testing.assert_array_equal(lanes.reset(both[:1])[0], first[0])
  for _ in range(5):
    lanes.step(both[:1], np.array([2]))
  alone = create('Pong', num_lanes=2)
  alone.reset(both, 0)
  for _ in range(21):
    expected = alone.step(both[1:], np.array([3]))
  after = lanes.step(both[1:], np.array([3]))
  np.testing.assert_array_equal(after.observations, expected.observations)
  assert (after.observations[0] != step.observations[1]).any()


def test_the_same_seed_plays_the_same_in_every_process():
  lanes = create('Breakout', num_lanes=2)

  def episodes(seed):
    return play.play(
      lanes,
      lambda states: np.zeros(len(states), int),
      play.PlayRule(500, 0.5, max_agent_steps_per_episode=200),
      seed,
    )

  first = episodes(0)
  # Written down from another process; it holds for ale-py 0.12.1.
  assert [(e.lane, e.episode_return, e.length) for e in first] == GOLDEN
  assert episodes(1) != first
  assert episodes(0) == first


def test_threads_play_what_one_group_plays():
  lanes = create('Breakout', num_lanes=4)

  def episodes(group_size):
    lanes.group_size = group_size
    rule = play.PlayRule(400, 0.5, max_agent_steps_per_episode=200)
    return play.play(lanes, lambda s: s.sum((1, 2, 3)) % 4, rule, seed=0)

  lockstep = episodes(4)
  assert len({e.length for e in lockstep}) > 1
  assert episodes(1) == episodes(3) == lockstep


def test_life_loss_lanes_play_the_same_for_the_same_seed():
  lanes = create(
    'Breakout', 2, **{'AtariPreprocessing.terminal_on_life_loss': True}
  )

  def episodes(seed):
    return play.play(
      lanes, lambda s: s[:, 70, 40, 3] % 4, play.PlayRule(100, 0.5), seed
    )

  first = episodes(5)
  assert first == episodes(5)
  assert first != episodes(6)


def test_what_cannot_be_played_is_refused_with_the_remedy():
  with pytest.raises(errors.ConfigError, match=r"game_name='Pong'"):
    atari.create_atari_lanes(1)
  with pytest.raises(errors.ConfigError, match='Nope'):
    create('Nope')
  with pytest.raises(errors.ConfigError, match='num_lanes'):
    create('Pong', num_lanes=0)
  with pytest.raises(errors.ConfigError, match='continuous'):
    create(
      'Pong', **{'create_atari_environment.continuous_action_threshold': 0.5}
    )


def test_ppo_preprocessing_is_refused():
  with pytest.raises(errors.ConfigError, match='use_ppo_preprocessing'):
    create('Pong', **{'create_atari_environment.use_ppo_preprocessing': True})


@pytest.mark.parametrize(
  ('name', 'value', 'named'),
  [
    ('use_legacy_gym', True, 'use_legacy_gym'),
    ('game_name', 'evilmod:Foo', 'game_name'),
    ('game_name', '../Pong', 'game_name'),
  ],
)
def test_what_would_import_something_else_is_refused_before(
  name, value, named, monkeypatch
):
  def create_nothing():
    raise AssertionError("Dopamine's factory was called")

  monkeypatch.setattr(
    dopamine_compat, 'create_atari_environment', create_nothing
  )
  with pytest.raises(errors.ConfigError, match=named):
    create('Pong', **{f'create_atari_environment.{name}': value})
