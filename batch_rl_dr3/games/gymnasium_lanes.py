"""Any environment of gymnasium, made from its id, and lanes of one.

An observation that is no array is flattened, as gymnasium's FlattenObservation
has it (a discrete one becomes a one-hot vector). uint8 stays what it is, and
all else becomes float32. Where the environment's time runs out the game is
over, and that is no terminal.
"""

import re
from typing import Any

import gin
import gymnasium
import numpy as np

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.games import lanes


def is_id(name: str) -> bool:
  """Returns whether a game is named by an id with a version, as CartPole-v1."""
  return re.search(r'-v\d+$', name) is not None


def game_name(environment: str) -> str:
  """Returns what an environment is called in a run: its id, without `/`."""
  return environment.replace('/', '-')


def make(environment: str, render_mode: str | None = None) -> Any:
  """Returns an environment that shows arrays, else a ConfigError."""
  try:
    if ':' in environment:
      raise ValueError('a colon would import a module')
    # An environment of one's own may know no render_mode.
    mode: Any = {} if render_mode is None else {'render_mode': render_mode}
    env: Any = gymnasium.make(environment, **mode)
    if not isinstance(env.observation_space, gymnasium.spaces.Box):
      env = gymnasium.wrappers.FlattenObservation(env)
  except Exception as error:  # Of as many kinds as there are environments.
    raise errors.ConfigError(
      f'gymnasium cannot make {environment!r} '
      f'({" ".join(str(error).split()) or type(error).__name__}). Name an id '
      'that it knows, such as CartPole-v1, or give --import=FILE.py of a file '
      'that registers yours.'
    ) from error
  return env


class _Environment:
  """An environment as `SequentialLanes` steps it."""

  def __init__(self, environment: Any, dtype: str):
    self._environment = environment
    self._dtype = dtype
    self.close = environment.close

  def reset(self, seed: int | None) -> lanes.FrameArray:
    return np.asarray(self._environment.reset(seed=seed)[0], self._dtype)

  def step(self, action: int) -> tuple[lanes.FrameArray, float, bool, bool]:
    action += self._environment.action_space.start
    following, reward, *ends, _ = self._environment.step(action)
    observation = np.asarray(following, self._dtype)
    return observation, float(reward), ends[0], any(ends)


@gin.configurable
@ranges.checked
def create_gymnasium_lanes(
  environment: str = gin.REQUIRED, num_lanes: ranges.Count = 8
) -> lanes.Lanes:
  """Returns lanes of an environment, named by its id, such as CartPole-v1.

  The number of lanes is part of what a seed means. It is a ConfigError if there
  is no such environment, or its actions are not numbered.
  """
  made = [make(environment) for _ in range(num_lanes)]
  actions: Any = made[0].action_space
  observations: Any = made[0].observation_space
  if not isinstance(actions, gymnasium.spaces.Discrete):
    raise errors.ConfigError(
      f'{environment} has actions of {actions}, and a discrete agent numbers '
      'them; train on it with a file of gin_configs/own that says continuous.'
    )
  dtype = 'uint8' if observations.dtype == np.uint8 else 'float32'
  game = lanes.Game(
    suite='gymnasium',
    name=game_name(environment),
    num_actions=int(made[0].action_space.n),
    observation_shape=observations.shape,
    stack_size=1,
    rom_md5=None,
    protocol={
      'environment': environment,
      'gymnasium_version': gymnasium.__version__,
    },
    observation_dtype=dtype,
  )
  return lanes.SequentialLanes(
    game, [_Environment(lane, dtype) for lane in made]
  )
