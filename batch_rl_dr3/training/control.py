"""One offline run of continuous control, executed as any other run is.

What is read, stepped and played is TF-Agents' and the simulators'. Which rows a
batch holds is a function of (seed, gradient step), and so is all that is
sampled: weights and optimisers are all the state. BRAC first clones the
behaviour policy, which ends with a checkpoint at 0 gradient steps; what it
saves before then is in a folder of its own.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import time
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.config import errors, frameworks, progress, ranges
from batch_rl_dr3.control import (
  brac_agent,  # noqa: F401
  cog,
  cql_agent,  # noqa: F401
  critics,
  environments,
  networks,
  tasks,
)
from batch_rl_dr3.control import (
  data as data_lib,
)
from batch_rl_dr3.evaluation import policy_evaluator, pool, scoring
from batch_rl_dr3.runs import checkpoints, run_directory
from batch_rl_dr3.training import loop

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
# The folder of the checkpoints within cloning, and how often one is written
# where checkpoint_every_minutes does not say so.
_CLONING = 'cloning'
_CLONING_MINUTES = 5.0


class _Saved:
  """What a checkpoint holds: all that the next step depends on."""

  def __init__(self, what: str, **objects: Any):
    self._what = what  # What errors call the objects.
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

  It is a `loop.Learner` and a `loop.Sample`.
  """

  steps_per_call = 50  # Between looks at whether the run is to stop.
  feature_columns = ('effective_rank',)

  def __init__(
    self,
    agent: Any,
    data: data_lib.Transitions | cog.ImageTransitions,
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
    if isinstance(data, cog.ImageTransitions):
      self._lookup = functools.partial(read_images, data)
    else:
      names = data_lib.COLUMNS
      columns = [tf.constant(getattr(data, name)) for name in names]
      self._lookup = lambda rows, _: [tf.gather(c, rows) for c in columns]
    self._num_rows = len(data)
    self._batch_size = batch_size
    self.seed = seed
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
      tf.constant([self.seed, _BATCH_SALT], tf.int32), tf.cast(step, tf.int32)
    )
    rows = tf.random.stateless_uniform(
      [self._batch_size], seed, maxval=self._num_rows, dtype=tf.int64
    )
    return self._gather(rows, seed)

  def _train_steps(self, num_steps: tf.Tensor) -> tf.Tensor:
    loss = tf.constant(0.0)
    for _ in tf.range(num_steps):
      batch = self.draw(self.agent.train_step_counter)
      loss = self.agent.train(batch).loss
    return loss

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:  # noqa: D102
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
      names = ('loss_total', *(_LOSSES[part] for part in parts))
      return dict.fromkeys(names, math.nan)

  def make_cloning(self, learning_rate: float) -> 'Cloning':
    """Returns what fits BRAC's behaviour policy to the data."""
    return Cloning(self, learning_rate)

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
    rank = feature_measures.effective_rank(np.asarray(features))
    return {'effective_rank': rank}


def read_images(
  data: cog.ImageTransitions, rows: tf.Tensor, seed: tf.Tensor | None = None
) -> list[tf.Tensor]:
  """Returns the columns of `networks.transition`; images in [0, 255].

  Rows are int64 [B]; a seed, int32 [2], crops the images.
  """
  columns = tf.numpy_function(
    data.read, [rows], [tf.uint8, *[tf.float32] * 2, tf.uint8, tf.float32]
  )
  image, action = data.images.shape[1:], data.actions.shape[1:]
  shapes = (image, action, (), image, ())
  for column, shape in zip(columns, shapes, strict=True):
    column.set_shape(rows.shape[:1] + shape)
  for number, place in enumerate((0, 3)):
    images = columns[place]
    if seed is not None and data.padding:
      own_seed = tf.random.experimental.stateless_fold_in(seed, number)
      images = networks.random_crops(images, own_seed, data.padding)
    columns[place] = tf.cast(images, tf.float32)
  return list(columns)


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

  def __init__(self, learner: ControlLearner, learning_rate: float):
    """Creates what is fitted beside the network of a learner's agent."""
    self._draw = learner.draw
    self._network = learner.agent.behaviour_network
    self._log_weight = tf.Variable(0.0)
    self._counter = tf.Variable(0, dtype=tf.int64, trainable=False)
    self._likelihood = tf.Variable(float('nan'), trainable=False)
    self._seeds = critics.StepSeeds(learner.seed, self._counter)
    self._variables = [*self._network.trainable_variables, self._log_weight]
    self._optimizer = networks.adam(learning_rate)
    self._optimizer._create_all_weights(self._variables)
    super().__init__(
      'behaviour policy',
      network=self._network,
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
    pairs = zip(gradients, self._variables, strict=True)
    self._optimizer.apply_gradients(pairs)
    self._likelihood.assign(likelihood)
    self._counter.assign_add(1)


@gin.configurable(
  denylist=['base_dir', 'replay_dir', 'cache_dir', 'seed', 'overwrite']
)
@ranges.checked
@dataclasses.dataclass(eq=False, repr=False)
class ContinuousRunner(loop.OfflineRun):
  """Reads the data, builds an agent, trains it and evaluates its policy."""

  num_iterations: ranges.Count = 100
  num_gradient_steps: ranges.Count = 20_000
  log_period: ranges.Count = 5_000
  num_metric_batches: ranges.Count = 4
  effective_rank_period: ranges.Count = 20_000
  # What the data have to be of, such as hopper, or gymnasium's id.
  game: str = gin.REQUIRED
  create_agent: Callable[..., Any] = gin.REQUIRED  # From (spaces, seed).
  data: data_lib.ControlData | cog.ImageData = gin.REQUIRED
  num_evaluation_episodes: ranges.Natural = 10  # 0 evaluates nothing.
  num_lanes: ranges.Count = 10  # Played at a time.
  batch_size: ranges.Count = 256
  num_cloning_steps: ranges.Natural = 0  # Of BRAC's behaviour policy, first.
  cloning_learning_rate: ranges.Positive = 1e-3

  def __post_init__(self) -> None:
    super().__post_init__()
    self._task, transitions = self.data.load(
      str(self.replay_dir), self.cache_dir, self.game, self.dataset
    )
    if self.num_evaluation_episodes:
      tasks.check_scorable(self._task)
    agent = networks.build(self.create_agent, self._task, self.seed)
    if self.num_cloning_steps and not hasattr(agent, 'behaviour_network'):
      raise errors.ConfigError(
        f'ContinuousRunner.num_cloning_steps is {self.num_cloning_steps}, but '
        f'{type(agent).__name__} has no behaviour policy to clone.'
      )
    self.home = run_directory.Home(self.base_dir, self.cache_dir)
    self.learner: ControlLearner = ControlLearner(
      agent,
      transitions,
      self.batch_size,
      self.seed,
      self.num_metric_batches,
      self.effective_rank_num_states,
    )
    self.provenance = self.describe(
      'cpu',
      suite=self._task.suite,
      game=self._task.game,
      run=None,
      data_hash=transitions.manifest['hash'],
      data=transitions.manifest,
      protocol={
        **policy_evaluator.protocol(self._task, self.num_evaluation_episodes),
        'gamma': float(agent._gamma),
      },
      rom_md5=None,
      simulators=environments.versions(),
    )

  def draw_sample(self) -> ControlLearner:  # noqa: D102
    return self.learner

  def create_evaluations(self) -> scoring.Evaluations | None:  # noqa: D102
    if not self.num_evaluation_episodes:
      return None
    if self.async_evaluation:
      num_threads = tf.config.threading.get_intra_op_parallelism_threads()
      return self.evaluate_apart(pool.CONTINUOUS_CONTROL, num_threads)
    return scoring.SyncEvaluations(
      policy_evaluator.PolicyEvaluator(
        self._task,
        self.create_agent,
        self.num_evaluation_episodes,
        self.num_lanes,
      ),
      self.stop_request,
    )

  def normalised(self, mean_return: float) -> float | None:  # noqa: D102
    return self._task.normalised(mean_return)

  def prepare(self) -> bool:
    """Clones the behaviour policy, from wherever that was left."""
    if not self.num_cloning_steps:
      return False
    cloning = self.learner.make_cloning(self.cloning_learning_rate)
    # Apart from the run's own, all of which are of a policy that is cloned.
    folder = self.home.folder / run_directory.CHECKPOINTS / _CLONING
    saved = checkpoints.Checkpoints(folder, check=self.home.check)
    latest = saved.latest()
    if latest is not None:
      cloning.restore(latest.prefix)
    minutes = self.checkpoint_every_minutes or _CLONING_MINUTES
    last_save = time.monotonic()
    with progress.bar(
      self.num_cloning_steps, 'cloning the behaviour', 'step', leave=False
    ) as bar:
      bar.update(cloning.num_steps)
      for step in range(cloning.num_steps + 1, self.num_cloning_steps + 1):
        cloning.take_step()
        bar.update(1)
        if self.home.is_lost():
          self.home.check()
        is_due = time.monotonic() - last_save >= 60 * minutes
        if is_due or self.stop_request:
          saved.save(cloning.save, f'0_{step}', step)
          self.home.publish()
          last_save = time.monotonic()
        if self.stop_request:
          raise errors.PreemptedError(
            f'stopped by {self.stop_request.signal_name} at step {step} of '
            'cloning the behaviour policy; everything is saved, and the same '
            'command goes on from there.'
          )
      bar.write(f'behaviour policy: log-likelihood {cloning.likelihood:.3f}')
    return True


def create_evaluator(setup: pool.Setup) -> policy_evaluator.PolicyEvaluator:
  """Returns what plays checkpoints; with this module, gin knows the runner."""
  return policy_evaluator.create(setup)
