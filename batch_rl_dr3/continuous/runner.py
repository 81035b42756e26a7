"""One offline run of continuous control: gradient steps and evaluation.

The same run directory, resumption and exit codes as the Atari runner's, on the
same modules; what is read and stepped is TF-Agents'. BRAC first clones the
behaviour policy, which ends with a checkpoint at 0 gradient steps.
"""

from collections.abc import Callable
import contextlib
import importlib.metadata
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3 import errors, progress, run_directory
from batch_rl_dr3.continuous import (
  agent_setups,
  control_data,
  environments,
  learner,
  metrics_log,
)
from batch_rl_dr3.evaluation import play
from batch_rl_dr3.training import (
  checkpoints,
  preemption,
  provenance,
  score_log,
)

SUITE = 'd4rl'
# Gradient steps between looks at whether the run is to stop.
_STEPS_PER_CALL = 50


@gin.configurable(
  denylist=['base_dir', 'data_path', 'cache_dir', 'seed', 'overwrite']
)
class ContinuousRunner:
  """Trains an agent on logged control and evaluates its policy."""

  def __init__(
    self,
    base_dir: str,
    data_path: str,
    cache_dir: str,
    seed: int = 0,
    overwrite: bool = False,
    game: str = gin.REQUIRED,
    create_agent: Callable[..., Any] = gin.REQUIRED,
    data: control_data.ControlData = gin.REQUIRED,
    method: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    num_iterations: int = 100,
    num_gradient_steps: int = 20_000,
    num_evaluation_episodes: int = 10,
    num_lanes: int = 10,
    batch_size: int = 256,
    log_period: int = 5_000,
    num_metric_batches: int = 4,
    effective_rank_period: int = 20_000,
    effective_rank_num_states: int = 2_048,
    keep_last_checkpoints: int = 4,
    keep_checkpoint_every: int | None = None,
    num_cloning_steps: int = 0,
    cloning_learning_rate: float = 1e-3,
  ):
    """Reads the data, makes the environments and builds the agent.

    Args:
      base_dir: the run directory.
      data_path: see `control_data.ControlData.load`.
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
      num_cloning_steps: gradient steps that BRAC's behaviour policy is cloned
        in, before the first of its own.
      cloning_learning_rate: Adam's, for these.

    Raises:
      ConfigError: if base_dir holds another run, the configuration does not
        fit together, or the data cannot be scored in an environment here.
      DataError: if the data cannot be used.
      WriteError: if base_dir or cache_dir cannot be written.
    """
    if effective_rank_period % log_period:
      raise errors.ConfigError(
        f'effective_rank_period ({effective_rank_period}) must be a multiple '
        f'of log_period ({log_period}).'
      )
    self._base_dir = run_directory.make_directory(base_dir)
    self._seed = seed
    self._num_iterations = num_iterations
    self._num_gradient_steps = num_gradient_steps
    self._num_episodes = num_evaluation_episodes
    self._log_period = log_period
    self._rank_period = effective_rank_period
    self._cloning = (num_cloning_steps, cloning_learning_rate)
    self._stop_request = preemption.StopRequest()
    self._task, transitions = data.load(data_path, cache_dir, game)
    self._environments = (
      [
        environments.make(self._task)
        for _ in range(min(num_lanes, num_evaluation_episodes))
      ]
      if num_evaluation_episodes
      else []
    )
    self._learner = learner.Learner(
      self._build_agent(create_agent),
      transitions,
      batch_size,
      seed,
      num_metric_batches,
      effective_rank_num_states,
    )
    self._provenance = {
      'method': method,
      'suite': SUITE,
      'game': game,
      'dataset': dataset,
      'run': None,
      'seed': seed,
      'total_gradient_steps': num_iterations * num_gradient_steps,
      'data_hash': transitions.manifest['hash'],
      'data': transitions.manifest,
      'protocol': {
        'environment': self._task.environment,
        'num_evaluation_episodes': num_evaluation_episodes,
        'policy': 'deterministic',
        # The returns that the normalised score calls 0 and 100.
        'scale': self._task.scale,
      },
      'rom_md5': None,
      'simulators': _simulators(),
      **provenance.of_process('cpu'),
    }
    provenance.claim(
      self._base_dir, gin.operative_config_str(), self._provenance, overwrite
    )
    self._checkpoints = checkpoints.Checkpoints(
      self._base_dir / run_directory.CHECKPOINTS,
      keep_last=keep_last_checkpoints,
      keep_every=keep_checkpoint_every,
    )
    self._scores = score_log.ScoreLog(self._base_dir)
    self._metrics = metrics_log.MetricsLog(
      self._base_dir, tuple(self._learner.measure())
    )

  def _build_agent(self, create_agent: Callable[..., Any]) -> Any:
    tf.keras.utils.set_random_seed(self._seed)
    spaces = agent_setups.Spaces(
      self._task.observation_size, self._task.action_size
    )
    try:
      agent = create_agent(spaces=spaces, seed=self._seed)
    except (TypeError, ValueError) as error:
      raise errors.ConfigError(
        f'cannot build the agent: {error}. Check its gin bindings.'
      ) from error
    if self._cloning[0] and not hasattr(agent, 'behaviour_network'):
      raise errors.ConfigError(
        f'ContinuousRunner.num_cloning_steps is {self._cloning[0]}, but '
        f'{type(agent).__name__} has no behaviour policy to clone.'
      )
    return agent

  def run(self) -> None:
    """Trains and evaluates to the end, from wherever the run was left.

    Raises:
      DivergedError: if a loss is not finite.
      PreemptedError: on SIGTERM or SIGINT, after a checkpoint was written.
    """
    total = self._num_iterations * self._num_gradient_steps
    if run_directory.is_finished(self._base_dir, self._num_iterations):
      print(
        f'{self._base_dir} is finished: {self._num_iterations} iterations, '
        f'{total:,} gradient steps.'
      )
      return
    description = f'{self._provenance["method"]} seed {self._seed}'
    with (
      run_directory.lock(self._base_dir),
      self._stop_request.listening(),
      contextlib.closing(self._metrics),
    ):
      steps = self._restore()
      with progress.bar(total, description, 'step', initial=steps) as self._bar:
        for iteration in range(self._num_iterations):
          end = (iteration + 1) * self._num_gradient_steps
          if steps < end:
            self._train(iteration, steps, end)
            steps = end
          self._evaluate(iteration, steps)
        self._log(self._num_iterations - 1, steps)
    run_directory.write_json(
      self._base_dir / run_directory.FINISHED,
      {'num_iterations': self._num_iterations, 'gradient_steps': steps},
    )

  def _restore(self) -> int:
    """Restores the newest checkpoint and returns its gradient steps."""
    checkpoint = self._checkpoints.latest()
    if checkpoint is None:
      self._clone()
    else:
      self._learner.restore(checkpoint.prefix)
    steps = self._learner.num_gradient_steps
    # What was logged after the checkpoint will be logged again.
    self._metrics.keep(steps)
    self._scores.keep(steps)
    self._metrics.start_clock(steps)
    return steps

  def _clone(self) -> None:
    num_steps, learning_rate = self._cloning
    if not num_steps:
      return
    with progress.bar(num_steps, 'cloning the behaviour', 'step') as bar:

      def on_step() -> None:
        bar.update(1)
        if self._stop_request:
          raise errors.PreemptedError(
            f'stopped by {self._stop_request.signal_name} while cloning the '
            'behaviour policy; the same command starts that again.'
          )

      likelihood = self._learner.clone_behaviour(
        num_steps, learning_rate, on_step
      )
      bar.write(f'behaviour policy: log-likelihood {likelihood:.3f}')
    self._checkpoints.save(self._learner.save, '0_0', 0)

  def _train(self, iteration: int, start: int, end: int) -> None:
    """Runs gradient steps `start` to `end` and writes a checkpoint."""
    step = start
    while step < end:
      if step % self._log_period == 0:
        self._log(iteration, step)
      until_log = self._log_period - step % self._log_period
      num_steps = min(_STEPS_PER_CALL, until_log, end - step)
      self._learner.train(num_steps)
      step += num_steps
      self._bar.update(num_steps)
      if self._stop_request and step < end:
        self._save(f'{iteration}_{step}', step)
        raise self._stop_request.saved(step)
    self._save(str(iteration), end)
    if self._stop_request:
      raise self._stop_request.saved(end)

  def _save(self, name: str, steps: int) -> None:
    self._checkpoints.save(self._learner.save, name, steps)

  def _log(self, iteration: int, steps: int) -> None:
    row: dict[str, Any] = dict(self._learner.measure())
    if steps % self._rank_period == 0:
      row['effective_rank'] = self._learner.effective_rank()
    self._metrics.log(iteration, steps, row)
    self._bar.set_postfix(
      loss=f'{row["loss_total"]:.3g}',
      dot=f'{row["feature_dot_product"]:.3g}',
      refresh=False,
    )

  def _evaluate(self, iteration: int, steps: int) -> None:
    """Plays the weights as they are, if the iteration has no scores yet."""
    if not self._num_episodes or iteration in self._scores.iterations():
      return
    if steps != (iteration + 1) * self._num_gradient_steps:
      raise errors.DataError(
        f'iteration {iteration} has no scores in {self._base_dir}, and its '
        'weights are gone. Start over with --overwrite.'
      )
    episodes = environments.play_episodes(
      self._environments,
      self._learner.act,
      self._num_episodes,
      play.evaluation_seed(self._seed, iteration),
      lambda: bool(self._stop_request),
    )
    self._scores.append(self._provenance, iteration, steps, episodes)
    mean = sum(e.episode_return for e in episodes) / len(episodes)
    values = {'eval_return': mean}
    score = self._task.normalised(mean)
    text = f'iteration {iteration}: mean return {mean:.2f}'
    if score is not None:
      values['eval_normalised_score'] = score
      text += f', normalised {score:.1f}'
    self._metrics.scalars(values, steps)
    self._bar.write(f'{text}, over {len(episodes)} episodes')
    self._metrics.start_clock(steps)  # Play is no part of the rate.


def _simulators() -> dict[str, str]:
  """Returns the versions of what plays and learns, as far as installed."""
  found = {}
  for name in ('tf-agents', 'mujoco', 'gymnasium-robotics', 'minari', 'h5py'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found
