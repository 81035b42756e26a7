"""The loop of a run: gradient steps, checkpoints, evaluations, to the end."""

from collections.abc import Callable
import math
import time
from typing import Any, Protocol

from batch_rl_dr3.config import errors, progress, signals
from batch_rl_dr3.evaluation import scoring
from batch_rl_dr3.replay import batches
from batch_rl_dr3.runs import checkpoints, home, run_directory
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


class Loop:
  """Trains and evaluates one learner, from wherever its run was left."""

  def __init__(
    self,
    learner: Learner,
    home: home.Home,
    kept: checkpoints.Checkpoints,
    log: metrics.MetricsLog,
    scores: scoring.Scoring,
    stop_request: signals.StopRequest,
    num_iterations: int,
    num_gradient_steps: int,
    checkpoint_every_minutes: float | None = None,
    before: Callable[[], None] | None = None,
  ):
    """Takes note of who takes part.

    Args:
      learner: what is trained.
      home: of the run, locked.
      kept: the run's checkpoints.
      log: of its metrics.
      scores: has its checkpoints played.
      stop_request: ends the run once it is true.
      num_iterations: iterations of training and evaluation.
      num_gradient_steps: gradient steps an iteration.
      checkpoint_every_minutes: also write checkpoints within an iteration,
        this often; None writes them at its end only.
      before: what is done to the weights before their first gradient step; a
        checkpoint is written when it ends. None does nothing.
    """
    self._learner = learner
    self._before = before
    self._home = home
    self._checkpoints = kept
    self._metrics = log
    self._scores = scores
    self._stop_request = stop_request
    self._num_iterations = num_iterations
    self._num_gradient_steps = num_gradient_steps
    self._checkpoint_seconds = (
      math.inf
      if checkpoint_every_minutes is None
      else 60 * checkpoint_every_minutes
    )
    self._last_save = time.monotonic()

  @property
  def _total(self) -> int:
    return self._num_iterations * self._num_gradient_steps

  def run(self, title: str) -> None:
    """Trains and evaluates to the end.

    Args:
      title: what the progress bar says.

    Raises:
      DataError: if the run cannot go on from where it was left.
      DivergedError: if a loss is not finite.
      PreemptedError: on SIGTERM or SIGINT, after a checkpoint was written, or
        if another worker has taken over.
      WriteError: if the disk refuses.
    """
    with (
      batches.raising(),
      progress.bar(self._total, title, 'step') as self._bar,
    ):
      self._scores.write = self._bar.write
      steps = self._bar.initial = self._bar.n = self._restore()
      self._scores.play_missing(steps)
      for iteration in range(self._num_iterations):
        end = (iteration + 1) * self._num_gradient_steps
        if steps < end:
          self._train(iteration, steps, end)
          steps = end
          self._scores.play_missing(steps)
      self._scores.finish(self._num_iterations)
      self._metrics.start_clock(steps)  # Play is no part of the rate.
      self._metrics.log(self._num_iterations - 1, steps)
    run_directory.write_json(
      self._home.folder / run_directory.FINISHED,
      {'num_iterations': self._num_iterations, 'gradient_steps': steps},
      self._home.check,
    )
    self._home.publish()

  def _restore(self) -> int:
    """Restores the newest checkpoint and returns its gradient steps."""
    checkpoint = self._checkpoints.latest()
    if checkpoint is None:
      self._check_is_new()
      steps = 0
      if self._before is not None:
        self._before()
        self._save('0_0', steps)
    else:
      self._learner.restore(checkpoint.prefix)
      steps = self._learner.num_gradient_steps()
    # What was logged after the checkpoint will be logged again.
    self._metrics.start(steps)
    self._scores.start(steps)
    return steps

  def _check_is_new(self) -> None:
    """Raises DataError if the run has had checkpoints, which are gone."""
    rows = run_directory.read_csv(self._home.folder / run_directory.METRICS)
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
