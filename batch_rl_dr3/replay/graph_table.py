"""A store as tensors, and the gather of its transitions as graph operations.

Where all frames fit into memory, sampling needs no Python: the store is read
into variables of the graph once, which no checkpoint holds, and every batch is
gathered from them inside the training step. What is gathered equals
`ReplayStore.gather` bit for bit.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.replay import graph_calls
from batch_rl_dr3.replay.store import store as replay_store


class Table(NamedTuple):
  """All that is sampled from, as tensors or as what they are made from.

  Attributes:
    frames: [num_rows, num_pixels], dtype of the observations.
    actions: int32 [num_rows].
    rewards: float32 [num_rows].
    terminals: uint8 [num_rows].
    returns: float32 [num_rows], discounted return to the end of the episode;
      [0] where they are not asked for.
    valid_rows: int64 [num_valid], where a transition may start.
    first_rows: int64 [num_files], where each file of the log starts.
    num_rows: int64 [num_files], the length of each.
  """

  frames: Any
  actions: Any
  rewards: Any
  terminals: Any
  returns: Any
  valid_rows: Any
  first_rows: Any
  num_rows: Any


def make(
  store: replay_store.ReplayStore,
  valid_rows: npt.NDArray[np.int64],
  returns: npt.NDArray[np.float32] | None,
  max_device_bytes: int | None,
) -> 'TableVariables | None':
  """Returns variables for a store, or None if its frames are too many.

  Args:
    store: the store.
    valid_rows: see Table.
    returns: see Table; None where they are not asked for.
    max_device_bytes: int, the most that frames may take; None for as many as
      the store may hold in memory.
  """
  fits = (
    store.fits_memory
    if max_device_bytes is None
    else store.num_frame_bytes <= max_device_bytes
  )
  if not fits:
    return None
  return TableVariables(store, valid_rows, returns)


class TableVariables:
  """Variables that hold a table, outside of what is saved and initialised.

  Attributes:
    tensors: Table of their values.
  """

  def __init__(
    self,
    store: replay_store.ReplayStore,
    valid_rows: npt.NDArray[np.int64],
    returns: npt.NDArray[np.float32] | None,
  ):
    """Creates the variables, empty until `load`; see `make`."""
    self._store = store
    self._arrays = {
      'actions': store.actions,
      'rewards': store.rewards,
      'terminals': store.terminals,
      'returns': np.zeros(0, np.float32) if returns is None else returns,
      'valid_rows': valid_rows,
      'first_rows': np.array([s.first_row for s in store.segments], np.int64),
      'num_rows': np.array([s.num_rows for s in store.segments], np.int64),
    }
    frame = store.frames([0])
    self._frames_shape = (store.num_rows, frame.size)
    with tf.name_scope('replay_table'):
      self._variables = Table(
        frames=_variable('frames', frame.dtype, self._frames_shape),
        **{
          name: _variable(name, array.dtype, array.shape)
          for name, array in self._arrays.items()
        },
      )
      self.tensors = Table(*(v.read_value() for v in self._variables))
      self._fill_frames = self._filling()

  def _filling(self) -> tf.Operation:
    """Returns what reads all frames into their variable.

    TensorFlow takes over the array that is read, so that the frames are never
    in memory twice. It would copy what is fed to it; and a variable that has
    been filled in slices, it would copy at every read.
    """
    variable = self._variables.frames
    frames = graph_calls.call(self._store.all_frames, [], variable.dtype)
    frames.set_shape(variable.shape)
    return variable.assign(frames, read_value=False)

  def load(self, session: tf.compat.v1.Session) -> None:
    """Fills the variables.

    Raises:
      DataError: if a file of the store is damaged.
    """
    with graph_calls.raising():
      session.run(self._fill_frames)
    for name, array in self._arrays.items():
      getattr(self._variables, name).load(array, session)
    self._arrays = {}


def _variable(
  name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> tf.Variable:
  return tf.compat.v1.Variable(
    # `load` is what gives it its value; this never runs.
    lambda: tf.zeros(shape, dtype),
    name=name,
    trainable=False,
    collections=[],
    use_resource=True,
    dtype=dtype,
  )


class Gathered(NamedTuple):
  """Tensors of a batch, as `replay_store.Transitions` has them as arrays."""

  states: tf.Tensor
  actions: tf.Tensor
  rewards: tf.Tensor
  next_states: tf.Tensor
  next_actions: tf.Tensor
  next_rewards: tf.Tensor
  terminals: tf.Tensor
  indices: tf.Tensor


def gather(
  table: Table,
  rows: tf.Tensor,
  observation_shape: tuple[int, ...],
  stack_size: int,
  update_horizon: int,
  gamma: float,
) -> Gathered:
  """Returns the transitions that start at given rows.

  Args:
    table: tensors.
    rows: int64 [B], valid rows.
    observation_shape: the shape of one frame.
    stack_size: int, frames in a state.
    update_horizon: int, steps in a transition.
    gamma: float, the discount of one step.
  """
  file = tf.searchsorted(table.first_rows, rows, side='right') - 1
  first = tf.gather(table.first_rows, file)
  length = tf.gather(table.num_rows, file)

  def move(steps: Any) -> tf.Tensor:
    """Returns the rows some steps on, around the end of the file."""
    return first + tf.math.floormod(rows - first + steps, length)

  reward = tf.zeros_like(rows, tf.float32)
  terminal = tf.zeros_like(rows, tf.bool)
  num_steps = tf.zeros_like(rows)
  for step in range(update_horizon):
    # Nothing is added any more where the episode has ended.
    discounted = np.float32(gamma**step) * tf.gather(table.rewards, move(step))
    reward += tf.where(terminal, tf.zeros_like(reward), discounted)
    num_steps += tf.cast(~terminal, tf.int64)
    # `!=` would compare the objects, as TensorFlow 1 does.
    terminal |= tf.not_equal(tf.gather(table.terminals, move(step)), 0)
  next_rows = move(num_steps)
  ages = range(stack_size - 1, -1, -1)
  places = tf.stack(
    [move(-age) for age in ages] + [move(num_steps - age) for age in ages],
    axis=1,
  )
  stacks = _stack(tf.gather(table.frames, tf.reshape(places, [-1, stack_size])))
  stacks = tf.reshape(stacks, [-1, 2, *observation_shape, stack_size])
  return Gathered(
    states=stacks[:, 0],
    actions=tf.gather(table.actions, rows),
    rewards=reward,
    next_states=stacks[:, 1],
    next_actions=tf.gather(table.actions, next_rows),
    next_rewards=tf.gather(table.rewards, next_rows),
    terminals=tf.cast(terminal, tf.uint8),
    indices=rows,
  )


def _stack(frames: tf.Tensor) -> tf.Tensor:
  """Returns frames [n, K, num_pixels] as stacks [n, num_pixels, K]."""
  if frames.dtype != tf.uint8 or frames.shape.as_list()[1] != 4:
    return tf.transpose(frames, [0, 2, 1])
  # The 4 bytes of a pixel as one number: faster than a transpose of bytes.
  wide = [tf.cast(frame, tf.uint32) for frame in tf.unstack(frames, axis=1)]
  newer = wide[2] + wide[3] * 256
  return tf.bitcast(wide[0] + wide[1] * 256 + newer * 65_536, tf.uint8)
