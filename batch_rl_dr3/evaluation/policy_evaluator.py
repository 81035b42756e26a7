"""Plays the checkpoints of a continuous run in its environment: no data."""

from collections.abc import Callable
import contextlib
import dataclasses
from typing import Any

import gin
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants
from tf_agents.distributions import utils as distribution_utils

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import environments, networks, tasks
from batch_rl_dr3.evaluation import exported, pool, video
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import run_tables

# What a run that was trained without evaluation is played for.
_NUM_EPISODES = 10


def protocol(task: tasks.Task, num_episodes: int) -> dict[str, Any]:
  """Returns how a task is played, as provenance.json has it."""
  return {
    'environment': task.environment,
    'num_evaluation_episodes': num_episodes,
    'policy': 'deterministic',
    # The returns that the normalised score calls 0 and 100.
    'scale': None if task.scale is None else list(task.scale),
  }


class PolicyEvaluator:
  """Plays the checkpoints of an agent that never learns here."""

  num_agent_steps: int | None = None

  def __init__(
    self,
    task: tasks.Task,
    create_agent: Callable[..., Any],
    num_episodes: int,
    num_lanes: int,
  ):
    """Makes the environments and an agent; ConfigError if either cannot be."""
    self._task = task
    self._num_episodes = num_episodes
    self._environments = [
      environments.make(task)
      for _ in range(min(num_lanes, num_episodes, task.max_lanes))
    ]
    agent = networks.build(create_agent, task, seed=0)
    agent.initialize()
    self._checkpoint = tf.train.Checkpoint(agent=agent)
    self._agent = agent
    self._mean_action = tf.function(
      lambda states: self._distribution(states).mode()
    )
    self.identity = play.GameIdentity(
      task.suite, task.game, None, protocol(task, num_episodes)
    )

  def _distribution(self, states: tf.Tensor) -> Any:
    steps = networks.time_steps(states)
    return self._agent.policy.distribution(steps).action

  def evaluate(  # noqa: D102
    self,
    prefix: str,
    seed: int,
    on_progress: play.ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
  ) -> list[run_tables.Episode]:
    return environments.play_episodes(
      self._environments,
      self._load(prefix),
      self._num_episodes,
      seed,
      on_progress,
      should_stop,
    )

  def _load(self, prefix: str) -> environments.Policy:
    """Returns the actions of a checkpoint, or of an exported policy."""
    task = self._task
    if pool.is_exported(prefix):
      model = exported.Model(
        prefix, task.observation_shape, {'action': (task.action_size,)}
      )
      return lambda states: model(states)['action']
    try:
      status = self._checkpoint.read(prefix)
      status.assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
      raise errors.DataError(
        f'{prefix} is no checkpoint of such an agent: '
        f'{str(error).splitlines()[0]}'
      ) from error
    return lambda states: self._mean_action(tf.constant(states)).numpy()

  def freeze(self, prefix: str) -> exported.FrozenGraph:
    """Returns the graph of the mean action; DataError if it cannot be read."""
    self._load(prefix)

    def act(states: tf.Tensor) -> tf.Tensor:
      action = self._distribution(states)
      if isinstance(action, distribution_utils.SquashToSpecNormal):
        # Its mode, without a broadcast that no other format knows.
        mean = tf.tanh(action.input_distribution.loc)
        action = action.action_magnitudes * mean + action.action_means
      else:
        action = action.mode()
      return tf.identity(action, 'action')

    shape = self._task.observation_shape
    spec = tf.TensorSpec((None, *shape), tf.float32, exported.INPUT)
    function = convert_to_constants.convert_variables_to_constants_v2(
      tf.function(act).get_concrete_function(spec)
    )
    results = {'action': (self._task.action_size,)}
    return exported.FrozenGraph(function.graph.as_graph_def(), shape, results)

  def record_video(  # noqa: D102
    self,
    prefix: str,
    seed: int,
    path: str,
    should_stop: Callable[[], bool] | None = None,
  ) -> run_tables.Episode:
    policy = self._load(prefix)
    environment = environments.make(self._task, render_mode='rgb_array')
    rate = environment.metadata.get('render_fps', 30)
    with contextlib.closing(environment), video.writing(path, rate) as write:
      lane = video.FilmedEnvironment(environment, write)
      (episode,) = environments.play_episodes(
        [lane], policy, 1, seed, should_stop=should_stop
      )
    return episode

  def close(self) -> None:  # noqa: D102
    for environment in self._environments:
      environment.close()


def create(setup: pool.Setup) -> PolicyEvaluator:
  """Returns what plays the checkpoints of a run, from its gin text.

  The number of threads holds for the process, which has not used TensorFlow
  yet.

  Raises:
    ConfigError: if the configuration cannot be parsed or played here.
    DataError: if the protocol is not that of a continuous run.
  """
  threading = tf.config.threading
  if threading.get_intra_op_parallelism_threads() != setup.num_threads:
    threading.set_intra_op_parallelism_threads(setup.num_threads)
  with pool.gin_config(setup.config):
    game = gin.query_parameter('ContinuousRunner.game')
    create_agent = pool.bound('ContinuousRunner.create_agent', None)
    num_lanes = pool.bound('ContinuousRunner.num_lanes', _NUM_EPISODES)
  num_episodes = 0
  if setup.protocol is None:
    played = [t for t in tasks.TASKS.values() if t.game == game]
    task = next((t for t in played if t.environment), None)
    if task is None:
      raise errors.ConfigError(f'no game {game!r} can be played here.')
    num_episodes = pool.bound('ContinuousRunner.num_evaluation_episodes', 0)
  else:
    try:
      task = tasks.played_in(game, setup.protocol['environment'])
      num_episodes = setup.protocol['num_evaluation_episodes']
    except KeyError as error:
      raise errors.DataError(
        'the protocol of a continuous run names its environment and the '
        f'number of episodes; that is missing: {error}.'
      ) from error
    if scale := setup.protocol.get('scale'):  # The data's own, if any.
      task = dataclasses.replace(task, scale=tuple(scale))
  return PolicyEvaluator(
    task, create_agent, num_episodes or _NUM_EPISODES, num_lanes
  )
