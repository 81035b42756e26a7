"""MinAtar lanes: 10x10 binary images, one channel per kind of object.

Young and Tian, 2019 (arXiv:1903.03176). An observation holds the whole state,
so that nothing is stacked; a step is one frame. All six actions are kept, as
in that paper, though most games use fewer.
"""

from collections.abc import Callable
import functools
import importlib.metadata
from typing import Any

import gin
import numpy as np

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.games import lanes

GAMES = ('asterix', 'breakout', 'freeway', 'seaquest', 'space_invaders')


class MinAtarLanes:
  """Lanes of MinAtar environments, stepped one after the other."""

  def __init__(
    self,
    game_name: str,
    num_lanes: int,
    sticky_action_probability: float,
    difficulty_ramping: bool,
  ):
    # Imported here because it loads matplotlib and seaborn: 3 seconds.
    import minatar

    self._create: Callable[[], Any] = functools.partial(
      minatar.Environment,
      game_name,
      sticky_action_prob=sticky_action_probability,
      difficulty_ramping=difficulty_ramping,
    )
    self._environments = [self._create() for _ in range(num_lanes)]
    self.num_lanes = self.group_size = num_lanes
    self.game = lanes.Game(
      suite='minatar',
      name=game_name,
      num_actions=self._environments[0].num_actions(),
      observation_shape=tuple(self._environments[0].state_shape()),
      stack_size=1,
      rom_md5=None,
      protocol={
        'minatar_version': importlib.metadata.version('MinAtar'),
        'action_set': 'full',
        'sticky_action_probability': sticky_action_probability,
        'difficulty_ramping': difficulty_ramping,
        'frame_skip': 1,
      },
    )

  def reset(
    self, which: lanes.IntArray, seed: int | None = None
  ) -> lanes.FrameArray:
    """See `lanes.Lanes`.

    With a seed the environments are made anew: MinAtar's own reset keeps the
    action that a sticky first step would repeat.
    """
    for lane in which:
      if seed is not None:
        self._environments[lane] = self._create()
        self._environments[lane].seed(lanes.lane_seed(seed, int(lane)))
      self._environments[lane].reset()
    return self._observe(which)

  def step(self, which: lanes.IntArray, actions: lanes.IntArray) -> lanes.Step:
    """See `lanes.Lanes`."""
    results = [
      self._environments[lane].act(int(action))
      for lane, action in zip(which, actions, strict=True)
    ]
    game_over = np.array([terminal for _, terminal in results], np.bool_)
    rewards = np.array([reward for reward, _ in results], np.float32)
    return lanes.Step(self._observe(which), rewards, game_over, game_over)

  def close(self) -> None:
    """See `lanes.Lanes`; there is nothing to free."""

  def _observe(self, which: lanes.IntArray) -> lanes.FrameArray:
    return np.stack(
      [self._environments[lane].state() for lane in which]
    ).astype(np.uint8)


@gin.configurable
@ranges.checked
def create_minatar_lanes(
  game_name: str = gin.REQUIRED,
  num_lanes: ranges.Count = 8,
  sticky_action_probability: ranges.Share = 0.1,
  difficulty_ramping: bool = True,
) -> lanes.Lanes:
  """Returns lanes of a MinAtar game; the defaults are MinAtar's.

  Args:
    game_name: str, one of `GAMES`, in lower case.
    num_lanes: int, the number of lanes. It is part of what a seed means.
    sticky_action_probability: float in [0, 1], with which the last action is
      repeated in place of the given one.
    difficulty_ramping: bool, whether the game becomes faster with time.

  Raises:
    ConfigError: if there is no such game, or a number is out of range.
  """
  if game_name not in GAMES:
    raise errors.ConfigError(
      f'create_minatar_lanes.game_name is {game_name!r}; MinAtar has '
      f'{", ".join(GAMES)}.'
    )
  return MinAtarLanes(
    game_name, num_lanes, sticky_action_probability, difficulty_ramping
  )
