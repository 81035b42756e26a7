"""Plays checkpoints in worker processes: one checkpoint each, on all cores.

The process that asks needs no TensorFlow and is the only one that writes: a
worker that dies leaves nothing half-written. A worker ends with its parent,
even if that is killed.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import importlib
import io
import multiprocessing
from multiprocessing import connection
import os
import signal
import threading
from typing import Any, Protocol
import warnings

from batch_rl_dr3.config import (
  errors,
  frameworks,
  gin_files,
  own_code,
  signals,
)
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import run_tables

# The functions (module:function) that make the evaluators of each kind of run.
# They are named by strings, as their modules import this one, and TensorFlow.
GAMES = 'batch_rl_dr3.training.discrete:create_evaluator'
CONTINUOUS_CONTROL = 'batch_rl_dr3.training.control:create_evaluator'


@dataclasses.dataclass(frozen=True)
class Atoms:
  """What the K outputs per action of another program's network are."""

  kind: str | None = None  # One of `ATOMS`; None, of which K has to be 1.
  support: tuple[float, float] | None = None  # Of categorical ones.


ATOMS = ('heads', 'quantiles', 'categorical')
CATEGORICAL = ATOMS[2]
UNSTATED = Atoms()
# Seconds between looks at what is done, and at whether to stop.
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Setup:
  """What an evaluator is made from."""

  config: str  # Gin text that names the game and the network.
  # As provenance.json has it; None for what the configuration says.
  protocol: Mapping[str, Any] | None
  num_threads: int = 0  # Of one call of the network; 0 is one per core.
  atoms: Atoms | None = None  # Of another program's network.
  imports: tuple[own_code.OwnCode, ...] = ()  # What the configuration names.


class Evaluator(Protocol):
  """Plays the checkpoints of one kind of run, and exported policies.

  A checkpoint is named by its path without `.index`; how it is played is a
  function of it and the seed. One that cannot be read is a DataError.
  """

  # Of an evaluation; None where only playing tells.
  num_agent_steps: int | None
  identity: play.GameIdentity

  def evaluate(
    self,
    prefix: str,
    seed: int,
    on_progress: play.ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
  ) -> list[run_tables.Episode]:
    """Returns the episodes of a checkpoint; see `play.play`."""

  def record_video(
    self,
    prefix: str,
    seed: int,
    path: str,
    should_stop: Callable[[], bool] | None = None,
  ) -> run_tables.Episode:
    """Writes an MP4 of an evaluation's first episode, whole or not at all."""

  def close(self) -> None: ...  # noqa: D102


@contextlib.contextmanager
def gin_config(config: str) -> Iterator[None]:
  """Makes gin hold this text, and nothing else, from here on.

  ConfigError if it cannot be parsed or used inside the block.
  """
  import gin  # Only workers need it.

  gin.clear_config()
  try:
    gin.parse_config(config, skip_unknown=False)
    yield
  except (ValueError, TypeError, RuntimeError, SyntaxError) as error:
    message = ' '.join(str(error).split())
    raise errors.ConfigError(f'gin: {message}') from error


def bound(name: str, default: Any) -> Any:
  """Returns what gin binds to a parameter, else the default."""
  import gin

  try:
    value = gin.query_parameter(name)
  except ValueError:
    return default
  return getattr(value, 'scoped_configurable_fn', value)


def is_exported(path: str) -> bool:
  """Returns whether a path is an ONNX file or a SavedModel; see `exported`."""
  return path.endswith('.onnx') or os.path.isfile(f'{path}/saved_model.pb')


@dataclasses.dataclass(frozen=True)
class CheckpointJob:
  """One checkpoint to play, whole or for a video of its first episode."""

  setup: Setup
  prefix: str
  seed: int
  with_scores: bool = True
  video: str | None = None  # The path of the file.


@dataclasses.dataclass(frozen=True)
class Result:
  """What a job came to: what was played, how it went, and who played."""

  identity: play.GameIdentity
  episodes: list[run_tables.Episode]  # None where no scores were asked for.
  process: dict[str, Any]  # Versions, commit, device and command.


class EvaluationPool:
  """Worker processes that play checkpoints."""

  def __init__(
    self,
    num_workers: int,
    worker: str,
    stop_request: signals.StopRequest,
    niceness: int = 0,
  ):
    """Makes the pool; the worker ('module:function') makes an `Evaluator`."""
    context = multiprocessing.get_context('spawn')
    self._num_played = context.Value('q', 0)
    self._stopped = context.Event()
    self._stop_request = stop_request
    self._pending: dict[futures.Future[Result], Any] = {}
    self._executor = futures.ProcessPoolExecutor(
      num_workers,
      mp_context=context,
      initializer=_start,
      initargs=(self._num_played, self._stopped, worker, niceness),
    )

  @property
  def num_played(self) -> int:
    """Agent steps played so far, of all jobs."""
    return int(self._num_played.value)

  def submit(self, job: CheckpointJob, key: Any) -> None:
    """Queues a job, which `done` calls by its key."""
    # A process inherits what is blocked: Ctrl-C then reaches this process
    # alone, which decides what becomes of the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
      self._pending[self._executor.submit(_run, job)] = key
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)

  def done(
    self, max_pending: int = 0, on_poll: Callable[[int], object] | None = None
  ) -> Iterator[tuple[Any, futures.Future[Result]]]:
    """Yields jobs that are done, and waits while too many are not.

    `on_poll` is called several times a second meanwhile, with their number.

    Raises:
      BatchRLError: if a worker died.
      PreemptedError: if the process was asked to stop while it waits.
    """
    while self._pending:
      must_wait = len(self._pending) > max_pending
      finished, _ = futures.wait(
        self._pending,
        _POLL_SECONDS if must_wait else 0.0,
        futures.FIRST_COMPLETED,
      )
      if on_poll is not None:
        on_poll(len(self._pending))
      for future in finished:
        if isinstance(future.exception(), futures.process.BrokenProcessPool):
          raise errors.BatchRLError(
            'a process that plays died, perhaps for lack of memory. What was '
            'played before is kept; rerun the command to go on from there.'
          ) from future.exception()
        yield self._pending.pop(future), future
      if self._stop_request and len(self._pending) > max_pending:
        raise errors.PreemptedError(
          f'stopped by {self._stop_request.signal_name} with '
          f'{len(self._pending)} checkpoints not yet evaluated; they are kept. '
          'Rerun the command to go on from there.'
        )
      if not finished and not must_wait:
        return

  def close(self) -> None:
    """Stops what is still played and ends the processes."""
    self._stopped.set()
    self._executor.shutdown(cancel_futures=True)


class _Worker:
  """What a worker process holds: it plays one job after another."""

  def __init__(self, num_played: Any, stopped: Any, worker: str):
    self._num_played = num_played
    self._is_stopped = stopped.is_set
    module, _, name = worker.partition(':')
    with contextlib.redirect_stderr(io.StringIO()):
      self._create_evaluator = getattr(importlib.import_module(module), name)
    self._setup: Setup | None = None
    self._stack = contextlib.ExitStack()  # Holds the evaluator.

  def run(self, job: CheckpointJob) -> Result:
    from batch_rl_dr3.agents import accelerator
    from batch_rl_dr3.runs import provenance

    if self._setup != job.setup:
      self._setup = None
      self._stack.close()
      own_code.load(job.setup.imports)
      self._evaluator: Evaluator = self._create_evaluator(job.setup)
      self._stack.callback(self._evaluator.close)
      self._setup = job.setup
    evaluator, where = self._evaluator, (job.prefix, job.seed)
    if job.video is not None:  # First: it is short, and scores are not lost.
      evaluator.record_video(*where, job.video, self._is_stopped)
    episodes = []
    if job.with_scores:
      self._before = 0
      episodes = evaluator.evaluate(*where, self._count, self._is_stopped)
    device = accelerator.find_device('auto')
    return Result(evaluator.identity, episodes, provenance.of_process(device))

  def _count(self, num_played: int, num_episodes: int) -> None:
    del num_episodes
    with self._num_played.get_lock():
      self._num_played.value += num_played - self._before
    self._before = num_played


_worker: _Worker  # Of a process that plays.


def _start(num_played: Any, stopped: Any, worker: str, niceness: int) -> None:
  """Imports the worker's function, and what it stands on, quietly."""
  global _worker
  parent = multiprocessing.parent_process()
  assert parent is not None

  def end_with_parent() -> None:
    connection.wait([parent.sentinel])
    os._exit(errors.PreemptedError.exit_code)

  threading.Thread(target=end_with_parent, daemon=True).start()
  os.nice(niceness)
  frameworks.import_tensorflow()
  import gin

  gin.add_config_file_search_path(str(gin_files.shipped_configs()))
  # The old gym, which Dopamine and TF-Agents import, announces its end.
  warnings.filterwarnings('ignore', category=SyntaxWarning)
  _worker = _Worker(num_played, stopped, worker)


def _run(job: CheckpointJob) -> Result:
  try:
    return _worker.run(job)
  except errors.BatchRLError as error:
    raise errors.picklable(error) from error
