"""One offline run: iterations of gradient steps, each followed by evaluation.

The weights and the step number are all the state there is. Batches and REM's
mixtures are functions of (seed, step), evaluation of (seed, iteration), so a
run that was killed at any moment and started again by the same command ends
with the same weights and the same scores, bit for bit (on CPU).
"""

from collections.abc import Callable
import contextlib
import json
import math
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3 import errors, progress, run_directory
from batch_rl_dr3.agents import offline
from batch_rl_dr3.evaluation import evaluator, play
from batch_rl_dr3.evaluation import lanes as lanes_lib
from batch_rl_dr3.replay import source as replay_source
from batch_rl_dr3.replay import source_chain
from batch_rl_dr3.replay import store as replay_store
from batch_rl_dr3.replay import subset as replay_subset
from batch_rl_dr3.training import (
  checkpoints,
  evaluations,
  metrics,
  preemption,
  provenance,
  score_log,
)


@gin.configurable(
  denylist=['base_dir', 'replay_dir', 'cache_dir', 'seed', 'overwrite']
)
class FixedReplayRunner:
  """Trains an agent on logged replay and evaluates it in its game."""

  def __init__(
    self,
    base_dir: str,
    replay_dir: str | int,
    cache_dir: str,
    seed: int = 0,
    overwrite: bool = False,
    agent: Callable[..., offline.OfflineAgent] = gin.REQUIRED,
    create_lanes: Callable[[], lanes_lib.Lanes] = gin.REQUIRED,
    subset: replay_subset.Subset = gin.REQUIRED,
    method: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    num_iterations: int = 200,
    num_gradient_steps: int = 62_500,
    num_evaluation_agent_steps: int = 125_000,
    max_agent_steps_per_episode: int = 27_000,
    log_period: int = 2_500,
    num_metric_batches: int = 8,
    effective_rank_period: int = 62_500,
    effective_rank_num_states: int = 2_048,
    keep_last_checkpoints: int = 4,
    keep_checkpoint_every: int | None = None,
    num_threads: int = 0,
    async_evaluation: bool = False,
  ):
    """Opens the data and the game, and builds or restores the agent.

    Args:
      base_dir: the run directory.
      replay_dir: the logged data of one run of one game: a folder, a URL, the
        folder of a store, or the run's number in the DQN Replay data set.
      cache_dir: where the extracted subset of the data is kept.
      seed: the run's seed.
      overwrite: start over where base_dir holds a run already.
      agent: the agent's class.
      create_lanes: makes the lanes of the game that are evaluated in.
      subset: which part of the data is trained on.
      method: the method's short name in scores and reports, such as rem_dr3.
      dataset: the subset's, such as 1pct.
      num_iterations: iterations of training and evaluation.
      num_gradient_steps: gradient steps an iteration.
      num_evaluation_agent_steps: agent steps an evaluation; 0 evaluates
        nothing.
      max_agent_steps_per_episode: an episode is cut there.
      log_period: gradient steps between rows of metrics.csv.
      num_metric_batches: batches, drawn once, that a row is measured on.
      effective_rank_period: gradient steps between measurements of the
        effective rank; a multiple of log_period.
      effective_rank_num_states: states, drawn once, it is measured on.
      keep_last_checkpoints: how many of the newest checkpoints are kept.
      keep_checkpoint_every: checkpoints of every so many iterations are kept
        for good.
      num_threads: CPU threads of the graph; 0 is one per core. Results are
        bit-identical only for the same number.
      async_evaluation: play in another process while training goes on. The
        scores are the same; it pays where there are cores to spare.

    Raises:
      ConfigError: if base_dir holds another run, or the configuration does
        not fit together.
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
    self._num_evaluation_agent_steps = num_evaluation_agent_steps
    self._max_agent_steps_per_episode = max_agent_steps_per_episode
    self._stop_request = preemption.StopRequest()

    self._lanes = create_lanes()
    game = self._lanes.game
    self._store = replay_store.open_store(
      _find_run(game, replay_dir)
      if isinstance(replay_dir, int)
      else replay_dir,
      cache_dir,
      subset=subset,
      observation_shape=game.observation_shape,
      num_actions=game.num_actions,
      stack_size=game.stack_size,
    )
    self._agent = self._build_agent(agent, num_threads)
    self._method = method
    self._provenance = {
      'method': method,
      'suite': game.suite,
      'game': game.name,
      'dataset': dataset,
      'run': provenance.run_number(self._store.manifest['source']),
      'seed': seed,
      'total_gradient_steps': num_iterations * num_gradient_steps,
      'data_hash': self._store.data_hash,
      'data': self._store.manifest,
      'protocol': {
        **game.protocol,
        'gamma': self._agent.gamma,
        'epsilon_eval': self._agent.epsilon_eval,
        'num_evaluation_agent_steps': num_evaluation_agent_steps,
        'max_agent_steps_per_episode': max_agent_steps_per_episode,
      },
      'rom_md5': game.rom_md5,
      'num_threads': num_threads,
      **provenance.of_process(self._agent.device),
    }
    provenance.claim(
      self._base_dir, gin.operative_config_str(), self._provenance, overwrite
    )
    self._checkpoints = checkpoints.Checkpoints(
      self._base_dir / run_directory.CHECKPOINTS,
      keep_last=keep_last_checkpoints,
      keep_every=keep_checkpoint_every,
    )
    self._metrics = metrics.MetricsLog(
      self._base_dir,
      self._agent,
      seed,
      log_period,
      num_metric_batches,
      effective_rank_period,
      effective_rank_num_states,
    )
    self._scores = score_log.ScoreLog(self._base_dir)
    self._evaluations = self._create_evaluations(async_evaluation, num_threads)

  def _build_agent(
    self, agent: Callable[..., offline.OfflineAgent], num_threads: int
  ) -> offline.OfflineAgent:
    game = self._lanes.game
    config = tf.compat.v1.ConfigProto(
      allow_soft_placement=True,
      intra_op_parallelism_threads=num_threads,
      inter_op_parallelism_threads=num_threads,
    )
    config.gpu_options.allow_growth = True
    try:
      return agent(
        tf.compat.v1.Session(config=config),
        num_actions=game.num_actions,
        store=self._store,
        seed=self._seed,
        observation_shape=game.observation_shape,
        stack_size=game.stack_size,
      )
    except (TypeError, ValueError) as error:
      # A binding that no class takes, or a value that one refuses.
      raise errors.ConfigError(
        f'cannot build the agent: {error}. Check its gin bindings.'
      ) from error

  def _create_evaluations(
    self, asynchronous: bool, num_threads: int
  ) -> evaluations.Evaluations:
    """Returns where and how finished checkpoints are played."""
    if not self._num_evaluation_agent_steps:
      return evaluations.NoEvaluations()
    rule = play.Rule(
      self._num_evaluation_agent_steps,
      self._agent.epsilon_eval,
      self._max_agent_steps_per_episode,
    )
    if asynchronous:
      return evaluations.AsyncEvaluations(
        gin.operative_config_str(), rule, num_threads, self._stop_request
      )
    return evaluations.SyncEvaluations(
      evaluator.Evaluator(self._lanes, self._agent.network, rule, num_threads),
      self._stop_request,
    )

  def run(self) -> None:
    """Trains and evaluates to the end, from wherever the run was left.

    Raises:
      DivergedError: if a loss is not finite.
      PreemptedError: on SIGTERM or SIGINT, after a checkpoint was written.
    """
    total = self._num_iterations * self._num_gradient_steps
    if self._is_finished():
      print(
        f'{self._base_dir} is finished: {self._num_iterations} iterations, '
        f'{total:,} gradient steps.'
      )
      return
    with (
      run_directory.lock(self._base_dir),
      self._stop_request.listening(),
      contextlib.closing(self._metrics),
      contextlib.closing(self._evaluations),
      progress.bar(
        total, f'{self._method} seed {self._seed}', 'step'
      ) as self._bar,
    ):
      steps = self._bar.initial = self._bar.n = self._restore()
      self._evaluate_missing(steps)
      for iteration in range(self._num_iterations):
        end = (iteration + 1) * self._num_gradient_steps
        if steps < end:
          self._train(iteration, steps, end)
          steps = end
          self._evaluate_missing(steps)
      self._finish_evaluations()
      self._metrics.start_clock(steps)  # Play is no part of the rate.
      self._metrics.log(self._num_iterations - 1, steps)
    run_directory.write_json(
      self._base_dir / run_directory.FINISHED,
      {'num_iterations': self._num_iterations, 'gradient_steps': steps},
    )

  def _is_finished(self) -> bool:
    finished = self._base_dir / run_directory.FINISHED
    if not finished.exists():
      return False
    record = json.loads(finished.read_text())
    return bool(record['num_iterations'] >= self._num_iterations)

  def _restore(self) -> int:
    """Restores the newest checkpoint and returns its gradient steps."""
    checkpoint = self._checkpoints.latest()
    if checkpoint is None:
      steps = 0
    else:
      self._agent.restore(checkpoint.prefix)
      steps = self._agent.num_gradient_steps()
    # What was logged after the checkpoint will be logged again.
    self._metrics.start(steps)
    self._scores.keep(steps)
    return steps

  def _train(self, iteration: int, start: int, end: int) -> None:
    """Runs gradient steps `start` to `end` and writes a checkpoint."""
    train_steps = self._agent.make_train_steps()
    self._metrics.start_clock(start)
    step = start
    while step < end:
      if self._metrics.is_due(step):
        self._show(self._metrics.log(iteration, step))
      num_steps = min(
        self._agent.steps_per_call,
        self._metrics.steps_until_due(step),
        end - step,
      )
      parts = train_steps(num_steps)
      if not math.isfinite(parts['loss_total']):
        raise self._diverged(self._agent.num_gradient_steps() - 1, parts)
      step += num_steps
      self._bar.update(num_steps)
      if self._stop_request:
        self._save(f'{iteration}_{step}', step)
        raise self._preempted(step)
    self._save(str(iteration), end)

  def _show(self, row: dict[str, Any]) -> None:
    self._bar.set_postfix(
      loss=f'{row["loss_total"]:.3g}',
      dot=f'{row["feature_dot_product"]:.3g}',
      refresh=False,
    )

  def _save(self, name: str, steps: int) -> None:
    self._checkpoints.save(self._agent.save, name, steps)

  def _diverged(
    self, step: int, parts: dict[str, float]
  ) -> errors.DivergedError:
    listed = ', '.join(f'{name} {value:g}' for name, value in parts.items())
    good = self._checkpoints.latest()
    kept = 'none was written yet' if good is None else good.prefix
    return errors.DivergedError(
      f'the loss is not finite at gradient step {step}: {listed}. Last good '
      f'checkpoint: {kept}. Lower the learning rate or the coefficients.'
    )

  def _preempted(self, steps: int) -> errors.PreemptedError:
    return errors.PreemptedError(
      f'stopped by {self._stop_request.signal_name} at gradient step {steps}; '
      'everything is saved, and the same command goes on from there.'
    )

  def _evaluate_missing(self, steps: int) -> None:
    """Plays every checkpoint so far that has no scores, or has it played."""
    if not self._num_evaluation_agent_steps:
      return
    done = self._scores.iterations()
    for iteration, checkpoint in self._checkpoints.of_iterations().items():
      if iteration not in done and checkpoint.gradient_steps <= steps:
        # It must outlive the next ones until its scores are written.
        self._checkpoints.protect(checkpoint.name)
        seed = play.evaluation_seed(self._seed, iteration)
        self._evaluations.submit(iteration, checkpoint, seed)
    for finished in self._evaluations.finished():
      self._record(finished)

  def _finish_evaluations(self) -> None:
    """Waits until every iteration has its scores.

    Raises:
      DataError: if one never can have them.
    """
    for finished in self._evaluations.all():
      self._record(finished)
    missing = set(range(self._num_iterations)) - self._scores.iterations()
    if missing and self._num_evaluation_agent_steps:
      raise errors.DataError(
        f'iteration {min(missing)} has no scores in {self._base_dir}, and its '
        'checkpoint is gone or damaged. Restore it, or start over with '
        '--overwrite.'
      )

  def _record(self, finished: evaluations.Finished) -> None:
    """Writes the scores of one iteration, all or none."""
    checkpoint, episodes = finished.checkpoint, finished.episodes
    steps = checkpoint.gradient_steps
    self._scores.append(self._provenance, finished.iteration, steps, episodes)
    self._checkpoints.release(checkpoint.name)
    mean_return = sum(e.episode_return for e in episodes) / len(episodes)
    self._metrics.scalars({'eval_return': mean_return}, steps)
    self._bar.write(
      f'iteration {finished.iteration}: mean return {mean_return:.2f} over '
      f'{len(episodes)} episodes'
    )


def _find_run(game: lanes_lib.Game, run: int) -> replay_source.Source:
  if game.suite != 'atari':
    raise errors.ConfigError(
      f'the DQN Replay data set has no runs of {game.suite}: name the data '
      'with --replay_dir.'
    )
  return source_chain.open_run(game.name, run)
