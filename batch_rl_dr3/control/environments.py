"""Environments to score policies in, and the play of whole episodes."""

from collections.abc import Callable, Generator, Iterator, Sequence
import contextlib
import copy
import importlib.metadata
from typing import Any
import warnings

import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import (
  drawer,  # noqa: F401  (registers its tasks)
  tasks,
)
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
  """Returns a gymnasium environment; pictures take a driver of OpenGL.

  Raises:
    ConfigError: if the data of the task belong to no environment here, or the
      simulators are not installed.
  """
  tasks.check_scorable(task)
  if task.layout == tasks.COG:
    env: Any
    if task.environment in gymnasium.registry:
      env = gymnasium.make(task.environment, render_mode=render_mode)
    else:
      env = gymnasium.wrappers.TimeLimit(
        RoboverseEnv(task, render_mode), task.max_episode_steps
      )
    return SuccessAtEnd(env)
  if task.layout == tasks.OWN:
    return gymnasium.wrappers.RescaleAction(
      gymnasium_lanes.make(str(task.environment), render_mode),
      *(np.float32(-1), np.float32(1)),
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
      kwargs['tasks_to_complete'] = list(task.kitchen_tasks)
    if task.maze is not None:
      maze_map = copy.deepcopy(getattr(maps, task.maze))
      for (row, column), letter in ((task.start, 'r'), (task.goal, 'g')):
        maze_map[row][column] = letter
      kwargs |= {'continuing_task': False, 'max_episode_steps': 1000}
      kwargs['maze_map'] = maze_map
    return gymnasium.make(str(task.environment), **kwargs)


class SuccessAtEnd(gymnasium.Wrapper[Any, Any, Any, Any]):
  """An episode whose return is 1 if its last step has a reward, else 0."""

  def step(  # noqa: D102
    self, action: Any
  ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    observation, reward, terminated, truncated, info = self.env.step(action)
    is_success = (terminated or truncated) and float(reward) > 0
    return observation, float(is_success), terminated, truncated, info


class RoboverseEnv(gymnasium.Env[npt.NDArray[np.uint8], npt.NDArray[Any]]):
  """A task of roboverse, which is old gym's, as gymnasium has it.

  All of a process's share one simulation: play one at a time.
  """

  metadata = {'render_modes': ['rgb_array'], 'render_fps': 10}

  def __init__(self, task: tasks.Task, render_mode: str | None = None):
    """Loads the scene; a ConfigError without roboverse of COG's version."""
    try:
      import roboverse
    except ImportError as error:
      raise errors.ConfigError(
        f'{task.game} is played in roboverse: check out '
        f'github.com/avisingh599/roboverse and put it on PYTHONPATH ({error}).'
      ) from error
    try:
      self._env = roboverse.make(task.environment, transpose_image=False)
      image_space = self._env.observation_space.spaces['image']
      sizes = [image_space.shape, self._env.action_space.shape]
    except Exception as error:  # Old gym's errors are as many as its versions.
      raise errors.ConfigError(
        f'this roboverse cannot make {task.environment} '
        f'({type(error).__name__}: {error}); check out the version of COG.'
      ) from error
    expected = [(int(np.prod(task.observation_shape)),), (task.action_size,)]
    if sizes != expected:
      raise errors.ConfigError(
        f'{task.environment} of this roboverse has images and actions of sizes '
        f'{sizes}, and COG has {expected}; check out the version of COG.'
      )
    self.render_mode = render_mode
    self.observation_space = gymnasium.spaces.Box(
      0, 255, task.observation_shape, np.uint8
    )
    self.action_space = gymnasium.spaces.Box(
      -1.0, 1.0, (task.action_size,), np.float32
    )

  def _see(self, observation: Any) -> npt.NDArray[np.uint8]:
    pixels = np.uint8(np.asarray(observation['image']) * 255.0)
    self._last = np.reshape(pixels, self.observation_space.shape or ())
    return self._last

  def reset(  # noqa: D102
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[Any, dict[str, Any]]:
    super().reset(seed=seed)
    if seed is not None:  # roboverse draws from NumPy's own generator.
      np.random.seed(seed)
    return self._see(self._env.reset()), {}

  def step(  # noqa: D102
    self, action: Any
  ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    observation, reward, is_done, info = self._env.step(action)
    return self._see(observation), float(reward), bool(is_done), False, info

  def render(self) -> npt.NDArray[np.uint8]:  # noqa: D102
    return self._last


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
  seeds = np.random.SeedSequence(seed).generate_state(num_episodes)
  waiting = enumerate(map(int, seeds))
  episodes: dict[int, run_tables.Episode] = {}
  players = [
    _play_lane(lane, environment, waiting, episodes)
    for lane, environment in enumerate(environments[:num_episodes])
  ]
  shown = {player: next(player) for player in players}
  num_steps = 0
  while shown:
    if should_stop is not None and should_stop():
      raise errors.PreemptedError(
        'stopped while playing; the same command goes on from there.'
      )
    actions = policy(np.stack(list(shown.values())))
    for player, action in zip(list(shown), actions, strict=True):
      num_before = len(episodes)
      following = player.send(action)
      if len(episodes) > num_before:
        del shown[player]  # The next episode stands last in the batch.
      if following is not None:
        shown[player] = following
    num_steps += len(actions)
    if on_progress is not None:
      on_progress(num_steps, len(episodes))
  return [episodes[number] for number in range(num_episodes)]


def _play_lane(
  lane: int,
  environment: Any,
  waiting: Iterator[tuple[int, int]],
  episodes: dict[int, run_tables.Episode],
) -> Generator[Any, FloatArray, None]:
  """Plays episodes, by number and seed, while any wait; takes actions.

  It yields observations, and None after its last episode.
  """
  for number, seed in waiting:
    observation, _ = environment.reset(seed=seed)
    episode_return, length, terminated, truncated = 0.0, 0, False, False
    while not (terminated or truncated):
      action = yield tasks.flatten(observation)
      observation, reward, terminated, truncated, _ = environment.step(action)
      episode_return += float(reward)
      length += 1
    episodes[number] = run_tables.Episode(
      lane, episode_return, length, not terminated
    )
  yield None
