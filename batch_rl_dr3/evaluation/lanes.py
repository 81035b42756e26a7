"""Playing whole episodes in several copies of one game, side by side.

A lane is one copy of the game. All lanes are stepped together, so that the
policy is evaluated on a batch; what happens in a lane depends on the seed and
on that lane alone.

Each lane obeys the rule of Dopamine's `Runner._run_one_phase` (Machado et al.,
2018, arXiv:1709.06009): it plays whole episodes until its share of the agent
steps is used, and always finishes the last one. To stop all lanes at a common
step instead would drop the episodes still running, and so count too many
short ones. With one lane the rule is Dopamine's own.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batch_rl_dr3 import errors

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
FrameArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.integer[Any]]

# uint8 [L, *observation_shape, stack_size] -> greedy actions, int [L].
Policy = Callable[[FrameArray], IntArray]

# Number of agent steps played so far, episodes finished so far.
ProgressCallback = Callable[[int, Sequence['Episode']], None]

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


@dataclasses.dataclass(frozen=True)
class Episode:
  """One finished episode.

  Attributes:
    lane: the lane that played it.
    episode_return: the sum of its unclipped rewards.
    length: its length in agent steps.
    truncated: whether the time limit ended it, not the game.
  """

  lane: int
  episode_return: float
  length: int
  truncated: bool


class Lanes(Protocol):
  """Several copies of one game.

  A lane whose game is over must be reset before its steps mean anything
  again. To step it all the same is allowed: the caller ignores what comes.
  """

  @property
  def game(self) -> Game:
    """The game that every lane plays."""

  @property
  def num_lanes(self) -> int:
    """The number of lanes, L."""

  @property
  def game_over(self) -> BoolArray:
    """Whether the last step ended the game, bool [L].

    This differs from the terminals of `step` only where the loss of a life is
    a terminal: the episode of the score goes on.
    """

  def reset_all(self, seed: int) -> FrameArray:
    """Seeds and restarts every lane.

    Args:
      seed: the seed; lane number and seed fix all that is random in a lane
        until the next call.

    Returns:
      uint8 [L, *observation_shape], the first observations.
    """

  def reset(self, mask: BoolArray) -> FrameArray:
    """Starts a new episode in some lanes and leaves the others alone.

    Args:
      mask: bool [L], the lanes to restart.

    Returns:
      uint8 [L, *observation_shape], the present observations of all lanes.
    """

  def step(self, actions: IntArray) -> tuple[FrameArray, FloatArray, BoolArray]:
    """Plays one agent step in every lane.

    Args:
      actions: int [L], indices into the action set.

    Returns:
      observations: uint8 [L, *observation_shape]. At a terminal they can be
        invalid, as Dopamine's are.
      rewards: float32 [L], not clipped.
      terminals: bool [L].
    """

  def close(self) -> None:
    """Frees the emulators."""


def lane_seed(seed: int, lane: int) -> int:
  """Returns the seed of one lane's emulator, in [1, 2**31)."""
  state = np.random.SeedSequence((seed, lane)).generate_state(1)
  return 1 + int(state[0]) % (2**31 - 1)


def play(
  lanes: Lanes,
  policy: Policy,
  num_agent_steps: int,
  epsilon: float,
  seed: int,
  max_agent_steps_per_episode: int = 27_000,
  on_progress: ProgressCallback | None = None,
  should_stop: Callable[[], bool] | None = None,
) -> list[Episode]:
  """Plays whole episodes until `num_agent_steps` are used.

  The result depends on the seed, the policy and the number of lanes only.

  Args:
    lanes: the games; they are restarted.
    policy: maps states, uint8 [L, *observation_shape, stack_size], zeros
      before an episode's first observation and the newest last, to greedy
      actions, int [L]. It must not keep or change its argument.
    num_agent_steps: the steps to share out over the lanes; each lane gets at
      least one and finishes the episode in which it uses up its share.
    epsilon: the probability of a uniformly random action.
    seed: a non-negative seed of the games and of the random actions.
    max_agent_steps_per_episode: the length at which an episode is cut off;
      27,000 agent steps are 30 minutes of Atari.
    on_progress: called after every step with the agent steps played so far
      and the episodes finished so far.
    should_stop: asked before every step; once true, play stops.

  Returns:
    The episodes, ordered by lane and, within a lane, by time.

  Raises:
    ConfigError: if a setting is out of range.
    PreemptedError: if `should_stop` said so; nothing is returned then,
      because a partial set of episodes favours the short ones.
  """
  _check_settings(num_agent_steps, epsilon, seed, max_agent_steps_per_episode)
  quotas = _split(num_agent_steps, lanes.num_lanes)
  generators = [
    np.random.default_rng((seed, lane, EXPLORATION_STREAM))
    for lane in range(lanes.num_lanes)
  ]
  states = _FrameStacks(lanes.game, lanes.num_lanes)
  states.push(lanes.reset_all(seed))
  num_used = np.zeros(lanes.num_lanes, np.int64)
  lengths = np.zeros(lanes.num_lanes, np.int64)
  returns = np.zeros(lanes.num_lanes, np.float64)
  active = np.ones(lanes.num_lanes, np.bool_)
  episodes: list[Episode] = []
  num_played = 0

  while active.any():
    if should_stop is not None and should_stop():
      raise errors.PreemptedError(
        f'stopped after {num_played} of {num_agent_steps} agent steps of '
        'play; run the same command again.'
      )
    actions = _explore(
      policy(states.array), active, epsilon, lanes.game.num_actions, generators
    )
    observations, rewards, terminals = lanes.step(actions)
    lengths += 1
    returns += rewards
    num_played += int(active.sum())

    game_over = lanes.game_over
    ended = game_over | (lengths >= max_agent_steps_per_episode)
    for lane in np.flatnonzero(ended & active):
      episodes.append(
        Episode(
          lane=int(lane),
          episode_return=float(returns[lane]),
          length=int(lengths[lane]),
          truncated=not game_over[lane],
        )
      )
    num_used[ended] += lengths[ended]
    lengths[ended] = 0
    returns[ended] = 0
    active &= num_used < quotas
    if (ended & active).any():
      observations = lanes.reset(ended & active)
    states.clear(terminals | ended)
    states.push(observations)
    if on_progress is not None:
      on_progress(num_played, episodes)

  return sorted(episodes, key=lambda episode: episode.lane)


class _FrameStacks:
  """The last observations of every lane, as Dopamine's agents stack them."""

  def __init__(self, game: Game, num_lanes: int):
    shape = (num_lanes, *game.observation_shape, game.stack_size)
    self.array = np.zeros(shape, np.uint8)

  def clear(self, mask: BoolArray) -> None:
    self.array[mask] = 0

  def push(self, observations: FrameArray) -> None:
    self.array[..., :-1] = self.array[..., 1:]
    self.array[..., -1] = observations


def _split(num_agent_steps: int, num_lanes: int) -> npt.NDArray[np.int64]:
  """Returns the agent steps of each lane: 10 over 4 lanes are 3, 3, 2, 2."""
  quotas = np.full(num_lanes, num_agent_steps // num_lanes, np.int64)
  quotas[: num_agent_steps % num_lanes] += 1
  return np.maximum(quotas, 1)


def _explore(
  greedy_actions: IntArray,
  active: BoolArray,
  epsilon: float,
  num_actions: int,
  generators: Sequence[np.random.Generator],
) -> IntArray:
  """Returns the actions with each lane's own random ones put in."""
  actions = np.array(greedy_actions)
  for lane in np.flatnonzero(active):
    generator = generators[lane]
    if generator.random() < epsilon:
      actions[lane] = generator.integers(num_actions)
  return actions


def _check_settings(
  num_agent_steps: int,
  epsilon: float,
  seed: int,
  max_agent_steps_per_episode: int,
) -> None:
  for name, value, least in (
    ('num_agent_steps', num_agent_steps, 1),
    ('max_agent_steps_per_episode', max_agent_steps_per_episode, 1),
    ('seed', seed, 0),
  ):
    if value < least:
      raise errors.ConfigError(f'{name} is {value}; it must be >= {least}.')
  if not 0.0 <= epsilon <= 1.0:
    raise errors.ConfigError(f'epsilon is {epsilon}; it must be in [0, 1].')
