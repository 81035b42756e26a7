"""CSV files of a run directory as numbers, damage named by file and line."""

from collections.abc import Iterable
import csv
import os

import numpy as np
import pandas as pd

from batch_rl_dr3 import errors, run_directory

STEPS = 'gradient_steps'

_Path = os.PathLike[str]
_NOT_FINITE = ('nan', 'inf', 'infinity')


def read(path: _Path) -> list[dict[str, str]]:
  """Returns the whole rows of a CSV file, none if there is no file.

  Raises:
    DataError: if it cannot be read.
  """
  try:
    return run_directory.read_csv(path)
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise errors.DataError(f'cannot read {path}: {error}') from error


def numbers(
  path: _Path, rows: list[dict[str, str]], columns: Iterable[str]
) -> pd.DataFrame:
  """Returns the gradient steps and those of `columns` that the rows have.

  Args:
    path: the file that the rows are of, for errors.
    rows: cells by column name.
    columns: names; those that the file lacks are left out.

  Returns:
    `gradient_steps`, int64, and float64 columns, in which NaN stands for an
    empty cell and infinity for a value that is not finite.

  Raises:
    DataError: if a cell is no number, or a row does not say its step.
  """
  present = [name for name in columns if rows and name in rows[0]]
  frame = pd.DataFrame(
    {
      name: [_number(path, line, row, name) for line, row in enumerate(rows, 2)]
      for name in (STEPS, *present)
    },
    dtype=float,
  )
  wrong = np.flatnonzero(~np.isfinite(frame[STEPS].to_numpy()))
  if wrong.size:
    raise errors.DataError(f'{path}, line {wrong[0] + 2}: no {STEPS}.')
  return frame.astype({STEPS: 'int64'})


def _number(path: _Path, line: int, row: dict[str, str], column: str) -> float:
  # A row that is too short has None in the columns that it lacks.
  text = (row.get(column) or '').strip()
  if not text:
    return np.nan
  if text.lower().lstrip('+-') in _NOT_FINITE:
    return np.inf
  try:
    return float(text)
  except ValueError as error:
    raise errors.DataError(
      f'{path}, line {line}: {column} is {text!r}, not a number.'
    ) from error
