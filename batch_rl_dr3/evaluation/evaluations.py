"""When and where a run's checkpoints are played: here, or meanwhile elsewhere.

Both play by the same code and the same seeds, so the scores are the same.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import dataclasses
from typing import Any, Protocol

from batch_rl_dr3.config import errors, progress, signals
from batch_rl_dr3.evaluation import evaluation_pool
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import checkpoints

# Checkpoints that may wait for the other process before training waits.
_MAX_WAITING = 3
# By how much play gives way to training, as a niceness.
_NICENESS = 5
# Seconds between looks at whether the run is to stop.
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Finished:
  """A checkpoint that has been played.

  Attributes:
    iteration: the iteration it ends.
    checkpoint: the checkpoint.
    episodes: what was played.
  """

  iteration: int
  checkpoint: checkpoints.Checkpoint
  episodes: list[play.Episode]


class Evaluations(Protocol):
  """The evaluations of one run."""

  def submit(
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    """Asks for a checkpoint to be played; to ask again changes nothing."""

  def finished(self) -> Iterator[Finished]:
    """Yields what has been played and was not yielded before."""

  def all(self) -> Iterator[Finished]:
    """Yields the rest, as soon as it has been played.

    Raises:
      PreemptedError: if the run is to stop before.
    """

  def close(self) -> None:
    """Ends what is still played."""


class NoEvaluations:
  """The evaluations of a run that is never evaluated."""

  def submit(
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    """Does nothing."""

  def finished(self) -> Iterator[Finished]:
    """Yields nothing."""
    return iter(())

  all = finished

  def close(self) -> None:
    """Does nothing."""


class SyncEvaluations:
  """Evaluations in this process: training waits for them."""

  def __init__(
    self,
    evaluator: evaluation_pool.Evaluator,
    stop_request: signals.StopRequest,
  ):
    """Takes note of who plays.

    Args:
      evaluator: plays the checkpoints.
      stop_request: ends play once it is true.
    """
    self._evaluator = evaluator
    self._stop_request = stop_request
    self._waiting: dict[int, tuple[checkpoints.Checkpoint, int]] = {}

  def submit(
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    """See `Evaluations`."""
    self._waiting[iteration] = (checkpoint, seed)

  def finished(self) -> Iterator[Finished]:
    """See `Evaluations`. What waits is played now.

    Raises:
      PreemptedError: if the run is to stop before.
    """
    for iteration in sorted(self._waiting):
      checkpoint, seed = self._waiting.pop(iteration)
      episodes = self._play(iteration, checkpoint, seed)
      yield Finished(iteration, checkpoint, episodes)

  def _play(
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> list[play.Episode]:
    bar = progress.bar(
      self._evaluator.num_agent_steps,
      f'evaluation {iteration}',
      'step',
      leave=False,
    )
    with bar:
      return self._evaluator.evaluate(
        checkpoint.prefix,
        seed,
        lambda num_played, _: bar.update(num_played - bar.n),
        lambda: bool(self._stop_request),
      )

  all = finished

  def close(self) -> None:
    """See `Evaluations`; there is nothing to end."""


class AsyncEvaluations:
  """Evaluations in another process, while training goes on.

  Should play be slower than training, training waits in the end: of the
  checkpoints that wait, each of which is kept, there are never many.
  """

  def __init__(
    self,
    config: str,
    protocol: Mapping[str, Any],
    num_threads: int,
    stop_request: signals.StopRequest,
    prepare: Callable[[], evaluation_pool.CreateEvaluator],
  ):
    """Makes the pool; its process starts with the first checkpoint.

    Args:
      config: the run's operative gin configuration.
      protocol: how is played, as provenance.json has it.
      num_threads: CPU threads of one call of the network; 0 is one per core.
      stop_request: ends the waiting once it is true.
      prepare: see `EvaluationPool`.
    """
    self._config = config
    self._protocol = protocol
    self._num_threads = num_threads
    self._stop_request = stop_request
    self._pool = evaluation_pool.EvaluationPool(1, prepare, _NICENESS)
    self._submitted: set[int] = set()
    self._pending: dict[
      futures.Future[evaluation_pool.Result],
      tuple[int, checkpoints.Checkpoint],
    ] = {}

  def submit(
    self, iteration: int, checkpoint: checkpoints.Checkpoint, seed: int
  ) -> None:
    """See `Evaluations`."""
    if iteration in self._submitted:
      return
    self._submitted.add(iteration)
    job = evaluation_pool.Job(
      self._config, checkpoint.prefix, seed, self._protocol, self._num_threads
    )
    self._pending[self._pool.submit(job)] = (iteration, checkpoint)

  def finished(self) -> Iterator[Finished]:
    """See `Evaluations`.

    Raises:
      PreemptedError: if the run is to stop, while too many checkpoints wait.
    """
    yield from self._collect(lambda: len(self._pending) > _MAX_WAITING)

  def all(self) -> Iterator[Finished]:
    """See `Evaluations`."""
    yield from self._collect(lambda: bool(self._pending))

  def _collect(self, must_wait: Callable[[], bool]) -> Iterator[Finished]:
    """Yields what is done, and waits for more for as long as told to."""
    while self._pending:
      seconds = _POLL_SECONDS if must_wait() else 0.0
      done = evaluation_pool.wait(set(self._pending), seconds)
      for future in done:
        iteration, checkpoint = self._pending.pop(future)
        episodes = evaluation_pool.result_of(future).episodes
        yield Finished(iteration, checkpoint, episodes)
      if self._stop_request and must_wait():
        raise errors.PreemptedError(
          f'stopped by {self._stop_request.signal_name} with '
          f'{len(self._pending)} checkpoints not yet evaluated; they are kept, '
          'and the same command goes on from there.'
        )
      if not done and not must_wait():
        return

  def close(self) -> None:
    """See `Evaluations`. What was not finished is played by the next run."""
    self._pool.close()
