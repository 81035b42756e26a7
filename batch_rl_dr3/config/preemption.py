"""Asking a running command to stop at the next safe moment."""

from collections.abc import Iterator
import contextlib
import signal
from types import FrameType

from batch_rl_dr3.config import errors

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
  """Whether SIGTERM or SIGINT has come since the run began.

  Attributes:
    signal_name: 'SIGTERM' or 'SIGINT' once one has come, else None.
  """

  def __init__(self) -> None:
    self.signal_name: str | None = None

  def __bool__(self) -> bool:
    return self.signal_name is not None

  def saved(self, steps: int) -> errors.PreemptedError:
    """Returns the error that ends a run whose checkpoint is written."""
    return errors.PreemptedError(
      f'stopped by {self.signal_name} at gradient step {steps}; everything is '
      'saved, and the same command goes on from there.'
    )

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.signal_name = signal.Signals(number).name

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Notes the signals, instead of dying of them, while the block runs."""
    before = [signal.signal(number, self._handle) for number in _SIGNALS]
    try:
      yield
    finally:
      for number, handler in zip(_SIGNALS, before, strict=True):
        signal.signal(number, handler)
