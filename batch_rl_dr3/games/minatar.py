"""MinAtar lanes: 10x10 binary images, one channel per kind of object.

Young and Tian, 2019 (arXiv:1903.03176). Observations are not stacked; a step is
one frame. All six actions are kept, as in that paper.

A game's own file is executed without its package, which loads matplotlib and
seaborn, 3 seconds, to draw. Sticky actions are done here.
"""

from collections.abc import Callable
import functools
import importlib.metadata
import runpy
from typing import Any

import gin
import numpy as np

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.games import lanes

GAMES = ('asterix', 'breakout', 'freeway', 'seaquest', 'space_invaders')
_NUM_ACTIONS = 6


class _Environment:
  """MinAtar's `Environment`, made anew with each seed."""

  def __init__(
    self, create: Callable[[], Any], sticky_action_probability: float
  ):
    self._create = create
    self._sticky_action_probability = sticky_action_probability
    self._start(np.random.RandomState())

  def _start(self, random: np.random.RandomState) -> None:
    self.game = self._create()
    self._random = self.game.random = random
    self._last_action = 0

  def reset(self, seed: int | None) -> lanes.FrameArray:
    if seed is not None:
      self._start(np.random.RandomState(seed))
    self.game.reset()
    return self.game.state().astype(np.uint8)

  def step(self, action: int) -> tuple[lanes.FrameArray, float, bool, bool]:
    if self._random.rand() >= self._sticky_action_probability:
      self._last_action = action
    reward, terminal = self.game.act(self._last_action)
    return self.game.state().astype(np.uint8), reward, terminal, terminal

  def close(self) -> None:
    pass


@gin.configurable
@ranges.checked
def create_minatar_lanes(
  game_name: str = gin.REQUIRED,
  num_lanes: ranges.Count = 8,
  sticky_action_probability: ranges.Share = 0.1,
  difficulty_ramping: bool = True,
) -> lanes.Lanes:
  """Returns lanes of one of `GAMES`, else a ConfigError.

  Defaults are MinAtar's. The number of lanes is part of what a seed means; a
  sticky action is the last one, repeated; with difficulty_ramping a game
  becomes faster with time.
  """
  if game_name not in GAMES:
    raise errors.ConfigError(
      f'create_minatar_lanes.game_name is {game_name!r}; MinAtar has '
      f'{", ".join(GAMES)}.'
    )
  package = importlib.metadata.distribution('MinAtar')
  path = package.locate_file(f'minatar/environments/{game_name}.py')
  definitions = runpy.run_path(str(path))
  create = functools.partial(definitions['Env'], ramping=difficulty_ramping)
  environments = [
    _Environment(create, sticky_action_probability) for _ in range(num_lanes)
  ]
  game = lanes.Game(
    suite='minatar',
    name=game_name,
    num_actions=_NUM_ACTIONS,
    observation_shape=tuple(environments[0].game.state_shape()),
    stack_size=1,
    rom_md5=None,
    protocol={
      'minatar_version': package.version,
      'action_set': 'full',
      'sticky_action_probability': sticky_action_probability,
      'difficulty_ramping': difficulty_ramping,
      'frame_skip': 1,
    },
  )
  return lanes.SequentialLanes(game, environments)
