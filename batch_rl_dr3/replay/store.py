"""The local, memory-mapped store that training reads transitions from.

A log is copied once, out of its compressed files, into a folder of a cache;
every later run opens that folder within a second. What can be sampled from it
and what a sample holds equals Dopamine's `OutOfGraphReplayBuffer`, file by
file, with two notes:

* A file of which only a prefix is used is treated as that buffer would have
  been, had it been stopped after these rows.
* Dopamine trusts a loaded file's invalid_range, which was written for the
  update horizon of the run that made it. Here the rows around the cursor are
  left out for the update horizon in use, so that an n-step transition never
  runs from a file's newest rows into its oldest. For the horizon that the
  file was written for, the two are the same.
"""

from collections.abc import Iterator
import json
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import numpy as np
import numpy.typing as npt

from batch_rl_dr3 import errors
from batch_rl_dr3.replay import checkpoint_format, store_build, validity
from batch_rl_dr3.replay import segment as replay_segment
from batch_rl_dr3.replay.subset import Subset


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
    observations: memory map, uint8 [num_rows, *observation_shape].
    actions: int32 [num_rows].
    rewards: float32 [num_rows].
    terminals: uint8 [num_rows].
    segments: tuple of Segment, one per file, in time order.
    manifest: dict, the content of manifest.json.
    stack_size: int, frames in a state.
  """

  def __init__(self, folder: pathlib.Path, stack_size: int):
    """Opens a store that is whole.

    Args:
      folder: the store's own folder.
      stack_size: int, frames in a state.

    Raises:
      DataError: if the folder has been damaged since it was built.
    """
    self.stack_size = stack_size
    try:
      self.manifest: dict[str, Any] = json.loads(
        (folder / store_build.MANIFEST).read_text()
      )
      self.segments = tuple(
        replay_segment.Segment(
          **{**file, 'invalid_range': tuple(file['invalid_range'])}
        )
        for file in self.manifest['files']
      )
      self.observations = self._load(folder, 'observation', 'r')
      self.actions = self._load(folder, 'action')
      self.rewards = self._load(folder, 'reward')
      self.terminals = self._load(folder, 'terminal')
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise errors.DataError(
        f'the store {folder} is damaged ({error}). Delete that folder; it is '
        'built again from the log.'
      ) from error
    self._frames = np.asarray(self.observations).reshape(self.num_rows, -1)
    self._first_rows = np.array([s.first_row for s in self.segments])
    # Modulo the file's length where stacks wrap around its end.
    self._num_rows = np.array([s.num_rows for s in self.segments])

  def _load(self, folder: pathlib.Path, name: str, mode: Any = None) -> Any:
    array = np.load(folder / f'{name}.npy', mode, allow_pickle=False)
    expected = self.manifest['arrays'][name]
    if [array.dtype.str, list(array.shape)] != [
      expected['dtype'],
      expected['shape'],
    ]:
      raise ValueError(f'{name}.npy is not what the manifest says')
    return array

  @property
  def data_hash(self) -> str:
    """SHA-256 over all rows and their division into files, in hexadecimal."""
    return str(self.manifest['data_hash'])

  @property
  def num_rows(self) -> int:
    """The number of rows, padding included."""
    return int(self.actions.shape[0])

  @property
  def observation_shape(self) -> tuple[int, ...]:
    """The shape of one frame."""
    return tuple(self.observations.shape[1:])

  def valid_indices(self, update_horizon: int = 1) -> npt.NDArray[np.int64]:
    """Returns the rows where a transition may start, in ascending order.

    Args:
      update_horizon: int, steps in a transition.

    Returns:
      int64 [num_valid], rows of the store.

    Raises:
      DataError: if there is none.
    """
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
    ages = range(stack_size - 1, -1, -1)
    return Transitions(
      states=self._stack([move(-age) for age in ages]),
      actions=self.actions[rows],
      rewards=reward,
      next_states=self._stack([move(num_steps - age) for age in ages]),
      next_actions=self.actions[next_rows],
      next_rewards=self.rewards[next_rows],
      terminals=terminal.astype(np.uint8),
      indices=rows,
    )

  def _stack(self, rows: list[npt.NDArray[np.int64]]) -> npt.NDArray[Any]:
    # Frame by frame, which is 3 times as fast as one gather and a transpose:
    # a frame and its stack stay in the processor's cache.
    num_pixels = self._frames.shape[1]
    stacks = np.empty((len(rows[0]), num_pixels, len(rows)), self._frames.dtype)
    for example, ages in enumerate(np.stack(rows, axis=1)):
      for age, row in enumerate(ages):
        stacks[example, :, age] = self._frames[row]
    return stacks.reshape(len(rows[0]), *self.observation_shape, len(rows))

  def returns_to_go(self, gamma: float) -> npt.NDArray[np.float32]:
    """Returns the discounted sum of rewards to the end of each row's episode.

    Episodes are carried on from file to file where whole files follow each
    other in time.

    Args:
      gamma: float, the discount of one step.

    Returns:
      float32 [num_rows]; NaN where the episode's end is not in the store.
    """
    returns = np.empty(self.num_rows, dtype=np.float32)
    for chain in self._chains():
      rows = np.concatenate([segment.rows_in_time() for segment in chain])
      returns[rows] = validity.returns_to_go(
        self.rewards[rows], self.terminals[rows], gamma
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


def open_store(
  replay_dir: str | os.PathLike[str],
  cache_dir: str | os.PathLike[str],
  subset: Subset,
  observation_shape: tuple[int, ...],
  num_actions: int,
  stack_size: int,
  progress: bool = True,
  observation_dtype: npt.DTypeLike = np.uint8,
) -> ReplayStore:
  """Returns the store of a log, built first if the cache lacks it.

  Args:
    replay_dir: the log's folder, or its parent.
    cache_dir: where stores are kept; it needs the room of the uncompressed
      rows, 7 GB per million Atari frames.
    subset: the part of the log that is used.
    observation_shape: the shape of one frame of the game.
    num_actions: int, the number of the game's actions.
    stack_size: int, frames in a state.
    progress: whether to show a progress bar when a build takes long.
    observation_dtype: the dtype of frames of the game.

  Raises:
    DataError: if the log is missing, damaged, or of another game.
    ConfigError: if the subset is too small.
    WriteError: if the store cannot be written.
  """
  source = checkpoint_format.find_replay_logs(replay_dir).resolve()
  store_build.check_frames(source, observation_shape, observation_dtype)
  folder = pathlib.Path(cache_dir) / store_build.store_key(source, subset)
  if not folder.exists():
    store_build.build(
      source,
      folder,
      subset,
      num_actions,
      stack_size,
      progress,
    )
  store = ReplayStore(folder, stack_size)
  store_build.check_actions(source, store.manifest['max_action'], num_actions)
  if store.manifest['missing_suffixes']:
    logging.warning(
      '%s has no files of suffix %s; what follows is without them.',
      source,
      ', '.join(map(str, store.manifest['missing_suffixes'])),
    )
  return store
