"""What can be sampled from a local store, and what a sample holds.

Both equal Dopamine's `OutOfGraphReplayBuffer`, file by file, with three notes:

* A file of which only a prefix is used is treated as that buffer would have
  been, had it been stopped after these rows.
* Of a uniform subset, the transitions that were drawn are what can be sampled.
* Dopamine trusts a loaded file's invalid_range, which was written for the
  update horizon of the run that made it. Here the rows around the cursor are
  left out for the update horizon in use, so that an n-step transition never
  runs from a file's newest rows into its oldest. For the horizon that the
  file was written for, the two are the same.
"""

from collections.abc import Iterator
import pathlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import frames as replay_frames
from batch_rl_dr3.replay.store import segment as replay_segment
from batch_rl_dr3.replay.store import (
  shard_files,
  store_files,
  uniform_draw,
  validity,
)
from batch_rl_dr3.replay.store import subset as replay_subset

# Frames up to this size are held in memory. See store.open_store.
MAX_RESIDENT_BYTES = 1 << 30


class Transitions(NamedTuple):
  """A batch of transitions, with Dopamine's dtypes.

  Attributes:
    states: [B, *observation_shape, stack_size], dtype of the observations.
    actions: int32 [B].
    rewards: float32 [B], discounted sum over the steps of the transition.
    next_states: like `states`; undefined where `terminals` is 1.
    next_actions: int32 [B]; undefined where `terminals` is 1.
    next_rewards: float32 [B]; undefined where `terminals` is 1.
    terminals: uint8 [B], 1 where the episode ends within the transition.
    indices: int64 [B], rows of the store.
  """

  states: npt.NDArray[Any]
  actions: npt.NDArray[np.int32]
  rewards: npt.NDArray[np.float32]
  next_states: npt.NDArray[Any]
  next_actions: npt.NDArray[np.int32]
  next_rewards: npt.NDArray[np.float32]
  terminals: npt.NDArray[np.uint8]
  indices: npt.NDArray[np.int64]


class ReplayStore:
  """The rows of a log, and what can be sampled from them.

  Attributes:
    folder: the store's own folder.
    actions: int32 [num_rows].
    rewards: float32 [num_rows].
    terminals: uint8 [num_rows].
    segments: tuple of Segment, one per file, in time order.
    manifest: dict, the content of manifest.json.
    stack_size: int, frames in a state.
    observation_shape: the shape of one frame.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    stack_size: int,
    max_resident_bytes: int = MAX_RESIDENT_BYTES,
  ):
    """Opens a store that is whole.

    Args:
      folder: the store's own folder.
      stack_size: int, frames in a state.
      max_resident_bytes: int; `hold_frames` and whoever holds them elsewhere
        hold frames up to so many bytes.

    Raises:
      DataError: if the folder has been damaged since it was built.
    """
    self.folder = folder
    self.stack_size = stack_size
    self.manifest: dict[str, Any] = store_files.verify(folder)
    try:
      self.segments = tuple(
        replay_segment.Segment(
          **{**file, 'invalid_range': tuple(file['invalid_range'])}
        )
        for file in self.manifest['files']
      )
      self.actions = self._load('action')
      self.rewards = self._load('reward')
      self.terminals = self._load('terminal')
      self._drawn = self._load('drawn') if self._is_uniform else None
      self._frames: replay_frames.Frames = self._open_frames()
      self._max_resident_bytes = max_resident_bytes
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise store_files.damaged(folder, str(error)) from error
    self._first_rows = np.array([s.first_row for s in self.segments])
    # Modulo the file's length where stacks wrap around its end.
    self._num_rows = np.array([s.num_rows for s in self.segments])

  def _load(self, name: str) -> Any:
    """Returns one number for each row, from all parts."""
    arrays = []
    for segment in self.segments:
      folder = store_files.part_folder(self.folder, segment.suffix)
      arrays.append(np.load(folder / f'{name}.npy', allow_pickle=False))
    array = np.concatenate(arrays)
    described = {'dtype': array.dtype.str, 'shape': list(array.shape)}
    if described != self.manifest['arrays'][name]:
      raise ValueError(f'{name}.npy is not what the manifest says')
    return array

  def _open_frames(self) -> replay_frames.ShardFrames:
    described = self.manifest['arrays']['observation']
    self.observation_shape = tuple(described['shape'][1:])
    shard_rows = self.manifest['shard_rows']
    paths = [
      shard_files.ShardPath(
        self.manifest['codec'],
        store_files.part_folder(self.folder, segment.suffix),
        number,
        min(shard_rows, segment.num_rows - first_row),
      )
      for segment in self.segments
      for number, first_row in enumerate(range(0, segment.num_rows, shard_rows))
    ]
    return replay_frames.open_frames(
      paths,
      int(np.prod(self.observation_shape)),
      np.dtype(described['dtype']),
    )

  @property
  def _is_uniform(self) -> bool:
    return replay_subset.is_drawn(self.manifest['subset'])

  @property
  def data_hash(self) -> str:
    """SHA-256 over all rows and their division into files, in hexadecimal."""
    return str(self.manifest['data_hash'])

  @property
  def num_rows(self) -> int:
    """The number of rows, padding included."""
    return int(self.actions.shape[0])

  def frames(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns single frames, [n, *observation_shape].

    Args:
      rows: int [n], rows of the store, any.
    """
    frames = self._frames.rows(np.asarray(rows, np.int64))
    return frames.reshape(-1, *self.observation_shape)

  @property
  def fits_memory(self) -> bool:
    """Whether its frames are few enough to be held in memory."""
    return self.num_frame_bytes <= self._max_resident_bytes

  def all_frames(self) -> npt.NDArray[Any]:
    """Returns all frames, read anew: [num_rows, numbers in a frame]."""
    return self._open_frames().held().array

  def hold_frames(self) -> None:
    """Reads all frames into memory, if they are few enough.

    Nobody else may be reading from the store meanwhile.
    """
    if self.fits_memory and isinstance(self._frames, replay_frames.ShardFrames):
      self._frames = self._frames.held()

  @property
  def num_frame_bytes(self) -> int:
    """The bytes of all frames."""
    pixels = int(np.prod(self.observation_shape))
    return self.num_rows * pixels * self._frames.dtype.itemsize

  def source_rows(self) -> npt.NDArray[np.int64]:
    """Returns where each row was in its file of the log, int64 [num_rows]."""
    if self._is_uniform:
      return self._load('source_row')
    return np.concatenate([np.arange(s.num_rows) for s in self.segments])

  def valid_indices(self, update_horizon: int = 1) -> npt.NDArray[np.int64]:
    """Returns the rows where a transition may start, in ascending order.

    Args:
      update_horizon: int, steps in a transition.

    Returns:
      int64 [num_valid], rows of the store.

    Raises:
      DataError: if there is none.
      ConfigError: if the store holds a uniform subset, which is drawn from
        transitions of one step, and others are asked for.
    """
    if self._drawn is not None:
      self._check_uniform(update_horizon)
      return np.flatnonzero(self._drawn)
    rows = np.concatenate(
      [
        segment.valid_rows(
          self.terminals[segment.first_row :][: segment.num_rows],
          self.stack_size,
          update_horizon,
        )
        for segment in self.segments
      ]
    )
    if not len(rows):
      raise errors.DataError(
        f'{self.manifest["source"]} holds no transition of {update_horizon} '
        f'steps with stacks of {self.stack_size} frames in its '
        f'{self.num_rows} rows. Use a larger part of it.'
      )
    return rows

  def gather(
    self,
    rows: npt.ArrayLike,
    update_horizon: int = 1,
    gamma: float = 0.99,
    stack_size: int | None = None,
  ) -> Transitions:
    """Returns the transitions that start at given rows.

    Equals Dopamine's `sample_transition_batch(indices=...)`, file by file.

    Args:
      rows: int [B], valid rows of the store.
      update_horizon: int, steps in a transition.
      gamma: float, the discount of one step.
      stack_size: int, frames in a state; the store's own if None.
    """
    stack_size = self.stack_size if stack_size is None else stack_size
    rows = np.asarray(rows, dtype=np.int64)
    segment = np.searchsorted(self._first_rows, rows, side='right') - 1
    first, length = self._first_rows[segment], self._num_rows[segment]

    def move(steps: Any) -> Any:
      return first + (rows - first + steps) % length

    def move_each(steps: Any) -> Any:
      row, start = rows[:, np.newaxis], first[:, np.newaxis]
      return start + (row - start + steps) % length[:, np.newaxis]

    reward = np.zeros(rows.shape, dtype=np.float32)
    terminal = np.zeros(rows.shape, dtype=np.bool_)
    num_steps = np.zeros_like(rows)
    for step in range(update_horizon):
      # Nothing is added any more where the episode has ended.
      discount = np.float32(gamma**step)
      reward += np.where(terminal, 0, discount * self.rewards[move(step)])
      num_steps += ~terminal
      terminal |= self.terminals[move(step)] != 0
    next_rows = move(num_steps)
    ages = np.arange(stack_size - 1, -1, -1)
    states, next_states = self._frames.stacks(
      np.stack([move_each(-ages), move_each(num_steps[:, np.newaxis] - ages)])
    ).reshape(2, len(rows), *self.observation_shape, stack_size)
    return Transitions(
      states=states,
      actions=self.actions[rows],
      rewards=reward,
      next_states=next_states,
      next_actions=self.actions[next_rows],
      next_rewards=self.rewards[next_rows],
      terminals=terminal.astype(np.uint8),
      indices=rows,
    )

  def _check_uniform(self, update_horizon: int) -> None:
    if update_horizon != uniform_draw.UPDATE_HORIZON:
      raise errors.ConfigError(
        f'a uniform subset holds transitions of 1 step; {update_horizon} were '
        "asked for. Use another Subset.rule, such as 'prefix'."
      )
    if self.stack_size > self.manifest['stack_size']:
      raise errors.ConfigError(
        f'{self.folder} was drawn for stacks of '
        f'{self.manifest["stack_size"]} frames, not {self.stack_size}.'
      )

  def returns_to_go(self, gamma: float) -> npt.NDArray[np.float32]:
    """Returns the discounted sum of rewards to the end of each row's episode.

    Episodes are carried on from file to file where whole files follow each
    other in time.

    Args:
      gamma: float, the discount of one step.

    Returns:
      float32 [num_rows]; NaN where the episode's end is not in the store.

    Raises:
      ConfigError: if the store holds a uniform subset, which has no episodes.
    """
    if self._is_uniform:
      raise errors.ConfigError(
        'a uniform subset holds single transitions and no episodes, so there '
        "are no Monte-Carlo returns. Use another Subset.rule, such as 'prefix'."
      )
    returns = np.empty(self.num_rows, dtype=np.float32)
    is_cut = np.zeros(self.num_rows, np.bool_)
    for segment in self.segments:
      cut = np.array(segment.cut_rows, np.int64)
      is_cut[segment.first_row + cut[cut < segment.num_rows]] = True
    for chain in self._chains():
      rows = np.concatenate([segment.rows_in_time() for segment in chain])
      returns[rows] = validity.returns_to_go(
        self.rewards[rows], self.terminals[rows], gamma, is_cut[rows]
      )
    return returns

  def _chains(self) -> Iterator[list[replay_segment.Segment]]:
    chain = [self.segments[0]]
    for segment in self.segments[1:]:
      if not chain[-1].is_followed_by(segment):
        yield chain
        chain = []
      chain.append(segment)
    yield chain
