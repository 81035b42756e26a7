"""The rule of play: whole episodes in every lane until its share is used.

Each lane obeys the rule of Dopamine's `Runner._run_one_phase` (Machado et al.,
2018, arXiv:1709.06009), which always finishes the last episode. To stop all
lanes at a common step instead would count too many short episodes.

Lanes are stepped in groups, each in a thread of its own, so that one group's
emulators run while the network looks at another's states. The result is a
function of the seed, the policy and the number of lanes, not of time.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
import dataclasses
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games.lanes import FrameArray, IntArray
from batch_rl_dr3.runs import run_tables

# [n, *observation_shape, stack_size] -> greedy actions, int [n].
Policy = Callable[[FrameArray], IntArray]

# Number of agent steps played so far, number of episodes finished so far.
ProgressCallback = Callable[[int, int], object]


@ranges.checked
@dataclasses.dataclass(frozen=True)
class PlayRule:
  """How an evaluation is played."""

  num_agent_steps: ranges.Count  # Shared out over the lanes.
  epsilon: ranges.Share  # The probability of a uniformly random action.
  max_agent_steps_per_episode: ranges.Count = 27_000  # 30 minutes of Atari.

  @classmethod
  def recorded(cls, protocol: Mapping[str, Any]) -> 'PlayRule':
    """Returns the rule of provenance.json's protocol, else a DataError.

    0 agent steps, of a run trained without evaluation, are the published
    number.
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
  """What is played, and how, in the words of provenance.json."""

  suite: str
  game: str
  rom_md5: str | None
  protocol: Mapping[str, Any]


# The protocol of the logged Atari data: 125,000 agent steps an evaluation.
PUBLISHED = PlayRule(125_000, 0.001, 27_000)


def statistics(returns: Sequence[float]) -> dict[str, Any]:
  """Returns what a collection says of the returns of its episodes."""
  return {
    'num_episodes': len(returns),
    'return_mean': float(np.mean(returns)) if returns else None,
    'return_min': min(returns, default=None),
    'return_max': max(returns, default=None),
  }


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

  They are ordered by lane and, within a lane, by time. The policy is called
  from several threads at once, and must not keep or change the states, which
  hold zeros before an episode's beginning. `on_progress` is called by one
  thread at a time. A negative seed is a ConfigError.

  Raises:
    PreemptedError: if `should_stop` said so: a part of the episodes would
      favour the short ones.
  """
  if seed < 0:
    raise errors.ConfigError(f'seed is {seed}; it must be >= 0.')
  num_played, num_episodes, is_stopped = 0, 0, False
  lock = threading.Lock()

  def check() -> None:
    if is_stopped or (should_stop is not None and should_stop()):
      raise errors.PreemptedError(
        f'stopped after {num_played} of {rule.num_agent_steps} agent steps of '
        'play; run the same command again.'
      )

  def count(agent_steps: int, episodes: int) -> None:
    nonlocal num_played, num_episodes
    with lock:
      num_played += agent_steps
      num_episodes += episodes
      if on_progress is not None:
        on_progress(num_played, num_episodes)

  starts = range(lanes.group_size, lanes.num_lanes, lanes.group_size)
  groups = [
    _Group(lanes, which, rule, seed)
    for which in np.split(np.arange(lanes.num_lanes), list(starts))
  ]
  with futures.ThreadPoolExecutor(len(groups)) as pool:
    tasks = [pool.submit(group.play, policy, check, count) for group in groups]
    try:
      done, _ = futures.wait(tasks, return_when=futures.FIRST_EXCEPTION)
    finally:
      is_stopped = True  # Only after an error is anybody still playing.
  for task in done:
    task.result()  # Raises what the first group to fail has raised.
  return [episode for task in tasks for episode in task.result()]


class _Group:
  """Lanes that are stepped together, until they have used their share."""

  def __init__(
    self,
    lanes: lanes_lib.Lanes,
    which: npt.NDArray[np.int64],
    rule: PlayRule,
    seed: int,
  ):
    self._lanes = lanes
    self._rule = rule
    self._seed = seed
    self._which = which
    # Ten agent steps over four lanes are 3, 3, 2 and 2.
    num_before = lanes.num_lanes - 1 - which
    shares = (rule.num_agent_steps + num_before) // lanes.num_lanes
    self._remaining = np.maximum(shares, 1)
    self._generators = [
      np.random.default_rng((seed, lane, lanes_lib.EXPLORATION_STREAM))
      for lane in which
    ]
    self._lengths = np.zeros(len(which), np.int64)
    self._returns = np.zeros(len(which), np.float64)
    game = lanes.game
    shape = (len(which), *game.observation_shape, game.stack_size)
    self._states: FrameArray = np.zeros(shape, game.observation_dtype)

  def play(
    self, policy: Policy, check: Callable[[], None], count: ProgressCallback
  ) -> list[run_tables.Episode]:
    episodes: list[run_tables.Episode] = []
    self._push(self._lanes.reset(self._which, self._seed))
    while num_lanes := len(self._which):
      check()
      ended = self._step(self._explore(policy(self._states)))
      episodes += ended
      count(num_lanes, len(ended))
    return sorted(episodes, key=lambda episode: episode.lane)

  def _push(self, observations: FrameArray) -> None:
    # Every pixel's stack moves by one. What crosses from one pixel to its
    # neighbour is the place that is written next, and to move all bytes at
    # once is 20 times faster than to move three of every four.
    flat = self._states.reshape(-1)
    flat[:-1] = flat[1:]
    self._states[..., -1] = observations

  def _explore(self, greedy_actions: IntArray) -> IntArray:
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
    self._states[step.terminals | ended] = 0
    episodes = [
      run_tables.Episode(
        lane=int(self._which[i]),
        episode_return=float(self._returns[i]),
        length=int(self._lengths[i]),
        truncated=not (step.game_over[i] and step.terminals[i]),
      )
      for i in np.flatnonzero(ended)
    ]
    if episodes:
      self._remaining[ended] -= self._lengths[ended]
      self._lengths[ended] = 0
      self._returns[ended] = 0
      restarted = ended & (self._remaining > 0)
      if restarted.any():
        observations = observations.copy()
        observations[restarted] = self._lanes.reset(self._which[restarted])
    self._push(observations)
    if episodes and (self._remaining <= 0).any():
      self._keep(self._remaining > 0)
    return episodes

  def _keep(self, is_kept: npt.NDArray[np.bool_]) -> None:
    """Drops all other lanes."""
    self._generators = [self._generators[i] for i in np.flatnonzero(is_kept)]
    self._which = self._which[is_kept]
    self._remaining = self._remaining[is_kept]
    self._lengths = self._lengths[is_kept]
    self._returns = self._returns[is_kept]
    self._states = self._states[is_kept]
