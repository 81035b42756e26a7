"""What a table is: exact numbers as CSV, rounded ones for page and LaTeX."""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd

MISSING = '\N{EN DASH}'
# Beside a number that is computed on fewer runs than there should be.
INCOMPLETE = '\N{DAGGER}'
_LATEX_SYMBOLS = {
  MISSING: '--',
  INCOMPLETE: r'$^\dagger$',
  '±': r'$\pm$',
  '²': '$^2$',
  '●': r'$\bullet$',
  '◐': r'$\odot$',
  '○': r'$\circ$',
  '\u00ad': '',
}


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


def percent(value: Any) -> str:
  """Returns a percentage as the paper prints it, with one decimal."""
  return MISSING if pd.isna(value) else f'{value:.1f}'


def interval(value: Any, low: Any, high: Any, complete: Any = True) -> str:
  """Returns '43.7 (39.6, 48.6)', with a dagger if it is incomplete.

  Without ends it is the value alone.
  """
  if pd.isna(value):
    return MISSING
  mark = '' if complete else f' {INCOMPLETE}'
  if pd.isna(low):
    return f'{percent(value)}{mark}'
  return f'{percent(value)} ({percent(low)}, {percent(high)}){mark}'


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    name: in the CSV file; several, where a cell of the page is made of them.
    heading: on the page.
    show: makes the text of a cell of as many values as there are names.
    when: whether the page shows it: 'always', 'never', if its cells 'vary',
      or if any of them is 'known'. The CSV file has every column.
    is_text: whether its cells are words, not numbers.
  """

  name: str | tuple[str, ...]
  heading: str
  show: Callable[..., str] = number
  when: str = 'always'
  is_text: bool = False

  @property
  def names(self) -> tuple[str, ...]:
    """Its columns of the CSV file."""
    return (self.name,) if isinstance(self.name, str) else self.name


def text(
  name: str | tuple[str, ...],
  heading: str,
  show: Callable[..., str] = str,
  when: str = 'always',
) -> Column:
  """Returns a column of words."""
  return Column(name, heading, show, when, is_text=True)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, for the page, for LaTeX and for a CSV file.

  Attributes:
    name: of the files, without their endings.
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

  @functools.cached_property
  def shown(self) -> list[Column]:
    """The columns that the page shows."""
    return [c for c in self.columns if _is_shown(c, self.frame[[*c.names]])]

  @functools.cached_property
  def cells(self) -> list[list[str]]:
    """The rows as the page shows them."""
    return [
      [column.show(*(row[name] for name in column.names)) for column in shown]
      for shown in [self.shown]
      for row in self.frame.to_dict('records')
    ]

  def to_csv(self) -> str:
    """Returns the whole table as CSV, an empty cell where nothing is known."""
    return str(self.frame.to_csv(index=False, lineterminator='\n'))

  def to_latex(self) -> str:
    """Returns what the page shows as LaTeX, for the package booktabs."""
    frame = pd.DataFrame(self.cells, columns=[c.heading for c in self.shown])
    latex = frame.to_latex(
      index=False,
      escape=True,
      column_format=''.join('l' if c.is_text else 'r' for c in self.shown),
    )
    for symbol, command in _LATEX_SYMBOLS.items():
      latex = latex.replace(symbol, command)
    return f'% {self.title}. {self.caption}\n{latex}'


def build(
  name: str,
  title: str,
  caption: str,
  empty: str,
  columns: Iterable[Column],
  rows: list[dict[str, Any]],
) -> Table:
  """Returns a table of rows that say each name of each column."""
  columns = tuple(columns)
  names = dict.fromkeys(name for c in columns for name in c.names)
  frame = pd.DataFrame(rows, columns=list(names))
  for column in frame:
    # Steps stay whole numbers even beside a missing one.
    if str(column).endswith('gradient_steps'):
      frame[column] = frame[column].astype('Int64')
  return Table(name, title, caption, empty, columns, frame)


def _is_shown(column: Column, cells: pd.DataFrame) -> bool:
  if column.when == 'vary':
    return len(cells.drop_duplicates()) > 1
  if column.when == 'known':
    return bool(cells.notna().any(axis=None))
  return column.when == 'always'
