"""An evaluator of a continuous run from its configuration: no data, no run."""

from collections.abc import Mapping
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import tasks
from batch_rl_dr3.evaluation import evaluation_pool, policy_evaluator
from batch_rl_dr3.training import control as runner

# What a run that was trained without evaluation is played for.
_NUM_EPISODES = 10


def create_evaluator(
  config: str, protocol: Mapping[str, Any] | None, num_threads: int
) -> policy_evaluator.PolicyEvaluator:
  """Returns what plays the checkpoints of a run, from its gin text.

  Args:
    config: a run directory's config.gin.
    protocol: how is played, as provenance.json has it.
    num_threads: CPU threads of TensorFlow; 0 is one per core. It holds for the
      process, which has done nothing with TensorFlow before.

  Raises:
    ConfigError: if the configuration cannot be parsed, or what it names cannot
      be played here.
    DataError: if the protocol is not that of a continuous run.
  """
  if tf.config.threading.get_intra_op_parallelism_threads() != num_threads:
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
  played = protocol or {}
  try:
    environment = played['environment']
    num_episodes = played['num_evaluation_episodes'] or _NUM_EPISODES
  except KeyError as error:
    raise errors.DataError(
      'the protocol of a continuous run names its environment and the '
      f'number of episodes; that is missing: {error}.'
    ) from error
  name = runner.ContinuousRunner.__name__
  with evaluation_pool.configured(config):
    game = gin.query_parameter(f'{name}.game')
    create_agent = gin.query_parameter(f'{name}.create_agent')
    num_lanes = gin.query_parameter(f'{name}.num_lanes')
  return policy_evaluator.PolicyEvaluator(
    tasks.played_in(game, environment),
    create_agent.scoped_configurable_fn,
    num_episodes,
    num_lanes,
  )
