"""The two tables of a run, scores.csv and metrics.csv: written and read here.

scores.csv has a row per evaluation episode; the rows of an iteration say how
many they are and are written all or none. metrics.csv grows row by row, so a
kill can tear its last one, which readers leave out. Damage is an error that
names the file and the line: pandas' C engine reads whole columns, and what it
cannot read as numbers is read again row by row.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import csv
import dataclasses
import io
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, records, run_directory

if TYPE_CHECKING:  # Readers alone import it, which takes a second.
  import pandas as pd

STEPS = 'gradient_steps'
RETURN = 'return'
# Where a row stands for all episodes of an evaluation, one more column: how
# many they are. `return` and `length` are then means, `truncated` is a count.
EPISODES = 'episodes'
# How many rows the iteration of a row has.
NUM_EPISODES = 'num_episodes'
# What a row of scores.csv says about its run, and provenance.json says too.
IDENTITY = ('suite', 'game', 'method', 'dataset', 'run', 'seed')
SCORE_COLUMNS = (
  *IDENTITY,
  *('iteration', STEPS, 'episode', RETURN, 'length', 'truncated'),
)

_Path = str | os.PathLike[str]
_Row = dict[str, str]
# Up to which float64 holds every whole number.
_MAX_COUNT = 2.0**53
_NOT_FINITE = ('nan', 'inf', 'infinity')
_MEND = 'Mend or remove the line.'


def read_rows(path: _Path, required: Sequence[str] = ()) -> list[_Row]:
  """Returns a CSV file's whole rows, none if it is absent, without a torn one.

  The columns `required` must hold a whole number in every row; DataError if
  they do not, or the file is damaged.
  """
  text = io.StringIO(records.read_text(path, _MEND, True) or '')
  reader = csv.DictReader(text, strict=True, skipinitialspace=True)
  rows: list[_Row] = []
  try:
    for row in reader:
      if None in row:
        count, width = len(row) - 1 + len(row[None]), len(row) - 1
        raise csv.Error(f'{count} cells under a header of {width}')
      for name in required:
        cell = row.get(name) or ''
        if not (cell.isascii() and cell.isdigit()):
          raise csv.Error(f'{name} is {cell!r}, not a whole number')
      rows.append(row)
  except csv.Error as error:
    raise errors.DataError(
      f'{path}, line {reader.line_num}: {error}. {_MEND}'
    ) from error
  return rows


@dataclasses.dataclass
class CsvLog:
  """A CSV file that grows row by row and can go back to an earlier state."""

  path: _Path
  columns: Sequence[str]
  check: atomic.Check = atomic.unchecked
  counts: Sequence[str] = ()  # Columns that hold a whole number in every row.

  def rows(self) -> list[_Row]:
    """Returns the whole rows."""
    return read_rows(self.path, self.counts)

  def keep(self, predicate: Callable[[_Row], bool]) -> None:
    """Rewrites the file with only the rows that satisfy `predicate`."""
    if os.path.exists(self.path):
      self.replace(row for row in self.rows() if predicate(row))

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds one row. A kill can tear it; readers leave a torn row out."""
    self.check()
    with (
      atomic.file_errors(self.path),
      open(self.path, 'a', newline='') as file,
    ):
      writer = csv.DictWriter(file, self.columns)
      if file.tell() == 0:
        writer.writeheader()
      writer.writerow(row)

  def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes `rows` in place of all; DataError if a column is not known."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, self.columns)
    writer.writeheader()
    for row in rows:
      unknown = row.keys() - set(self.columns)
      if unknown:
        raise errors.DataError(
          f'{self.path}, line 1: no column {min(unknown)!r} is known. Mend the '
          'header, or start over with --overwrite.'
        )
      writer.writerow(row)
    atomic.write_text(self.path, text.getvalue(), self.check)


@dataclasses.dataclass(frozen=True)
class Episode:
  """One finished episode."""

  lane: int
  episode_return: float  # The sum of its unclipped rewards.
  length: int  # In agent steps.
  truncated: bool  # By the time limit, not the game.


class ScoreLog:
  """scores.csv: rows of evaluation episodes, all or none of an iteration."""

  def __init__(self, base_dir: _Path, check: atomic.Check = atomic.unchecked):
    self._csv = CsvLog(
      os.path.join(base_dir, run_directory.SCORES),
      (*SCORE_COLUMNS, NUM_EPISODES),
      check,
      ('iteration', STEPS),
    )

  def iterations(self) -> set[int]:
    """Returns the iterations that have all of their scores."""
    return {int(r['iteration']) for r in self._csv.rows()} - self.partial()

  def partial(self) -> set[int]:
    """Returns the iterations that lack some of their scores.

    Kept rows of means do not say how many they are: such are whole.
    """
    rows = [(int(row['iteration']), row) for row in self._csv.rows()]
    counts = Counter(iteration for iteration, _ in rows)
    return {
      iteration
      for iteration, row in rows
      if row.get(NUM_EPISODES) not in (None, '', str(counts[iteration]))
    }

  def keep(self, gradient_steps: int) -> None:
    """Drops what was scored after so many gradient steps, or only in part."""
    done = self.iterations()
    self._csv.keep(
      lambda row: (
        int(row[STEPS]) <= gradient_steps and int(row['iteration']) in done
      )
    )

  def append(
    self,
    provenance: Mapping[str, Any],
    iteration: int,
    gradient_steps: int,
    episodes: Sequence[Episode],
  ) -> None:
    """Adds the episodes of one iteration of a run, all or none."""
    others = [r for r in self._csv.rows() if int(r['iteration']) != iteration]
    rows = [
      {
        **{name: provenance[name] for name in IDENTITY},
        'iteration': iteration,
        STEPS: gradient_steps,
        'episode': number,
        RETURN: episode.episode_return,
        'length': episode.length,
        'truncated': int(episode.truncated),
        NUM_EPISODES: len(episodes),
      }
      for number, episode in enumerate(episodes)
    ]
    self._csv.replace([*others, *rows])

  def final_return(self) -> tuple[float, int] | None:
    """Returns the last iteration's mean return and number of episodes."""
    rows = self._csv.rows()
    last = max((int(row['iteration']) for row in rows), default=None)
    returns = [
      _number(self._csv.path, line, RETURN, row.get(RETURN))
      for line, row in enumerate(rows, 2)
      if int(row['iteration']) == last
    ]
    return (sum(returns) / len(returns), len(returns)) if returns else None


def read_columns(
  path: _Path, numbers: Iterable[str], words: Iterable[str] = ()
) -> 'pd.DataFrame':
  """Returns columns of a CSV file, those it has, without a torn last row.

  Returns:
    `gradient_steps`, int64; `numbers`, float64, in which NaN stands for an
    empty cell and infinity for a value that is not finite; `words`, as
    categories.

  Raises:
    DataError: if the file cannot be read, a cell of `numbers` is no number, or
      a row does not say its step.
  """
  import pandas as pd

  text = records.read_text(path, _MEND, True) or ''
  num_lines = text.count('\n')
  first_line = text.partition('\n')[0]
  header = next(csv.reader([first_line], skipinitialspace=True), [])
  if STEPS not in header:
    if num_lines > 1:
      raise errors.DataError(f'{path}, line 2: no {STEPS}.')
    text, num_lines, header = f'{STEPS}\n', 1, [STEPS]
  present = [STEPS, *(n for n in numbers if n in header and n != STEPS)]
  words = [name for name in words if name in header]
  frame = None
  # pandas would leave out the cells of a row that has too many.
  if '"' not in text and text.count(',') <= (len(header) - 1) * num_lines:
    with contextlib.suppress(ValueError):
      kinds = dict.fromkeys(present, 'float64')
      frame = pd.read_csv(
        io.BytesIO(text.encode()),
        usecols=[*present, *words],
        dtype=kinds | dict.fromkeys(words, 'category'),
        na_values={name: [''] for name in present},
        keep_default_na=False,
        # Numbers as Python reads them, to the last bit.
        float_precision='round_trip',
        skipinitialspace=True,
        index_col=False,
        low_memory=False,
      )[[*present, *words]]
  if frame is None:
    rows = read_rows(path)
    columns: dict[str, Any] = {
      n: [_number(path, line, n, row[n]) for line, row in enumerate(rows, 2)]
      for n in present
    }
    columns |= {n: pd.Categorical([row[n] for row in rows]) for n in words}
    frame = pd.DataFrame(columns).astype(dict.fromkeys(present, 'float64'))
  steps = frame[STEPS].to_numpy()
  is_count = (steps >= 0) & (steps < _MAX_COUNT) & (np.floor(steps) == steps)
  _refuse(path, ~is_count, f'no {STEPS}. {_MEND}')
  return frame.astype({STEPS: 'int64'})


def _number(path: _Path, line: int, column: str, cell: str | None) -> float:
  text = (cell or '').strip()
  if not text:
    return np.nan
  if text.lower().lstrip('+-') in _NOT_FINITE:
    return np.inf
  try:
    return float(text)
  except ValueError as error:
    raise errors.DataError(
      f'{path}, line {line}: {column} is {text!r}, not a number. {_MEND}'
    ) from error


def _refuse(
  path: _Path,
  is_wrong: npt.NDArray[np.bool_],
  message: str | Callable[[int], str],
) -> None:
  """Raises DataError if a row is wrong, with what is said of the first."""
  if is_wrong.any():
    row = int(np.argmax(is_wrong))
    said = message if isinstance(message, str) else message(row)
    raise errors.DataError(f'{path}, line {row + 2}: {said}')


def read_metrics(path: pathlib.Path, columns: Iterable[str]) -> 'pd.DataFrame':
  """Returns a row per gradient step: the step and those columns it has."""
  metrics = read_columns(path, columns)
  # A resumed run logs a step again; the later row is the one that counts.
  metrics = metrics.drop_duplicates(STEPS, keep='last').sort_values(STEPS)
  return metrics.reset_index(drop=True)


def read_evaluations(
  path: pathlib.Path, identity: Mapping[str, str]
) -> 'pd.DataFrame':
  """Returns a row per evaluation: its gradient step and what it came to.

  `identity` is what provenance.json says of the run, by `IDENTITY`'s names.

  Returns:
    `gradient_steps`; `return`, the mean over its episodes; `episodes` and
    `truncated`, how many there are and how many of them were cut short;
    `lowest`, the lowest return of an episode, or of the mean that is kept.

  Raises:
    DataError: if the file is damaged, or holds rows of another run.
  """
  import pandas as pd

  numbers = (RETURN, 'episode', 'truncated', EPISODES, NUM_EPISODES)
  episodes = read_columns(path, numbers, identity)
  for name, own in identity.items():
    for value in episodes[name].cat.categories if name in episodes else ():
      if value != own:
        _refuse(
          path,
          (episodes[name] == value).to_numpy(),
          f'{name} is {value!r}, but provenance.json says {own!r}. Give every '
          'run a folder of its own.',
        )
  # pandas' own grouping costs more than the rest of reading a small file.
  columns = {n: np.full(len(episodes), np.nan) for n in numbers}
  columns |= {n: c.to_numpy() for n, c in episodes.items() if n not in identity}
  returns, truncated = columns[RETURN], np.nan_to_num(columns['truncated'])
  _refuse(
    path,
    ~np.isfinite(returns),
    'an episode without a return. Remove the line, or evaluate the run again.',
  )
  if 'episode' in episodes:
    _refuse(
      path,
      episodes.duplicated([STEPS, 'episode']).to_numpy(),
      lambda row: (
        f'episode {columns["episode"][row]:.0f} of gradient step '
        f'{columns[STEPS][row]:,} is there twice. Remove one evaluation of it.'
      ),
    )
  steps, rows = np.unique(columns[STEPS], return_inverse=True)
  weights = np.nan_to_num(columns[EPISODES], nan=1.0)
  counts = np.bincount(rows, weights, len(steps))
  # Kept rows, which are means, say nothing.
  stated = columns[NUM_EPISODES]
  _refuse(
    path,
    ~np.isnan(stated) & (stated != counts[rows]),
    lambda row: (
      f'gradient step {columns[STEPS][row]:,} has {counts[rows][row]:g} of '
      f'{stated[row]:g} episodes. Rerun `train` or `evaluate`, which plays it '
      'again.'
    ),
  )
  lowest = np.full(len(steps), np.inf)
  np.minimum.at(lowest, rows, returns)
  return pd.DataFrame(
    {
      STEPS: steps,
      RETURN: np.bincount(rows, weights * returns, len(steps)) / counts,
      'episodes': counts.astype(np.int64),
      'truncated': np.bincount(rows, truncated, len(steps)).astype(np.int64),
      'lowest': lowest,
    }
  )
