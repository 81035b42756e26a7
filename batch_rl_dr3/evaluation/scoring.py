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

# An iteration, the checkpoint that ends it, and how that was played.
_Scored = tuple[int, checkpoints.Checkpoint, list[run_tables.Episode]]


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


@dataclasses.dataclass
class SyncEvaluations:
  """Evaluations in this process: training waits for them."""

  evaluator: pool.Evaluator
  stop_request: signals.StopRequest
  _waiting: list[tuple[int, checkpoints.Checkpoint, int]] = dataclasses.field(
    default_factory=list
  )

  def submit(  # noqa: D102
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    self._waiting.append((iteration, checkpoint, seed))

  def collect(self, until_done: bool) -> Iterator[_Scored]:  # noqa: D102
    del until_done
    total = self.evaluator.num_agent_steps
    while self._waiting:
      iteration, checkpoint, seed = self._waiting.pop(0)
      title = f'evaluation {iteration}'
      with progress.bar(total, title, 'step', leave=False) as bar:
        episodes = self.evaluator.evaluate(
          checkpoint.prefix,
          seed,
          lambda num_played, _: bar.update(num_played - bar.n),
          lambda: bool(self.stop_request),
        )
      yield iteration, checkpoint, episodes

  def close(self) -> None:
    """Does nothing: whoever made the evaluator closes it."""


class AsyncEvaluations:
  """Evaluations in another process, while training goes on.

  If play is slower, training waits in the end. What is not played when it ends,
  the next run plays.
  """

  def __init__(
    self, setup: pool.Setup, worker: str, stop_request: signals.StopRequest
  ):
    self._setup = setup
    self._pool = pool.EvaluationPool(1, worker, stop_request, _NICENESS)
    self.close = self._pool.close

  def submit(  # noqa: D102
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    job = pool.CheckpointJob(self._setup, checkpoint.prefix, seed)
    self._pool.submit(job, (iteration, checkpoint))

  def collect(self, until_done: bool) -> Iterator[_Scored]:
    """Yields what is done, and waits while too many checkpoints do."""
    for key, future in self._pool.done(0 if until_done else _MAX_WAITING):
      yield *key, future.result().episodes


Evaluations = SyncEvaluations | AsyncEvaluations


@dataclasses.dataclass
class Scoring:
  """Has every checkpoint that ends an iteration played, once.

  An interrupted one is played again from its beginning, with the same result.
  """

  home: run_directory.Home
  provenance: Mapping[str, Any]
  kept: checkpoints.Checkpoints
  evaluations: Evaluations | None  # None plays nothing.
  # Is told the mean return and the gradient steps.
  on_score: Callable[[dict[str, Any], int], object]
  # Makes of the mean return a score in percent, None if it is on no scale.
  normalised: Callable[[float], float | None] = lambda mean_return: None
  # Prints a line; a progress bar has its own way to.
  write: Callable[[str], object] = print

  def __post_init__(self) -> None:
    self._submitted: set[int] = set()
    scores = run_tables.ScoreLog(self.home.folder, self.home.check)
    self._append = scores.append
    # Goes back to so many gradient steps, whatever was scored since.
    self.start = scores.keep
    # Returns the iterations that have scores.
    self.iterations = scores.iterations

  def play_missing(self, steps: int) -> None:
    """Plays what has no scores, up to a number of gradient steps."""
    if self.evaluations is None:
      return
    done = self.iterations() | self._submitted
    for iteration, checkpoint in self.kept.of_iterations().items():
      if iteration not in done and checkpoint.gradient_steps <= steps:
        # It must outlive the next ones until its scores are written.
        self.kept.protected.add(checkpoint.name)
        seed = play.evaluation_seed(self.provenance['seed'], iteration)
        self.evaluations.submit(iteration, checkpoint, seed)
        self._submitted.add(iteration)
    self._record(self.evaluations.collect(until_done=False))

  def finish(self, num_iterations: int) -> None:
    """Waits until every iteration has its scores; DataError if one cannot."""
    if self.evaluations is None:
      return
    self._record(self.evaluations.collect(until_done=True))
    missing = set(range(num_iterations)) - self.iterations()
    if missing:
      raise errors.DataError(
        f'iteration {min(missing)} has no scores in {self.home.name}, and its '
        'checkpoint is gone or damaged. Restore it, or start over with '
        '--overwrite.'
      )

  def _record(self, scored: Iterator[_Scored]) -> None:
    for iteration, checkpoint, episodes in scored:
      steps = checkpoint.gradient_steps
      self._append(self.provenance, iteration, steps, episodes)
      self.home.publish()
      self.kept.protected.discard(checkpoint.name)
      shown = {'eval_return': mean_return(episodes)}
      score = self.normalised(shown['eval_return'])
      if score is not None:
        shown['eval_normalised_score'] = score
      self.on_score(shown, steps)
      self.write(f'iteration {iteration}: {describe(episodes, score)}')
