"""Where logged replay comes from: one protocol, whatever the storage."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.replay import checkpoint_format


class Source(Protocol):
  """The rows of one logged run of one game, file by file.

  A file is known by its suffix; it has the four elements and two attributes
  of the DQN Replay format, whatever they are stored as.
  """

  @property
  def name(self) -> str:
    """Where it is, as messages and manifests call it."""

  def suffixes(self) -> list[int]:
    """Returns the files' suffixes in time order.

    Raises:
      DataError: if there is none, or one lacks a part.
    """

  def fingerprint(self) -> list[Any]:
    """Returns what changes whenever the data do: JSON values."""

  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    """Returns the shape and dtype of one element of one file."""

  def rows(
    self,
    element: str,
    suffix: int,
    dtype: npt.DTypeLike,
    row_shape: tuple[int, ...],
    num_rows: int | None = None,
  ) -> Iterator[npt.NDArray[Any]]:
    """Yields the first rows of one element in blocks; None reads all of them.

    Raises:
      DataError: if they are damaged, or not of this dtype and shape.
    """

  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file."""
