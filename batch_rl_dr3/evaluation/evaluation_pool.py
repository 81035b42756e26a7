"""Evaluations in other processes: one checkpoint each, on all cores.

The process that asks needs no TensorFlow and is the only one that writes: a
worker returns episodes, so that one that dies, or outlives who asked, leaves
nothing half-written. A worker ends with its parent, even if that is killed.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import multiprocessing
from multiprocessing import connection
import os
import signal
import threading
from typing import Any, Protocol

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import play

# What a worker process holds: see _start.
_worker: Any = None


class Evaluator(Protocol):
  """Plays the checkpoints of one kind of run.

  Attributes:
    num_agent_steps: how many an evaluation has; None if that is not known
      before it is played.
    played: what is played, and how.
  """

  @property
  def num_agent_steps(self) -> int | None: ...  # noqa: D102

  @property
  def played(self) -> play.Played: ...  # noqa: D102

  def evaluate(
    self,
    prefix: str,
    seed: int,
    on_progress: play.ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
  ) -> list[play.Episode]:
    """Returns the episodes of a checkpoint, a function of it and the seed.

    Args:
      prefix: the checkpoint's path without `.index`.
      seed: see `play.evaluation_seed`.
      on_progress: called with the agent steps and the episodes so far.
      should_stop: asked before every step.

    Raises:
      DataError: if the checkpoint cannot be read or is of another network.
      PreemptedError: if `should_stop` said so.
    """

  def close(self) -> None:
    """Frees the games."""


# Makes an evaluator from gin text that names game and network, the protocol of
# a run (None for what the text says), and the CPU threads of one call of the
# network (0 is one per core).
CreateEvaluator = Callable[[str, Mapping[str, Any] | None, int], Evaluator]


@contextlib.contextmanager
def configured(config: str) -> Iterator[None]:
  """Has gin hold a configuration, and nothing else, from here on.

  Args:
    config: gin text.

  Raises:
    ConfigError: if it cannot be parsed, or what is bound cannot be used
      meanwhile.
  """
  import gin  # Whoever asks for evaluations does without.

  gin.clear_config()
  try:
    gin.parse_config(config, skip_unknown=False)
    yield
  except (ValueError, TypeError, RuntimeError, SyntaxError) as error:
    message = ' '.join(str(error).split())
    raise errors.ConfigError(f'gin: {message}') from error


@dataclasses.dataclass(frozen=True)
class Job:
  """One checkpoint to play.

  Attributes:
    config: gin text that names the game and the network.
    prefix: the checkpoint's path without `.index`.
    seed: see `play.evaluation_seed`.
    protocol: how it is played, as provenance.json has it; None for what the
      configuration says.
    num_threads: CPU threads of one call of the network; 0 is one per core.
    with_scores: whether the whole evaluation is played.
    video: the path of the video to write of the first episode; None for none.
  """

  config: str
  prefix: str
  seed: int
  protocol: Mapping[str, Any] | None
  num_threads: int = 0
  with_scores: bool = True
  video: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
  """What a job came to.

  Attributes:
    played: what was played, and how.
    episodes: the episodes; none where no scores were asked for.
    process: who played: versions, commit, device and command.
  """

  played: play.Played
  episodes: list[play.Episode]
  process: dict[str, Any]


class WorkerDiedError(errors.BatchRLError):
  """A worker process ended in the middle of a job."""


class EvaluationPool:
  """Worker processes that play checkpoints."""

  def __init__(
    self,
    num_workers: int,
    prepare: Callable[[], CreateEvaluator],
    niceness: int = 0,
  ):
    """Makes the pool; a process starts when there is a job for it.

    Args:
      num_workers: processes.
      prepare: called first in each of them, a function of a module; returns
        what makes the evaluators of jobs.
      niceness: by how much their priority is lowered.
    """
    context = multiprocessing.get_context('spawn')
    self._num_played = context.Value('q', 0)
    self._stopped = context.Event()
    self._executor = futures.ProcessPoolExecutor(
      num_workers,
      mp_context=context,
      initializer=_start,
      initargs=(self._num_played, self._stopped, prepare, niceness),
    )

  @property
  def num_played(self) -> int:
    """Agent steps played so far, of all jobs."""
    return int(self._num_played.value)

  def submit(self, job: Job) -> 'futures.Future[Result]':
    """Queues a job. Its future raises the job's error.

    Among them is PreemptedError, if the pool is closed before the job is
    done.
    """
    # A process inherits what is blocked: Ctrl-C then reaches this process
    # alone, which decides what becomes of the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
      return self._executor.submit(_run, job)
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)

  def close(self) -> None:
    """Stops what is still played and ends the processes."""
    self._stopped.set()
    self._executor.shutdown(cancel_futures=True)


def wait(
  pending: 'set[futures.Future[Result]]', seconds: float
) -> 'set[futures.Future[Result]]':
  """Returns those of the jobs that are done, after at most so many seconds."""
  done, _ = futures.wait(
    pending, timeout=seconds, return_when=futures.FIRST_COMPLETED
  )
  return done


def result_of(future: 'futures.Future[Result]') -> Result:
  """Returns what a job came to.

  Raises:
    BatchRLError: the job's own error.
    WorkerDiedError: if its process died.
  """
  try:
    return future.result()
  except futures.process.BrokenProcessPool as error:
    raise WorkerDiedError(
      'a process that plays died, perhaps for lack of memory. What was played '
      'before is kept, and the same command goes on from there.'
    ) from error


def _start(
  num_played: Any,
  stopped: Any,
  prepare: Callable[[], CreateEvaluator],
  niceness: int,
) -> None:
  """Prepares a worker process."""
  global _worker
  parent = multiprocessing.parent_process()
  assert parent is not None
  threading.Thread(
    target=_end_with, args=(parent.sentinel,), daemon=True
  ).start()
  os.nice(niceness)
  _worker = _Worker(num_played, stopped, prepare())


def _end_with(sentinel: int) -> None:
  connection.wait([sentinel])
  os._exit(errors.PreemptedError.exit_code)


def _run(job: Job) -> Result:
  try:
    return _worker.run(job)
  except errors.BatchRLError as error:
    raise errors.picklable(error) from error


class _Worker:
  """A process that plays one job after another."""

  def __init__(
    self, num_played: Any, stopped: Any, create_evaluator: CreateEvaluator
  ):
    self._num_played = num_played
    self._stopped = stopped
    self._create_evaluator = create_evaluator
    self._key: Any = None
    self._evaluator: Any = None

  def run(self, job: Job) -> Result:
    """Plays one job."""
    from batch_rl_dr3.agents import devices
    from batch_rl_dr3.runs import provenance

    key = (job.config, job.protocol, job.num_threads)
    if self._evaluator is None or self._key != key:
      if self._evaluator is not None:
        self._evaluator.close()
        self._evaluator = None
      self._evaluator = self._create_evaluator(*key)
      self._key = key
    evaluator = self._evaluator
    before = 0

    def show(num_played: int, num_episodes: int) -> None:
      nonlocal before
      del num_episodes
      with self._num_played.get_lock():
        self._num_played.value += num_played - before
      before = num_played

    if job.video is not None:  # First: it is short, and scores are not lost.
      from batch_rl_dr3.evaluation import video

      video.record(
        evaluator, job.prefix, job.seed, job.video, self._stopped.is_set
      )
    episodes = []
    if job.with_scores:
      episodes = evaluator.evaluate(
        job.prefix, job.seed, show, self._stopped.is_set
      )
    return Result(
      evaluator.played,
      episodes,
      provenance.of_process(devices.resolve('auto').name),
    )
