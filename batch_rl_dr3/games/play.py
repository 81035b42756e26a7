"""The rule of play: whole episodes in every lane until its share is used.

Each lane obeys the rule of Dopamine's `Runner._run_one_phase` (Machado et al.,
2018, arXiv:1709.06009): it plays whole episodes until its share of the agent
steps is used, and always finishes the last one. To stop all lanes at a common
step instead would drop the episodes still running, and so count too many
short ones. With one lane the rule is Dopamine's own.

Lanes are stepped in groups, so that the policy is evaluated on a batch, and
every group is played by a thread of its own, so that one group's emulators
run while the network looks at another's states. Which lanes share a group,
and what happens in a lane, does not depend on time: the result is a function
of the seed, the policy and the number of lanes.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games.lanes import BoolArray, FrameArray, IntArray
from batch_rl_dr3.runs import run_tables

# uint8 [n, *observation_shape, stack_size] -> greedy actions, int [n].
Policy = Callable[[FrameArray], IntArray]

# Number of agent steps played so far, number of episodes finished so far.
ProgressCallback = Callable[[int, int], object]


@dataclasses.dataclass(frozen=True)
class PlayRule:
  """How an evaluation is played.

  Attributes:
    num_agent_steps: the steps to share out over the lanes; each lane gets at
      least one and finishes the episode in which it uses up its share.
    epsilon: the probability of a uniformly random action.
    max_agent_steps_per_episode: the length at which an episode is cut off;
      27,000 agent steps are 30 minutes of Atari.
  """

  num_agent_steps: int
  epsilon: float
  max_agent_steps_per_episode: int = 27_000

  def __post_init__(self) -> None:
    """Checks the settings.

    Raises:
      ConfigError: if one is out of range.
    """
    for name in ('num_agent_steps', 'max_agent_steps_per_episode'):
      if getattr(self, name) < 1:
        raise errors.ConfigError(
          f'{name} is {getattr(self, name)}; it must be >= 1.'
        )
    if not 0.0 <= self.epsilon <= 1.0:
      raise errors.ConfigError(
        f'epsilon is {self.epsilon}; it must be in [0, 1].'
      )

  @classmethod
  def recorded(cls, protocol: Mapping[str, Any]) -> 'PlayRule':
    """Returns the rule of a protocol, as provenance.json has it.

    A run that was trained without evaluation says 0 agent steps; it is then
    the published number.

    Raises:
      DataError: if the protocol does not say.
    """
    try:
      return cls(
        protocol['num_evaluation_agent_steps'] or PUBLISHED.num_agent_steps,
        protocol['epsilon_eval'],
        protocol['max_agent_steps_per_episode'],
      )
    except KeyError as error:
      raise errors.DataError(f'the protocol of a run lacks {error}.') from error


@dataclasses.dataclass(frozen=True)
class GameIdentity:
  """What is played, and how, in the words of provenance.json.

  Attributes:
    suite: the suite of the game.
    game: its name.
    rom_md5: the MD5 of the ROM file, None where there is none.
    protocol: the rules, by name; JSON values.
  """

  suite: str
  game: str
  rom_md5: str | None
  protocol: Mapping[str, Any]


# The protocol of the logged Atari data: 125,000 agent steps an evaluation.
PUBLISHED = PlayRule(125_000, 0.001, 27_000)


def evaluation_seed(seed: int, iteration: int) -> int:
  """Returns the seed of the evaluation after an iteration of a run."""
  state = np.random.SeedSequence((seed, iteration)).generate_state(1)
  return int(state[0])


def play(
  lanes: lanes_lib.Lanes,
  policy: Policy,
  rule: PlayRule,
  seed: int,
  on_progress: ProgressCallback | None = None,
  should_stop: Callable[[], bool] | None = None,
) -> list[run_tables.Episode]:
  """Plays whole episodes until the agent steps of the rule are used.

  Args:
    lanes: the games; they are restarted.
    policy: maps states, uint8 [n, *observation_shape, stack_size], zeros
      before an episode's first observation and the newest last, to greedy
      actions, int [n]. It must not keep or change its argument, and is called
      from several threads at once.
    rule: how long and how is played.
    seed: a non-negative seed of the games and of the random actions.
    on_progress: called after every step of a group, by one thread at a time.
    should_stop: asked before every step; once true, play stops.

  Returns:
    The episodes, ordered by lane and, within a lane, by time.

  Raises:
    ConfigError: if the seed is negative.
    PreemptedError: if `should_stop` said so; nothing is returned then,
      because a partial set of episodes favours the short ones.
  """
  if seed < 0:
    raise errors.ConfigError(f'seed is {seed}; it must be >= 0.')
  quotas = _split(rule.num_agent_steps, lanes.num_lanes)
  watch = _Watch(rule.num_agent_steps, on_progress, should_stop)
  starts = range(0, lanes.num_lanes, lanes.group_size)
  groups = [
    _Group(
      lanes,
      np.arange(start, min(start + lanes.group_size, lanes.num_lanes)),
      quotas,
      rule,
      seed,
    )
    for start in starts
  ]
  with futures.ThreadPoolExecutor(len(groups)) as pool:
    tasks = [pool.submit(group.play, policy, watch) for group in groups]
    try:
      done, _ = futures.wait(tasks, return_when=futures.FIRST_EXCEPTION)
    finally:
      watch.stopped = True  # Only after an error is anybody still playing.
  for task in done:
    task.result()  # Raises what the first group to fail has raised.
  episodes = [episode for task in tasks for episode in task.result()]
  return sorted(episodes, key=lambda episode: episode.lane)


class _Watch:
  """What the threads of one evaluation share: progress, and the end."""

  def __init__(
    self,
    num_agent_steps: int,
    on_progress: ProgressCallback | None,
    should_stop: Callable[[], bool] | None,
  ):
    self._num_agent_steps = num_agent_steps
    self._on_progress = on_progress
    self._should_stop = should_stop
    self._lock = threading.Lock()
    self._num_played = 0
    self._num_episodes = 0
    self.stopped = False

  def check(self) -> None:
    """Raises PreemptedError if play is to stop."""
    if self.stopped or (self._should_stop is not None and self._should_stop()):
      raise errors.PreemptedError(
        f'stopped after {self._num_played} of {self._num_agent_steps} agent '
        'steps of play; run the same command again.'
      )

  def add(self, num_agent_steps: int, num_episodes: int) -> None:
    """Takes note of what a group has just played."""
    with self._lock:
      self._num_played += num_agent_steps
      self._num_episodes += num_episodes
      if self._on_progress is not None:
        self._on_progress(self._num_played, self._num_episodes)


class _Group:
  """Some lanes that are stepped together.

  Lanes that have used their share leave the arrays, so that neither the
  emulators nor the network spend time on them.
  """

  def __init__(
    self,
    lanes: lanes_lib.Lanes,
    which: npt.NDArray[np.int64],
    quotas: npt.NDArray[np.int64],
    rule: PlayRule,
    seed: int,
  ):
    self._lanes = lanes
    self._which = which
    self._rule = rule
    self._seed = seed
    self._remaining = quotas[which]
    self._generators = [
      np.random.default_rng((seed, lane, lanes_lib.EXPLORATION_STREAM))
      for lane in which
    ]
    self._lengths = np.zeros(len(which), np.int64)
    self._returns = np.zeros(len(which), np.float64)
    self._states = lanes_lib.FrameStacks(lanes.game, len(which))

  def play(self, policy: Policy, watch: _Watch) -> list[run_tables.Episode]:
    """Plays until the last lane is done and returns the episodes."""
    episodes: list[run_tables.Episode] = []
    self._states.push(self._lanes.reset(self._which, self._seed))
    while len(self._which):
      watch.check()
      num_lanes = len(self._which)
      ended = self._step(self._explore(policy(self._states.array)))
      episodes += ended
      watch.add(num_lanes, len(ended))
    return episodes

  def _explore(self, greedy_actions: IntArray) -> IntArray:
    """Returns the actions with each lane's own random ones put in."""
    actions = np.array(greedy_actions)
    for i, generator in enumerate(self._generators):
      if generator.random() < self._rule.epsilon:
        actions[i] = generator.integers(self._lanes.game.num_actions)
    return actions

  def _step(self, actions: IntArray) -> list[run_tables.Episode]:
    """Plays one agent step and returns the episodes that it ended."""
    step = self._lanes.step(self._which, actions)
    observations = step.observations
    self._lengths += 1
    self._returns += step.rewards
    at_limit = self._lengths >= self._rule.max_agent_steps_per_episode
    ended = step.game_over | at_limit
    self._states.clear(step.terminals | ended)
    episodes = []
    if ended.any():
      episodes = self._end_episodes(ended, step.game_over)
      restarted = ended & (self._remaining > 0)
      if restarted.any():
        observations = observations.copy()
        observations[restarted] = self._lanes.reset(self._which[restarted])
    self._states.push(observations)
    if len(episodes) and (self._remaining <= 0).any():
      self._drop(self._remaining <= 0)
    return episodes

  def _end_episodes(
    self, ended: BoolArray, game_over: BoolArray
  ) -> list[run_tables.Episode]:
    episodes = [
      run_tables.Episode(
        lane=int(self._which[i]),
        episode_return=float(self._returns[i]),
        length=int(self._lengths[i]),
        truncated=not game_over[i],
      )
      for i in np.flatnonzero(ended)
    ]
    self._remaining[ended] -= self._lengths[ended]
    self._lengths[ended] = 0
    self._returns[ended] = 0
    return episodes

  def _drop(self, finished: BoolArray) -> None:
    kept = np.flatnonzero(~finished)
    self._which = self._which[kept]
    self._remaining = self._remaining[kept]
    self._generators = [self._generators[i] for i in kept]
    self._lengths = self._lengths[kept]
    self._returns = self._returns[kept]
    self._states.keep(kept)


def _split(num_agent_steps: int, num_lanes: int) -> npt.NDArray[np.int64]:
  """Returns the agent steps of each lane: 10 over 4 lanes are 3, 3, 2, 2."""
  quotas = np.full(num_lanes, num_agent_steps // num_lanes, np.int64)
  quotas[: num_agent_steps % num_lanes] += 1
  return np.maximum(quotas, 1)
