"""What a page is made of: sections of tables and figures."""

from collections.abc import Mapping, Sequence
import dataclasses

from batch_rl_dr3.reporting import facts, figure, table

Block = table.Table | figure.Figure


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page.

  Attributes:
    title: its heading; empty where each block has its own.
    blocks: what is in it, in order.
    is_folded: whether the page shows it only when it is asked for.
  """

  title: str
  blocks: Sequence[Block]
  is_folded: bool = False


@dataclasses.dataclass(frozen=True)
class Content:
  """All that a page says of its runs.

  Attributes:
    title: of the page.
    summary: what it is about, in a line.
    notes: what limits the meaning of its numbers, a sentence each.
    sections: in order.
    glossary: what its words mean.
    facts: what the runs were made from and with.
  """

  title: str
  summary: str
  notes: Sequence[str]
  sections: Sequence[Section]
  glossary: Mapping[str, str]
  facts: Sequence[facts.Fact]

  @property
  def tables(self) -> list[table.Table]:
    """Every table."""
    return [b for b in self._blocks if isinstance(b, table.Table)]

  @property
  def figures(self) -> list[figure.Figure]:
    """Every figure."""
    return [b for b in self._blocks if isinstance(b, figure.Figure)]

  @property
  def _blocks(self) -> list[Block]:
    return [block for section in self.sections for block in section.blocks]
