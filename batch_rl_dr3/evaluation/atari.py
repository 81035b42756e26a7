"""Atari lanes, pixel for pixel those of Dopamine's `AtariPreprocessing`.

The game and its settings are the ones bound on Dopamine's own factory,
`atari_lib.create_atari_environment`, and on `AtariPreprocessing`: the factory
is called once and what it returns is read. The lanes then run on ALE's vector
environment, whose observations, rewards and terminals are the same.

Differences from Dopamine 4.1.2:

* Its emulator cuts an episode at 100,000 frames (25,000 agent steps). Here it
  never does, so that the length limit is the caller's alone: 27,000 agent
  steps (108,000 frames) in the protocol of the logged data.
* At a terminal in the middle of a skip the observation differs. Dopamine
  calls it invalid, and no agent sees it.
* ALE's vector environment cannot end an agent step at the loss of a life, so
  with `terminal_on_life_loss` the lanes are Dopamine's environments, one
  after the other. These keep the limit of 100,000 frames.
"""

from collections.abc import Sequence
import hashlib
from typing import Any

import ale_py
from ale_py import vector_env
import gin
import numpy as np

from batch_rl_dr3 import dopamine_compat, errors
from batch_rl_dr3.evaluation import lanes

_STACK_SIZE = 4
# Frames; ALE adds to it, so it stays well below the largest int32.
_NO_FRAME_LIMIT = 2**30


class AtariLanes:
  """Lanes on ALE's vector environment."""

  def __init__(self, game: lanes.Game, num_lanes: int, num_threads: int):
    """Loads the emulators.

    Args:
      game: as `create_atari_lanes` makes it.
      num_lanes: int, L.
      num_threads: int, threads that step the lanes; 0 for one per core, at
        most L.
    """
    self.game = game
    self.num_lanes = num_lanes
    self.game_over = np.zeros(num_lanes, np.bool_)
    screen_size = game.observation_shape[0]
    frame_skip = game.protocol['frame_skip']
    self._environment: Any = vector_env.AtariVectorEnv(
      game.protocol['rom'],
      num_lanes,
      num_threads=num_threads,
      max_num_frames_per_episode=_NO_FRAME_LIMIT,
      repeat_action_probability=game.protocol['sticky_action_probability'],
      img_height=screen_size,
      img_width=screen_size,
      stack_num=1,
      frameskip=frame_skip,
      maxpool=frame_skip > 1,
      noop_max=0,
      reward_clipping=False,
      use_fire_reset=False,
    )

  def reset_all(self, seed: int) -> lanes.FrameArray:
    """See `lanes.Lanes`.

    A seed makes ALE load the ROM again, 20 times the cost of a plain reset,
    so later resets go on with each emulator's own random numbers.
    """
    seeds = [lanes.lane_seed(seed, lane) for lane in range(self.num_lanes)]
    result = self._environment.reset(seed=np.array(seeds))
    self.game_over = np.zeros(self.num_lanes, np.bool_)
    return _frames(result[0])

  def reset(self, mask: lanes.BoolArray) -> lanes.FrameArray:
    """See `lanes.Lanes`."""
    result = self._environment.reset(options={'reset_mask': mask})
    self.game_over = self.game_over & ~mask
    return _frames(result[0])

  def step(
    self, actions: lanes.IntArray
  ) -> tuple[lanes.FrameArray, lanes.FloatArray, lanes.BoolArray]:
    """See `lanes.Lanes`."""
    observations, rewards, terminals, _, _ = self._environment.step(
      np.asarray(actions, np.int32)
    )
    self.game_over = terminals
    return _frames(observations), rewards.astype(np.float32), terminals

  def close(self) -> None:
    """See `lanes.Lanes`."""
    del self._environment


def _frames(stacks: Any) -> lanes.FrameArray:
  """Returns uint8 [L, height, width] from ALE's stacks of one frame each."""
  frames: lanes.FrameArray = stacks[:, 0]
  return frames


class LifeLossLanes:
  """Lanes of Dopamine's own environments, which end a step with a life."""

  def __init__(self, game: lanes.Game, environments: Sequence[Any]):
    """Takes over the environments.

    Args:
      game: as `create_atari_lanes` makes it.
      environments: one `AtariPreprocessing` per lane.
    """
    self.game = game
    self.num_lanes = len(environments)
    self.game_over = np.zeros(self.num_lanes, np.bool_)
    self._environments = environments
    shape = (self.num_lanes, *game.observation_shape)
    self._observations = np.zeros(shape, np.uint8)

  def reset_all(self, seed: int) -> lanes.FrameArray:
    """See `lanes.Lanes`."""
    for lane, environment in enumerate(self._environments):
      environment.environment.reset(seed=lanes.lane_seed(seed, lane))
    return self.reset(np.ones(self.num_lanes, np.bool_))

  def reset(self, mask: lanes.BoolArray) -> lanes.FrameArray:
    """See `lanes.Lanes`."""
    for lane in np.flatnonzero(mask):
      self._observations[lane] = self._environments[lane].reset()[..., 0]
    self.game_over = self.game_over & ~mask
    return self._observations.copy()

  def step(
    self, actions: lanes.IntArray
  ) -> tuple[lanes.FrameArray, lanes.FloatArray, lanes.BoolArray]:
    """See `lanes.Lanes`. A lane whose game is over stands still."""
    rewards = np.zeros(self.num_lanes, np.float32)
    terminals = self.game_over.copy()
    for lane in np.flatnonzero(~self.game_over):
      environment = self._environments[lane]
      observation, reward, terminal, _ = environment.step(int(actions[lane]))
      self._observations[lane] = observation[..., 0]
      rewards[lane] = reward
      terminals[lane] = terminal
      self.game_over[lane] = environment.game_over
    return self._observations.copy(), rewards, terminals

  def close(self) -> None:
    """See `lanes.Lanes`."""
    for environment in self._environments:
      environment.close()


@gin.configurable
def create_atari_lanes(num_lanes: int = 8, num_threads: int = 0) -> lanes.Lanes:
  """Returns lanes of the game that Dopamine's gin bindings name.

  Bind `atari_lib.create_atari_environment.game_name`, and if need be its
  `sticky_actions` and AtariPreprocessing's `frame_skip`, `screen_size` and
  `terminal_on_life_loss`.

  Args:
    num_lanes: int, the number of lanes. It is part of what a seed means.
    num_threads: int, threads that step them; 0 for one per core.

  Raises:
    ConfigError: if no game is named, if there is no such game, or if the
      bindings ask for PPO preprocessing, old Gym or continuous actions.
  """
  if num_lanes < 1:
    raise errors.ConfigError(f'num_lanes is {num_lanes}; it must be >= 1.')
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  environment = _create_dopamine_environment()
  game = _describe(environment)
  if environment.terminal_on_life_loss:
    others = [_create_dopamine_environment() for _ in range(num_lanes - 1)]
    return LifeLossLanes(game, [environment, *others])
  environment.close()
  return AtariLanes(game, num_lanes, num_threads)


def _create_dopamine_environment() -> Any:
  """Returns the AtariPreprocessing that the gin bindings describe."""
  try:
    environment = dopamine_compat.create_atari_environment()
  except AssertionError as error:
    raise errors.ConfigError(
      'no Atari game is named. Bind it, for example with --gin_bindings='
      '"atari_lib.create_atari_environment.game_name=\'Pong\'".'
    ) from error
  except Exception as error:  # Of Gymnasium, or of a branch that is broken.
    raise errors.ConfigError(
      "Dopamine's create_atari_environment cannot make what is bound on it: "
      f'{" ".join(str(error).split())}. A game is named as in Dopamine '
      "('Pong', 'MsPacman'); use_legacy_gym and use_ppo_preprocessing cannot "
      'be used here.'
    ) from error
  if not isinstance(environment, dopamine_compat.AtariPreprocessing):
    raise errors.ConfigError(
      'create_atari_environment.use_ppo_preprocessing cannot be used here; '
      'leave it at False.'
    )
  return environment


def _describe(environment: Any) -> lanes.Game:
  """Returns the game and the rules of one of Dopamine's environments."""
  specification = environment.environment.unwrapped.spec
  settings = specification.kwargs
  if settings['continuous']:
    raise errors.ConfigError(
      'create_atari_environment.continuous_action_threshold asks for '
      'continuous actions, which a value network over actions cannot choose '
      'from; leave it at None.'
    )
  rom = settings['game']
  rom_path = ale_py.roms.get_rom_path(rom)
  if rom_path is None:
    raise errors.ConfigError(
      f'ale-py has no ROM of {specification.name}; install ale-py again.'
    )
  return lanes.Game(
    suite='atari',
    name=specification.name,
    num_actions=int(environment.action_space.n),
    observation_shape=(environment.screen_size, environment.screen_size),
    stack_size=_STACK_SIZE,
    rom_md5=hashlib.md5(rom_path.read_bytes()).hexdigest(),
    protocol={
      'rom': rom,
      'ale_py_version': ale_py.__version__,
      'action_set': 'minimal',
      'sticky_action_probability': settings['repeat_action_probability'],
      'frame_skip': environment.frame_skip,
      'terminal_on_life_loss': environment.terminal_on_life_loss,
      'num_noop_starts': 0,
    },
  )
