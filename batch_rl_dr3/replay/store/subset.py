"""How much of a logged data set is used, and which rows that is."""

from collections.abc import Mapping, Sequence
import dataclasses
import fractions
import itertools
import math
from typing import Any, Self

import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.replay.store.validity import Segment

RULES = ('all', 'prefix', 'uniform', 'first', 'episodes')
# Those that read every row and keep what a draw names.
DRAWN_RULES = ('uniform', 'episodes')
# Steps in the transitions that are drawn.
UPDATE_HORIZON = 1
# Keeps the draw of held-out rows apart from the subset's of the same seed.
_HELD_OUT_STREAM = 1


@gin.configurable(denylist=['num_held_out'])
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Subset:
  """The part of a logged data set that is used.

  * 'prefix': the first `fraction` of the rows of each file, as the paper's
    authors make a "uniform" 1% or 5%: 10,000 rows of each 1,000,000 at 1%.
  * 'uniform': floor(fraction * num_rows) 1-step transitions drawn uniformly
    without replacement from all that can be sampled, as the paper's text says,
    padding counted as rows. With the frames of their stacks and next states, a
    1% stores about 5 times as many frames.
  * 'first': the first `fraction` of all rows in time, so 0.1 is the first 5 of
    the 50 files that are there.
  * 'episodes': whole episodes of each file, drawn without replacement until
    they hold at least `fraction` of its rows, as d3rlpy makes its 1% of Atari.
    Episodes that cross files are left out. Only for 1-step transitions.
  * 'all': every row; `fraction` is 1.

  Attributes:
    fraction: exact in its decimal digits: 0.29 of 100 rows is 29.
    seed: names the draw; 'run' is the run's own, another draw for each seed.
    num_held_out: see `held_out`.
  """

  rule: str = 'all'
  fraction: ranges.PositiveShare = 1.0
  seed: ranges.Natural | str = 0
  num_held_out: ranges.Natural = 0

  def __post_init__(self) -> None:
    if self.rule not in RULES:
      raise errors.ConfigError(
        f'Subset.rule is {self.rule!r}; it must be one of {", ".join(RULES)}.'
      )
    if self.rule == 'all' and self.fraction != 1:
      raise errors.ConfigError(
        f"Subset.rule 'all' contradicts Subset.fraction {self.fraction}; use "
        "'prefix', 'uniform', 'first' or 'episodes'."
      )
    if isinstance(self.seed, str) and self.seed != 'run':
      raise errors.ConfigError(
        f'Subset.seed is {self.seed!r}; it must be a whole number >= 0, or '
        "'run' for the run's own seed."
      )
    if self.seed and not self.is_drawn:
      raise errors.ConfigError(
        f'Subset.seed is {self.seed}, but the rule {self.rule!r} draws '
        f'nothing; it is for {" and ".join(map(repr, DRAWN_RULES))}.'
      )

  @property
  def is_drawn(self) -> bool:
    """Whether transitions or episodes are drawn, rather than rows taken."""
    return self.rule in DRAWN_RULES or self.num_held_out > 0

  def for_run(self, seed: int) -> Self:
    """Returns the subset that a run of a seed learns from."""
    return dataclasses.replace(self, seed=seed) if self.seed == 'run' else self

  def held_out(self, count: int) -> 'Subset | None':
    """Returns up to `count` transitions that this subset never learns from.

    They are drawn from those whose state is no state or next state of it. None
    if the count is 0 or the subset is the whole log.
    """
    if not count or self.fraction == 1:
      return None
    return dataclasses.replace(self, num_held_out=count)

  def record(self) -> dict[str, Any]:
    """Returns what the manifest says of it."""
    if self.seed == 'run':
      raise errors.ConfigError(
        "Subset.seed is 'run', and there is no run whose seed it could be; "
        'bind an integer.'
      )
    # 1 and 1.0 are one subset, and so one store.
    fields = {'rule': self.rule, 'fraction': float(self.fraction)}
    if self.rule in DRAWN_RULES:
      fields['seed'] = self.seed
    if self.num_held_out:
      fields['held_out'] = self.num_held_out
    return fields

  def num_drawn(self, num_rows: int) -> int:
    """Returns how many transitions or rows of episodes so many rows give."""
    count = self._floor(num_rows)
    if not count:
      raise errors.ConfigError(
        f'Subset.fraction {self.fraction} of {num_rows} rows is not one '
        'transition. Use a larger fraction.'
      )
    return count

  def rows_per_file(
    self, lengths: Mapping[int, int], stack_size: int
  ) -> dict[int, int]:
    """Returns how many rows to read from the start of each file, by suffix.

    The lengths are in time order; files that give no row are absent. A rule
    that draws reads all rows.

    Raises:
      ConfigError: if no file gives stack_size + 1 rows, as a transition needs.
    """
    if self.is_drawn:
      rows = dict(lengths)
    elif self.rule == 'first':
      rows, left = {}, self._floor(sum(lengths.values()))
      for suffix, num_rows in lengths.items():
        rows[suffix] = min(num_rows, left)
        left -= rows[suffix]
    else:
      rows = {suffix: self._floor(n) for suffix, n in lengths.items()}
    most = max(rows.values(), default=0)
    if most < stack_size + 1:
      raise errors.ConfigError(
        f'Subset.fraction {self.fraction} takes at most {most} rows of a file; '
        f'a transition needs {stack_size + 1}. Use a larger fraction.'
      )
    return {suffix: count for suffix, count in rows.items() if count > 0}

  def _floor(self, num_rows: int) -> int:
    return math.floor(fractions.Fraction(str(self.fraction)) * num_rows)


def draw(
  subset: Subset,
  segments: Sequence[Segment],
  terminals: Sequence[npt.NDArray[np.uint8]],
  lengths: Mapping[int, int],
  stack_size: int,
) -> list[npt.NDArray[np.int64]]:
  """Returns the rows of each file where a drawn transition starts, ascending.

  The segments' row 0 is their first; `lengths` are of all files of the log.
  """
  base = dataclasses.replace(subset, num_held_out=0)
  assert isinstance(base.seed, int)
  valid = [
    segment.valid_rows(ends, stack_size, UPDATE_HORIZON)
    for segment, ends in zip(segments, terminals, strict=True)
  ]
  if base.rule == 'uniform':
    count = base.num_drawn(sum(map(len, terminals)))
    drawn = draw_rows(valid, count, [base.seed])
  elif base.rule == 'episodes':
    drawn = []
    for number, segment in enumerate(segments):
      in_time = segment.rows_in_time()
      places = draw_episodes(
        terminals[number][in_time],
        base.num_drawn(segment.num_rows),
        [base.seed, number],
      )
      drawn.append(np.intersect1d(in_time[places], valid[number]))
    if not any(map(len, drawn)):
      raise errors.ConfigError(
        'no file of the log holds a whole episode, so that none can be drawn. '
        "Use another Subset.rule, such as 'prefix'."
      )
  else:
    counts = base.rows_per_file(lengths, stack_size)
    drawn = [
      np.arange(min(counts.get(segment.suffix, 0), segment.num_rows))
      for segment in segments
    ]
  if not subset.num_held_out:
    return drawn
  # The states learnt from, and the next states of those that are drawn.
  horizon = UPDATE_HORIZON if base.is_drawn else 0
  others = [
    np.setdiff1d(rows, np.concatenate([own, (own + horizon) % len(ends)]))
    for rows, own, ends in zip(valid, drawn, terminals, strict=True)
  ]
  count = min(subset.num_held_out, sum(map(len, others)))
  if not count:
    raise errors.ConfigError(
      'the subset leaves no transition of the log to hold out. Use a smaller '
      'Subset.fraction, or hold out 0.'
    )
  return draw_rows(others, count, [base.seed, _HELD_OUT_STREAM])


def draw_rows(
  valid: Sequence[npt.NDArray[np.int64]], count: int, seed: int | Sequence[int]
) -> list[npt.NDArray[np.int64]]:
  """Returns `count` rows drawn uniformly without replacement, by file.

  How many of each file's `valid` rows is drawn first (multivariate
  hypergeometric), and then which: the distribution of a draw from all at once.
  """
  num_valid = [*map(len, valid)]
  if count > sum(num_valid):
    raise errors.ConfigError(
      f'a uniform subset of {count} transitions was asked for; the log has '
      f'{sum(num_valid)} to draw from, for padding and the rows around a '
      "file's end hold none. Use a smaller Subset.fraction, or the rule 'all'."
    )
  own, *seeds = np.random.SeedSequence(seed).spawn(len(valid) + 1)
  counts = np.random.default_rng(own).multivariate_hypergeometric(
    num_valid, count, method='marginals'
  )
  return [
    np.sort(
      np.random.default_rng(child).choice(
        rows, number, replace=False, shuffle=False
      )
    )
    for rows, number, child in zip(valid, counts, seeds, strict=True)
  ]


def draw_episodes(
  terminals: npt.NDArray[np.uint8], num_rows: int, seed: Sequence[int]
) -> npt.NDArray[np.int64]:
  """Returns the places in `terminals` of whole episodes, drawn at random.

  They are at least `num_rows`, if there are so many. With terminals [0, 1, 0,
  0, 1, 0, 1, 0] the whole episodes are rows 2-4 and 5-6; for 1 row it is one.
  """
  episodes = [*itertools.pairwise(np.flatnonzero(terminals) + 1)]
  rows = [np.zeros(0, np.int64)]
  left = num_rows
  for number in np.random.default_rng(seed).permutation(len(episodes)):
    if left <= 0:
      break
    rows.append(np.arange(*episodes[number]))
    left -= len(rows[-1])
  return np.concatenate(rows)


def rows_needed(
  drawn: npt.NDArray[np.int64], num_rows: int, stack_size: int
) -> npt.NDArray[np.int64]:
  """Returns the rows of a file whose frames the transitions hold, ascending.

  They are the stack_size rows up to each one and the row after it, around the
  end of a full buffer. Of rows [4, 6] and stacks of 2 it is [3, 4, 5, 6, 7].
  """
  needed = np.zeros(num_rows, np.bool_)
  for offset in range(1 - stack_size, UPDATE_HORIZON + 1):
    needed[(drawn + offset) % num_rows] = True
  return np.flatnonzero(needed)
