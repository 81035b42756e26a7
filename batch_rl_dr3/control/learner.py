"""An agent with its data: training steps, measures, acting, checkpoints."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.config import errors, frameworks
from batch_rl_dr3.control import behaviour_cloning, data_files
from batch_rl_dr3.control import data as data_lib

# Keeps the batches apart from what the agents sample.
_BATCH_SALT = 0xBA7C4
# How TF-Agents calls a loss that is not finite, and its column.
_LOSSES = {
  'Critic loss is inf or nan': 'loss_critic',
  'Actor loss is inf or nan': 'loss_actor',
  'Alpha loss is inf or nan': 'loss_alpha',
  'CQL loss is inf or nan': 'loss_conservative',
  'CQL alpha loss is inf or nan': 'loss_cql_alpha',
}


class ControlLearner:
  """Gradient steps on transitions drawn uniformly, and measures of them.

  It is a `training.loop.Learner` and a `training.metrics.Sample`.

  Which rows a batch holds is a function of (seed, gradient step), and so is
  all that the agent samples: the weights and optimisers are all the state.

  Attributes:
    agent: what learns.
    steps_per_call: gradient steps between looks at whether the run is to stop.
  """

  steps_per_call = 50

  def __init__(
    self,
    agent: Any,
    data: data_files.Transitions,
    batch_size: int,
    seed: int,
    num_metric_batches: int,
    effective_rank_num_states: int,
  ):
    """Puts the data where the graph can gather from them.

    Args:
      agent: a DR3CqlSacAgent or DR3BracAgent.
      data: what it learns from.
      batch_size: transitions a gradient step.
      seed: fixes the batches.
      num_metric_batches: batches, drawn once, that measures are taken on.
      effective_rank_num_states: pairs, drawn once, for the effective rank.
    """
    self.agent = agent
    self._columns = [tf.constant(column) for column in data.columns]
    self._num_rows = len(data)
    self._batch_size = batch_size
    self._seed = seed
    self._build_slots()
    agent.initialize()
    self._checkpoint = tf.train.Checkpoint(agent=agent)
    rng = np.random.default_rng((seed, 2))
    self._metric_batches = [
      self._gather(rng.integers(self._num_rows, size=batch_size))
      for _ in range(num_metric_batches)
    ]
    self._pairs = self._gather(
      rng.integers(self._num_rows, size=effective_rank_num_states)
    )
    self._train = tf.function(self._train_steps)
    self._measure = tf.function(lambda batch: agent.loss(batch).extra)
    self._features = tf.function(
      lambda states, actions: agent.critics[0].features((states, actions))
    )

  def num_gradient_steps(self) -> int:
    """Returns how many gradient steps the weights have had."""
    return int(self.agent.train_step_counter)

  def _gather(self, rows: npt.NDArray[np.int64] | tf.Tensor) -> Any:
    return data_lib.transition([tf.gather(c, rows) for c in self._columns])

  def draw(self, step: tf.Tensor) -> Any:
    """Returns the batch of a gradient step, int64 scalar."""
    seed = tf.random.experimental.stateless_fold_in(
      tf.constant([self._seed, _BATCH_SALT], tf.int32), tf.cast(step, tf.int32)
    )
    return self._gather(
      tf.random.stateless_uniform(
        [self._batch_size], seed, maxval=self._num_rows, dtype=tf.int64
      )
    )

  def _train_steps(self, num_steps: tf.Tensor) -> tf.Tensor:
    loss = tf.constant(0.0)
    for _ in tf.range(num_steps):
      batch = self.draw(self.agent.train_step_counter)
      loss = self.agent.train(batch).loss
    return loss

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:
    """See `training.loop.Learner`."""
    return self._take_steps

  def _take_steps(self, num_steps: int) -> dict[str, float]:
    try:
      return {'loss_total': float(self._train(tf.constant(num_steps)))}
    except tf.errors.InvalidArgumentError as error:
      # TF-Agents looks at each loss of a step before it counts the step.
      parts = [name for name in _LOSSES if name in error.message]
      if not parts:
        raise
      self.agent.train_step_counter.assign_add(1)
      return {
        'loss_total': math.nan,
        **{_LOSSES[name]: math.nan for name in parts},
      }

  def make_cloning(self, learning_rate: float) -> behaviour_cloning.Cloning:
    """Returns what fits BRAC's behaviour policy to the data."""
    return behaviour_cloning.Cloning(
      self.agent.behaviour_network, self.draw, self._seed, learning_rate
    )

  @property
  def columns(self) -> Sequence[str]:
    """See `training.metrics.Sample`."""
    return tuple(self._measure(self._metric_batches[0]))

  def measure(self) -> dict[str, float]:
    """Returns what is logged, by column, averaged over the batches."""
    measured = [self._measure(batch) for batch in self._metric_batches]
    return {
      name: float(np.mean([float(m[name]) for m in measured]))
      for name in measured[0]
    }

  @property
  def feature_columns(self) -> Sequence[str]:
    """See `training.metrics.Sample`."""
    return ('effective_rank',)

  def measure_features(self) -> dict[str, float]:
    """Returns srank of the first critic's features."""
    time_steps, policy_steps, _ = self._pairs
    features = self._features(time_steps.observation, policy_steps.action)
    return {
      'effective_rank': feature_measures.effective_rank(np.asarray(features))
    }

  def save(self, prefix: str) -> None:
    """Writes weights, optimisers and the step number."""
    try:
      self._checkpoint.write(prefix)
    except tf.errors.OpError as error:
      raise frameworks.disk_error(error) from error

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote.

    Raises:
      DataError: if the checkpoint is of another agent.
    """
    try:
      self._checkpoint.read(prefix).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
      raise errors.DataError(
        f'{prefix} is no checkpoint of this agent: {str(error).splitlines()[0]}'
      ) from error

  def _build_slots(self) -> None:
    """Creates the optimisers' variables, which else a first step would."""
    agent = self.agent
    critics = [v for c in agent.critics for v in c.trainable_variables]
    for optimizer, variables in (
      (agent._critic_optimizer, critics),
      (agent._actor_optimizer, agent._actor_network.trainable_variables),
      (agent._alpha_optimizer, [agent._log_alpha]),
    ):
      optimizer._create_all_weights(variables)
    if hasattr(agent, '_cql_alpha_optimizer'):
      agent._cql_alpha_optimizer.build([agent._log_cql_alpha])
