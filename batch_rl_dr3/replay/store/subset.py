"""How much of a logged data set is used, and which rows that is."""

from collections.abc import Mapping, Sequence
import dataclasses
import fractions
import math
from typing import Any, Self

import gin

from batch_rl_dr3.config import errors, ranges

RULES = ('all', 'prefix', 'uniform', 'first')


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Subset:
  """The part of a logged data set that is used.

  * 'prefix': the first `fraction` of the rows of each file. This is how the
    paper's authors make a "uniform" 1% or 5%: contiguous rows, 10,000 of each
    file of 1,000,000 at 1%.
  * 'uniform': transitions drawn uniformly at random and without replacement
    from all that can be sampled, as the paper's text says. Exactly
    floor(fraction * num_rows) of them, where num_rows counts the rows that
    the files hold, padding included; they, and no others, can be sampled
    then. The frames of their stacks and next states are kept too, so that at
    1% about 5 times as many frames are stored. Only for 1-step transitions.
  * 'first': the first `fraction` of all rows in time, so 0.1 is the first 5 of
    50 files. It is a fraction of the files that are there: whoever downloads
    only the first 5 files wants 'all'.
  * 'all': every row; `fraction` is 1.

  Attributes:
    rule: str, one of the above.
    fraction: float in (0, 1]. Counts are exact in its decimal digits: 0.29 of
      100 rows is 29, though 0.29 * 100 is less in binary.
    seed: int, names the draw of 'uniform'; 0 for the other rules. 'run' is the
      run's own seed, so that each seed of a study learns from another draw.
  """

  rule: str = 'all'
  fraction: ranges.PositiveShare = 1.0
  seed: ranges.Natural | str = 0

  def __post_init__(self) -> None:
    """Checks the values.

    Raises:
      ConfigError: for an unknown rule, or what contradicts it.
    """
    if self.rule not in RULES:
      raise errors.ConfigError(
        f'Subset.rule is {self.rule!r}; it must be one of {", ".join(RULES)}.'
      )
    if self.rule == 'all' and self.fraction != 1:
      raise errors.ConfigError(
        f"Subset.rule 'all' contradicts Subset.fraction {self.fraction}; use "
        "'prefix', 'uniform' or 'first'."
      )
    if isinstance(self.seed, str) and self.seed != 'run':
      raise errors.ConfigError(
        f'Subset.seed is {self.seed!r}; it must be a whole number >= 0, or '
        "'run' for the run's own seed."
      )
    if self.rule != 'uniform' and self.seed:
      raise errors.ConfigError(
        f'Subset.seed is {self.seed}, but the rule {self.rule!r} draws '
        "nothing; it is for 'uniform'."
      )

  @property
  def is_uniform(self) -> bool:
    """Whether transitions are drawn, rather than rows taken."""
    return self.rule == 'uniform'

  def for_run(self, seed: int) -> Self:
    """Returns the subset that a run of a seed learns from."""
    return dataclasses.replace(self, seed=seed) if self.seed == 'run' else self

  def held_out(self, count: int) -> 'HeldOut | None':
    """Returns transitions of the log that this subset never learns from.

    Args:
      count: int, how many; fewer if there are no more.

    Returns:
      None if count is 0 or the subset is the whole log.
    """
    if not count or self.fraction == 1:
      return None
    return HeldOut(self.rule, self.fraction, self.seed, count)

  def record(self) -> dict[str, Any]:
    """Returns what the manifest says of it."""
    if self.seed == 'run':
      raise errors.ConfigError(
        "Subset.seed is 'run', and there is no run whose seed it could be; "
        'bind an integer.'
      )
    # 1 and 1.0 are one subset, and so one store.
    fields = {**dataclasses.asdict(self), 'fraction': float(self.fraction)}
    if not self.is_uniform:
      del fields['seed']
    return fields

  def num_drawn(self, num_rows: int) -> int:
    """Returns how many transitions 'uniform' draws from so many rows.

    Raises:
      ConfigError: if it is none.
    """
    count = self._floor(num_rows)
    if not count:
      raise errors.ConfigError(
        f'Subset.fraction {self.fraction} of {num_rows} rows is not one '
        'transition. Use a larger fraction.'
      )
    return count

  def rows_per_file(
    self, files: Sequence[tuple[int, int]], stack_size: int
  ) -> dict[int, int]:
    """Returns how many rows to read from the start of each file.

    'uniform' reads all of them and keeps what was drawn.

    Args:
      files: (suffix, num_rows) of every file, in time order.
      stack_size: int, frames in a state.

    Returns:
      A dict from suffix to a number of rows; files that give none are absent.

    Raises:
      ConfigError: if no file gives the stack_size + 1 rows that the smallest
        transition needs.
    """
    if self.rule == 'first':
      rows = self._first(files)
    elif self.is_uniform:
      rows = dict(files)
    else:
      rows = {suffix: self._floor(num_rows) for suffix, num_rows in files}
    if max(rows.values(), default=0) < stack_size + 1:
      raise errors.ConfigError(
        f'Subset.fraction {self.fraction} takes at most '
        f'{max(rows.values(), default=0)} rows of a file; a transition needs '
        f'{stack_size + 1}. Use a larger fraction.'
      )
    return {suffix: count for suffix, count in rows.items() if count > 0}

  def _floor(self, num_rows: int) -> int:
    return math.floor(fractions.Fraction(str(self.fraction)) * num_rows)

  def _first(self, files: Sequence[tuple[int, int]]) -> dict[int, int]:
    rows = {}
    left = self._floor(sum(num_rows for _, num_rows in files))
    for suffix, num_rows in files:
      rows[suffix] = min(num_rows, left)
      left -= rows[suffix]
    return rows


@dataclasses.dataclass(frozen=True)
class HeldOut(Subset):
  """Transitions of a log that one of its subsets never learns from.

  They are drawn uniformly and without replacement from all that can be sampled
  in the log, except for those whose state is a state or a next state of the
  subset. `rule`, `fraction` and `seed` are the subset's.

  Attributes:
    count: int, how many are drawn; all there are if there are fewer.
  """

  count: int = 0

  @property
  def is_uniform(self) -> bool:
    """True: transitions are drawn."""
    return True

  @property
  def subset(self) -> Subset:
    """What they are held out of."""
    return Subset(self.rule, self.fraction, self.seed)

  def record(self) -> dict[str, Any]:
    """Returns what the manifest says of it."""
    return {**self.subset.record(), 'held_out': self.count}

  def rows_per_file(
    self, files: Sequence[tuple[int, int]], stack_size: int
  ) -> dict[int, int]:
    """Returns all rows of all files, see base class."""
    del stack_size
    return {suffix: count for suffix, count in files if count > 0}


def is_drawn(record: Mapping[str, Any]) -> bool:
  """Returns whether a manifest's subset is of single transitions, drawn."""
  return record['rule'] == 'uniform' or 'held_out' in record
