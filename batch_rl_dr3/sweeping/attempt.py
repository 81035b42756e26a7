"""One attempt at a run: its process, its log, and what is recorded of it.

Whoever executes a run, an actor of Ray or a task of a job array, does it by
`execute`. All that outlives an attempt is in the run directory:

    attempt.json   how often it was tried, how often without progress, how the
                   last attempt ended, and whether the run is set aside
    train.log      what `train` printed, one attempt after another

Progress is a newer checkpoint or more scores. It is looked at when the next
attempt begins, so that it does not matter who died of what: an attempt that
was preempted costs nothing unless nothing ever comes of any.
"""

from collections.abc import Sequence
import dataclasses
import datetime
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

from batch_rl_dr3 import errors, run_directory

RECORD = 'attempt.json'
LOG = 'train.log'

# Exit codes after which the same command would fail again.
OWN_FAULT = frozenset(
  {
    errors.UsageError.exit_code,
    errors.DataError.exit_code,
    errors.DivergedError.exit_code,
    errors.ConfigError.exit_code,
  }
)
PREEMPTED = errors.PreemptedError.exit_code

# How `train` says that another process works on the run.
_BUSY_CODES = (PREEMPTED, errors.WriteError.exit_code)
_BUSY_WORDS = ' is in use: '

# What an attempt comes to.
DONE, SET_ASIDE, BUSY, AGAIN = 'done', 'set aside', 'busy', 'again'

# Becomes the command that its arguments name, and ends with the process that
# started it, however that ends. Ray's workers block signals; train needs them.
_BECOME = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
if os.getppid() != int(sys.argv[1]):
  sys.exit(75)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
# Bytes at the end of a log among which its last line is.
_TAIL_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of the attempts at a run.

  Attributes:
    attempts: how many were begun.
    without_progress: how many of the last ones, but for the newest, came to
      nothing.
    progress: of the run when the newest attempt began.
    began: when that was, in ISO 8601, UTC.
    host: where.
    exit_code: how it ended; None if nobody lived to say so, or it goes on.
    error: the last line of its log, if it did not end well.
    is_set_aside: whether the run is not to be tried again until `retry`.
  """

  attempts: int = 0
  without_progress: int = 0
  progress: tuple[int, int] = (0, 0)
  began: str = ''
  host: str = ''
  exit_code: int | None = None
  error: str = ''
  is_set_aside: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What an attempt came to.

  Attributes:
    kind: DONE, SET_ASIDE, BUSY (another process works on the run) or AGAIN.
    exit_code: of `train`, or what stands for it; negative for a signal.
    error: why, if it did not end well.
    without_progress: attempts in a row that came to nothing, this one left
      out.
  """

  kind: str
  exit_code: int
  error: str = ''
  without_progress: int = 0


def read_record(folder: str | os.PathLike[str]) -> Record:
  """Returns what is recorded in a run directory; of a new run, nothing."""
  try:
    value = json.loads((pathlib.Path(folder) / RECORD).read_text())
    value['progress'] = tuple(value['progress'])
    return Record(**value)
  except FileNotFoundError:
    return Record()
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.DataError(
      f'{pathlib.Path(folder) / RECORD} cannot be read: {error}. Remove it, '
      'and the run is tried as if for the first time.'
    ) from error


def forget(folder: str | os.PathLike[str]) -> None:
  """Lets a run be tried as if for the first time, from where it was left."""
  (pathlib.Path(folder) / RECORD).unlink(missing_ok=True)


def is_finished(folder: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, and all is written."""
  try:
    return run_directory.is_finished(folder, num_iterations)
  except (OSError, ValueError, KeyError, TypeError):
    return False  # Written last, and whole: what cannot be read is none.


def progress(folder: str | os.PathLike[str]) -> tuple[int, int]:
  """Returns what grows as a run gets on, whatever becomes of its process.

  The gradient steps of the newest checkpoint, and the bytes of scores.csv.
  """
  root = pathlib.Path(folder)
  steps = 0
  for path in (root / run_directory.CHECKPOINTS).glob('ckpt.*.json'):
    try:
      steps = max(steps, int(json.loads(path.read_text())['gradient_steps']))
    except (OSError, ValueError, KeyError, TypeError):
      continue  # Torn or gone: it does not exist.
  try:
    return steps, (root / run_directory.SCORES).stat().st_size
  except OSError:
    return steps, 0


def last_line(path: str | os.PathLike[str]) -> str:
  """Returns the last line of a log that is not empty; '' if there is none."""
  try:
    with open(path, 'rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - _TAIL_BYTES))
      text = file.read().decode(errors='replace')
  except OSError:
    return ''
  lines = [line.strip() for line in text.replace('\r', '\n').split('\n')]
  return next((line for line in reversed(lines) if line), '')


class Attempt:
  """One attempt at a run, which can be stopped from another thread."""

  def __init__(
    self,
    folder: str,
    arguments: Sequence[str],
    num_iterations: int,
    max_without_progress: int,
    cwd: str | None = None,
  ):
    """Prepares it; nothing happens yet.

    Args:
      folder: the run directory.
      arguments: what follows `python`.
      num_iterations: that the run has in the end.
      max_without_progress: a run is set aside after so many attempts.
      cwd: where the process runs, if there is such a folder here.
    """
    self._folder = pathlib.Path(folder)
    self._arguments = arguments
    self._num_iterations = num_iterations
    self._max_without_progress = max_without_progress
    self._cwd = cwd
    self._process: subprocess.Popen[bytes] | None = None
    self._stopped = False

  def stop(self) -> None:
    """Asks the run to save and end, as SIGTERM does."""
    self._stopped = True
    self._signal(signal.SIGTERM)

  def _signal(self, number: int) -> None:
    process = self._process
    if process is not None and process.poll() is None:
      process.send_signal(number)

  def execute(self) -> Outcome:
    """Executes the run and returns what came of it.

    The process ends with the thread that calls this.

    Raises:
      WriteError: if the run directory cannot be written.
    """
    before = read_record(self._folder)
    record = self._begin(before)
    if isinstance(record, Outcome):
      return record
    with open(self._folder / LOG, 'ab') as log:
      line = f'--- attempt {record.attempts}, {record.began}, {record.host}\n'
      log.write(line.encode())
      log.flush()
      self._process = self._start(log)
      if self._stopped:  # Meanwhile.
        self._signal(signal.SIGTERM)
      exit_code = self._process.wait()
    return self._end(before, record, exit_code)

  def _start(self, log: Any) -> 'subprocess.Popen[bytes]':
    return subprocess.Popen(
      [sys.executable, '-c', _BECOME, str(os.getpid()), *self._arguments],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      # Ctrl-C at a terminal is for whoever decides about all runs.
      start_new_session=True,
      cwd=self._cwd if self._cwd and os.path.isdir(self._cwd) else None,
      env={**os.environ, 'PYTHONUNBUFFERED': '1'},
    )

  def _begin(self, before: Record) -> Record | Outcome:
    """Records that the attempt begins; an outcome if it is not to."""
    if is_finished(self._folder, self._num_iterations):
      return Outcome(DONE, 0)
    run_directory.make_directory(self._folder)
    if before.is_set_aside:
      return self._outcome(SET_ASIDE, before)
    record = self._next(before)
    self._write(record)
    if record.is_set_aside:
      return self._outcome(SET_ASIDE, record)
    return record

  def _next(self, before: Record) -> Record:
    """Returns the record of an attempt that begins after others."""
    now = progress(self._folder)
    without = before.without_progress
    if before.attempts:
      without = without + 1 if now <= before.progress else 0
    if without >= self._max_without_progress:
      last = before.error or last_line(self._folder / LOG) or 'no word'
      return dataclasses.replace(
        before,
        without_progress=without,
        # Not what the last one ended with, which would say: try again.
        exit_code=errors.BatchRLError.exit_code,
        error=f'{without} attempts without progress; the last one: {last}',
        is_set_aside=True,
      )
    return Record(
      attempts=before.attempts + 1,
      without_progress=without,
      progress=now,
      began=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      host=socket.gethostname(),
    )

  def _end(self, before: Record, record: Record, exit_code: int) -> Outcome:
    error = self._error(exit_code)
    # Told to stop when all was written, a run may say that it was stopped.
    exit_code = (exit_code or 1) if error else 0
    if exit_code in _BUSY_CODES and _BUSY_WORDS in error:
      self._write(before)  # It was no attempt.
      return Outcome(BUSY, PREEMPTED, error, before.without_progress)
    record = dataclasses.replace(
      record,
      exit_code=exit_code,
      error=error,
      is_set_aside=exit_code in OWN_FAULT,
    )
    self._write(record)
    if exit_code == 0:
      return Outcome(DONE, 0)
    return self._outcome(SET_ASIDE if record.is_set_aside else AGAIN, record)

  def _error(self, exit_code: int) -> str:
    """Returns why the run is not finished; '' if it is."""
    if is_finished(self._folder, self._num_iterations):
      return ''
    if exit_code == 0:
      return f'train ended without a whole {run_directory.FINISHED}.'
    if exit_code < 0:
      return f'ended by {signal.Signals(-exit_code).name}'
    return last_line(self._folder / LOG) or f'ended with {exit_code}'

  def _outcome(self, kind: str, record: Record) -> Outcome:
    code = record.exit_code
    return Outcome(
      kind,
      errors.BatchRLError.exit_code if code is None else code,
      record.error,
      record.without_progress,
    )

  def _write(self, record: Record) -> None:
    run_directory.write_json(self._folder / RECORD, dataclasses.asdict(record))


def in_foreground(attempt: Attempt) -> Outcome:
  """Executes an attempt, handing on SIGTERM and SIGINT as SIGTERM."""

  def stop(*_: Any) -> None:
    attempt.stop()

  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, stop) for number in numbers]
  try:
    return attempt.execute()
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)
