"""RL Unplugged's Atari data as a source of rows in the DQN Replay format.

RL Unplugged holds the episodes of the same logged runs, one file (or group of
files) per million steps, in the layouts of rlu_episode. Rows are laid out as
Dopamine would have: zero padding before each episode, clipped rewards.

What is known of the data, and what is not:

* Known from TFDS's builder: the features, and that episodes and checkpoints
  are in order. Checked here: order, one checkpoint per file, equal lengths,
  rewards in [-1, 1] that sum up to the episode's clipped return.
* By RLDS's convention, TFDS's builder and Dopamine's own reader of it, the
  last step holds only the last observation: T steps are T - 1 transitions. But
  the original log, which the data were made from, never held an observation
  after a terminal transition, so the last step may be the log's last row.
  `last_step` says which reading is used. Under 'observation', an episode that
  ends with a reward that counts in its return contradicts it, and is an error.
* An episode that does not end in a terminal state was cut. Its last row is
  marked as terminal, so that no stack reaches over it, and stands in
  invalid_range, so that it is never sampled.
* How many steps a file holds is not stated anywhere, so every file is read
  whole once, even where only a prefix of its rows is used.
"""

from collections.abc import Iterator
import contextlib
import functools
import itertools
import pathlib
import re
import tempfile
import threading
from typing import Any

from absl import logging
import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import (
  array_stream,
  rlu_episode,
  rlu_files,
  rlu_rows,
  spool,
)
from batch_rl_dr3.replay.log import source as replay_source
from batch_rl_dr3.replay.store import validity
from batch_rl_dr3.replay.store.segment import Segment
from batch_rl_dr3.runs import storage, stored_file
from batch_rl_dr3.runs.retry import RefusedError, Retry


def is_location(location: str) -> bool:
  """Whether a path or URL is of RL Unplugged's Atari data, by its name."""
  return bool(
    re.search(
      r'(^|/)(atari_episodes_ordered|rlu_atari_checkpoints_ordered)/', location
    )
  )


@gin.configurable
class RluSource:
  """One run of one game of RL Unplugged; a source.Source."""

  def __init__(
    self,
    url: str,
    last_step: str = 'observation',
    stack_size: int = 4,
    update_horizon: int = 1,
    endpoint_url: str | None = None,
    google_token: str | None = None,
    timeout: float = 60.0,
    spool_dir: str | None = None,
    retry: Retry | None = None,
  ):
    """Reads nothing yet.

    Args:
      url: str, .../atari_episodes_ordered/<Game>/run_<n>, or the folder of
        rlu_atari_checkpoints_ordered/<Game>_run_<n>/<version>; a URL or path.
      last_step: str, what an episode's last step is: 'observation' or
        'transition', see above.
      stack_size: int, frames in a state; stack_size - 1 rows are padding.
      update_horizon: int, steps in a transition, for invalid_range.
      endpoint_url: as FsspecSource.
      google_token: as FsspecSource.
      timeout: as FsspecSource.
      spool_dir: as FsspecSource; it also takes 9 bytes per row read so far.
      retry: as FsspecSource.

    Raises:
      ConfigError: for an unknown last_step.
    """
    if last_step not in rlu_rows.LAST_STEPS:
      raise errors.ConfigError(
        f'RluSource.last_step is {last_step!r}; it must be one of '
        f'{", ".join(rlu_rows.LAST_STEPS)}.'
      )
    self._reading = rlu_rows.Reading(last_step, stack_size - 1)
    self._index_lock = threading.Lock()
    self._stack_size = stack_size
    self._update_horizon = update_horizon
    self._spool_dir = spool_dir
    self._url = url.rstrip('/')
    last = self._url.rsplit('/', 1)[-1]
    self._run = last if re.fullmatch(r'run_\d+', last) else None
    self._is_tfds = self._run is None
    self._layout = (
      rlu_episode.TFDS_LAYOUT if self._is_tfds else rlu_episode.BUCKET_LAYOUT
    )
    folder = self._url if self._is_tfds else self._url.rsplit('/', 1)[0]
    self._storage = storage.open_storage(
      folder,
      endpoint_url,
      google_token,
      timeout,
      Retry() if retry is None else retry,
    )

  @property
  def name(self) -> str:
    """The URL."""
    return self._url

  @property
  def num_bytes_read(self) -> int:
    """Bytes that came over the network so far."""
    return self._storage.count.total

  @functools.cached_property
  def _shards(self) -> dict[int, list[rlu_files.Shard]]:
    """The files of each suffix, as listed once."""
    return rlu_files.list_shards(self._storage, self._run)

  def suffixes(self) -> list[int]:
    """Returns the numbers of the checkpoints in time order.

    Raises:
      DataError: if there is none, or one lacks a part.
    """
    if not self._shards:
      raise RefusedError(f'{self.name} holds no data of RL Unplugged.')
    return sorted(self._shards)

  def fingerprint(self) -> list[Any]:
    """Returns what changes whenever the data, or their reading, do."""
    reading = [self._reading.last_step, self._stack_size, self._update_horizon]
    return [
      reading,
      *(
        [suffix, *storage.version(shard.info)]
        for suffix in self.suffixes()
        for shard in self._shards[suffix]
      ),
    ]

  def num_bytes(self, suffix: int) -> int:
    """Returns the size of the files of a checkpoint."""
    return sum(int(shard.info['size']) for shard in self._parts(suffix))

  def segment(self, suffix: int) -> Segment:
    """Returns what is known of the rows of one checkpoint."""
    return replay_source.whole_segment(self, suffix)

  def header(self, element: str, suffix: int) -> array_stream.Header:
    """Returns the shape and dtype of one element of one file."""
    index = self._index(suffix)
    if element != 'observation':
      rows = np.load(index / f'{element}.npy', mmap_mode='r')
      return array_stream.Header(rows.shape, rows.dtype)
    shape = np.load(index / 'frame_shape.npy').tolist()
    num_rows = self.header('action', suffix).shape[0]
    return array_stream.Header((num_rows, *shape), np.dtype(np.uint8))

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
    header = self.header(element, suffix)
    name = f'{self.name}, checkpoint {suffix},'
    array_stream.check_rows(name, header, dtype, row_shape, num_rows)
    left = header.shape[0] if num_rows is None else num_rows
    if element != 'observation':
      yield np.load(self._index(suffix) / f'{element}.npy')[:left]
      return
    height, width = row_shape
    blocks = rlu_rows.frame_blocks(
      self._streamed_episodes(suffix), self._reading, (height, width), name
    )
    for block in blocks:
      yield block[:left]
      left -= min(left, len(block))
      if not left and num_rows is not None:
        return
    if left:
      raise errors.DataError(f'{name} ends {left} rows early. Fetch it again.')

  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file.

    They are those of a buffer that was as large as the file, filled once.
    """
    num_rows = self.header('action', suffix).shape[0]
    if name == 'add_count':
      return np.array(num_rows, np.int64)
    cut = np.load(self._index(suffix) / 'cut.npy')
    around_cursor = validity.cursor_range(
      0, num_rows, self._stack_size, self._update_horizon
    )
    return np.concatenate([around_cursor, cut])

  def _index(self, suffix: int) -> pathlib.Path:
    """Returns a folder with all but the frames of a suffix, made once."""
    folder = pathlib.Path(self._index_dir.name) / str(suffix)
    with self._index_lock:
      if not folder.exists():
        arrays = rlu_rows.index(
          self._fetched_episodes(suffix),
          self._reading,
          f'{self.name}, checkpoint {suffix},',
        )
        folder.mkdir()
        for name, array in arrays.items():
          np.save(folder / f'{name}.npy', array)
    return folder

  @functools.cached_property
  def _index_dir(self) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
      prefix='batch_rl_dr3_', dir=self._spool_dir
    )

  def _parts(self, suffix: int) -> list[rlu_files.Shard]:
    if suffix not in self._shards:
      raise errors.DataError(f'{self.name} has no checkpoint {suffix}.')
    return self._shards[suffix]

  def _fetched_episodes(self, suffix: int) -> Iterator[rlu_episode.Episode]:
    """Yields the episodes of files that were fetched whole and checked."""
    check = (
      array_stream.check_gzip if self._layout.is_gzip else self._check_records
    )
    for shard in self._parts(suffix):
      with spool.fetched(
        self._storage, shard.info, self._spool_dir, check
      ) as file:
        num_episodes = 0
        for episode in self._episodes(file):
          yield episode
          num_episodes += 1
      # gzip knows its end; a bare TFRecord file does not.
      if self._is_tfds:
        stated = self._num_episodes.get((suffix, shard.part))
        if num_episodes != stated:
          raise errors.DataError(
            f'{file.name} holds {num_episodes} episodes; {rlu_files.TFDS_INFO} '
            f'states {stated}. Fetch it again.'
          )

  @functools.cached_property
  def _num_episodes(self) -> dict[tuple[int, int], int]:
    """What TFDS states of its files: (suffix, part) to a number of episodes."""
    return rlu_files.stated_lengths(self._storage, self._spool_dir)

  def _check_records(self, file: stored_file.StoredFile) -> None:
    for _ in self._episodes(file):
      pass

  def _streamed_episodes(self, suffix: int) -> Iterator[rlu_episode.Episode]:
    """Yields the episodes as they come; the records' checksums vouch for them.

    Where a file is damaged, it is fetched once more from its start, and the
    episodes already yielded are passed over.
    """
    for shard in self._parts(suffix):
      file = self._storage.file(shard.info)
      num_done = 0
      try:
        for episode in self._episodes(file):
          yield episode
          num_done += 1
      except RefusedError:
        raise
      except errors.DataError as error:
        logging.warning('%s It is fetched once more.', error)
        yield from itertools.islice(self._episodes(file), num_done, None)

  def _episodes(
    self, file: stored_file.StoredFile
  ) -> Iterator[rlu_episode.Episode]:
    opened: contextlib.AbstractContextManager[Any] = (
      array_stream.decompressed(file) if self._layout.is_gzip else file.open()
    )
    with opened as stream:
      for record in rlu_episode.read_records(stream, file.name):
        yield rlu_episode.parse(record, self._layout, file.name)
