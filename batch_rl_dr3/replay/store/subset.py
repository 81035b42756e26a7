"""Which rows of a log can be sampled, which are used, and the returns of them.

`Segment.valid_rows` are the rows for which `is_valid_transition` of Dopamine's
`OutOfGraphReplayBuffer` holds, which answers for one index at a time.
"""

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

_Rows = npt.NDArray[np.int64]
RULES = ('all', 'prefix', 'uniform', 'first', 'episodes')
# Those that read every row and keep what a draw names.
DRAWN_RULES = ('uniform', 'episodes')
# Steps in the transitions that are drawn.
UPDATE_HORIZON = 1
# Keeps the draw of held-out rows apart from the subset's of the same seed.
_HELD_OUT_STREAM = 1
# No run ever adds so many rows.
_MAX_ADD_COUNT = 10**12


def cursor_range(
  cursor: int, capacity: int, stack_size: int, update_horizon: int
) -> _Rows:
  """Returns the rows that the write cursor makes unsampleable.

  For horizon N and stacks of K: cursor - N, ..., cursor + K - 1 modulo the
  capacity. With cursor 0, capacity 10, K = 4 and N = 1 it is [9, 0, 1, 2, 3].
  """
  offsets = np.arange(-update_horizon, stack_size, dtype=np.int64)
  return (cursor + offsets) % capacity


def returns_to_go(
  rewards: npt.NDArray[np.float32],
  terminals: npt.NDArray[np.uint8],
  gamma: float,
  is_cut: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
  """Returns the discounted sum of rewards from each row to its episode's end.

  G_t = r_t + gamma * (1 - terminal_t) * G_{t+1} of rows in time order, NaN
  where the episode does not end within them, or was cut. With rewards [1, 0, 2,
  5], terminals [0, 0, 1, 0] and gamma 0.5 it is [1.5, 1, 2, NaN].
  """
  # Imported here because it takes a second and few runs need it.
  from scipy import signal

  returns = np.full(rewards.shape, np.nan, dtype=np.float32)
  start = 0
  for end in np.flatnonzero(terminals) + 1:
    if is_cut is None or not is_cut[end - 1]:
      backwards = rewards[start:end][::-1].astype(np.float64)
      summed = signal.lfilter([1.0], [1.0, -gamma], backwards)
      returns[start:end] = summed[::-1]
    start = end
  return returns


@dataclasses.dataclass(frozen=True)
class Segment:
  """The rows that one file of the log gave to the store."""

  suffix: int
  num_rows: int  # From the file's row 0 on, or what drawn transitions need.
  num_rows_in_source: int  # The length of the file's arrays.
  add_count: int
  invalid_range: Sequence[int]  # Rows of the file, as it says.
  first_row: int = 0  # Of the store.
  # Whether the file was read whole, with its checksum.
  read_to_end: bool = True
  num_drawn: int | None = None  # Of a draw: all that can be sampled.
  # Rows marked as terminals although their episodes were cut by time.
  cut_rows: Sequence[int] = ()

  def record(self) -> dict[str, Any]:
    """Returns its fields as manifests have them, without what is not known."""
    optional = ('num_drawn', 'cut_rows')
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if v or k not in optional}

  @property
  def is_whole(self) -> bool:
    """Whether it holds all rows that the file's buffer held."""
    num_held = min(self.num_rows_in_source, self.add_count)
    return self.num_drawn is None and self.num_rows == num_held

  @property
  def is_circular(self) -> bool:
    """Whether the oldest row follows the newest: a full buffer, used whole."""
    return self.is_whole and self.num_rows == self.num_rows_in_source

  @property
  def cursor(self) -> int:
    """The file's row that its buffer would have written next."""
    return self.add_count % self.num_rows_in_source

  def rows_in_time(self) -> _Rows:
    """Returns its rows of the store, oldest first, int64 [num_rows]."""
    rows = np.arange(self.num_rows, dtype=np.int64)
    if self.is_circular:
      rows = np.roll(rows, -self.cursor)
    return self.first_row + rows

  def valid_rows(
    self, terminals: npt.NDArray[np.uint8], stack_size: int, update_horizon: int
  ) -> _Rows:
    """Returns the rows of the store where a transition may start.

    A full buffer is circular, and stacks wrap around its end; one that is not,
    or of which a prefix is used, was stopped after its last row.
    """
    size = self.num_rows_in_source
    if size < stack_size + update_horizon:
      return np.zeros(0, np.int64)  # Dopamine refuses to make such a buffer.
    valid = np.ones(self.num_rows, np.bool_)
    if not self.is_circular:
      valid[max(self.num_rows - update_horizon, 0) :] = False
      valid[: stack_size - 1] = False
    cut = np.array(self.cut_rows, np.int64)
    invalid = [
      np.array(self.invalid_range, np.int64),
      cursor_range(self.cursor, size, stack_size, update_horizon),
      *(cut - step for step in range(update_horizon)),
    ]
    rows = np.concatenate(invalid)
    valid[rows[(rows >= 0) & (rows < self.num_rows)]] = False
    # A terminal may stand in a stack only in its last frame.
    no_end = terminals == 0
    for age in range(1, stack_size):
      valid &= np.roll(no_end, age)
    return self.first_row + np.flatnonzero(valid)

  def is_followed_by(self, other: 'Segment') -> bool:
    """Whether `other` starts in time where this segment ends.

    A full file covers the rows of the run from add_count - num_rows to
    add_count. The count of a short last file starts again at 0; it follows a
    file that ended with its cursor back at 0.
    """
    is_next = other.suffix == self.suffix + 1
    if not (is_next and self.is_whole and other.is_whole):
      return False
    if other.add_count - other.num_rows == self.add_count:
      return True
    is_short = other.num_rows < self.num_rows
    return is_short and other.add_count == other.num_rows and self.cursor == 0

  def check_counts(self, name: object) -> None:
    """Raises a DataError that calls it `name` if its counts cannot be."""
    if not 0 <= self.add_count <= _MAX_ADD_COUNT:
      raise self._damaged(name, 'no run adds so many rows')
    if not 0 <= self.num_rows <= min(self.num_rows_in_source, self.add_count):
      raise self._damaged(name, f'{self.num_rows:,} rows are used')

  def check_cursor(self, name: object) -> None:
    """Raises a DataError if invalid_range does not lie around the cursor.

    Dopamine saves the N rows before add_count and the K from there on.
    """
    invalid, count = set(self.invalid_range), len(self.invalid_range)
    if not any(invalid):  # A buffer that was never written to.
      return
    # In a buffer that is not full, no row lies before the first.
    for horizon in range(1, min(count, self.add_count + 1)):
      around = cursor_range(
        self.cursor, self.num_rows_in_source, count - horizon, horizon
      )
      if invalid == set(around.tolist()):
        return
    raise self._damaged(name, f'invalid_range is {list(self.invalid_range)}')

  def _damaged(self, name: object, contradiction: str) -> errors.DataError:
    return errors.DataError(
      f'{name}: add_count_ckpt.{self.suffix} is damaged: it says '
      f'{self.add_count:,} of {self.num_rows_in_source:,} rows, but '
      f'{contradiction}. Fetch add_count and invalid_range of suffix '
      f'{self.suffix} again.'
    )


def episode_returns(
  segments: Sequence[Segment],
  rewards: npt.NDArray[np.float32],
  terminals: npt.NDArray[np.uint8],
  gamma: float,
) -> npt.NDArray[np.float32]:
  """Returns the `returns_to_go` of the rows of segments, in the rows' order.

  Episodes continue across whole files that follow each other in time.
  """
  ends, is_cut = terminals.copy(), np.zeros(len(rewards), np.bool_)
  order = [segment.rows_in_time() for segment in segments]
  for number, segment in enumerate(segments):
    cut = np.array(segment.cut_rows, np.int64)
    is_cut[segment.first_row + cut[cut < segment.num_rows]] = True
    following = segments[number + 1 : number + 2]
    last = order[number][-1]
    if not any(map(segment.is_followed_by, following)) and not ends[last]:
      ends[last], is_cut[last] = 1, True
  rows = np.concatenate(order)
  returns = np.empty(len(rewards), dtype=np.float32)
  returns[rows] = returns_to_go(rewards[rows], ends[rows], gamma, is_cut[rows])
  return returns


@gin.configurable(denylist=['num_held_out'])
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Subset:
  """The part of a logged data set that is used.

  * 'prefix': the first `fraction` of the rows of each file, as the paper's
    authors make a "uniform" 1% or 5%: 10,000 rows of each 1,000,000 at 1%.
  * 'uniform': floor(fraction * num_rows) 1-step transitions drawn without
    replacement from all that can be sampled, as the paper's text says, padding
    counted as rows. A 1% stores about 5 times as many frames.
  * 'first': the first `fraction` of all rows in time, so 0.1 is the first 5 of
    the 50 files that are there.
  * 'episodes': whole episodes of each file, drawn without replacement until
    they hold at least `fraction` of its rows, as d3rlpy makes its 1% of Atari.
    Episodes that cross files are left out. Only for 1-step transitions.
  * 'all': every row; `fraction` is 1.

  A fraction is exact in its decimal digits: 0.29 of 100 rows is 29. The seed
  names the draw; 'run' is the run's own. num_held_out: see `held_out`.
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
) -> list[_Rows]:
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
  valid: Sequence[_Rows], count: int, seed: int | Sequence[int]
) -> list[_Rows]:
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
) -> _Rows:
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


def rows_needed(drawn: _Rows, num_rows: int, stack_size: int) -> _Rows:
  """Returns the rows of a file whose frames the transitions hold, ascending.

  They are the stack_size rows up to each one and the row after it, around the
  end of a full buffer. Of rows [4, 6] and stacks of 2 it is [3, 4, 5, 6, 7].
  """
  needed = np.zeros(num_rows, np.bool_)
  for offset in range(1 - stack_size, UPDATE_HORIZON + 1):
    needed[(drawn + offset) % num_rows] = True
  return np.flatnonzero(needed)
