"""Where logged replay comes from: one base class, whatever the storage."""

import abc
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.store.validity import Segment


class Source(abc.ABC):
  """The rows of one logged run of one game, file by file.

  A file is known by its suffix; it has the four elements and two attributes
  of the DQN Replay format, whatever they are stored as.
  """

  @property
  @abc.abstractmethod
  def name(self) -> str:
    """Where it is, as messages and manifests call it."""

  @property
  @abc.abstractmethod
  def num_bytes_read(self) -> int:
    """Bytes that came out of the storage so far, compressed as they are."""

  @property
  def endpoint(self) -> str | None:
    """The web server that has to answer first; None if it is none."""
    return None

  @abc.abstractmethod
  def suffixes(self) -> list[int]:
    """Returns the files' suffixes in time order.

    Raises:
      DataError: if there is none, or one lacks a part.
    """

  def missing_suffixes(self) -> list[int]:
    """Returns the suffixes that should be there and are not."""
    return checkpoint_format.missing_suffixes(self.suffixes())

  @abc.abstractmethod
  def fingerprint(self) -> list[Any]:
    """Returns what changes whenever the data do: JSON values."""

  @abc.abstractmethod
  def num_bytes(self, suffix: int) -> int:
    """Returns the size of one file in the storage, compressed as it is."""

  def segment(self, suffix: int) -> Segment:
    """Returns what is known of the rows of one file.

    Raises:
      DataError: if its parts are damaged, or disagree with each other.
    """
    return whole_segment(self, suffix)

  @abc.abstractmethod
  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    """Returns the shape and dtype of one element of one file."""

  @abc.abstractmethod
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

  @abc.abstractmethod
  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file."""

  def cut_rows(self, suffix: int) -> list[int]:
    """Returns the rows that are marked as terminals but are none.

    Their episodes were cut by time, and the log lacks what came next.
    """
    return []


def count_rows(source: Source, suffix: int) -> int:
  """Returns the number of rows of one file, which its elements agree on.

  Raises:
    DataError: if they do not.
  """
  lengths = {}
  for name in checkpoint_format.ELEMENTS:
    shape = source.header(name, suffix).shape
    if not shape:
      raise errors.DataError(
        f'{name} of suffix {suffix} in {source.name} is a single number, not '
        'rows.'
      )
    lengths[name] = shape[0]
  if len(set(lengths.values())) > 1:
    raise errors.DataError(
      f'the files of suffix {suffix} in {source.name} differ in their number '
      f'of rows: {lengths}. Fetch them again, all from the same run.'
    )
  return lengths['terminal']


def whole_segment(source: Source, suffix: int) -> Segment:
  """Returns all rows that the buffer of one file held when it was saved.

  A buffer that was not full (add_count below the length of its arrays) held
  only their first add_count rows.

  Raises:
    DataError: if its parts are damaged, or disagree with each other.
  """
  length = count_rows(source, suffix)
  add_count = int(source.attribute('add_count', suffix))
  if add_count < 0:
    raise errors.DataError(
      f'add_count of suffix {suffix} in {source.name} is damaged: it says '
      f'{add_count}.'
    )
  return Segment(
    suffix=suffix,
    first_row=0,
    num_rows=min(length, add_count),
    num_rows_in_source=length,
    add_count=add_count,
    invalid_range=source.attribute('invalid_range', suffix).tolist(),
    read_to_end=True,
    cut_rows=source.cut_rows(suffix),
  )
