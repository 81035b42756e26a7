"""COG's tasks as environments, and scripted play in the built-in ones.

Data are logged as COG's authors log theirs: trajectories of one length, noise
of 0.1 on actions that stay in [-0.9, 0.9], a reward for every step at which the
object is held.
"""

from collections.abc import Callable, Sequence
import contextlib
import itertools
import pathlib
from typing import Any

import gin
import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.control import cog, drawer, tasks

# What scripts do in prior data, and from which start; see `drawer`. Most leave
# the drawer open, or a cloned policy closes again what it opened.
_OPEN = ('closed', ('open',))
_PRIOR = {
  'drawer-open-grasp': (_OPEN, _OPEN, ('closed', ('open', 'close'))),
  'drawer-blocked-grasp': (
    ('blocked', ('clear',)),
    ('aside', ('open',)),
    ('aside', ('open', 'close')),
  ),
}
_TASK = ('open', ('grasp',))


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
    """Loads the scene.

    Raises:
      ConfigError: if roboverse is not there, or is not of COG's version.
    """
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

  def _image(self, observation: Any) -> npt.NDArray[np.uint8]:
    pixels = np.uint8(np.asarray(observation['image']) * 255.0)
    return np.reshape(pixels, self.observation_space.shape or ())

  def reset(  # noqa: D102
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[Any, dict[str, Any]]:
    super().reset(seed=seed)
    if seed is not None:  # roboverse draws from NumPy's own generator.
      np.random.seed(seed)
    self._last = self._image(self._env.reset())
    return self._last, {}

  def step(  # noqa: D102
    self, action: Any
  ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    observation, reward, is_done, info = self._env.step(action)
    self._last = self._image(observation)
    return self._last, float(reward), bool(is_done), False, info

  def render(self) -> npt.NDArray[np.uint8]:  # noqa: D102
    return self._last


def make(task: tasks.Task, render_mode: str | None = None) -> Any:
  """Returns the environment that a task of COG's is scored in.

  Raises:
    ConfigError: if its simulator is not installed.
  """
  env: Any
  if task.game in _PRIOR:
    env = gymnasium.make(str(task.environment), render_mode=render_mode)
  else:
    env = gymnasium.wrappers.TimeLimit(
      RoboverseEnv(task, render_mode), task.max_episode_steps
    )
  return SuccessAtEnd(env)


@gin.configurable(
  denylist=['folder', 'task', 'seed', 'num_rows', 'should_stop', 'on_progress']
)
@ranges.checked
def collect_scripted(
  folder: pathlib.Path,
  task: tasks.Task,
  seed: int,
  num_rows: int,
  should_stop: Callable[[], bool],
  on_progress: Callable[[int, list[float]], None],
  prior_share: ranges.Share = 2 / 3,
  num_steps: ranges.Count = 20,
  noise: ranges.NonNegative = 0.1,
) -> dict[str, Any]:
  """Writes a store of scripted play and returns what it holds.

  A trajectory is a function of the seed and its number. `prior_share` of them
  are prior data; `noise` is the standard deviation of what is added to the
  gripper's movements; other arguments are `collection.collect_control`'s.

  Raises:
    ConfigError: if the task is not built in.
    PreemptedError: if `should_stop` said so; nothing is left then.
  """
  if task.game not in _PRIOR:
    raise errors.ConfigError(
      f"{task.game} has no scripts here; convert COG's own files with "
      '`data convert --cog`.'
    )
  number = -(-num_rows // num_steps)
  num_prior = round(prior_share * number)
  plans = [
    *itertools.islice(itertools.cycle(_PRIOR[task.game]), num_prior),
    *[_TASK] * (number - num_prior),
  ]
  returns: list[float] = []
  behaviour = {'game': task.game, 'num_steps': num_steps, 'noise': noise}
  with contextlib.ExitStack() as stack:
    played = {
      start: stack.enter_context(contextlib.closing(drawer.DrawerEnv(start)))
      for start in dict(plans)
    }
    writer = stack.enter_context(cog.Writer(folder, {'scripts': behaviour}))
    for i, (start, scripts) in enumerate(plans):
      if should_stop():
        raise errors.PreemptedError(
          f'stopped after {i} of {number} trajectories; nothing is kept.'
        )
      trajectory = _play(played[start], scripts, num_steps, noise, (seed, i))
      writer.add(trajectory, cog.PRIOR if i < num_prior else cog.TASK)
      returns.append(float(trajectory.rewards[-1] > 0))
      on_progress((i + 1) * num_steps, returns[num_prior:])
  of_task = returns[num_prior:]
  return {
    'game': task.game,
    'environment': task.environment,
    'layout': task.layout,
    'behaviour': 'scripted',
    'num_rows': number * num_steps,
    'num_episodes': number,
    'num_prior_episodes': num_prior,
    'return_mean': float(np.mean(of_task)) if of_task else None,
  }


def _play(
  env: drawer.DrawerEnv,
  scripts: Sequence[str],
  num_steps: int,
  noise: float,
  seed: tuple[int, int],
) -> cog.Trajectory:
  random = np.random.default_rng(seed)
  first, _ = env.reset(seed=int(random.integers(2**31)))
  scripted = drawer.scripted_actions(env, scripts, random, noise)
  actions, images, rewards = zip(
    *(
      (action, *env.step(action)[:2])
      for action in itertools.islice(scripted, num_steps)
    ),
    strict=True,
  )
  return cog.Trajectory(
    np.stack([first, *images]),
    np.stack(actions),
    np.array(rewards, np.float32),
    np.zeros(num_steps, np.float32),
  )
