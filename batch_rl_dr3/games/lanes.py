"""Lanes: copies of one game that are played side by side."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
FrameArray = npt.NDArray[Any]  # Of the game's observation_dtype.
IntArray = npt.NDArray[np.integer[Any]]

# Keeps exploration apart from the emulators' random numbers.
EXPLORATION_STREAM = 1


@dataclasses.dataclass(frozen=True)
class Game:
  """What is played, and under which rules."""

  suite: str  # 'atari', 'minatar' or 'gymnasium'.
  name: str  # As its suite spells it: 'Pong', 'space_invaders'.
  num_actions: int
  observation_shape: tuple[int, ...]  # (84, 84), (10, 10, C) or (D,).
  stack_size: int  # Observations that make a state.
  rom_md5: str | None
  protocol: Mapping[str, Any]  # The settings worth recording beside a score.
  observation_dtype: str = 'uint8'  # Or 'float32'.


class Step(NamedTuple):
  """What one agent step in n lanes led to.

  The game being over differs from a terminal where a life is lost, which is
  only a terminal, and where a game's own time runs out, which is none.
  """

  # [n, *observation_shape]; at a terminal they can be invalid, as Dopamine's.
  observations: FrameArray
  rewards: FloatArray  # [n], not clipped.
  terminals: BoolArray  # [n], whether the agent sees the end of an episode.
  game_over: BoolArray  # [n]


class Lanes(Protocol):
  """Several copies of one game, each with random numbers of its own.

  Lanes that are not named in a call stand still and cost nothing. Calls for
  different lanes may come from different threads at once.
  """

  game: Game
  num_lanes: int
  group_size: int  # How many lanes are best stepped together.

  def reset(self, which: IntArray, seed: int | None = None) -> FrameArray:
    """Starts new episodes in lanes [n]; returns their first observations.

    A seed and the lane's number fix all that is random in it until the next.
    """

  def step(self, which: IntArray, actions: IntArray) -> Step:
    """Plays one action, int [n], in each of some lanes, none of them over."""

  def close(self) -> None:
    """Frees the emulators."""


def lane_seed(seed: int, lane: int) -> int:
  """Returns the seed of one lane's emulator, in [1, 2**31)."""
  state = np.random.SeedSequence((seed, lane)).generate_state(1)
  return 1 + int(state[0]) % (2**31 - 1)


class SequentialLanes:
  """Lanes of environments that are stepped one after the other."""

  def __init__(self, game: Game, environments: Sequence[Any]):
    self.game = game
    self.num_lanes = self.group_size = len(environments)
    self._environments = environments

  def reset(  # noqa: D102
    self, which: IntArray, seed: int | None = None
  ) -> FrameArray:
    seeds = [None if seed is None else lane_seed(seed, int(i)) for i in which]
    pairs = zip(which, seeds, strict=True)
    return np.stack([self._environments[i].reset(own) for i, own in pairs])

  def step(self, which: IntArray, actions: IntArray) -> Step:  # noqa: D102
    steps = [
      self._environments[lane].step(int(action))
      for lane, action in zip(which, actions, strict=True)
    ]
    observations, rewards, terminals, game_over = zip(*steps, strict=True)
    return Step(
      np.stack(observations),
      np.array(rewards, np.float32),
      np.array(terminals, np.bool_),
      np.array(game_over, np.bool_),
    )

  def close(self) -> None:  # noqa: D102
    for environment in self._environments:
      environment.close()
