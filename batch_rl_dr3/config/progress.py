"""One kind of progress bar: rate, time left, and quiet where nobody looks."""

import sys
from typing import Any

import tqdm


def bar(total: int | None, desc: str, unit: str, **kwargs: Any) -> tqdm.tqdm:
  """Returns a tqdm bar that, without a terminal, writes a line a minute."""
  seconds = 0.5 if sys.stderr.isatty() else 60.0
  return tqdm.tqdm(
    total=total,
    desc=desc,
    unit=unit,
    mininterval=seconds,
    # Without this, tqdm looks at the clock only every so many updates, and
    # a slow stretch after a fast one goes unseen.
    maxinterval=seconds,
    dynamic_ncols=True,
    **kwargs,
  )
