"""What a run steps: an agent with its data, and BRAC's behaviour policy.

Which rows a batch holds is a function of (seed, gradient step), and so is all
that is sampled: weights and optimisers are all the state.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.config import errors, frameworks
from batch_rl_dr3.control import critics, images, networks
from batch_rl_dr3.control import data as data_lib

# Keeps the batches apart from what the agents sample.
_BATCH_SALT = 0xBA7C4
# How far inside their bounds the actions are that a policy is cloned from.
_ACTION_MARGIN = 1e-3
# How TF-Agents calls a loss that is not finite, and its column.
_LOSSES = {
  'Critic loss is inf or nan': 'loss_critic',
  'Actor loss is inf or nan': 'loss_actor',
  'Alpha loss is inf or nan': 'loss_alpha',
  'CQL loss is inf or nan': 'loss_conservative',
  'CQL alpha loss is inf or nan': 'loss_cql_alpha',
}


class _Saved:
  """What a checkpoint holds: all that the next step depends on.

  `what` is what errors call the objects, which have variables.
  """

  def __init__(self, what: str, **objects: Any):
    self._what = what
    self._checkpoint = tf.train.Checkpoint(**objects)

  def save(self, prefix: str) -> None:
    """Writes the checkpoint."""
    try:
      self._checkpoint.write(prefix)
    except tf.errors.OpError as error:
      raise frameworks.disk_error(error) from error

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote; a DataError if that was of something else."""
    try:
      self._checkpoint.read(prefix).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
      raise errors.DataError(
        f'{prefix} is no checkpoint of this {self._what}: '
        f'{str(error).splitlines()[0]}'
      ) from error


class ControlLearner(_Saved):
  """Gradient steps on transitions drawn uniformly, and measures of them.

  It is a `training.loop.Learner` and a `training.loop.Sample`.
  """

  steps_per_call = 50  # Between looks at whether the run is to stop.
  feature_columns = ('effective_rank',)

  def __init__(
    self,
    agent: Any,
    data: data_lib.Transitions | images.ImageTransitions,
    batch_size: int,
    seed: int,
    num_metric_batches: int,
    effective_rank_num_states: int,
  ):
    """Draws what is measured on: batches, and pairs (s, a) for srank."""
    _build_slots(agent)
    agent.initialize()
    super().__init__('agent', agent=agent)
    self.agent = agent
    self._lookup: Callable[[Any, Any], list[tf.Tensor]]
    if isinstance(data, images.ImageTransitions):
      self._lookup = data.gather
    else:
      columns = [tf.constant(column) for column in data.columns]
      self._lookup = lambda rows, _: [tf.gather(c, rows) for c in columns]
    self._num_rows = len(data)
    self._batch_size = batch_size
    self._seed = seed
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

  def _gather(
    self, rows: npt.NDArray[np.int64] | tf.Tensor, seed: tf.Tensor | None = None
  ) -> Any:
    return networks.transition(self._lookup(rows, seed))

  def draw(self, step: tf.Tensor) -> Any:
    """Returns the batch of a gradient step, int64 scalar."""
    seed = tf.random.experimental.stateless_fold_in(
      tf.constant([self._seed, _BATCH_SALT], tf.int32), tf.cast(step, tf.int32)
    )
    return self._gather(
      tf.random.stateless_uniform(
        [self._batch_size], seed, maxval=self._num_rows, dtype=tf.int64
      ),
      seed,
    )

  def _train_steps(self, num_steps: tf.Tensor) -> tf.Tensor:
    loss = tf.constant(0.0)
    for _ in tf.range(num_steps):
      batch = self.draw(self.agent.train_step_counter)
      loss = self.agent.train(batch).loss
    return loss

  def make_train_steps(  # noqa: D102
    self,
  ) -> Callable[[int], dict[str, float]]:
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
      return dict.fromkeys(
        ['loss_total', *(_LOSSES[name] for name in parts)], math.nan
      )

  def make_cloning(self, learning_rate: float) -> 'Cloning':
    """Returns what fits BRAC's behaviour policy to the data."""
    return Cloning(
      self.agent.behaviour_network, self.draw, self._seed, learning_rate
    )

  @property
  def columns(self) -> Sequence[str]:
    """What `measure` returns."""
    return tuple(self._measure(self._metric_batches[0]))

  def measure(self) -> dict[str, float]:
    """Returns what is logged, by column, averaged over the batches."""
    measured = [self._measure(batch) for batch in self._metric_batches]
    return {
      name: float(np.mean([float(m[name]) for m in measured]))
      for name in measured[0]
    }

  def measure_features(self) -> dict[str, float]:
    """Returns srank of the first critic's features."""
    time_steps, policy_steps, _ = self._pairs
    features = self._features(time_steps.observation, policy_steps.action)
    return {
      'effective_rank': feature_measures.effective_rank(np.asarray(features))
    }


def _build_slots(agent: Any) -> None:
  """Creates the optimisers' variables, which else a first step would."""
  critic_variables = [v for c in agent.critics for v in c.trainable_variables]
  for optimizer, variables in (
    (agent._critic_optimizer, critic_variables),
    (agent._actor_optimizer, agent._actor_network.trainable_variables),
    (agent._alpha_optimizer, [agent._log_alpha]),
  ):
    optimizer._create_all_weights(variables)
  if hasattr(agent, '_cql_alpha_optimizer'):
    agent._cql_alpha_optimizer.build([agent._log_cql_alpha])


class Cloning(_Saved):
  """Fits a policy network to the data, step by step, before BRAC begins.

  The authors' bc_agent: maximum likelihood with an entropy bonus that holds
  the entropy at -d, actions kept 1e-3 inside their bounds.
  """

  def __init__(
    self,
    network: Any,
    draw: Callable[[tf.Tensor], Any],
    seed: int,
    learning_rate: float,
  ):
    """Creates what is fitted beside the network; `draw` is a learner's."""
    self._network = network
    self._draw = draw
    self._log_weight = tf.Variable(0.0)
    self._counter = tf.Variable(0, dtype=tf.int64, trainable=False)
    self._likelihood = tf.Variable(float('nan'), trainable=False)
    self._seeds = critics.StepSeeds(seed, self._counter)
    self._variables = [*network.trainable_variables, self._log_weight]
    self._optimizer = networks.adam(learning_rate)
    self._optimizer._create_all_weights(self._variables)
    super().__init__(
      'behaviour policy',
      network=network,
      optimizer=self._optimizer,
      log_weight=self._log_weight,
      counter=self._counter,
      likelihood=self._likelihood,
    )
    self.take_step = tf.function(self._take_step)

  @property
  def num_steps(self) -> int:  # noqa: D102
    return int(self._counter)

  @property
  def likelihood(self) -> float:
    """The mean log-likelihood of the last step's batch."""
    return float(self._likelihood)

  def _take_step(self) -> None:
    time_steps, policy_steps, _ = self._draw(self._counter)
    limit = 1.0 - _ACTION_MARGIN
    actions = tf.clip_by_value(policy_steps.action, -limit, limit)
    target = -float(actions.shape[1])
    with self._seeds.purpose('cloning'), tf.GradientTape() as tape:
      distribution, _ = self._network(time_steps.observation, (), ())
      sampled = distribution.sample(seed=self._seeds())
      entropies = -distribution.log_prob(sampled)
      likelihood = tf.reduce_mean(distribution.log_prob(actions))
      weight = tf.stop_gradient(tf.exp(self._log_weight))
      loss = -likelihood - weight * tf.reduce_mean(entropies)
      # Grows while the entropy is below its target.
      excess = tf.stop_gradient(tf.reduce_mean(entropies) - target)
      loss += self._log_weight * excess
    gradients = tape.gradient(loss, self._variables)
    self._optimizer.apply_gradients(
      zip(gradients, self._variables, strict=True)
    )
    self._likelihood.assign(likelihood)
    self._counter.assign_add(1)
