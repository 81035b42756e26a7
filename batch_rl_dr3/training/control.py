"""One offline run of continuous control, executed as any other run is.

What is read, stepped and played is TF-Agents' and the simulators'. BRAC first
clones the behaviour policy, which ends with a checkpoint at 0 gradient steps;
what it saves before then is in a folder of its own.
"""

from collections.abc import Callable
import dataclasses
import time
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.config import errors, progress, ranges
from batch_rl_dr3.control import (
  brac_agent,  # noqa: F401
  cog_agent,  # noqa: F401
  environments,
  images,
  learner,
  networks,
  tasks,
)
from batch_rl_dr3.control import (
  data as data_lib,
)
from batch_rl_dr3.evaluation import policy_evaluator, pool, scoring
from batch_rl_dr3.runs import checkpoints, run_directory
from batch_rl_dr3.training import loop

# The folder of the checkpoints within cloning, and how often one is written
# where checkpoint_every_minutes does not say so.
_CLONING = 'cloning'
_CLONING_MINUTES = 5.0


@gin.configurable(
  denylist=['base_dir', 'replay_dir', 'cache_dir', 'seed', 'overwrite']
)
@ranges.checked
@dataclasses.dataclass(eq=False, repr=False)
class ContinuousRunner(loop.OfflineRun):
  """Trains an agent on logged control and evaluates its policy.

  To build one reads the data and builds the agent.

  Attributes:
    game: what the data have to be of, such as hopper, or gymnasium's id.
    create_agent: makes the agent from (spaces, seed).
    data: how the data are made into transitions.
    num_evaluation_episodes: whole episodes an evaluation; 0 evaluates nothing.
    num_lanes: how many are played at a time.
    num_cloning_steps: gradient steps of cloning BRAC's behaviour policy first.
  """

  num_iterations: ranges.Count = 100
  num_gradient_steps: ranges.Count = 20_000
  log_period: ranges.Count = 5_000
  num_metric_batches: ranges.Count = 4
  effective_rank_period: ranges.Count = 20_000
  game: str = gin.REQUIRED
  create_agent: Callable[..., Any] = gin.REQUIRED
  data: data_lib.ControlData | images.ImageData = gin.REQUIRED
  num_evaluation_episodes: ranges.Natural = 10
  num_lanes: ranges.Count = 10
  batch_size: ranges.Count = 256
  num_cloning_steps: ranges.Natural = 0
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
    self.learner = self._learner = learner.ControlLearner(
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

  def draw_sample(self) -> learner.ControlLearner:  # noqa: D102
    return self._learner

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
    cloning = self._learner.make_cloning(self.cloning_learning_rate)
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
