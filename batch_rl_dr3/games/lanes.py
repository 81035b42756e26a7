"""Lanes: copies of one game that are played side by side."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
FrameArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.integer[Any]]

# Keeps exploration apart from the emulators' random numbers.
EXPLORATION_STREAM = 1


@dataclasses.dataclass(frozen=True)
class Game:
  """What is played, and under which rules.

  Attributes:
    suite: 'atari' or 'minatar'.
    name: the game as its suite spells it: 'Pong', 'space_invaders'.
    num_actions: the size of the action set.
    observation_shape: the shape of one observation: (84, 84) or (10, 10, C).
    stack_size: how many observations make a state.
    rom_md5: the MD5 of the ROM file, None where there is none.
    protocol: the settings worth recording beside a score, by name.
  """

  suite: str
  name: str
  num_actions: int
  observation_shape: tuple[int, ...]
  stack_size: int
  rom_md5: str | None
  protocol: Mapping[str, Any]


class Step(NamedTuple):
  """What one agent step in n lanes led to.

  Attributes:
    observations: uint8 [n, *observation_shape]. At a terminal they can be
      invalid, as Dopamine's are.
    rewards: float32 [n], not clipped.
    terminals: bool [n], whether the agent is to see the end of an episode.
    game_over: bool [n], whether the game ended. This differs from the
      terminals only where the loss of a life is one: the episode of the
      score goes on.
  """

  observations: FrameArray
  rewards: FloatArray
  terminals: BoolArray
  game_over: BoolArray


class Lanes(Protocol):
  """Several copies of one game, each with random numbers of its own.

  Lanes that are not named in a call stand still and cost nothing. Calls for
  different lanes may come from different threads at once.
  """

  @property
  def game(self) -> Game:
    """The game that every lane plays."""

  @property
  def num_lanes(self) -> int:
    """The number of lanes, L."""

  @property
  def group_size(self) -> int:
    """How many lanes are best stepped together; it divides none or all."""

  def reset(self, which: IntArray, seed: int | None = None) -> FrameArray:
    """Starts new episodes in some lanes.

    Args:
      which: int [n], the lanes, each at most once.
      seed: where given, seed and lane number fix all that is random in a
        lane until its next seed; None goes on with its random numbers.

    Returns:
      uint8 [n, *observation_shape], their first observations.
    """

  def step(self, which: IntArray, actions: IntArray) -> Step:
    """Plays one agent step in some lanes, none of which is over.

    Args:
      which: int [n], the lanes, each at most once.
      actions: int [n], indices into the action set.
    """

  def close(self) -> None:
    """Frees the emulators."""


class FrameStacks:
  """The last observations of some lanes, as Dopamine's agents stack them.

  Attributes:
    array: uint8 [n, *observation_shape, stack_size], the newest last.
  """

  def __init__(self, game: Game, num_lanes: int):
    """Fills the stacks with zeros."""
    shape = (num_lanes, *game.observation_shape, game.stack_size)
    self.array: FrameArray = np.zeros(shape, np.uint8)

  def clear(self, mask: BoolArray) -> None:
    """Puts zeros in some lanes, bool [n], as before an episode."""
    self.array[mask] = 0

  def push(self, observations: FrameArray) -> None:
    """Adds the newest observations, uint8 [n, *observation_shape]."""
    # Every pixel's stack moves by one. What crosses from one pixel to its
    # neighbour is the place that is written next, and to move all bytes at
    # once is 20 times faster than to move three of every four.
    flat = self.array.reshape(-1)
    flat[:-1] = flat[1:]
    self.array[..., -1] = observations

  def keep(self, indices: IntArray) -> None:
    """Drops all lanes but some."""
    self.array = self.array[indices]


def lane_seed(seed: int, lane: int) -> int:
  """Returns the seed of one lane's emulator, in [1, 2**31)."""
  state = np.random.SeedSequence((seed, lane)).generate_state(1)
  return 1 + int(state[0]) % (2**31 - 1)
