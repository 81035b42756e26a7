"""One kind of progress bar: rate, time left, and quiet where nobody looks."""

import sys
from typing import Any

import tqdm

# Seconds between updates: on a terminal, and in a log file.
_TERMINAL_INTERVAL = 0.5
_LOG_INTERVAL = 60.0


def bar(total: int | None, desc: str, unit: str, **kwargs: Any) -> tqdm.tqdm:
  """Returns a tqdm bar that writes a line a minute where there is no terminal.

  Args:
    total: units until the end, None where it is not known.
    desc: what is under way.
    unit: what is counted.
    **kwargs: further arguments of tqdm.
  """
  interval = _TERMINAL_INTERVAL if sys.stderr.isatty() else _LOG_INTERVAL
  return tqdm.tqdm(
    total=total,
    desc=desc,
    unit=unit,
    mininterval=interval,
    # Without this, tqdm looks at the clock only every so many updates, and
    # a slow stretch after a fast one goes unseen.
    maxinterval=interval,
    dynamic_ncols=True,
    **kwargs,
  )
