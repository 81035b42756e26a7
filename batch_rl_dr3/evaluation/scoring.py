"""Scores a run's checkpoints: in this process, or meanwhile in another one.

Both play by the same code and seeds, so the scores are the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from batch_rl_dr3.analysis import returns
from batch_rl_dr3.config import errors, progress, signals
from batch_rl_dr3.evaluation import pool
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import checkpoints, run_directory, run_tables

# Checkpoints that may wait for the other process before training waits.
_MAX_WAITING = 3
# By how much play gives way to training, as a niceness.
_NICENESS = 5
# Seconds between looks at whether the run is to stop.
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class ScoredCheckpoint:
  """A checkpoint that has been played, and the iteration that it ends."""

  iteration: int
  checkpoint: checkpoints.Checkpoint
  episodes: list[run_tables.Episode]


def mean_return(episodes: Sequence[run_tables.Episode]) -> float:
  """Returns the mean of the episodes' returns."""
  return sum(e.episode_return for e in episodes) / len(episodes)


def describe(
  episodes: Sequence[run_tables.Episode], score: float | None
) -> str:
  """Returns what to say of an evaluation, with its normalised score if any."""
  normalised = '' if score is None else f', normalised {score:.1f},'
  text = (
    f'mean return {mean_return(episodes):.2f}{normalised} '
    f'over {len(episodes)} episodes'
  )
  wrapped = returns.is_wrapped([e.episode_return for e in episodes])
  if wrapped.any():
    lowest = min(e.episode_return for e in episodes)
    text += (
      f'; the score on the screen wrapped in {wrapped.sum()} of them (return '
      f'{lowest:,.0f}), so the mean is not to be trusted'
    )
  return text


class SyncEvaluations:
  """Evaluations in this process: training waits for them."""

  def __init__(
    self, evaluator: pool.Evaluator, stop_request: signals.StopRequest
  ):
    self._evaluator = evaluator
    self._stop_request = stop_request
    self._waiting: dict[int, tuple[checkpoints.Checkpoint, int]] = {}

  def submit(  # noqa: D102
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    self._waiting[iteration] = (checkpoint, seed)

  def collect(self, until_done: bool) -> Iterator[ScoredCheckpoint]:  # noqa: D102
    del until_done
    for iteration in sorted(self._waiting):
      checkpoint, seed = self._waiting.pop(iteration)
      episodes = self._play(iteration, checkpoint.prefix, seed)
      yield ScoredCheckpoint(iteration, checkpoint, episodes)

  def _play(
    self, iteration: int, prefix: str, seed: int
  ) -> list[run_tables.Episode]:
    total, desc = self._evaluator.num_agent_steps, f'evaluation {iteration}'
    with progress.bar(total, desc, 'step', leave=False) as bar:
      return self._evaluator.evaluate(
        prefix,
        seed,
        lambda num_played, _: bar.update(num_played - bar.n),
        lambda: bool(self._stop_request),
      )

  def close(self) -> None:
    """Does nothing: whoever made the evaluator closes it."""


class AsyncEvaluations:
  """Evaluations in another process, while training goes on.

  If play is slower, training waits in the end.
  """

  def __init__(
    self, setup: pool.Setup, worker: str, stop_request: signals.StopRequest
  ):
    self._setup = setup
    self._stop_request = stop_request
    self._pool = pool.EvaluationPool(1, worker, _NICENESS)
    self._submitted: set[int] = set()
    self._pending: dict[
      pool.PendingResult, tuple[int, checkpoints.Checkpoint]
    ] = {}

  def submit(  # noqa: D102
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    if iteration in self._submitted:
      return
    self._submitted.add(iteration)
    job = pool.CheckpointJob(self._setup, checkpoint.prefix, seed)
    self._pending[self._pool.submit(job)] = (iteration, checkpoint)

  def collect(self, until_done: bool) -> Iterator[ScoredCheckpoint]:
    """Yields what is done, and waits while too many checkpoints do."""
    limit = 0 if until_done else _MAX_WAITING
    while self._pending:
      must_wait = len(self._pending) > limit
      done = pool.wait(set(self._pending), _POLL_SECONDS if must_wait else 0.0)
      for future in done:
        iteration, checkpoint = self._pending.pop(future)
        episodes = pool.result_of(future).episodes
        yield ScoredCheckpoint(iteration, checkpoint, episodes)
      if self._stop_request and len(self._pending) > limit:
        raise errors.PreemptedError(
          f'stopped by {self._stop_request.signal_name} with '
          f'{len(self._pending)} checkpoints not yet evaluated; they are kept. '
          'Rerun the command to go on from there.'
        )
      if not done and not must_wait:
        return

  def close(self) -> None:
    """Ends the process. The next run plays what was not finished."""
    self._pool.close()


Evaluations = SyncEvaluations | AsyncEvaluations


class Scoring:
  """Has every checkpoint that ends an iteration played, once.

  An interrupted one is played again from its beginning, with the same result.
  """

  def __init__(
    self,
    home: run_directory.Home,
    provenance: Mapping[str, Any],
    kept: checkpoints.Checkpoints,
    evaluations: Evaluations | None,
    on_score: Callable[[dict[str, Any], int], object],
    normalised: Callable[[float], float | None] = lambda mean_return: None,
  ):
    """Opens the run's scores; without evaluations none is ever played.

    `on_score` gets the mean return and the gradient steps. `normalised` makes
    of the return a score in percent, or None if it is on no scale.
    """
    self._home = home
    self._provenance = provenance
    self._checkpoints = kept
    self._evaluations = evaluations
    self._on_score = on_score
    self._normalised = normalised
    self._scores = run_tables.ScoreLog(home.folder, home.check)
    # Prints a line; a progress bar has its own way to.
    self.write: Callable[[str], object] = print

  def start(self, steps: int) -> None:
    """Goes back to `steps` gradient steps, whatever was scored since."""
    self._scores.keep(steps)

  def iterations(self) -> set[int]:
    """Returns the iterations that have scores."""
    return self._scores.iterations()

  def play_missing(self, steps: int) -> None:
    """Plays what has no scores, up to a number of gradient steps."""
    if self._evaluations is None:
      return
    done = self._scores.iterations()
    for iteration, checkpoint in self._checkpoints.of_iterations().items():
      if iteration not in done and checkpoint.gradient_steps <= steps:
        # It must outlive the next ones until its scores are written.
        self._checkpoints.protect(checkpoint.name)
        seed = play.evaluation_seed(self._provenance['seed'], iteration)
        self._evaluations.submit(iteration, checkpoint, seed)
    for scored in self._evaluations.collect(until_done=False):
      self._record(scored)

  def finish(self, num_iterations: int) -> None:
    """Waits until every iteration has its scores; DataError if one cannot."""
    if self._evaluations is None:
      return
    for scored in self._evaluations.collect(until_done=True):
      self._record(scored)
    missing = set(range(num_iterations)) - self._scores.iterations()
    if missing:
      raise errors.DataError(
        f'iteration {min(missing)} has no scores in {self._home.name}, and its '
        'checkpoint is gone or damaged. Restore it, or start over with '
        '--overwrite.'
      )

  def _record(self, scored: ScoredCheckpoint) -> None:
    checkpoint, episodes = scored.checkpoint, scored.episodes
    steps = checkpoint.gradient_steps
    self._scores.append(self._provenance, scored.iteration, steps, episodes)
    self._home.publish()
    self._checkpoints.release(checkpoint.name)
    shown = {'eval_return': mean_return(episodes)}
    score = self._normalised(shown['eval_return'])
    if score is not None:
      shown['eval_normalised_score'] = score
    self._on_score(shown, steps)
    self.write(f'iteration {scored.iteration}: {describe(episodes, score)}')
