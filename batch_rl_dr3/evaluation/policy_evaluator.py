"""Playing the checkpoints of a continuous run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import agent_setups, batches, environments, tasks
from batch_rl_dr3.games import play

SUITE = 'd4rl'


def protocol(task: tasks.Task, num_episodes: int) -> dict[str, Any]:
  """Returns how a task is played, as provenance.json has it.

  Args:
    task: the task.
    num_episodes: of an evaluation.
  """
  return {
    'environment': task.environment,
    'num_evaluation_episodes': num_episodes,
    'policy': 'deterministic',
    # The returns that the normalised score calls 0 and 100.
    'scale': None if task.scale is None else list(task.scale),
  }


class PolicyEvaluator:
  """See `evaluation_pool.Evaluator`: no data, and an agent that never learns.

  Attributes:
    num_agent_steps: None: episodes are counted, and end when they end.
  """

  num_agent_steps = None

  def __init__(
    self,
    task: tasks.Task,
    create_agent: Callable[..., Any],
    num_episodes: int,
    num_lanes: int,
  ):
    """Makes the environments and an agent to read checkpoints into.

    Args:
      task: what is played.
      create_agent: makes the agent from (spaces, seed).
      num_episodes: whole episodes of an evaluation.
      num_lanes: how many are played at a time.

    Raises:
      ConfigError: if the task cannot be played here, or no agent be made.
    """
    self._num_episodes = num_episodes
    self._environments = [
      environments.make(task) for _ in range(min(num_lanes, num_episodes))
    ]
    agent = agent_setups.build(create_agent, task, seed=0)
    agent.initialize()
    self._checkpoint = tf.train.Checkpoint(agent=agent)
    self._act = tf.function(
      lambda states: agent.policy.distribution(
        batches.time_steps(states)
      ).action.mode()
    )
    self.played = play.Played(
      SUITE, task.game, None, protocol(task, num_episodes)
    )

  def evaluate(
    self,
    prefix: str,
    seed: int,
    on_progress: play.ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
  ) -> list[play.Episode]:
    """See `evaluation_pool.Evaluator`."""
    try:
      status = self._checkpoint.read(prefix)
      status.assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
      raise errors.DataError(
        f'{prefix} is no checkpoint of such an agent: '
        f'{str(error).splitlines()[0]}'
      ) from error
    return environments.play_episodes(
      self._environments,
      lambda states: np.asarray(self._act(tf.constant(states))),
      self._num_episodes,
      seed,
      on_progress,
      should_stop,
    )

  def close(self) -> None:
    """See `evaluation_pool.Evaluator`."""
    for environment in self._environments:
      environment.close()
