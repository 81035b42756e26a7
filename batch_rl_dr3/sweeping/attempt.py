"""One attempt at a run: its process, its log, and what is recorded of it.

A Ray actor and a job array's task both execute a run by `execute`. All that
outlives an attempt is in the run directory, see `runs.state`. The next attempt
looks at what progress was made, so it does not matter who died of what: a
preempted attempt costs nothing unless nothing ever comes of any.
"""

from collections.abc import Callable, Collection, Sequence
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from typing import Any

import tenacity

from batch_rl_dr3.config import cli, errors, signals
from batch_rl_dr3.runs import atomic, lease, mirror, run_directory, state
from batch_rl_dr3.sweeping.grid import SweepRun

# Exit codes after which the same command would fail again.
OWN_FAULT = {
  *(errors.UsageError.exit_code, errors.DataError.exit_code),
  *(errors.DivergedError.exit_code, errors.ConfigError.exit_code),
}
PREEMPTED = errors.PreemptedError.exit_code

# What an attempt comes to. BUSY: another process works on the run; LOST: who
# executed it has gone, and there is no word of it.
DONE, SET_ASIDE, BUSY, AGAIN = 'done', 'set aside', 'busy', 'again'
LOST = 'lost'

# For how long, and how often in seconds, a bucket that is away is asked again
# before or after an attempt of days.
_PATIENCE_SECONDS = 600.0
_AGAIN_SECONDS = 10.0

# Becomes the command that its arguments name, and ends with the process that
# started it, however that ends. Ray's workers block signals; train needs them.
_BECOME = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
if os.getppid() != int(sys.argv[1]):
  sys.exit(75)
if sys.argv[2] and hasattr(os, 'sched_setaffinity'):
  os.sched_setaffinity(0, map(int, sys.argv[2].split(',')))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What an attempt came to."""

  kind: str  # DONE, SET_ASIDE, BUSY, AGAIN or LOST.
  exit_code: int  # Of `train`, or what stands for it; negative for a signal.
  error: str = ''
  without_progress: int = 0  # Attempts in a row before this one.


@dataclasses.dataclass
class Attempt:
  """One attempt at a run, which can be stopped from another thread."""

  folder: str  # Or a URL.
  arguments: Sequence[str]  # What follows `python`.
  num_iterations: int
  max_without_progress: int
  key: int = 0  # The run's index in its sweep.
  # The process is pinned to these, where the system can; () for none.
  # TensorFlow makes as many threads as it may use cores.
  cores: Sequence[int] = ()
  # Where the process runs, if it exists there.
  cwd: str = dataclasses.field(default_factory=os.getcwd)
  _process: 'subprocess.Popen[bytes] | None' = None
  _is_stopped: bool = False

  @classmethod
  def of_run(
    cls,
    run: SweepRun,
    runs: str,
    cache_dir: str,
    program: Sequence[str],
    max_without_progress: int,
  ) -> 'Attempt':
    """Returns an attempt at a run of a sweep, by `python PROGRAM ...`."""
    arguments = (*program, *run.arguments(runs, cache_dir))
    folder = os.path.join(runs, run.folder)
    return cls(
      folder, arguments, run.num_iterations, max_without_progress, run.index
    )

  def stop(self) -> None:
    """Asks the run to save and end, as SIGTERM does."""
    self._is_stopped = True
    process = self._process
    if process is not None and process.poll() is None:
      process.send_signal(signal.SIGTERM)

  def execute(self) -> Outcome:
    """Executes the run, in a process that ends with this thread.

    DataError if the run directory cannot be read, WriteError if not written.
    """
    with tempfile.TemporaryDirectory(prefix='batch_rl_dr3.') as scratch:
      self._run = mirror.Mirror(self.folder, scratch, state.CONTENTS)
      self._here = self._run.folder
      self._patiently(self._run.refresh)
      before = state.read_attempts(self._here)
      if self._is_finished():
        return Outcome(DONE, 0)
      if before.is_set_aside:
        return _outcome(before)
      atomic.make_directory(self._here)
      record = self._next(before)
      self._write(record)
      if record.is_set_aside:
        return _outcome(record)
      exit_code, said = self._train(record, pathlib.Path(scratch, 'ending'))
      self._patiently(lambda: self._run.upload(state.LOG))
      self._patiently(self._run.refresh)
      error = self._error(exit_code, said.get('message', ''))
      if error and said.get('error') == lease.BusyError.__name__:
        self._write(before)  # It was no attempt.
        return Outcome(BUSY, PREEMPTED, error, before.without_progress)
      # Told to stop when all was written, a run may say that it was stopped.
      exit_code = (exit_code or 1) if error else 0
      aside = exit_code in OWN_FAULT
      record = dataclasses.replace(
        record, exit_code=exit_code, error=error, is_set_aside=aside
      )
      self._write(record)
      return _outcome(record) if error else Outcome(DONE, 0)

  def _patiently(self, action: Callable[[], None]) -> None:
    """Does what needs a bucket, which may be away for a while."""
    is_late = tenacity.stop_after_delay(_PATIENCE_SECONDS)
    tenacity.Retrying(
      retry=tenacity.retry_if_exception(_may_pass),
      stop=lambda state: self._is_stopped or is_late(state),
      wait=tenacity.wait_fixed(_AGAIN_SECONDS),
      reraise=True,
    )(action)

  def _next(self, before: state.Record) -> state.Record:
    """Returns the record of this attempt; set aside if it is not to begin."""
    now = state.progress(self._here)
    without = before.without_progress
    if before.attempts:
      without = without + 1 if now <= before.progress else 0
    if without >= self.max_without_progress:
      last = before.error or self._last_line() or 'no word'
      return dataclasses.replace(
        before,
        without_progress=without,
        # Not what the last one ended with, which would say: try again.
        exit_code=errors.BatchRLError.exit_code,
        error=f'{without} attempts without progress; the last one: {last}',
        is_set_aside=True,
      )
    return state.Record(
      attempts=before.attempts + 1,
      without_progress=without,
      progress=now,
      began=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      host=socket.gethostname(),
    )

  def _train(
    self, record: state.Record, ending: pathlib.Path
  ) -> tuple[int, dict[str, str]]:
    """Returns the exit code of `train`, and how it says that it ended."""
    with open(self._here / state.LOG, 'ab') as log:
      line = f'--- attempt {record.attempts}, {record.began}, {record.host}\n'
      log.write(line.encode())
      log.flush()
      self._process = self._start(log, ending)
      if self._is_stopped:  # Meanwhile.
        self.stop()
      exit_code = self._process.wait()
    with contextlib.suppress(OSError, ValueError):
      return exit_code, json.loads(ending.read_text())
    return exit_code, {}

  def _start(self, log: Any, ending: pathlib.Path) -> 'subprocess.Popen[bytes]':
    cores = ','.join(map(str, self.cores))
    return subprocess.Popen(
      [sys.executable, '-c', _BECOME, str(os.getpid()), cores, *self.arguments],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      # Ctrl-C at a terminal is for whoever decides about all runs.
      start_new_session=True,
      cwd=self.cwd if os.path.isdir(self.cwd) else None,
      env={**os.environ, 'PYTHONUNBUFFERED': '1', cli.ENDING: str(ending)},
    )

  def _error(self, exit_code: int, message: str) -> str:
    """Returns why the run is not finished; '' if it is."""
    if self._is_finished():
      return ''
    if exit_code == 0:
      return f'train ended without a whole {run_directory.FINISHED}.'
    if exit_code < 0:
      return f'ended by {signal.Signals(-exit_code).name}'
    return message or self._last_line() or f'ended with {exit_code}'

  def _is_finished(self) -> bool:
    return state.is_finished(self._here, self.num_iterations)

  def _last_line(self) -> str:
    return state.last_line(self._here / state.LOG)

  def _write(self, record: state.Record) -> None:
    atomic.write_json(self._here / state.NAME, dataclasses.asdict(record))
    self._patiently(lambda: self._run.upload(state.NAME))


def _may_pass(error: BaseException) -> bool:
  is_gone = isinstance(error.__cause__, FileNotFoundError)
  return isinstance(error, errors.BatchRLError) and not is_gone


def _outcome(record: state.Record) -> Outcome:
  """Returns what an attempt that did not finish its run came to."""
  code = record.exit_code
  return Outcome(
    SET_ASIDE if record.is_set_aside else AGAIN,
    errors.BatchRLError.exit_code if code is None else code,
    record.error,
    record.without_progress,
  )


def cores_of_slot(
  slot: int, num_slots: int, cores: Collection[int]
) -> list[int]:
  """Returns the cores of one of a node's slots: they are dealt out in turn."""
  return sorted(cores)[slot % len(cores) :: num_slots]


def in_foreground(attempt: Attempt) -> Outcome:
  """Executes an attempt, handing on SIGTERM and SIGINT as SIGTERM."""
  with signals.handling(lambda _: attempt.stop()):
    return attempt.execute()
