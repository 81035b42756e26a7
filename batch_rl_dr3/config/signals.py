"""What SIGTERM and SIGINT (Ctrl-C) do to a command, in one place.

A command that has begun nothing ends at once (`leaving`), one that works ends
by an error that cleans up (`raising`), and a run saves first (`StopRequest`).
"""

import atexit
from collections.abc import Callable, Iterator
import contextlib
import functools
import os
import pathlib
import signal
import sys
import threading
from typing import Any

from batch_rl_dr3.config import errors

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _install(handle: Callable[[str], None]) -> dict[signal.Signals, Any]:
  """Returns the handlers that a function takes the place of.

  Outside the main thread, and for ignored signals, nothing changes.
  """
  if threading.current_thread() is not threading.main_thread():
    return {}
  return {
    # None is a handler that is not Python's, which it cannot put back.
    number: signal.signal(
      number, lambda number, _: handle(signal.Signals(number).name)
    )
    or signal.SIG_DFL
    for number in _SIGNALS
    if signal.getsignal(number) is not signal.SIG_IGN
  }


@contextlib.contextmanager
def handling(handle: Callable[[str], None]) -> Iterator[None]:
  """Calls a function with the name of each signal that comes meanwhile."""
  before = _install(handle)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def raising() -> contextlib.AbstractContextManager[None]:
  """Turns the signals into a PreemptedError, wherever the block is then."""

  def stop(name: str) -> None:
    raise errors.PreemptedError(_message(name))

  return handling(stop)


def leaving(stderr: int = 2) -> contextlib.AbstractContextManager[None]:
  """Ends the process at a signal, with a line and the code of preemption.

  It is for what no error may interrupt, such as imports, while there is nothing
  to clean up. The line goes to the file descriptor `stderr`.
  """
  return handling(functools.partial(_leave, stderr))


def leave_until_told_otherwise() -> None:
  """Does the same from here on, for a command that starts.

  Signals are ignored while Python shuts down and its handlers are gone, so that
  the exit code stays.
  """

  def ignore() -> None:
    for number in _SIGNALS:
      if callable(signal.getsignal(number)):
        signal.signal(number, signal.SIG_IGN)

  _install(functools.partial(_leave, 2))
  atexit.register(ignore)


def _leave(stderr: int, name: str) -> None:
  program = pathlib.Path(sys.argv[0]).stem
  os.write(stderr, f'{program}: {_message(name)}\n'.encode())
  os._exit(errors.PreemptedError.exit_code)


def _message(name: str) -> str:
  return f'stopped by {name}; rerun the same command to resume.'


class StopRequest:
  """Whether SIGTERM or SIGINT has come since the run began, and which."""

  signal_name: str | None = None

  def __bool__(self) -> bool:
    return self.signal_name is not None

  def saved(self, steps: int) -> errors.PreemptedError:
    """Returns the error that ends a run whose checkpoint is written."""
    return errors.PreemptedError(
      f'stopped by {self.signal_name} at gradient step {steps}; everything is '
      'saved, and the same command goes on from there.'
    )

  def listening(self) -> contextlib.AbstractContextManager[None]:
    """Notes the signals, instead of dying of them, while the block runs."""
    return handling(functools.partial(setattr, self, 'signal_name'))
