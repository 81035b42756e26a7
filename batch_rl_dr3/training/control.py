"""One offline run of continuous control, executed as any other run is.

What is read, stepped and played is TF-Agents' and the simulators'. BRAC first
clones the behaviour policy, which ends with a checkpoint at 0 gradient steps;
what it saves before then is in a folder of its own.
"""

from collections.abc import Callable
import time
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.config import errors, own_code, progress, ranges, signals
from batch_rl_dr3.control import (
  agent_setups,
  cog_agent,  # noqa: F401
  environments,
  learner,
  tasks,
)
from batch_rl_dr3.control import (
  data as data_lib,
)
from batch_rl_dr3.evaluation import policy_evaluator, pool, scoring
from batch_rl_dr3.runs import checkpoints, home, provenance, run_directory
from batch_rl_dr3.training import loop

# The folder of the checkpoints within cloning, and how often one is written
# where checkpoint_every_minutes does not say so.
_CLONING = 'cloning'
_CLONING_MINUTES = 5.0


@gin.configurable(
  denylist=['base_dir', 'data_path', 'cache_dir', 'seed', 'overwrite']
)
@ranges.checked
class ContinuousRunner:
  """Trains an agent on logged control and evaluates its policy."""

  def __init__(
    self,
    base_dir: str,
    data_path: str,
    cache_dir: str,
    seed: ranges.Natural = 0,
    overwrite: bool = False,
    game: str = gin.REQUIRED,
    create_agent: Callable[..., Any] = gin.REQUIRED,
    data: data_lib.ControlData = gin.REQUIRED,
    method: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    num_iterations: ranges.Count = 100,
    num_gradient_steps: ranges.Count = 20_000,
    num_evaluation_episodes: ranges.Natural = 10,
    num_lanes: ranges.Count = 10,
    batch_size: ranges.Count = 256,
    log_period: ranges.Count = 5_000,
    num_metric_batches: ranges.Count = 4,
    effective_rank_period: ranges.Count = 20_000,
    effective_rank_num_states: ranges.Count = 2_048,
    keep_last_checkpoints: ranges.Count = 4,
    keep_checkpoint_every: ranges.Count | None = None,
    checkpoint_every_minutes: ranges.Positive | None = None,
    async_evaluation: bool = False,
    num_cloning_steps: ranges.Natural = 0,
    cloning_learning_rate: ranges.Positive = 1e-3,
  ):
    """Reads the data and builds the agent.

    Args:
      base_dir: the run directory, or a URL of one, such as gs://.
      data_path: see `data_lib.ControlData.load`.
      cache_dir: where what is fetched is kept.
      seed: the run's seed.
      overwrite: start over where base_dir holds a run already.
      game: what the data have to be of, such as hopper.
      create_agent: makes the agent from (spaces, seed).
      data: how the data are made into transitions.
      method: the method's short name in scores and reports.
      dataset: the data set's, such as medium.
      num_iterations: iterations of training and evaluation.
      num_gradient_steps: gradient steps an iteration.
      num_evaluation_episodes: whole episodes an evaluation; 0 evaluates
        nothing.
      num_lanes: how many are played at a time.
      batch_size: transitions a gradient step.
      log_period: gradient steps between rows of metrics.csv.
      num_metric_batches: batches, drawn once, that a row is measured on.
      effective_rank_period: gradient steps between effective ranks.
      effective_rank_num_states: pairs, drawn once, one is measured on.
      keep_last_checkpoints: how many of the newest checkpoints are kept.
      keep_checkpoint_every: checkpoints of every so many iterations are kept
        for good.
      checkpoint_every_minutes: checkpoints are also written within an
        iteration, this often; None leaves it at one an iteration, and one at
        SIGTERM or Ctrl-C.
      async_evaluation: play in another process while training goes on.
      num_cloning_steps: gradient steps that BRAC's behaviour policy is cloned
        in, before the first of its own.
      cloning_learning_rate: Adam's, for these.

    Raises:
      ConfigError: if the configuration does not fit together, or the data
        cannot be scored in an environment here.
      DataError: if the data cannot be used.
      WriteError: if base_dir or cache_dir cannot be written.
    """
    self._schedule = loop.Schedule(
      num_iterations,
      num_gradient_steps,
      log_period,
      effective_rank_period,
      keep_last_checkpoints,
      keep_checkpoint_every,
      checkpoint_every_minutes,
    )
    self._overwrite = overwrite
    self._create_agent = create_agent
    self._num_episodes = num_evaluation_episodes
    self._num_lanes = num_lanes
    self._async_evaluation = async_evaluation
    self._cloning = (num_cloning_steps, cloning_learning_rate)
    self._stop_request = signals.StopRequest()
    self._task, transitions = data.load(data_path, cache_dir, game, dataset)
    if num_evaluation_episodes:
      tasks.check_scorable(self._task)
    agent = agent_setups.build(create_agent, self._task, seed)
    if num_cloning_steps and not hasattr(agent, 'behaviour_network'):
      raise errors.ConfigError(
        f'ContinuousRunner.num_cloning_steps is {num_cloning_steps}, but '
        f'{type(agent).__name__} has no behaviour policy to clone.'
      )
    # After all that may refuse a binding: it makes the folder.
    self._home = home.open_home(base_dir, cache_dir)
    self._learner = learner.ControlLearner(
      agent,
      transitions,
      batch_size,
      seed,
      num_metric_batches,
      effective_rank_num_states,
    )
    self._provenance = {
      'method': method,
      'suite': self._task.suite,
      'game': game,
      'dataset': dataset,
      'run': None,
      'seed': seed,
      'total_gradient_steps': self._schedule.total_gradient_steps,
      'data_hash': transitions.manifest['hash'],
      'data': transitions.manifest,
      'protocol': {
        **policy_evaluator.protocol(self._task, num_evaluation_episodes),
        'gamma': float(agent._gamma),
      },
      'rom_md5': None,
      'simulators': environments.versions(),
      **provenance.of_process('cpu'),
    }

  def run(self) -> None:
    """Trains and evaluates to the end, from wherever the run was left.

    Raises:
      BatchRLError: see `loop.execute`.
    """
    loop.execute(
      loop.RunPlan(
        self._schedule,
        self._learner,
        lambda: self._learner,
        self._create_evaluations,
        self._provenance,
        self._overwrite,
        self._task.normalised,
        self._clone if self._cloning[0] else None,
      ),
      self._home,
      self._stop_request,
    )

  def _create_evaluations(self) -> scoring.Evaluations | None:
    """Returns where and how finished checkpoints are played."""
    if not self._num_episodes:
      return None
    if self._async_evaluation:
      return scoring.AsyncEvaluations(
        pool.Setup(
          gin.operative_config_str(),
          self._provenance['protocol'],
          tf.config.threading.get_intra_op_parallelism_threads(),
          imports=own_code.loaded(),
        ),
        pool.CONTINUOUS_CONTROL,
        self._stop_request,
      )
    return scoring.SyncEvaluations(
      policy_evaluator.PolicyEvaluator(
        self._task, self._create_agent, self._num_episodes, self._num_lanes
      ),
      self._stop_request,
    )

  def _clone(self) -> None:
    """Clones the behaviour policy, from wherever that was left."""
    num_steps, learning_rate = self._cloning
    cloning = self._learner.make_cloning(learning_rate)
    # Apart from the run's own, all of which are of a policy that is cloned.
    folder = self._home.folder / run_directory.CHECKPOINTS / _CLONING
    saved = checkpoints.Checkpoints(folder, check=self._home.check)
    latest = saved.latest()
    if latest is not None:
      cloning.restore(latest.prefix)
    minutes = self._schedule.checkpoint_every_minutes or _CLONING_MINUTES
    last_save = time.monotonic()
    with progress.bar(
      num_steps, 'cloning the behaviour', 'step', leave=False
    ) as bar:
      bar.update(cloning.num_steps)
      for step in range(cloning.num_steps + 1, num_steps + 1):
        cloning.take_step()
        bar.update(1)
        if self._home.is_lost():
          self._home.check()
        is_due = time.monotonic() - last_save >= 60 * minutes
        if is_due or self._stop_request:
          saved.save(cloning.save, f'0_{step}', step)
          self._home.publish()
          last_save = time.monotonic()
        if self._stop_request:
          raise errors.PreemptedError(
            f'stopped by {self._stop_request.signal_name} at step {step} of '
            'cloning the behaviour policy; everything is saved, and the same '
            'command goes on from there.'
          )
      bar.write(f'behaviour policy: log-likelihood {cloning.likelihood:.3f}')


def create_evaluator(setup: pool.Setup) -> policy_evaluator.PolicyEvaluator:
  """Returns what plays checkpoints; with this module, gin knows the runner."""
  return policy_evaluator.create(setup)
