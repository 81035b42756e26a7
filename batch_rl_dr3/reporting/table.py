"""What a table is: exact numbers for its CSV file, rounded for the page."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
import pandas as pd

MISSING = '\N{EN DASH}'


def number(value: Any) -> str:
  """Returns a number with about three digits, or a dash for a missing one."""
  if value is None or pd.isna(value):
    return MISSING
  size = abs(value)
  if isinstance(value, int | np.integer) or size >= 1000:
    return f'{value:,.0f}'
  if size >= 100:
    return f'{value:.1f}'
  if size >= 1 or size == 0:
    return f'{value:.2f}'
  return f'{value:.4f}' if size >= 0.01 else f'{value:.2e}'


def signed(value: Any) -> str:
  """Returns a difference, its sign always shown."""
  text = number(value)
  return text if text == MISSING or value < 0 else f'+{text}'


def exact(value: Any) -> str:
  """Returns a number that somebody has chosen, such as 0.99, as it is."""
  return f'{value:g}'


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    name: in the CSV file.
    heading: on the page.
    show: makes the text of a cell.
    when: whether the page shows it: 'always', 'never', if its cells 'vary',
      or if any of them is 'known'. The CSV file has every column.
  """

  name: str
  heading: str
  show: Callable[[Any], str] = number
  when: str = 'always'

  @property
  def is_text(self) -> bool:
    """Whether its cells are words, not numbers."""
    return self.show not in (number, signed, exact)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, for the page and for a CSV file.

  Attributes:
    name: of the CSV file, without its ending.
    title: above the table.
    caption: below it: what the columns mean.
    empty: the sentence that stands in place of a table without rows.
    columns: in order.
    frame: one row per line, exact numbers.
  """

  name: str
  title: str
  caption: str
  empty: str
  columns: tuple[Column, ...]
  frame: pd.DataFrame

  @property
  def shown(self) -> list[Column]:
    """The columns that the page shows."""
    return [c for c in self.columns if _is_shown(c, self.frame[c.name])]

  @property
  def cells(self) -> list[list[str]]:
    """The rows as the page shows them."""
    return [
      [column.show(row[column.name]) for column in self.shown]
      for row in self.frame.to_dict('records')
    ]

  def to_csv(self) -> str:
    """Returns the whole table as CSV, an empty cell where nothing is known."""
    return str(self.frame.to_csv(index=False, lineterminator='\n'))


def _is_shown(column: Column, cells: pd.Series) -> bool:
  if column.when == 'vary':
    return cells.nunique(dropna=False) > 1
  if column.when == 'known':
    return bool(cells.notna().any())
  return column.when == 'always'
