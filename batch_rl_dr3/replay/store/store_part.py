"""Extracts what one file of a log gives to a store: a part of that store.

A part is a folder: action.npy, reward.npy, terminal.npy, the shards of frames,
and, of a uniform subset, source_row.npy (int64, the file's rows that are kept)
and drawn.npy (bool, where a transition may start). part.json is written last
and says how long each file is, and its SHA-256.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import shards
from batch_rl_dr3.replay.store.store_plan import FilePlan
from batch_rl_dr3.runs import run_directory

RECORD = 'part.json'
# What a part of a uniform subset has besides.
TABLE_DTYPES: dict[str, np.dtype[Any]] = {
  'source_row': np.dtype(np.int64),
  'drawn': np.dtype(np.bool_),
}


class StoppedError(Exception):
  """Another part failed, and with it the build."""


@dataclasses.dataclass(frozen=True)
class PartBuilder:
  """What all parts of a store have in common.

  Attributes:
    source: the log.
    codec: str, one of shards.CODECS.
    frame_shape: the shape of one frame.
    frame_dtype: its dtype.
    num_actions: int, the number of the game's actions; None if not known.
    on_rows: called with the number of frames just read.
    should_stop: whether to give up.
  """

  source: Source
  codec: str
  frame_shape: tuple[int, ...]
  frame_dtype: np.dtype[Any]
  num_actions: int | None
  on_rows: Callable[[int], None]
  should_stop: Callable[[], bool]

  def build(self, file: FilePlan, folder: pathlib.Path) -> None:
    """Writes one part into an empty folder, reading the file once.

    Raises:
      DataError: if the file is damaged, or of another game.
      StoppedError: if told to stop.
    """
    kept = file.kept_rows()
    records: dict[str, Any] = {}
    content: dict[str, str] = {}
    max_action = -1
    # The small arrays come first: they tell of a wrong game at once.
    for name, dtype in reversed(checkpoint_format.ELEMENT_DTYPES.items()):
      blocks = list(self._blocks(file, name, dtype, ()))
      rows = np.concatenate(blocks)
      if name == 'action':
        max_action = int(rows.max())
        check_actions(self.source.name, max_action, self.num_actions)
      rows = rows if kept is None else rows[kept]
      records |= shards.write_array(folder / f'{name}.npy', rows)
      content[name] = hashlib.sha256(shards.array_bytes(rows)).hexdigest()
    if kept is not None:
      drawn = np.isin(kept, file.drawn_rows(), assume_unique=True)
      for name, table in (('source_row', kept), ('drawn', drawn)):
        records |= shards.write_array(folder / f'{name}.npy', table)
        content[name] = hashlib.sha256(shards.array_bytes(table)).hexdigest()
    records_of_shards, content['observation'] = self._write_frames(
      file, kept, folder
    )
    run_directory.write_json(
      folder / RECORD,
      {
        'segment': file.segment,
        'max_action': max_action,
        'files': records | records_of_shards,
        'content': content,
      },
    )

  def _write_frames(
    self,
    file: FilePlan,
    kept: npt.NDArray[np.int64] | None,
    folder: pathlib.Path,
  ) -> tuple[dict[str, Any], str]:
    shape = (file.segment['num_rows'], *self.frame_shape)
    row = 0
    with shards.ShardWriter(
      folder, self.codec, shape, self.frame_dtype
    ) as writer:
      for block in self._blocks(
        file, 'observation', self.frame_dtype, self.frame_shape
      ):
        if kept is None:
          writer.write(block)
        else:
          start, end = np.searchsorted(kept, (row, row + len(block)))
          writer.write(block[kept[start:end] - row])
        row += len(block)
        self.on_rows(len(block))
    return writer.records, writer.content.hexdigest()

  def _blocks(
    self,
    file: FilePlan,
    name: str,
    dtype: np.dtype[Any],
    row_shape: tuple[int, ...],
  ) -> Iterator[npt.NDArray[Any]]:
    """Yields blocks of checked rows of one element of the file."""
    suffix = file.segment['suffix']
    # Reads whole files to their end, though rows may lie there that the
    # buffer did not hold yet, for the sake of the checksum.
    to_read = None if file.segment['read_to_end'] else file.num_held
    left = file.num_held
    for whole in self.source.rows(name, suffix, dtype, row_shape, to_read):
      if self.should_stop():
        raise StoppedError
      block = whole[:left]
      if len(block):
        self._check_values(name, suffix, block)
        yield block
      left -= len(block)

  def _check_values(
    self, name: str, suffix: int, block: npt.NDArray[Any]
  ) -> None:
    if name == 'action' and block.min() < 0:
      problem = f'the action {block.min()}'
    elif name == 'terminal' and block.max() > 1:
      problem = f'the terminal flag {block.max()}, neither 0 nor 1'
    # A comparison with NaN is false, so NaN is a problem too.
    elif name == 'reward' and not (np.abs(block) <= 1).all():
      problem = 'a reward outside [-1, 1]; logged rewards are clipped'
    else:
      return
    file_name = checkpoint_format.file_name(name, suffix)
    raise errors.DataError(f'{self.source.name}/{file_name} holds {problem}.')


def check_actions(
  source: object, max_action: int, num_actions: int | None
) -> None:
  """Checks that actions are among the game's, if these are known.

  Raises:
    DataError: if they are not.
  """
  if num_actions is not None and max_action >= num_actions:
    raise errors.DataError(
      f'{source} holds action {max_action}; the game has {num_actions} '
      'actions, numbered from 0. Is it the data of another game?'
    )
