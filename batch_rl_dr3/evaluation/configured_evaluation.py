"""An evaluator from a configuration alone: no data, no agent, no run."""

from collections.abc import Callable, Mapping
from typing import Any

import gin
import tensorflow as tf

# Everything that a run's configuration may name.
from batch_rl_dr3.agents import dqn, quantile, rem, value_network  # noqa: F401
from batch_rl_dr3.evaluation import (
  evaluation_pool,
  evaluator,
)
from batch_rl_dr3.games import (
  atari,  # noqa: F401
  minatar,  # noqa: F401
  play,
)
from batch_rl_dr3.training import discrete as runner  # noqa: F401


def create_evaluator(
  config: str, protocol: Mapping[str, Any] | None, num_threads: int
) -> evaluator.Evaluator:
  """Returns what plays the checkpoints of a run, from its gin text.

  Args:
    config: such as a run directory's config.gin.
    protocol: how is played, as provenance.json has it; None for what the
      configuration says and, where it says nothing, the published protocol.
    num_threads: CPU threads of one call of the network; 0 is one per core.

  Raises:
    ConfigError: if the configuration cannot be parsed or names no game.
  """
  with evaluation_pool.configured(config):
    create_lanes = _bound('FixedReplayRunner.create_lanes', None)
    if create_lanes is None:
      raise ValueError('FixedReplayRunner.create_lanes names no game')
    lanes = create_lanes()
  rule = (
    _configured_rule() if protocol is None else play.Rule.recorded(protocol)
  )
  return evaluator.Evaluator(lanes, _network(), rule, num_threads)


def _bound(name: str, default: Any) -> Any:
  """Returns what gin binds to a parameter, else the default."""
  try:
    value = gin.query_parameter(name)
  except ValueError:
    return default
  if isinstance(value, gin.config.ConfigurableReference):
    return value.scoped_configurable_fn
  return value


def _network() -> Callable[..., tf.keras.Model]:
  """Returns the network of the configuration's agent."""
  agent = _bound('FixedReplayRunner.agent', None)
  default = _bound('OfflineAgent.network', value_network.NatureNetwork)
  if agent is None:
    return default
  return _bound(f'{agent.__name__}.network', default)


def _configured_rule() -> play.Rule:
  return play.Rule(
    # A run that was trained without evaluation says 0.
    _bound('FixedReplayRunner.num_evaluation_agent_steps', 0)
    or play.PUBLISHED.num_agent_steps,
    _bound('OfflineAgent.epsilon_eval', play.PUBLISHED.epsilon),
    _bound(
      'FixedReplayRunner.max_agent_steps_per_episode',
      play.PUBLISHED.max_agent_steps_per_episode,
    ),
  )
