"""One run from its lock to its end, whatever kind of learner it trains.

Gradient steps, checkpoints and evaluations take turns. A run that was left at
any moment goes on from its newest whole checkpoint and ends the same.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
import os
import shlex
import time
from typing import Any, Protocol

import gin

from batch_rl_dr3.config import errors, progress, signals
from batch_rl_dr3.evaluation import scoring
from batch_rl_dr3.replay import batches
from batch_rl_dr3.runs import (
  atomic,
  checkpoints,
  failure,
  home,
  provenance,
  records,
  run_directory,
  run_tables,
)
from batch_rl_dr3.training import metrics


class Learner(Protocol):
  """What is trained: weights that are a function of how often they learnt.

  Attributes:
    steps_per_call: gradient steps that one call takes at most.
  """

  steps_per_call: int

  def num_gradient_steps(self) -> int:
    """Returns how many gradient steps the weights have had."""

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:
    """Returns a function that takes a number of gradient steps.

    It returns the parts of the last loss by name, 'loss_total' among them, and
    stops early at one that is not finite; the step counts as taken.
    """

  def save(self, prefix: str) -> None:
    """Writes all that `restore` needs to files that begin with a prefix.

    Raises:
      OSError: if the disk refuses.
    """

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote.

    Raises:
      DataError: if the checkpoint is of another learner.
    """


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long a run is, and what is done how often.

  Attributes:
    num_iterations: iterations of training and evaluation.
    num_gradient_steps: gradient steps an iteration.
    log_period: gradient steps between rows of metrics.csv.
    effective_rank_period: gradient steps between effective ranks, a multiple
      of log_period.
    keep_last_checkpoints: see `checkpoints.Checkpoints`.
    keep_checkpoint_every: see `checkpoints.Checkpoints`.
    checkpoint_every_minutes: see `loop.Loop`.
  """

  num_iterations: int
  num_gradient_steps: int
  log_period: int
  effective_rank_period: int
  keep_last_checkpoints: int
  keep_checkpoint_every: int | None
  checkpoint_every_minutes: float | None

  def __post_init__(self) -> None:
    """Raises ConfigError if the periods do not fit together."""
    if self.effective_rank_period % self.log_period:
      raise errors.ConfigError(
        f'effective_rank_period ({self.effective_rank_period}) must be a '
        f'multiple of log_period ({self.log_period}).'
      )

  @property
  def total_gradient_steps(self) -> int:
    """Gradient steps of all iterations."""
    return self.num_iterations * self.num_gradient_steps


@dataclasses.dataclass(frozen=True)
class RunPlan:
  """What a run is made of.

  Attributes:
    schedule: how long it is.
    learner: what is trained.
    sample: draws what is measured.
    evaluations: starts what plays its checkpoints; None evaluates nothing.
    provenance: what the run is, as provenance.json is to have it.
    overwrite: whether to start over where there is a run already.
    normalised: see `scoring.Scoring`.
    before: what is done to the weights before their first gradient step; a
      checkpoint is written when it ends. None does nothing.
  """

  schedule: Schedule
  learner: Learner
  sample: Callable[[], metrics.Sample]
  evaluations: Callable[[], scoring.Evaluations | None]
  provenance: Mapping[str, Any]
  overwrite: bool = False
  normalised: Callable[[float], float | None] = lambda mean_return: None
  before: Callable[[], None] | None = None


def execute(
  plan: RunPlan, place: home.Home, stop_request: signals.StopRequest
) -> None:
  """Trains and evaluates a run to its end, from wherever it was left.

  Args:
    plan: the run.
    place: where it lives.
    stop_request: ends it once it is true.

  Raises:
    ConfigError: if another run lives there.
    DataError: if the run cannot go on from where it was left.
    DivergedError: if a loss is not finite.
    PreemptedError: on SIGTERM or SIGINT, after a checkpoint was written; if
      another worker is at work on the run, or has taken over.
    WriteError: if the disk refuses.
  """
  with place.lock():
    provenance.claim(
      place.folder,
      gin.operative_config_str(),
      dict(plan.provenance),
      plan.overwrite,
      place.check,
    )
    with (
      failure.noted(place, plan.learner.num_gradient_steps),
      stop_request.listening(),
    ):
      if not is_done(place.folder, plan.schedule.num_iterations):
        _train(plan, place, stop_request)
      print(
        f'{place.name} is finished: {plan.schedule.num_iterations} '
        f'iterations, {plan.schedule.total_gradient_steps:,} gradient steps.\n'
        f'{_closing_words(place)}'
      )


def is_done(folder: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run is finished, and all of its scores are still there.

  Raises:
    DataError: if finished.json or scores.csv is damaged.
  """
  finished = records.read_finished(folder)
  if finished is None or finished['num_iterations'] < num_iterations:
    return False
  scores = run_tables.ScoreLog(folder)
  expected = finished.get('num_evaluations', 0)
  return len(scores.iterations()) >= expected and not scores.partial()


def _closing_words(place: home.Home) -> str:
  """Returns what came of a finished run, and what to do with it."""
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


def _train(
  plan: RunPlan, place: home.Home, stop_request: signals.StopRequest
) -> None:
  schedule = plan.schedule
  kept = checkpoints.Checkpoints(
    place.folder / run_directory.CHECKPOINTS,
    schedule.keep_last_checkpoints,
    schedule.keep_checkpoint_every,
    place.check,
  )
  log = metrics.MetricsLog(
    place.folder,
    plan.sample(),
    schedule.log_period,
    schedule.effective_rank_period,
    place.check,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.closing(log))
    evaluations = plan.evaluations()
    if evaluations is not None:
      stack.enter_context(contextlib.closing(evaluations))
    scores = scoring.Scoring(
      place, plan.provenance, kept, evaluations, log.scalars, plan.normalised
    )
    Loop(plan, place, kept, log, scores, stop_request).run()


class Loop:
  """Trains and evaluates one learner, from wherever its run was left."""

  def __init__(
    self,
    plan: RunPlan,
    place: home.Home,
    kept: checkpoints.Checkpoints,
    log: metrics.MetricsLog,
    scores: scoring.Scoring,
    stop_request: signals.StopRequest,
  ):
    """Joins what takes part; nothing happens yet.

    Args:
      plan: the run.
      place: where it lives, locked.
      kept: the run's checkpoints.
      log: of its metrics.
      scores: has its checkpoints played.
      stop_request: ends the run once it is true.
    """
    self._plan = plan
    self._schedule = plan.schedule
    self._learner = plan.learner
    self._home = place
    self._checkpoints = kept
    self._metrics = log
    self._scores = scores
    self._stop_request = stop_request
    minutes = plan.schedule.checkpoint_every_minutes
    self._checkpoint_seconds = math.inf if minutes is None else 60 * minutes
    self._last_save = time.monotonic()

  def run(self) -> None:
    """Trains and evaluates to the end; see `execute` for what it raises."""
    method, seed = (self._plan.provenance[n] for n in ('method', 'seed'))
    title = f'{method} seed {seed}'
    with (
      batches.raising(),
      progress.bar(
        self._schedule.total_gradient_steps, title, 'step'
      ) as self._bar,
    ):
      self._scores.write = self._bar.write
      steps = self._bar.initial = self._bar.n = self._restore()
      self._scores.play_missing(steps)
      for iteration in range(self._schedule.num_iterations):
        end = (iteration + 1) * self._schedule.num_gradient_steps
        if steps < end:
          self._train(iteration, steps, end)
          steps = end
          self._scores.play_missing(steps)
      self._scores.finish(self._schedule.num_iterations)
      self._metrics.start_clock(steps)  # Play is no part of the rate.
      self._metrics.log(self._schedule.num_iterations - 1, steps)
    atomic.write_json(
      self._home.folder / run_directory.FINISHED,
      {
        'num_iterations': self._schedule.num_iterations,
        'gradient_steps': steps,
        'num_evaluations': len(self._scores.iterations()),
      },
      self._home.check,
    )
    self._home.publish()

  def _restore(self) -> int:
    """Restores the newest checkpoint and returns its gradient steps."""
    checkpoint = self._checkpoints.latest()
    if checkpoint is None:
      self._check_is_new()
      steps = 0
      if self._plan.before is not None:
        self._plan.before()
        self._save('0_0', steps)
    else:
      self._learner.restore(checkpoint.prefix)
      steps = self._learner.num_gradient_steps()
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
      self._home.folder / run_directory.METRICS, ('iteration',)
    )
    reached = max((int(row['iteration']) for row in rows), default=0)
    if reached or self._scores.iterations():
      raise errors.DataError(
        f'{self._home.name} was trained beyond iteration 0, and '
        f'{run_directory.CHECKPOINTS}/ holds no checkpoint any more; a run is '
        'not started over by itself. Restore them from a backup, or start '
        'over with --overwrite.'
      )

  def _train(self, iteration: int, start: int, end: int) -> None:
    """Runs gradient steps `start` to `end` and writes a checkpoint."""
    train_steps = self._learner.make_train_steps()
    self._metrics.start_clock(start)
    step = start
    while step < end:
      if self._metrics.is_due(step):
        self._show(self._metrics.log(iteration, step))
      num_steps = min(
        self._learner.steps_per_call,
        self._metrics.steps_until_due(step),
        end - step,
      )
      parts = train_steps(num_steps)
      if not math.isfinite(parts['loss_total']):
        raise self._diverged(iteration, parts)
      step += num_steps
      self._bar.update(num_steps)
      self._look_up(iteration, step, end)

  def _look_up(self, iteration: int, step: int, end: int) -> None:
    """Does what is due between two calls of the training step."""
    if self._home.is_lost():
      self._home.check()
    is_due = time.monotonic() - self._last_save >= self._checkpoint_seconds
    if step == end:
      self._save(str(iteration), end)
    elif is_due or self._stop_request:
      self._save(f'{iteration}_{step}', step)
    if self._stop_request:
      raise self._stop_request.saved(step)

  def _show(self, row: dict[str, Any]) -> None:
    self._bar.set_postfix(
      loss=f'{row["loss_total"]:.3g}',
      dot=f'{row["feature_dot_product"]:.3g}',
      refresh=False,
    )

  def _save(self, name: str, steps: int) -> None:
    self._checkpoints.save(self._learner.save, name, steps)
    self._home.publish()
    self._last_save = time.monotonic()

  def _diverged(
    self, iteration: int, parts: dict[str, float]
  ) -> errors.DivergedError:
    """Logs the row at which the run has diverged, and returns the error."""
    reached = self._learner.num_gradient_steps()
    self._metrics.log_diverged(iteration, reached, parts)
    listed = ', '.join(f'{name} {value:g}' for name, value in parts.items())
    good = self._checkpoints.latest()
    kept = 'none was written yet' if good is None else good.prefix
    return errors.DivergedError(
      f'the loss is not finite at gradient step {reached - 1}: {listed}. Last '
      f'good checkpoint: {kept}. Lower the learning rate or the coefficients.'
    )
