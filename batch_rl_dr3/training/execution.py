"""One run from its lock to its end, whatever kind of learner it trains."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
from typing import Any

import gin

from batch_rl_dr3.config import errors, signals
from batch_rl_dr3.evaluation import scoring
from batch_rl_dr3.runs import (
  checkpoints,
  failure,
  home,
  provenance,
  run_directory,
)
from batch_rl_dr3.training import loop, metrics


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
class Run:
  """What a run is made of.

  Attributes:
    schedule: how long it is.
    learner: what is trained.
    sample: draws what is measured.
    evaluations: starts what plays its checkpoints; None evaluates nothing.
    provenance: what the run is, as provenance.json is to have it.
    overwrite: whether to start over where there is a run already.
    normalised: see `scoring.Scoring`.
    before: see `loop.Loop`.
  """

  schedule: Schedule
  learner: loop.Learner
  sample: Callable[[], metrics.Sample]
  evaluations: Callable[[], scoring.Evaluations | None]
  provenance: Mapping[str, Any]
  overwrite: bool
  normalised: Callable[[float], float | None] = lambda mean_return: None
  before: Callable[[], None] | None = None


def execute(
  run: Run, place: home.Home, stop_request: signals.StopRequest
) -> None:
  """Trains and evaluates a run to its end, from wherever it was left.

  Args:
    run: the run.
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
      dict(run.provenance),
      run.overwrite,
      place.check,
    )
    with (
      failure.noted(place, run.learner.num_gradient_steps),
      stop_request.listening(),
    ):
      if run_directory.is_finished(place.folder, run.schedule.num_iterations):
        print(
          f'{place.name} is finished: {run.schedule.num_iterations} '
          f'iterations, {run.schedule.total_gradient_steps:,} gradient steps.'
        )
      else:
        _train(run, place, stop_request)


def _train(
  run: Run, place: home.Home, stop_request: signals.StopRequest
) -> None:
  schedule = run.schedule
  kept = checkpoints.Checkpoints(
    place.folder / run_directory.CHECKPOINTS,
    schedule.keep_last_checkpoints,
    schedule.keep_checkpoint_every,
    place.check,
  )
  log = metrics.MetricsLog(
    place.folder,
    run.sample(),
    schedule.log_period,
    schedule.effective_rank_period,
    place.check,
  )
  with contextlib.ExitStack() as stack:
    stack.enter_context(contextlib.closing(log))
    evaluations = run.evaluations()
    if evaluations is not None:
      stack.enter_context(contextlib.closing(evaluations))
    loop.Loop(
      run.learner,
      place,
      kept,
      log,
      scoring.Scoring(
        place,
        run.provenance,
        kept,
        evaluations,
        log.scalars,
        run.normalised,
      ),
      stop_request,
      schedule.num_iterations,
      schedule.num_gradient_steps,
      schedule.checkpoint_every_minutes,
      run.before,
    ).run(f'{run.provenance["method"]} seed {run.provenance["seed"]}')
