"""A local store as a source, so that what reads logs reads stores too."""

from collections.abc import Iterator
import os
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.store import store_files
from batch_rl_dr3.replay.store import subset as replay_subset
from batch_rl_dr3.replay.store.replay_store import ReplayStore
from batch_rl_dr3.replay.store.segment import Segment

# Frames that are read at a time.
_BLOCK_FRAMES = 256


def is_store(folder: str | os.PathLike[str]) -> bool:
  """Whether a folder is that of a local store."""
  return (pathlib.Path(folder) / store_files.MANIFEST).is_file()


class StoreSource:
  """The rows of a store, file by file of the log; a source.Source.

  What a store took of a file is a file here. Where it took only a prefix, the
  file is what its buffer would have saved, had it been stopped there.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Opens the store.

    Args:
      folder: the store's own.

    Raises:
      DataError: if it is damaged, or holds single transitions and no episodes.
    """
    self._store = ReplayStore(
      pathlib.Path(folder), stack_size=1, max_resident_bytes=0
    )
    if replay_subset.is_drawn(self._store.manifest['subset']):
      raise errors.DataError(
        f'{folder} holds transitions drawn at random, and no episodes to look '
        f'at. Name the log they are from: {self._store.manifest["source"]}.'
      )
    self._segments = {s.suffix: s for s in self._store.segments}

  @property
  def name(self) -> str:
    """The store's folder."""
    return str(self._store.folder)

  @property
  def num_bytes_read(self) -> int:
    """0: a store is not counted, for nothing waits for it."""
    return 0

  @property
  def endpoint(self) -> None:
    """None: it is on this machine."""

  def suffixes(self) -> list[int]:
    """Returns the suffixes of the files that gave rows."""
    return list(self._segments)

  def missing_suffixes(self) -> list[int]:
    """Returns the suffixes that the store's log lacked."""
    missing: list[int] = self._store.manifest['missing_suffixes']
    return missing

  def cut_rows(self, suffix: int) -> list[int]:
    """Returns the rows of a file where episodes were cut by time."""
    segment = self.segment(suffix)
    return [row for row in segment.cut_rows if row < segment.num_rows]

  def fingerprint(self) -> list[Any]:
    """Returns the store's data hash."""
    return [self._store.data_hash]

  def num_bytes(self, suffix: int) -> int:
    """Returns the size of a part of the store."""
    folder = store_files.part_folder(self._store.folder, suffix)
    return sum(path.stat().st_size for path in folder.iterdir())

  def segment(self, suffix: int) -> Segment:
    """Returns the rows that a file gave to the store, as the store has them."""
    if suffix not in self._segments:
      raise errors.DataError(f'{self.name} has no rows of suffix {suffix}.')
    return self._segments[suffix]

  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    """Returns the shape and dtype of one element of one file."""
    array = self._store.manifest['arrays'][element]
    shape = (self.segment(suffix).num_rows, *array['shape'][1:])
    return checkpoint_format.Header(shape, np.dtype(array['dtype']))

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
    checkpoint_format.check_rows(
      f'{element} of suffix {suffix} in {self.name}',
      self.header(element, suffix),
      dtype,
      row_shape,
      num_rows,
    )
    segment = self.segment(suffix)
    end = segment.first_row + (
      segment.num_rows if num_rows is None else num_rows
    )
    if element != 'observation':
      yield getattr(self._store, f'{element}s')[segment.first_row : end]
      return
    for row in range(segment.first_row, end, _BLOCK_FRAMES):
      yield self._store.frames(np.arange(row, min(row + _BLOCK_FRAMES, end)))

  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file."""
    segment = self.segment(suffix)
    if name == 'add_count':
      count = segment.add_count if segment.is_whole else segment.num_rows
      return np.array(count, np.int64)
    invalid = np.array(segment.invalid_range, np.int64)
    return invalid[invalid < segment.num_rows]
