"""Transitions drawn uniformly at random from a log, and the rows they need."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors

# Steps in the transitions that are drawn.
UPDATE_HORIZON = 1


def draw_rows(
  valid: Sequence[npt.NDArray[np.uint8]],
  num_valid: Sequence[int],
  count: int,
  seed: int | Sequence[int],
) -> list[npt.NDArray[np.int64]]:
  """Returns `count` rows, drawn uniformly and without replacement.

  How many each file gives is drawn first (multivariate hypergeometric), and
  then which: the same distribution as one draw from all files at once, with
  one file in memory at a time.

  Args:
    valid: of each file, whether a transition may start at each row, as bits
      (`np.packbits`).
    num_valid: of each file, how many of these are set.
    count: int, how many to draw from all files together.
    seed: names the draw.

  Returns:
    int64 [any] for each file, rows of the file in ascending order.

  Raises:
    ConfigError: if there are fewer valid rows than `count`.
  """
  if count > sum(num_valid):
    raise errors.ConfigError(
      f'a uniform subset of {count} transitions was asked for; the log has '
      f'{sum(num_valid)} to draw from, for padding and the rows around a '
      "file's end hold none. Use a smaller Subset.fraction, or the rule 'all'."
    )
  own, *seeds = np.random.SeedSequence(seed).spawn(len(valid) + 1)
  counts = np.random.default_rng(own).multivariate_hypergeometric(
    list(num_valid), count, method='marginals'
  )
  drawn = []
  for bits, number, child in zip(valid, counts, seeds, strict=True):
    rows = np.flatnonzero(np.unpackbits(bits))
    chosen = np.random.default_rng(child).choice(
      rows, number, replace=False, shuffle=False
    )
    drawn.append(np.sort(chosen))
  return drawn


def rows_needed(
  drawn: npt.NDArray[np.int64], num_rows: int, stack_size: int
) -> npt.NDArray[np.int64]:
  """Returns the rows of a file whose frames the transitions hold.

  They are the stack_size rows up to each one and the row after it, each row
  once. In a full buffer they wrap around the file's end. Ascending, the rows
  of any one transition are neighbours among them (the last and the first are
  too), so that whoever keeps just these rows finds a stack by counting back,
  as in the file itself.

  With rows [4, 6] drawn of 10 and stacks of 2 it is [3, 4, 5, 6, 7].

  Args:
    drawn: int64 [any], rows where transitions start.
    num_rows: int, rows of the file.
    stack_size: int, frames in a state.

  Returns:
    int64 [any], in ascending order.
  """
  needed = np.zeros(num_rows, np.bool_)
  for offset in range(1 - stack_size, UPDATE_HORIZON + 1):
    needed[(drawn + offset) % num_rows] = True
  return np.flatnonzero(needed)
