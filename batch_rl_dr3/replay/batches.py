"""What the agents sample from: batches of a fixed data set, as graph tensors.

Which transitions a batch holds depends on nothing but (seed, step). Where all
frames fit into memory, sampling needs no Python: the store is read into
variables once, which no checkpoint holds, and every batch is gathered from them
inside the training step, equal to `ReplayStore.gather` bit for bit.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import contextlib
from typing import Any, NamedTuple

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store.read import ReplayStore, ReplayTransitions

_Positions = npt.NDArray[np.int64]
_Transition = collections.OrderedDict[str, Any]

# Dopamine's names for the fields of a batch.
_NAMES = (
  *('state', 'action', 'reward', 'next_state', 'next_action', 'next_reward'),
  *('terminal', 'indices'),
)
# The error of the call that failed last; `raising` clears it.
_failures: list[Exception] = []


def call(
  function: Callable[..., Any],
  inputs: Sequence[tf.Tensor],
  dtypes: Any,
  name: str | None = None,
) -> Any:
  """Returns `tf.numpy_function` on the CPU; see `raising` for its errors."""

  def remembering(*arguments: Any) -> Any:
    try:
      return function(*arguments)
    except Exception as error:
      _failures[:] = [error]
      raise

  with tf.device('/cpu:*'):
    return tf.numpy_function(remembering, inputs, dtypes, name=name)


@contextlib.contextmanager
def raising() -> Iterator[None]:
  """Raises the error of a function called inside, in place of TensorFlow's."""
  _failures.clear()
  try:
    yield
  except tf.errors.OpError as error:
    if _failures:
      raise _failures.pop() from error
    raise


class StoreTable(NamedTuple):
  """All that is sampled from, as tensors or variables."""

  frames: Any  # [num_rows, num_pixels], dtype of the observations.
  actions: Any  # int32 [num_rows]
  rewards: Any  # float32 [num_rows]
  terminals: Any  # uint8 [num_rows]
  returns: Any  # float32 [num_rows], returns to go; [0] if not asked for.
  valid_rows: Any  # int64 [num_valid], where a transition may start.
  first_rows: Any  # int64 [num_files], where each file of the log starts.
  num_rows: Any  # int64 [num_files], the length of each.


class TableVariables:
  """Variables that hold a table, outside of what is saved and initialised.

  `tensors` is the StoreTable of their values.
  """

  def __init__(
    self,
    store: ReplayStore,
    valid_rows: npt.NDArray[np.int64],
    returns: npt.NDArray[np.float32] | None,
  ):
    self._arrays = {
      'actions': store.actions,
      'rewards': store.rewards,
      'terminals': store.terminals,
      'returns': np.zeros(0, np.float32) if returns is None else returns,
      'valid_rows': valid_rows,
      'first_rows': store.first_rows,
      'num_rows': store.lengths,
    }
    frame = store.frames([0])
    with tf.name_scope('replay_table'):
      self._variables = StoreTable(
        frames=_variable('frames', frame.dtype, (store.num_rows, frame.size)),
        **{n: _variable(n, a.dtype, a.shape) for n, a in self._arrays.items()},
      )
      self.tensors = StoreTable(*(v.read_value() for v in self._variables))
      # TensorFlow takes over the array that is read, so that the frames are
      # never in memory twice. It would copy what is fed to it; and a variable
      # that has been filled in slices, it would copy at every read.
      variable = self._variables.frames
      frames = call(store.all_frames, [], variable.dtype)
      frames.set_shape(variable.shape)
      self._fill_frames = variable.assign(frames, read_value=False)

  def load(self, session: tf.compat.v1.Session) -> None:
    """Fills the variables; damage of the store is a DataError."""
    with raising():
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


def gather(
  table: StoreTable,
  rows: tf.Tensor,
  observation_shape: tuple[int, ...],
  stack_size: int,
  update_horizon: int,
  gamma: float,
) -> ReplayTransitions:
  """Returns as tensors what `ReplayStore.gather` returns of rows, int64 [B]."""
  file = tf.searchsorted(table.first_rows, rows, side='right') - 1
  first = tf.gather(table.first_rows, file)
  length = tf.gather(table.num_rows, file)

  def move(steps: Any) -> tf.Tensor:
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
  return ReplayTransitions(
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


@gin.configurable(allowlist=['batch_size'])
class FixedReplayBuffer:
  """Batches of transitions, sampled uniformly and with replacement.

  Attributes:
    transition: the tensors of the step's batch by Dopamine's names: state, ...,
      indices; and return, float32 [batch_size], if monte_carlo.
    table: the variables that hold the store; None where NumPy gathers.
  """

  def __init__(
    self,
    store: ReplayStore,
    step: tf.Tensor,
    seed: int,
    batch_size: int = 32,
    update_horizon: int = 1,
    gamma: float = 0.99,
    stack_size: int = 4,
    monte_carlo: bool = False,
    in_graph: bool = False,
    max_device_bytes: int | None = None,
  ):
    """Makes the sampling tensors in the current graph.

    Each value of `step`, int64 [], names a batch of the sequence that `seed`
    names. With `monte_carlo`, only rows that have a return are sampled. With
    `in_graph`, batches are gathered from variables that hold the store, which
    must be loaded (`table.load`) before use, unless its frames have more than
    `max_device_bytes` (None: what the store may hold in memory).

    Raises:
      ConfigError: if batch_size is not positive, or stack_size not the store's.
      DataError: if the store holds nothing to sample.
    """
    if batch_size < 1:
      raise errors.ConfigError(
        f'FixedReplayBuffer.batch_size is {batch_size}; it must be positive.'
      )
    if stack_size != store.stack_size:
      raise errors.ConfigError(
        f'the agent stacks {stack_size} frames, but the store was opened for '
        f'stacks of {store.stack_size}.'
      )
    self.batch_size = batch_size
    self._store = store
    self._seed = seed
    self._update_horizon = update_horizon
    self._gamma = gamma
    self._valid_rows = store.valid_indices(update_horizon)
    self._returns = store.returns_to_go(gamma) if monte_carlo else None
    if self._returns is not None:
      is_known = np.isfinite(self._returns[self._valid_rows])
      self._valid_rows = self._valid_rows[is_known]
      if not self.num_valid:
        raise errors.DataError(
          f'no episode ends within the rows used of '
          f'{store.manifest["source"]}, so there are no Monte-Carlo returns. '
          'Use a larger part of it.'
        )
    fits = store.fits_memory
    if max_device_bytes is not None:
      fits = store.num_frame_bytes <= max_device_bytes
    self.table: TableVariables | None = None
    if in_graph and fits:
      self.table = TableVariables(store, self._valid_rows, self._returns)
    else:
      store.hold_frames()
    self.transition = self.transition_at(step)

  @property
  def num_valid(self) -> int:
    """The number of rows that are sampled from."""
    return len(self._valid_rows)

  def draw(self, num_rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns rows to measure on, ascending; distinct if there are enough."""
    rows = np.random.default_rng(seed).choice(
      self._valid_rows, num_rows, replace=num_rows > self.num_valid
    )
    return np.sort(rows)

  def batch_at(self, indices: npt.ArrayLike) -> _Transition:
    """Returns the transitions at valid rows, int [B], as arrays by name."""
    batch = self._store.gather(indices, self._update_horizon, self._gamma)
    arrays = collections.OrderedDict(zip(_NAMES, batch, strict=True))
    if self._returns is not None:
      arrays['return'] = self._returns[batch.indices]
    return arrays

  def transition_at(self, step: tf.Tensor) -> _Transition:
    """Returns the tensors of the batch of a step, int64 [], by name."""
    if self.table is not None:
      return self.transition_from(self.table.tensors, step)
    # The structure of a batch, with its dtypes and all shapes but the first.
    example = self.batch_at(self._valid_rows[:1])

    def read(positions: _Positions) -> list[npt.NDArray[Any]]:
      # In the graph, whose form is limited to 2 GB, the rows would not fit.
      return list(self.batch_at(self._valid_rows[positions]).values())

    with tf.name_scope('sample_replay'):
      tensors = call(
        _ReadAhead(read),
        [self._positions(step), self._positions(step + 1)],
        [tf.as_dtype(array.dtype) for array in example.values()],
        name='gather',
      )
    transition = collections.OrderedDict(zip(example, tensors, strict=True))
    for name, tensor in transition.items():
      tensor.set_shape([self.batch_size, *example[name].shape[1:]])
    return transition

  def transition_from(self, table: StoreTable, step: tf.Tensor) -> _Transition:
    """Returns the tensors of one step's batch, gathered from a table's."""
    store = self._store
    with tf.name_scope('sample_replay'):
      rows = tf.gather(table.valid_rows, self._positions(step))
      gathered = gather(
        table,
        rows,
        store.observation_shape,
        store.stack_size,
        self._update_horizon,
        self._gamma,
      )
      transition = collections.OrderedDict(zip(_NAMES, gathered, strict=True))
      if self._returns is not None:
        transition['return'] = tf.gather(table.returns, rows)
    return transition

  def _positions(self, step: tf.Tensor) -> tf.Tensor:
    seed = [tf.constant(self._seed, tf.int64), tf.cast(step, tf.int64)]
    # The algorithm is named, or else it would depend on the device.
    return tf.random.stateless_uniform(
      [self.batch_size],
      seed=tf.stack(seed),
      maxval=self.num_valid,
      minval=0,
      dtype=tf.int64,
      alg='philox',
    )


class _ReadAhead:
  """Reads the next step's batch while this step's is learnt from."""

  def __init__(self, read: Callable[[_Positions], list[npt.NDArray[Any]]]):
    self._read = read
    self._pool = futures.ThreadPoolExecutor(1, 'read_ahead')
    self._pending: tuple[_Positions, futures.Future[Any]] | None = None

  def __call__(
    self, positions: _Positions, next_positions: _Positions
  ) -> list[npt.NDArray[Any]]:
    pending, self._pending = self._pending, None
    if pending is not None and np.array_equal(pending[0], positions):
      batch: list[npt.NDArray[Any]] = pending[1].result()
    else:
      batch = self._read(positions)
    following = np.array(next_positions)  # TensorFlow keeps the memory of it.
    self._pending = (following, self._pool.submit(self._read, following))
    return batch
