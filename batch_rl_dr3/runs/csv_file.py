"""CSV files of a run directory as columns, damage named by file and line.

pandas' C engine reads the columns that are asked for and no others. What it
cannot read as numbers is looked at again cell by cell, so that the error names
the line.
"""

from collections.abc import Iterable
import csv
import io
import os
import pathlib

import numpy as np
import pandas as pd

from batch_rl_dr3.config import errors

STEPS = 'gradient_steps'

_Path = os.PathLike[str]
_NOT_FINITE = ('nan', 'inf', 'infinity')


def read(
  path: _Path, numbers: Iterable[str], words: Iterable[str] = ()
) -> pd.DataFrame:
  """Returns columns of a CSV file; a last row torn by a kill is left out.

  Args:
    path: the file. One that is not there has no rows.
    numbers: names of columns of numbers; those that the file lacks are left
      out.
    words: the same, of columns of text.

  Returns:
    `gradient_steps`, int64; `numbers`, float64, in which NaN stands for an
    empty cell and infinity for a value that is not finite; `words`, as
    categories.

  Raises:
    DataError: if the file cannot be read, a cell of `numbers` is no number, or
      a row does not say its step.
  """
  content = _whole_rows(path)
  there = _header(path, content)
  present = [name for name in numbers if name in there and name != STEPS]
  words = [name for name in words if name in there]
  if content.count(b'\n') > 1 and STEPS not in there:
    raise errors.DataError(f'{path}, line 2: no {STEPS}.')
  if STEPS not in there:
    there = [STEPS]
    present = words = []
    content = f'{STEPS}\n'.encode()
  _refuse_uneven_rows(path, content, len(there))
  try:
    frame = _parse(content, [STEPS, *present], words, 'float64')
  except (ValueError, pd.errors.ParserError):
    frame = _cell_by_cell(path, content, [STEPS, *present], words)
  wrong = np.flatnonzero(~np.isfinite(frame[STEPS].to_numpy()))
  if wrong.size:
    raise errors.DataError(f'{path}, line {wrong[0] + 2}: no {STEPS}.')
  return frame.astype({STEPS: 'int64'})


def _whole_rows(path: _Path) -> bytes:
  try:
    content = pathlib.Path(path).read_bytes()
  except FileNotFoundError:
    return b''
  except OSError as error:
    raise errors.DataError(f'cannot read {path}: {error}') from error
  return content[: content.rfind(b'\n') + 1]


def _header(path: _Path, content: bytes) -> list[str]:
  first_line = content[: content.find(b'\n') + 1]
  try:
    lines = csv.reader([first_line.decode()], skipinitialspace=True)
  except UnicodeDecodeError as error:
    raise errors.DataError(f'cannot read {path}: {error}') from error
  return next(lines, [])


def _refuse_uneven_rows(path: _Path, content: bytes, num_cells: int) -> None:
  """Raises if a row has more cells than the header: two rows run together."""
  if b'"' in content:  # Cells may hold commas, and pandas counts them.
    return
  most = (num_cells - 1) * content.count(b'\n')
  if content.count(b',') <= most:
    return
  for number, line in enumerate(content.splitlines(), 1):
    if line.count(b',') >= num_cells:
      raise errors.DataError(
        f'{path}, line {number}: {line.count(b",") + 1} cells under a header '
        f'of {num_cells}. Mend or remove the line.'
      )


def _parse(
  content: bytes, numbers: list[str], words: list[str], number_type: str
) -> pd.DataFrame:
  frame = pd.read_csv(
    io.BytesIO(content),
    usecols=[*numbers, *words],
    dtype=dict.fromkeys(numbers, number_type)
    | dict.fromkeys(words, 'category'),
    na_values={name: [''] for name in numbers},
    keep_default_na=False,
    # Numbers as Python reads them, to the last bit.
    float_precision='round_trip',
    skipinitialspace=True,
    index_col=False,
    low_memory=False,
  )
  return frame[[*numbers, *words]]


def _cell_by_cell(
  path: _Path, content: bytes, numbers: list[str], words: list[str]
) -> pd.DataFrame:
  try:
    frame = _parse(content, numbers, words, 'str')
  except (ValueError, pd.errors.ParserError) as error:
    reason = ' '.join(str(error).split())
    raise errors.DataError(f'cannot read {path}: {reason}') from error
  for name in numbers:
    frame[name] = [
      _number(path, line, name, cell)
      for line, cell in enumerate(frame[name], 2)
    ]
  return frame.astype(dict.fromkeys(numbers, 'float64'))


def _number(path: _Path, line: int, column: str, cell: str | float) -> float:
  text = cell.strip() if isinstance(cell, str) else ''
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
