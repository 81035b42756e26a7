"""Making data: play that is logged in D4RL's layout or in Minari's.

Three kinds, as D4RL made its own (arXiv:2004.07219): `random`, uniform actions;
`policy`, a partly trained SAC policy plays, with noise if asked for; `replay`,
all that SAC saw while it learnt.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tf_agents.agents.sac import sac_agent

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.control import data, drawer, environments, networks, tasks
from batch_rl_dr3.control.environments import FloatArray
from batch_rl_dr3.games import play


class Log:
  """One environment, played on and on, and every step of it in order."""

  def __init__(self, environment: Any, seed: int):
    """Starts the first episode of a gymnasium environment."""
    self._environment = environment
    names = (*data.COLUMNS, 'timeouts')
    self.columns: dict[str, list[Any]] = {name: [] for name in names}
    self.returns: list[float] = []  # Of the episodes that ended.
    self._reset(seed)

  def __len__(self) -> int:
    return len(self.columns['rewards'])

  def _reset(self, seed: int | None = None) -> None:
    observation, _ = self._environment.reset(seed=seed)
    self.observation = tasks.flatten(observation)
    self._return = 0.0

  def step(self, action: FloatArray) -> None:
    """Plays one action, in [-1, 1], and logs what comes of it."""
    following, reward, *ends, _ = self._environment.step(action)
    following = tasks.flatten(following)
    row = (self.observation, action, reward, following, *ends)
    for values, value in zip(self.columns.values(), row, strict=True):
      values.append(value)
    self._return += float(reward)
    self.observation = following
    if any(ends):
      self.returns.append(self._return)
      self._reset()

  def arrays(self) -> dict[str, npt.NDArray[Any]]:
    """Returns the columns, bool or float32 [N, ...], cut after the last row."""
    flags = ('terminals', 'timeouts')
    arrays = {
      name: np.asarray(values, bool if name in flags else np.float32)
      for name, values in self.columns.items()
    }
    arrays['timeouts'][-1] = not arrays['terminals'][-1]
    return arrays


@gin.configurable(denylist=['task', 'seed'])
@ranges.checked
@dataclasses.dataclass
class OnlineSac:
  """SAC (arXiv:1801.01290) with one gradient step per step of play."""

  task: tasks.Task
  seed: int
  layers: Sequence[int] = (256, 256)  # Hidden units of critics and policy.
  learning_rate: ranges.Positive = 3e-4  # Adam's, of all three losses.
  gamma: ranges.Share = 0.99
  batch_size: ranges.Count = 256
  # Steps of uniform actions before it learns.
  num_random_steps: ranges.Natural = 5_000
  # Gradient steps are done so many at a time.
  steps_per_call: ranges.Count = 50
  # It is done after so many steps of play, or as soon as the mean return of the
  # last episodes is high enough.
  max_steps: ranges.Count = 1_000_000
  until_return: float = float('inf')
  num_return_episodes: ranges.Count = 10

  def __post_init__(self) -> None:
    spaces = networks.Spaces(self.task.observation_size, self.task.action_size)
    self._rng = np.random.default_rng((self.seed, 1))
    self._num_explored = 0
    self._agent = sac_agent.SacAgent(
      **networks.arguments(
        spaces,
        networks.create_critic(spaces, self.layers),
        networks.create_actor(spaces, self.layers),
        [self.learning_rate] * 3,
      ),
      target_update_tau=0.005,
      gamma=self.gamma,
      target_entropy=-float(spaces.action_size),
    )
    self._agent.initialize()
    self._learn = tf.function(self._learn_from)
    self._sample = tf.function(lambda states: self._distribution(states)[0])
    self._mode = tf.function(lambda states: self._distribution(states)[1])

  def _distribution(self, observations: tf.Tensor) -> Any:
    distribution = self._agent.policy.distribution(
      networks.time_steps(observations)
    ).action
    return distribution.sample(), distribution.mode()

  def _learn_from(self, columns: Any) -> None:
    for index in tf.range(self.steps_per_call):
      self._agent.train(networks.transition([c[index] for c in columns]))

  def is_done(self, log: Log) -> bool:
    """Returns whether it has played enough, or well enough."""
    last = log.returns[-self.num_return_episodes :]
    is_good = len(last) == self.num_return_episodes and (
      float(np.mean(last)) >= self.until_return
    )
    return is_good or len(log) >= self.max_steps

  def explore(self, observation: FloatArray) -> FloatArray:
    """Returns an action of the policy, uniform at first; float32 [d]."""
    if self._num_explored < self.num_random_steps:
      self._num_explored += 1
      size = self.task.action_size
      return self._rng.uniform(-1, 1, size).astype(np.float32)
    return np.asarray(self._sample(tf.constant(observation[None]))[0])

  def act(self, observation: FloatArray) -> FloatArray:
    """Returns the policy's most likely action, float32 [d]."""
    return np.asarray(self._mode(tf.constant(observation[None]))[0])

  def learn(self, columns: Mapping[str, Sequence[Any]]) -> None:
    """Learns from the columns of a log, whenever a call's worth has come."""
    num_rows = len(columns['rewards'])
    is_random = self._num_explored < self.num_random_steps
    if is_random or num_rows % self.steps_per_call:
      return
    shape = (self.steps_per_call, self.batch_size)
    rows = self._rng.integers(num_rows, size=shape)
    batches = []
    for name in data.COLUMNS:
      values = [columns[name][row] for row in rows.ravel()]
      array = np.array(values, np.float32)
      batches.append(tf.constant(array.reshape(*shape, *array.shape[1:])))
    self._learn(batches)


@gin.configurable(denylist=['folder', 'seed', 'on_progress'])
@ranges.checked
def collect_control(
  folder: str | os.PathLike[str],
  seed: int,
  game: str = gin.REQUIRED,
  kind: str = gin.REQUIRED,
  num_rows: ranges.Count = gin.REQUIRED,
  layout: str = tasks.D4RL,
  noise: ranges.NonNegative = 0.0,
  on_progress: Callable[[int, list[float]], None] = lambda rows, returns: None,
) -> dict[str, Any]:
  """Writes a data set and returns what it holds.

  Args:
    folder: takes data.hdf5 of D4RL's layout, or becomes a Minari data set.
    seed: fixes play and learning.
    game: hopper, halfcheetah or walker2d, or an id of gymnasium's; of Minari's
      layout, any game.
    kind: 'random', 'policy' or 'replay'; of the layout 'cog', 'scripted'.
    num_rows: transitions to log. For 'replay', SAC learns until it has seen
      so many or its return is reached, whichever is first.
    layout: 'd4rl', 'minari' or 'cog': whose files are written, and in whose
      environment of the game is played.
    noise: for 'policy', the standard deviation of Gaussian noise on actions.
    on_progress: called before every step with the rows so far and the returns
      of whole episodes; what it raises ends the collection.

  Raises:
    ConfigError: if the game has no environment, or the kind or the layout is
      unknown.
  """
  played = ('random', 'policy', 'replay')
  kinds = {'d4rl': played, 'minari': played, 'cog': ('scripted',)}
  if layout not in kinds:
    raise errors.ConfigError(
      f"collect_control.layout is 'd4rl', 'minari' or 'cog', not {layout!r}."
    )
  if kind not in kinds[layout]:
    raise errors.ConfigError(
      f'collect_control.kind is {" or ".join(map(repr, kinds[layout]))} with '
      f'layout {layout!r}, not {kind!r}.'
    )
  task = tasks.find(game, layout)
  folder = pathlib.Path(folder)
  if layout == tasks.COG:
    return drawer.collect_scripted(folder, task, seed, num_rows, on_progress)
  environment = environments.make(task)
  tf.keras.utils.set_random_seed(seed)
  learner = None
  if kind != 'random':
    learner = OnlineSac(task, seed)
    log = Log(environment, seed)
    while not learner.is_done(log):
      if kind == 'replay' and len(log) >= num_rows:
        break
      # What is only learnt from is not logged.
      on_progress(*((len(log), log.returns) if kind == 'replay' else (0, [])))
      log.step(learner.explore(log.observation))
      learner.learn(log.columns)
  if kind != 'replay':
    log = Log(environment, seed + 1)
    rng = np.random.default_rng(seed)
    while len(log) < num_rows:
      on_progress(len(log), log.returns)
      if learner is None:
        action: npt.NDArray[Any] = rng.uniform(-1, 1, task.action_size)
      else:
        action = learner.act(log.observation)
        action = action + noise * rng.normal(size=action.shape)
      log.step(np.clip(action, -1, 1).astype(np.float32))
  on_progress(len(log), log.returns)
  _write(folder, kind, task, environment, log.arrays())
  environment.close()
  statistics = play.statistics(log.returns)
  mean = statistics['return_mean']
  return {
    'game': task.game,
    'environment': task.environment,
    'layout': task.layout,
    'simulators': environments.versions(),
    'behaviour': kind,
    'num_rows': len(log),
    **statistics,
    'normalised_mean': None if mean is None else task.normalised(mean),
  }


def _write(
  folder: pathlib.Path,
  kind: str,
  task: tasks.Task,
  environment: Any,
  arrays: dict[str, npt.NDArray[Any]],
) -> None:
  game = task.game
  if task.layout == tasks.MINARI:
    name = game.replace('-', '/', 1) if '-' in game else f'{game}/collected'
    data.write_minari(folder, f'{name}-{kind}-v0', environment, arrays)
    return
  attributes = {'game': game, 'environment': task.environment, 'kind': kind}
  data.write_hdf5(folder / data.DATA, arrays, attributes)
