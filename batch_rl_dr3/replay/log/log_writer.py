"""Writes a log in the DQN Replay format, row by row, as Dopamine would."""

import contextlib
import gzip
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.store.subset import cursor_range
from batch_rl_dr3.runs import atomic

# Frames compress hardly better at Dopamine's level 9, and 10 times slower.
_COMPRESS_LEVEL = 1


class LogWriter:
  """Writes transitions to numbered files of `rows_per_file` rows.

  File N is what a Dopamine `OutOfGraphReplayBuffer` of that capacity, given all
  transitions so far, would save when full for the (N + 1)th time. Each episode
  starts with stack_size - 1 rows of zero padding; both cross files. A shorter
  last file is what a buffer of just its rows would save: its add_count starts
  again, as in the DQN Replay Dataset.

  The rows of one file are held in memory: 7 GB for a million Atari frames.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    observation_shape: tuple[int, ...],
    stack_size: int,
    rows_per_file: int,
    observation_dtype: npt.DTypeLike = np.uint8,
    update_horizon: int = 1,
  ):
    """Makes the folder; `update_horizon` is only for the rows of invalid_range.

    A ConfigError if a file would be too short to hold a transition, a
    WriteError if the folder cannot be written or holds a log already.
    """
    if rows_per_file < stack_size + update_horizon:
      raise errors.ConfigError(
        f'{rows_per_file} rows a file cannot hold a transition of '
        f'{update_horizon} steps with stacks of {stack_size} frames.'
      )
    self._folder = atomic.make_directory(folder)
    taken = sorted(self._folder.glob('*_ckpt.*.gz'))
    if taken:
      raise errors.WriteError(
        f'{self._folder} holds a log already ({taken[0].name}). Choose '
        'another folder, or delete it.'
      )
    self._stack_size = stack_size
    self._update_horizon = update_horizon
    self._rows_per_file = rows_per_file
    self._padding = np.zeros(observation_shape, observation_dtype)
    rows = (rows_per_file,)
    self._rows: dict[str, npt.NDArray[Any]] = {
      'observation': np.zeros(rows + observation_shape, observation_dtype)
    }
    for name, dtype in checkpoint_format.ELEMENT_DTYPES.items():
      self._rows[name] = np.zeros(rows, dtype)
    self.num_rows_added = 0
    self._add_count = 0  # Of the buffer, since what is logged broke off.
    self._num_rows = 0  # Of the file in the making.
    self._suffix = 0
    self._last_rows = 0  # Of the last file written.
    self._cut_rows: list[int] = []  # Of the file in the making; see `cut`.
    self._has_broken_off = False  # Since the last file was written.
    self._at_episode_start = True

  def add(
    self,
    observation: npt.NDArray[Any],
    action: int,
    reward: float,
    terminal: bool | int,
  ) -> None:
    """Adds one transition, its reward clipped, after an episode's padding."""
    if np.shape(observation) != self._padding.shape:
      raise ValueError(
        f'the observation has shape {np.shape(observation)}, not '
        f'{self._padding.shape}'
      )
    if self._at_episode_start:
      for _ in range(self._stack_size - 1):
        self._add_row(self._padding, 0, 0.0, 0)
    self._at_episode_start = bool(terminal)
    self._add_row(observation, action, reward, int(terminal))

  def cut(self, observation: npt.NDArray[Any]) -> None:
    """Ends an episode that `observation` follows, though it is no terminal.

    Its row is marked as a terminal and in cut_rows_ckpt.N.gz: it is never
    sampled, and no Monte-Carlo return ends there. Dopamine would sample it.
    """
    self._cut_rows.append(self._num_rows)
    self._add_row(observation, 0, 0.0, 1)
    self._at_episode_start = True

  def break_off(self, at_episode_start: bool) -> None:
    """Ends a file; the next one's add_count says that it does not follow it."""
    if self._num_rows:
      # A file that is shorter than the one before would look like its rest.
      is_like_rest = self._has_broken_off and self._num_rows < self._last_rows
      self._write(add_count=self._num_rows * (2 if is_like_rest else 1))
    self._has_broken_off = self._suffix > 0
    self._add_count = 0
    self._at_episode_start = at_episode_start

  def close(self) -> None:
    """Writes the rows left over, if any, as a last, shorter file."""
    self.break_off(at_episode_start=True)

  def _add_row(self, *values: Any) -> None:
    for rows, value in zip(self._rows.values(), values, strict=True):
      rows[self._num_rows] = value
    self._num_rows += 1
    self._add_count += 1
    self.num_rows_added += 1
    if self._num_rows == self._rows_per_file:
      self._write(add_count=self._add_count)

  def _write(self, add_count: int) -> None:
    arrays = {name: a[: self._num_rows] for name, a in self._rows.items()}
    arrays['add_count'] = np.array(add_count, dtype=np.int64)
    arrays['invalid_range'] = cursor_range(
      0, self._num_rows, self._stack_size, self._update_horizon
    )
    if self._cut_rows:
      arrays[checkpoint_format.CUT_ROWS] = np.array(self._cut_rows, np.int64)
      self._cut_rows = []
    # The files get their names when all of them are whole.
    with contextlib.ExitStack() as stack:
      for name, array in arrays.items():
        path = checkpoint_format.file_path(self._folder, name, self._suffix)
        file = stack.enter_context(atomic.whole_file(path))
        with gzip.GzipFile(
          '', 'wb', _COMPRESS_LEVEL, fileobj=file, mtime=0
        ) as stream:
          np.save(stream, array, allow_pickle=False)
    self._suffix += 1
    self._last_rows = self._num_rows
    self._num_rows = 0
    self._has_broken_off = False
