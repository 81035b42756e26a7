"""Environments to score policies in, and the play of whole episodes."""

from collections.abc import Callable, Sequence
import contextlib
import copy
import importlib.metadata
from typing import Any
import warnings

import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import manipulation, tasks
from batch_rl_dr3.games import gymnasium_lanes, play
from batch_rl_dr3.runs import run_tables

FloatArray = npt.NDArray[np.float32]

# Observations, float32 [n, o] -> actions, float32 [n, d].
Policy = Callable[[FloatArray], FloatArray]


def versions() -> dict[str, str]:
  """Returns the versions of what plays and learns, as far as installed."""
  found = {}
  for name in ('tf-agents', 'mujoco', 'gymnasium-robotics', 'minari', 'h5py'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def make(task: tasks.Task, render_mode: str | None = None) -> Any:
  """Returns a gymnasium environment without a window.

  Pictures, of render_mode 'rgb_array', take a driver of OpenGL.

  Raises:
    ConfigError: if the data of the task belong to no environment here, or the
      simulators are not installed.
  """
  tasks.check_scorable(task)
  if task.layout == tasks.COG:
    return manipulation.make(task, render_mode)
  if task.layout == tasks.OWN:
    environment = gymnasium_lanes.make(str(task.environment), render_mode)
    return gymnasium.wrappers.RescaleAction(
      environment, np.float32(-1), np.float32(1)
    )
  kwargs: dict[str, Any] = {'render_mode': render_mode}
  with warnings.catch_warnings():
    # gymnasium: that v4 is not its newest. It is the one the data are of.
    warnings.simplefilter('ignore')
    try:
      if task.maze is not None or task.kitchen_tasks:
        import gymnasium_robotics
        from gymnasium_robotics.envs.maze import maps

        gymnasium.register_envs(gymnasium_robotics)
    except ImportError as error:
      raise errors.ConfigError(
        f'{task.game} needs the simulators: pip install "batch-rl-dr3[d4rl]" '
        f'({error}).'
      ) from error
    if task.kitchen_tasks:
      kwargs |= {'tasks_to_complete': list(task.kitchen_tasks)}
    if task.maze is not None:
      maze_map = copy.deepcopy(getattr(maps, task.maze))
      for (row, column), letter in ((task.start, 'r'), (task.goal, 'g')):
        maze_map[row][column] = letter
      kwargs |= {'continuing_task': False, 'max_episode_steps': 1000}
      kwargs |= {'maze_map': maze_map}
    return gymnasium.make(str(task.environment), **kwargs)


def play_episodes(
  environments: Sequence[Any],
  policy: Policy,
  num_episodes: int,
  seed: int,
  on_progress: play.ProgressCallback | None = None,
  should_stop: Callable[[], bool] | None = None,
) -> list[run_tables.Episode]:
  """Plays whole episodes, several at a time, and returns them in order.

  Every episode has a seed of its own, so that how many are played at a time, in
  copies of one environment, changes nothing but the shape of the policy's
  batches. `on_progress` is called after every step with the steps and episodes
  so far.

  Raises:
    PreemptedError: once `should_stop`, asked before every step, says so.
  """
  waiting = list(range(num_episodes))
  seeds = np.random.SeedSequence(seed).generate_state(num_episodes)
  episodes: dict[int, run_tables.Episode] = {}
  running: dict[int, _Lane] = {}
  num_steps = 0
  for lane, environment in enumerate(environments[:num_episodes]):
    running[lane] = _Lane(environment, waiting.pop(0), seeds)
  while running:
    if should_stop is not None and should_stop():
      raise errors.PreemptedError(
        'stopped while playing; the same command goes on from there.'
      )
    actions = policy(np.stack([lane.observation for lane in running.values()]))
    for (lane, state), action in zip(
      list(running.items()), actions, strict=True
    ):
      num_steps += 1
      episode = state.step(action, lane)
      if episode is not None:
        episodes[state.number] = episode
        del running[lane]
        if waiting:
          running[lane] = _Lane(environments[lane], waiting.pop(0), seeds)
    if on_progress is not None:
      on_progress(num_steps, len(episodes))
  return [episodes[number] for number in range(num_episodes)]


class _Lane:
  """One episode that is being played."""

  def __init__(
    self,
    environment: Any,
    number: int,
    seeds: npt.NDArray[np.unsignedinteger[Any]],
  ):
    self._environment = environment
    self.number = number
    observation, _ = environment.reset(seed=int(seeds[number]))
    self.observation = tasks.flatten(observation)
    self._return = 0.0
    self._length = 0

  def step(self, action: FloatArray, lane: int) -> run_tables.Episode | None:
    """Plays one step and returns the episode if it is over."""
    following, reward, terminated, truncated, _ = self._environment.step(action)
    self.observation = tasks.flatten(following)
    self._return += float(reward)
    self._length += 1
    if not (terminated or truncated):
      return None
    return run_tables.Episode(lane, self._return, self._length, not terminated)
