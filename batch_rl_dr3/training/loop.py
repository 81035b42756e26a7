"""One run from its lock to its end, whatever kind of learner it trains.

A run that was left at any moment goes on from its newest whole checkpoint and
ends the same.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import os
import shlex
import time
from typing import Any, Protocol

from absl import logging
import gin
import tensorflow as tf

from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.config import errors, own_code, progress, ranges, signals
from batch_rl_dr3.evaluation import pool, scoring
from batch_rl_dr3.replay import batches
from batch_rl_dr3.runs import (
  atomic,
  checkpoints,
  provenance,
  records,
  run_directory,
  run_tables,
)
from batch_rl_dr3.training import trackers as trackers_lib

_RATIO = 'divergence_ratio'
_RATE = 'gradient_steps_per_second'
_COUNTS = ('iteration', run_tables.STEPS)
# TensorBoard's group of a metric, by the beginning of its name.
_GROUPS = (
  ('loss_', 'Losses/'),
  ('eval_', 'Eval/'),
  ('held_out_', 'HeldOut/'),
  ('', 'Features/'),
)


class Learner(Protocol):
  """What is trained: weights that are a function of how often they learnt."""

  steps_per_call: int  # At most, of gradient steps.

  def num_gradient_steps(self) -> int:
    """Returns how many gradient steps the weights have had."""

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:
    """Returns a function that takes a number of gradient steps.

    It returns the last loss by name, 'loss_total' and its parts, and stops
    early at one that is not finite; the step counts as taken.
    """

  def save(self, prefix: str) -> None:
    """Writes all that `restore` needs to files that begin with a prefix."""

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote; DataError if that was another learner's."""


class Sample(Protocol):
  """Samples of the data, drawn once a run, that a learner is measured on."""

  @property
  def columns(self) -> Sequence[str]: ...  # noqa: D102

  @property
  def feature_columns(self) -> Sequence[str]: ...  # noqa: D102

  def measure(self) -> dict[str, float]:
    """Returns what is logged, and what `MetricsLog.log` reads of it."""

  def measure_features(self) -> Mapping[str, float]:
    """Returns what takes a larger sample, such as `effective_rank`."""


class MetricsLog:
  """Measures a learner every so many gradient steps and logs the result.

  All rows are of one sample of the data, so that they can be compared; those of
  `measure_features`, of a larger one, have a period of their own.
  """

  def __init__(
    self,
    base_dir: str | os.PathLike[str],
    sample: Sample,
    log_period: int,
    effective_rank_period: int,
    check: atomic.Check = atomic.unchecked,
    tracking: trackers_lib.Tracking | None = None,
  ):
    self._base_dir = base_dir
    self._tracking = tracking or trackers_lib.Tracking()
    self._sample = sample
    self._log_period = log_period
    self._effective_rank_period = effective_rank_period
    self._csv = run_tables.CsvLog(
      os.path.join(base_dir, run_directory.METRICS),
      (*_COUNTS, *sample.columns, _RATIO, *sample.feature_columns, _RATE),
      check,
      _COUNTS,
    )
    self._clock: tuple[int, float] | None = None
    self._has_warned = False
    self._writer: Any = None

  def start(self, steps: int) -> None:
    """Goes back to `steps` gradient steps, whatever was logged since."""
    self._csv.keep(lambda row: int(row[run_tables.STEPS]) < steps)
    self._has_warned = any(
      float(row.get(_RATIO) or 0) >= 1 for row in self._csv.rows()
    )
    with tf.Graph().as_default():  # It refuses where TensorFlow is eager.
      self._writer = tf.compat.v1.summary.FileWriter(str(self._base_dir))
    self._writer.add_session_log(
      tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
      global_step=steps,
    )

  def close(self) -> None:
    """Closes TensorBoard's file and the trackers."""
    self._tracking.close()
    if self._writer is not None:
      self._writer.close()

  def start_clock(self, steps: int) -> None:
    """Starts to measure gradient steps per second, from `steps` on."""
    self._clock = (steps, time.monotonic())

  def _rate(self, steps: int) -> float | None:
    if self._clock is None or self._clock[0] == steps:
      return None
    since, then = self._clock
    return round((steps - since) / (time.monotonic() - then), 2)

  def is_due(self, steps: int) -> bool:
    """Returns whether a row is to be written after `steps` steps."""
    return steps % self._log_period == 0

  def steps_until_due(self, steps: int) -> int:
    """Returns in how many steps the next row is due, at least 1."""
    return self._log_period - steps % self._log_period

  def log(self, iteration: int, steps: int) -> dict[str, Any]:
    """Measures, writes and returns one row."""
    rate = self._rate(steps)
    row: dict[str, Any] = dict(self._sample.measure())
    ratio = feature_measures.divergence_ratio(
      row['discounted_dot_product'], row['feature_norm_squared']
    )
    row[_RATIO] = float(ratio)
    if row[_RATIO] >= 1 and not self._has_warned:
      self._has_warned = True
      # Linear TD on the features would not converge.
      logging.warning(
        "features satisfy Proposition 3.2's divergence condition at gradient "
        'step %d: %s is %.4g.',
        *(steps, _RATIO, row[_RATIO]),
      )
    if steps % self._effective_rank_period == 0:
      row |= self._sample.measure_features()
    self._write(iteration, steps, row, rate)
    self.start_clock(steps)
    return row

  def log_diverged(
    self, iteration: int, steps: int, parts: dict[str, float]
  ) -> None:
    """Writes the loss parts of a batch whose loss is not finite."""
    self._write(iteration, steps, parts, self._rate(steps))

  def _write(
    self, iteration: int, steps: int, row: dict[str, Any], rate: float | None
  ) -> None:
    self.scalars(row, steps)
    counts = dict(zip(_COUNTS, (iteration, steps), strict=True))
    self._csv.append({**counts, **row, _RATE: rate})

  def scalars(self, values: dict[str, Any], steps: int) -> None:
    """Tells TensorBoard and trackers, under Losses/, Eval/ and Features/."""
    tagged = {}
    for name, value in values.items():
      prefix, group = next(g for g in _GROUPS if name.startswith(g[0]))
      tagged[group + name.removeprefix(prefix)] = value
    summary = tf.compat.v1.Summary()
    for tag, value in tagged.items():
      summary.value.add(tag=tag, simple_value=value)
    self._tracking.log(tagged, steps, is_score='eval_return' in values)
    self._writer.add_summary(summary, steps)
    self._writer.flush()


@dataclasses.dataclass(eq=False, repr=False)
class OfflineRun(abc.ABC):
  """A run: where it lives, how long it is, and what is done how often.

  A subclass builds `learner`, `provenance` (what provenance.json is to say) and
  last, as that makes the folder, `home`.
  """

  base_dir: str  # The run directory, or a URL of one, such as gs://.
  # The logged data: a folder, a file, a URL, the folder of a store, or the
  # run's number in the DQN Replay data set.
  replay_dir: str | int
  cache_dir: str
  seed: ranges.Natural = 0
  overwrite: bool = False
  method: str = gin.REQUIRED  # Its short name, such as rem_dr3.
  dataset: str = gin.REQUIRED  # Its short name, such as 1pct or medium.
  num_iterations: ranges.Count = 200
  num_gradient_steps: ranges.Count = 62_500  # An iteration.
  log_period: ranges.Count = 2_500  # Gradient steps a row of metrics.csv.
  num_metric_batches: ranges.Count = 8  # Drawn once, for every row.
  effective_rank_period: ranges.Count = 62_500  # A multiple of log_period.
  effective_rank_num_states: ranges.Count = 2_048  # Drawn once.
  keep_last_checkpoints: ranges.Count = 4
  # Of every so many iterations, one is kept for good.
  keep_checkpoint_every: ranges.Count | None = None
  # Within an iteration, so that a kill costs no more.
  checkpoint_every_minutes: ranges.Positive | None = None
  # Play in another process, with the same scores, where cores are to spare.
  async_evaluation: bool = False
  trackers: Sequence[trackers_lib.Tracker] = ()
  learner: Learner = dataclasses.field(init=False)
  provenance: dict[str, Any] = dataclasses.field(init=False)
  home: run_directory.Home = dataclasses.field(init=False)

  def __post_init__(self) -> None:
    self.stop_request = signals.StopRequest()
    if self.effective_rank_period % self.log_period:
      raise errors.ConfigError(
        f'effective_rank_period ({self.effective_rank_period}) must be a '
        f'multiple of log_period ({self.log_period}).'
      )

  @property
  def total_gradient_steps(self) -> int:  # noqa: D102
    return self.num_iterations * self.num_gradient_steps

  def describe(self, device: str, **entries: Any) -> dict[str, Any]:
    """Returns what every provenance.json says, and some entries more."""
    return {
      'method': self.method,
      'dataset': self.dataset,
      'seed': self.seed,
      'total_gradient_steps': self.total_gradient_steps,
      **provenance.of_process(device),
      **entries,
    }

  @abc.abstractmethod
  def draw_sample(self) -> Sample:
    """Draws what is measured."""

  @abc.abstractmethod
  def create_evaluations(self) -> scoring.Evaluations | None:
    """Starts what plays checkpoints; None evaluates nothing."""

  def evaluate_apart(
    self, create_evaluator: str, num_threads: int
  ) -> scoring.AsyncEvaluations:
    """Returns a process that plays checkpoints by module:function."""
    setup = pool.Setup(
      gin.operative_config_str(),
      self.provenance['protocol'],
      num_threads,
      imports=own_code.loaded(),
    )
    return scoring.AsyncEvaluations(setup, create_evaluator, self.stop_request)

  def normalised(self, mean_return: float) -> float | None:
    """Returns a score in percent; None of a game that is on no scale."""
    return None

  def prepare(self) -> bool:
    """Changes the weights before the first gradient step; whether it did."""
    return False

  def run(self) -> None:
    """Trains and evaluates to the end, from wherever the run was left.

    Raises:
      ConfigError: if another run lives there.
      DataError: if the run cannot go on from where it was left.
      DivergedError: if a loss is not finite.
      PreemptedError: on SIGTERM or SIGINT, after a checkpoint was written; if
        another worker is at work on the run, or has taken over.
    """
    home = self.home
    with home.lock():
      config = gin.operative_config_str()
      provenance.claim(
        home.folder, config, self.provenance, self.overwrite, home.check
      )
      with (
        recorded_failure(home, self.learner.num_gradient_steps),
        self.stop_request.listening(),
      ):
        if not is_done(home.folder, self.num_iterations):
          self._train()
        print(
          f'{home.name} is finished: {self.num_iterations} iterations, '
          f'{self.total_gradient_steps:,} gradient steps.\n'
          f'{_closing_words(home)}'
        )

  def _train(self) -> None:
    home = self.home
    saved = checkpoints.Checkpoints(
      home.folder / run_directory.CHECKPOINTS,
      self.keep_last_checkpoints,
      self.keep_checkpoint_every,
      home.check,
    )
    names = ('game', 'dataset', 'method', 'seed')
    tracking = trackers_lib.Tracking(
      self.trackers,
      home.folder,
      ' '.join(str(self.provenance[name]) for name in names),
      trackers_lib.settings_of(self.provenance, gin.operative_config_str()),
      home.check,
    )
    log = MetricsLog(
      home.folder,
      self.draw_sample(),
      self.log_period,
      self.effective_rank_period,
      home.check,
      tracking,
    )
    with contextlib.ExitStack() as stack:
      stack.enter_context(contextlib.closing(log))
      evaluations = self.create_evaluations()
      if evaluations is not None:
        stack.enter_context(contextlib.closing(evaluations))
      scores = scoring.Scoring(
        home, self.provenance, saved, evaluations, log.scalars, self.normalised
      )
      Loop(self, saved, log, scores).run()


@contextlib.contextmanager
def recorded_failure(
  place: run_directory.Home, steps: Callable[[], int]
) -> Iterator[None]:
  """Writes failed.json if the block fails; one from before is removed.

  A run that was asked to stop, or is somebody else's now, has not failed.
  """
  path = place.folder / run_directory.FAILED
  atomic.remove_tree(path)
  try:
    yield
  except errors.PreemptedError:
    raise
  except errors.BatchRLError as error:
    record = {
      'error': type(error).__name__,
      'exit_code': error.exit_code,
      'gradient_steps': steps(),
      'message': str(error),
    }
    # A disk that is full, or a home that is lost, must not hide the error.
    with contextlib.suppress(errors.BatchRLError):
      atomic.write_json(path, record, place.check)
      place.publish()
    raise


def is_done(folder: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run is finished and still has all of its scores."""
  finished = records.read_finished(folder)
  if finished is None or finished['num_iterations'] < num_iterations:
    return False
  scores = run_tables.ScoreLog(folder)
  expected = finished.get('num_evaluations', 0)
  return len(scores.iterations()) >= expected and not scores.partial()


def _closing_words(place: run_directory.Home) -> str:
  runs = shlex.quote(f'--runs={place.name}')
  final = run_tables.ScoreLog(place.folder).final_return()
  if final is None:
    return f'It has no scores. Next: python -m batch_rl_dr3.evaluate {runs}'
  mean_return, num_episodes = final
  return (
    f'Final return: {mean_return:.2f}, the mean of {num_episodes} episodes of '
    f'the last iteration in {place.name}/{run_directory.SCORES}.\n'
    f'Next: python -m batch_rl_dr3.report {runs}'
  )


class Loop:
  """Trains and evaluates one run that is locked, from wherever it was left."""

  def __init__(
    self,
    run: OfflineRun,
    saved: checkpoints.Checkpoints,
    log: MetricsLog,
    scores: scoring.Scoring,
  ):
    self._run = run
    self._checkpoints = saved
    self._metrics = log
    self._scores = scores
    self._last_save = time.monotonic()

  def run(self) -> None:
    """Trains and evaluates to the end; see `OfflineRun.run`."""
    run = self._run
    title = f'{run.provenance["method"]} seed {run.provenance["seed"]}'
    with (
      batches.raising(),
      progress.bar(run.total_gradient_steps, title, 'step') as self._bar,
    ):
      self._scores.write = self._bar.write
      steps = self._bar.initial = self._bar.n = self._restore()
      self._scores.play_missing(steps)
      for iteration in range(run.num_iterations):
        end = (iteration + 1) * run.num_gradient_steps
        if steps < end:
          self._train(iteration, steps, end)
          steps = end
          self._scores.play_missing(steps)
      self._scores.finish(run.num_iterations)
      self._metrics.start_clock(steps)  # Play is no part of the rate.
      self._metrics.log(run.num_iterations - 1, steps)
    atomic.write_json(
      run.home.folder / run_directory.FINISHED,
      {
        'num_iterations': run.num_iterations,
        'gradient_steps': steps,
        'num_evaluations': len(self._scores.iterations()),
      },
      run.home.check,
    )
    run.home.publish()

  def _restore(self) -> int:
    """Restores the newest checkpoint and returns its gradient steps."""
    run, checkpoint = self._run, self._checkpoints.latest()
    steps = 0
    if checkpoint is None:
      self._check_is_new()
      if run.prepare():
        self._save('0_0', steps)
    else:
      run.learner.restore(checkpoint.prefix)
      steps = run.learner.num_gradient_steps()
      if steps != checkpoint.gradient_steps:
        raise errors.DataError(
          f'{checkpoint.prefix} has had {steps:,} gradient steps, and its '
          f'manifest says {checkpoint.gradient_steps:,}. Remove the manifest; '
          'the checkpoint before it is then used.'
        )
    # What was logged after the checkpoint will be logged again.
    self._metrics.start(steps)
    self._scores.start(steps)
    return steps

  def _check_is_new(self) -> None:
    """Raises DataError if the run has had checkpoints, which are gone."""
    rows = run_tables.read_rows(
      self._run.home.folder / run_directory.METRICS, ('iteration',)
    )
    is_begun = any(int(row['iteration']) for row in rows)
    if is_begun or self._scores.iterations():
      raise errors.DataError(
        f'{self._run.home.name} was trained beyond iteration 0, and '
        f'{run_directory.CHECKPOINTS}/ holds no checkpoint any more; a run is '
        'not started over by itself. Restore them from a backup, or start '
        'over with --overwrite.'
      )

  def _train(self, iteration: int, step: int, end: int) -> None:
    """Takes gradient steps from `step` to `end` and writes a checkpoint."""
    run, log = self._run, self._metrics
    train_steps = run.learner.make_train_steps()
    log.start_clock(step)
    while step < end:
      if log.is_due(step):
        row = log.log(iteration, step)
        self._bar.set_postfix(
          loss=f'{row["loss_total"]:.3g}',
          dot=f'{row["feature_dot_product"]:.3g}',
          refresh=False,
        )
      num_steps = min(
        run.learner.steps_per_call, log.steps_until_due(step), end - step
      )
      parts = train_steps(num_steps)
      if not math.isfinite(parts['loss_total']):
        raise self._diverged(iteration, parts)
      step += num_steps
      self._bar.update(num_steps)
      self._look_up(iteration, step, end)

  def _look_up(self, iteration: int, step: int, end: int) -> None:
    """Saves if it is time to, and leaves if the run is lost or is to stop."""
    run = self._run
    if run.home.is_lost():
      run.home.check()
    minutes = run.checkpoint_every_minutes
    is_due = minutes is not None and (
      time.monotonic() - self._last_save >= 60 * minutes
    )
    if step == end:
      self._save(str(iteration), end)
    elif is_due or run.stop_request:
      self._save(f'{iteration}_{step}', step)
    if run.stop_request:
      raise run.stop_request.saved(step)

  def _save(self, name: str, steps: int) -> None:
    self._checkpoints.save(self._run.learner.save, name, steps)
    self._run.home.publish()
    self._last_save = time.monotonic()

  def _diverged(
    self, iteration: int, parts: dict[str, float]
  ) -> errors.DivergedError:
    reached = self._run.learner.num_gradient_steps()
    self._metrics.log_diverged(iteration, reached, parts)
    listed = ', '.join(f'{name} {value:g}' for name, value in parts.items())
    good = self._checkpoints.latest()
    saved = 'none was written yet' if good is None else good.prefix
    return errors.DivergedError(
      f'the loss is not finite at gradient step {reached - 1}: {listed}. Last '
      f'good checkpoint: {saved}. Lower the learning rate or the coefficients.'
    )
