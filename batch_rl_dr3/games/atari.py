"""Atari lanes, pixel for pixel those of Dopamine's `AtariPreprocessing`.

Dopamine's own factory is called once, under its gin bindings, and what it
returns is read. The lanes then run on ALE's vector environment.

Differences from Dopamine 4.1.2:

* Its emulator cuts an episode at 100,000 frames (25,000 agent steps). Here only
  the caller's limit holds: 27,000 agent steps (108,000 frames) in the protocol
  of the logged data.
* At a terminal in the middle of a skip the observation differs. Dopamine calls
  it invalid, and no agent sees it.
* ALE's vector environment cannot end an agent step at the loss of a life, so
  with `terminal_on_life_loss` the lanes are Dopamine's environments, one after
  the other. These keep the limit of 100,000 frames.
"""

from concurrent import futures
import hashlib
import re
from typing import Any

import ale_py
from ale_py import vector_env
import gin
import numpy as np

from batch_rl_dr3.config import dopamine_compat, errors, ranges
from batch_rl_dr3.games import lanes

_STACK_SIZE = 4
# Frames; ALE adds to it, so it stays well below the largest int32.
_NO_FRAME_LIMIT = 2**30


class AtariLanes:
  """Lanes on ALE's vector environment, which steps all of its lanes or none.

  So there is one lane in each, with a thread of its own.
  """

  group_size = 16

  def __init__(self, game: lanes.Game, num_lanes: int):
    self.game = game
    self.num_lanes = num_lanes
    height, width = game.observation_shape
    frame_skip = game.protocol['frame_skip']
    self._environments: list[Any] = [
      vector_env.AtariVectorEnv(
        game.protocol['rom'],
        1,
        num_threads=1,
        max_num_frames_per_episode=_NO_FRAME_LIMIT,
        repeat_action_probability=game.protocol['sticky_action_probability'],
        img_height=height,
        img_width=width,
        stack_num=1,
        frameskip=frame_skip,
        maxpool=frame_skip > 1,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
      )
      for _ in range(num_lanes)
    ]

  def reset(  # noqa: D102
    self, which: lanes.IntArray, seed: int | None = None
  ) -> lanes.FrameArray:
    def reset_lane(lane: int) -> lanes.FrameArray:
      lane_seed = None if seed is None else lanes.lane_seed(seed, lane)
      observations, _ = self._environments[lane].reset(seed=lane_seed)
      return observations[0, 0]

    # A seed makes ALE load the ROM again, 20 times the cost of a plain reset.
    with futures.ThreadPoolExecutor(len(which)) as pool:
      return np.stack(list(pool.map(reset_lane, which.tolist())))

  def step(  # noqa: D102
    self, which: lanes.IntArray, actions: lanes.IntArray
  ) -> lanes.Step:
    environments = [self._environments[lane] for lane in which]
    for environment, action in zip(environments, actions, strict=True):
      environment.send(np.array([action], np.int32))
    steps = [environment.recv()[:3] for environment in environments]
    frames, rewards, ends = map(np.concatenate, zip(*steps, strict=True))
    over = ends.astype(np.bool_)
    return lanes.Step(frames[:, 0], rewards.astype(np.float32), over, over)

  def close(self) -> None:  # noqa: D102
    self._environments = []


class _LifeLossEnvironment:
  """Dopamine's own environment, which ends a step with a life, as a lane."""

  def __init__(self, environment: Any):
    self._environment = environment

  def reset(self, seed: int | None) -> lanes.FrameArray:
    if seed is not None:
      self._environment.environment.reset(seed=seed)
    return self._environment.reset()[..., 0]

  def step(self, action: int) -> tuple[lanes.FrameArray, float, bool, bool]:
    observation, reward, terminal, _ = self._environment.step(action)
    # Dopamine writes the next frame into the same array.
    frame = observation[..., 0].copy()
    return frame, reward, terminal, self._environment.game_over

  def close(self) -> None:
    self._environment.close()


@gin.configurable
@ranges.checked
def create_atari_lanes(num_lanes: ranges.Count = 32) -> lanes.Lanes:
  """Returns lanes of the game that Dopamine's gin bindings name.

  These are `atari_lib.create_atari_environment.game_name`, `sticky_actions` and
  AtariPreprocessing's `frame_skip`, `screen_size` and `terminal_on_life_loss`.
  The number of lanes is part of what a seed means.

  Raises:
    ConfigError: if there is no such game, or they cannot be used here.
  """
  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  environment = _create_dopamine_environment()
  game = _describe(environment)
  if environment.terminal_on_life_loss:
    others = [_create_dopamine_environment() for _ in range(num_lanes - 1)]
    return lanes.SequentialLanes(
      game, [_LifeLossEnvironment(lane) for lane in (environment, *others)]
    )
  environment.close()
  return AtariLanes(game, num_lanes)


def _create_dopamine_environment() -> Any:
  name = _bound('game_name')
  # Gymnasium would import the module of another name.
  if not re.fullmatch(r'[A-Za-z0-9]+', str(name or '')):
    raise errors.ConfigError(
      f'create_atari_environment.game_name is {name!r}. Name a game as in '
      'Dopamine, for example with --gin_bindings='
      '"atari_lib.create_atari_environment.game_name=\'Pong\'".'
    )
  if _bound('use_legacy_gym'):
    raise errors.ConfigError(
      'create_atari_environment.use_legacy_gym asks for the old Gym, which has '
      'no Atari games any more; leave it at False.'
    )
  try:
    environment = dopamine_compat.create_atari_environment()
  except Exception as error:  # Of Gymnasium, or of a branch that is broken.
    raise errors.ConfigError(
      "Dopamine's create_atari_environment cannot make what is bound on it: "
      f'{" ".join(str(error).split())}. A game is named as in Dopamine '
      "('Pong', 'MsPacman'); use_ppo_preprocessing cannot be used here."
    ) from error
  if not isinstance(environment, dopamine_compat.AtariPreprocessing):
    raise errors.ConfigError(
      'create_atari_environment.use_ppo_preprocessing cannot be used here; '
      'leave it at False.'
    )
  return environment


def _bound(parameter: str) -> Any:
  try:
    return gin.query_parameter(f'create_atari_environment.{parameter}')
  except ValueError:
    return None


def _describe(environment: Any) -> lanes.Game:
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
