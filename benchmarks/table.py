"""The rows of the benchmark, and how they are printed and written."""

from collections.abc import Sequence
import dataclasses

from batch_rl_dr3.runs import atomic

# What programs know rows by, such as `sweep plan --benchmark`.
GRADIENT_STEPS = 'gradient_steps_per_second'
AGENT_STEPS = 'agent_steps_per_second'


@dataclasses.dataclass(frozen=True)
class Row:
  """One measured number.

  Attributes:
    name: what was measured.
    value: the number.
    unit: its unit.
    peer: what it is compared with; None if with nothing.
    peer_value: the peer's number, in the same unit.
    ratio: how many times better it is than the peer, or, where the peer is a
      limit or a part of the same thing, what fraction or multiple of it; the
      median over pairs, so not quite the quotient of the two medians.
    goal: what is aimed at, in words.
    timed: what was timed, in words.
    seconds: for how long, all bursts of both sides together.
    quartiles: the ratio's over the pairs, the lower and the upper.
    quantity: what programs know the row by; None of rows for people alone.
    method: the method that the quantity is of, as runs name it.
  """

  name: str
  value: float
  unit: str
  peer: str | None = None
  peer_value: float | None = None
  ratio: float | None = None
  goal: str | None = None
  timed: str = ''
  seconds: float | None = None
  quartiles: tuple[float, float] | None = None
  quantity: str | None = None
  method: str | None = None


_HEADINGS = (
  *('what', 'value', 'unit', 'peer', "peer's", 'ratio', 'quartiles', 'goal'),
  *('timed', 'for, s'),
)


def to_text(rows: Sequence[Row]) -> str:
  """Returns the rows as a table of text."""
  cells = [_HEADINGS] + [
    (
      row.name,
      _number(row.value),
      row.unit,
      row.peer or '',
      _number(row.peer_value),
      _number(row.ratio),
      ' to '.join(_number(value) for value in row.quartiles or ()),
      row.goal or '',
      row.timed,
      _number(row.seconds),
    )
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  numeric = {1, 4, 5, 9}
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if column in numeric else cell.ljust(width)
      for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in cells
  )


def _number(value: float | None) -> str:
  if value is None:
    return ''
  if value and abs(value) < 10:
    return f'{value:.3g}'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.1f}'


def write_json(path: str, rows: Sequence[Row]) -> None:
  """Writes the rows as a list of objects, whole or not at all.

  Raises:
    WriteError: if the file cannot be written.
  """
  atomic.write_json(path, [dataclasses.asdict(row) for row in rows])
