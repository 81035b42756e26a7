"""What the agents sample from: batches of a fixed data set, as graph tensors.

Which transitions a batch holds depends on nothing but (seed, step), so that a
run that is resumed at some step goes on exactly as it would have. Agents of
Dopamine's read the tensors by the names of its `WrappedReplayBuffer`.
"""

import collections
from collections.abc import Callable
from concurrent import futures
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import graph_calls, graph_table
from batch_rl_dr3.replay.store import store as replay_store

_Positions = npt.NDArray[np.int64]

# Dopamine's names for the fields of a batch.
_NAMES = (
  'state',
  'action',
  'reward',
  'next_state',
  'next_action',
  'next_reward',
  'terminal',
  'indices',
)


@gin.configurable(
  denylist=[
    'store',
    'step',
    'seed',
    'update_horizon',
    'gamma',
    'stack_size',
    'monte_carlo',
    'in_graph',
    'max_device_bytes',
  ]
)
class FixedReplayBuffer:
  """Batches of transitions, sampled uniformly and with replacement.

  Attributes:
    transition: OrderedDict of the tensors below by Dopamine's names: state,
      action, reward, next_state, next_action, next_reward, terminal, indices,
      and return if monte_carlo.
    states: uint8 [batch_size, *observation_shape, stack_size].
    actions: int32 [batch_size].
    rewards: float32 [batch_size].
    next_states: like `states`.
    next_actions: int32 [batch_size].
    next_rewards: float32 [batch_size].
    terminals: uint8 [batch_size].
    indices: int64 [batch_size], rows of the store.
    returns: float32 [batch_size], the discounted return to the end of the
      episode; None unless monte_carlo.
    batch_size: int.
    table: the variables that hold the store; None where batches are gathered
      by NumPy.
  """

  def __init__(
    self,
    store: replay_store.ReplayStore,
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

    Args:
      store: the data.
      step: int64 [], the number of the gradient step; each value names one
        batch.
      seed: int, names the sequence of batches.
      batch_size: int.
      update_horizon: int, steps in a transition.
      gamma: float, the discount of one step.
      stack_size: int, frames in a state, as the store has it.
      monte_carlo: whether to give returns too. Rows whose episode does not
        end within the store are then not sampled.
      in_graph: whether batches are gathered by graph operations from variables
        that hold the store, which must be loaded (`table.load`) before use.
      max_device_bytes: int; the variables may take so many bytes for frames on
        their device. None copies frames that are in memory already, and
        gathers others by NumPy all the same.

    Raises:
      ConfigError: if batch_size is not positive, or the stack sizes differ.
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
    self._returns: npt.NDArray[np.float32] | None = None
    if monte_carlo:
      self._returns = store.returns_to_go(gamma)
      self._valid_rows = self._valid_rows[
        np.isfinite(self._returns[self._valid_rows])
      ]
      if not len(self._valid_rows):
        raise errors.DataError(
          f'no episode ends within the rows used of '
          f'{store.manifest["source"]}, so there are no Monte-Carlo returns. '
          'Use a larger part of it.'
        )
    self.table: graph_table.TableVariables | None = None
    if in_graph:
      self.table = graph_table.make(
        store, self._valid_rows, self._returns, max_device_bytes
      )
    if self.table is None:
      store.hold_frames()
    self.transition = self.transition_at(step)
    self.states = self.transition['state']
    self.actions = self.transition['action']
    self.rewards = self.transition['reward']
    self.next_states = self.transition['next_state']
    self.next_actions = self.transition['next_action']
    self.next_rewards = self.transition['next_reward']
    self.terminals = self.transition['terminal']
    self.indices = self.transition['indices']
    self.returns = self.transition.get('return')

  @property
  def num_valid(self) -> int:
    """The number of rows that are sampled from."""
    return len(self._valid_rows)

  def draw(self, num_rows: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns valid rows of the store to measure on, in ascending order.

    Args:
      num_rows: int, how many; they are distinct as long as there are enough.
      seed: int, names the draw.

    Returns:
      int64 [num_rows].
    """
    rows = np.random.default_rng(seed).choice(
      self._valid_rows, num_rows, replace=num_rows > self.num_valid
    )
    return np.sort(rows)

  def batch_at(
    self, indices: npt.ArrayLike
  ) -> 'collections.OrderedDict[str, npt.NDArray[Any]]':
    """Returns the transitions at rows of the store, as NumPy arrays by name.

    Args:
      indices: int [B], valid rows of the store.
    """
    batch = self._store.gather(indices, self._update_horizon, self._gamma)
    arrays: collections.OrderedDict[str, npt.NDArray[Any]]
    arrays = collections.OrderedDict(zip(_NAMES, batch, strict=True))
    if self._returns is not None:
      arrays['return'] = self._returns[batch.indices]
    return arrays

  def transition_at(
    self, step: tf.Tensor
  ) -> 'collections.OrderedDict[str, tf.Tensor]':
    """Returns the tensors of one step's batch, by name.

    Use it where one session call runs several steps, each with its own batch.

    Args:
      step: int64 [], the number of the gradient step.
    """
    if self.table is not None:
      return self.transition_from(self.table.tensors, step)
    # The structure of a batch, with its dtypes and all shapes but the first.
    example = self.batch_at(self._valid_rows[:1])
    with tf.name_scope('sample_replay'):
      tensors = graph_calls.call(
        _ReadAhead(self._gather_positions),
        [self._positions(step), self._positions(step + 1)],
        [tf.as_dtype(array.dtype) for array in example.values()],
        name='gather',
      )
    transition = collections.OrderedDict(zip(example, tensors, strict=True))
    for name, tensor in transition.items():
      tensor.set_shape([self.batch_size, *example[name].shape[1:]])
    return transition

  def transition_from(
    self, table: graph_table.Table, step: tf.Tensor
  ) -> 'collections.OrderedDict[str, tf.Tensor]':
    """Returns the tensors of one step's batch, gathered from tensors.

    Args:
      table: the store's, as `self.table.tensors` has them.
      step: int64 [], the number of the gradient step.
    """
    with tf.name_scope('sample_replay'):
      rows = tf.gather(table.valid_rows, self._positions(step))
      gathered = graph_table.gather(
        table,
        rows,
        self._store.observation_shape,
        self._store.stack_size,
        self._update_horizon,
        self._gamma,
      )
      transition = collections.OrderedDict(zip(_NAMES, gathered, strict=True))
      if self._returns is not None:
        transition['return'] = tf.gather(table.returns, rows)
    return transition

  def _positions(self, step: tf.Tensor) -> tf.Tensor:
    """Returns where among the valid rows a step's batch is, int64 [B]."""
    # The algorithm is named, or else it would depend on the device.
    return tf.random.stateless_uniform(
      [self.batch_size],
      seed=tf.stack(
        [tf.constant(self._seed, tf.int64), tf.cast(step, tf.int64)]
      ),
      maxval=self.num_valid,
      minval=0,
      dtype=tf.int64,
      alg='philox',
    )

  def _gather_positions(
    self, positions: npt.NDArray[np.int64]
  ) -> list[npt.NDArray[Any]]:
    # The table of valid rows stays out of the graph: it can be longer than
    # the 2 GB that a graph's serialised form allows.
    return list(self.batch_at(self._valid_rows[positions]).values())


class _ReadAhead:
  """Reads the next step's batch while this step's is learnt from.

  A batch is known by its positions: where steps do not follow each other, what
  was read ahead is dropped.
  """

  def __init__(self, read: Callable[[_Positions], list[npt.NDArray[Any]]]):
    """Takes what reads a batch; it is called from a thread of its own."""
    self._read = read
    self._pool = futures.ThreadPoolExecutor(1, 'read_ahead')
    self._pending: tuple[_Positions, futures.Future[Any]] | None = None

  def __call__(
    self, positions: _Positions, next_positions: _Positions
  ) -> list[npt.NDArray[Any]]:
    """Returns the batch at some positions; the next is then on its way."""
    pending, self._pending = self._pending, None
    if pending is not None and np.array_equal(pending[0], positions):
      batch: list[npt.NDArray[Any]] = pending[1].result()
    else:
      batch = self._read(positions)
    following = np.array(next_positions)  # TensorFlow keeps the memory of it.
    self._pending = (following, self._pool.submit(self._read, following))
    return batch
