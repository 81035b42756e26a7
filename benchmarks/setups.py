"""What is measured: the package's agents and stock ones, on one made-up log."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from batch_rl_dr3.agents import bellman, networks, offline, penalties
from batch_rl_dr3.replay import batches
from batch_rl_dr3.replay.log import log_writer
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store import subset as replay_subset
from benchmarks import stock

BATCH_SIZE = 32
NUM_ATOMS = 200
ALPHA = 4.0
C0 = {'rem': 0.001, 'cql': 0.03}


@dataclasses.dataclass(frozen=True)
class Problem:
  """A shape of data and the network for it.

  Attributes:
    name: names its folder.
    observation_shape: of a frame.
    stack_size: frames in a state.
    num_actions: the game's.
    network: the network's class.
  """

  name: str
  observation_shape: tuple[int, ...]
  stack_size: int
  num_actions: int
  network: type[networks.ValueNetwork]


# 9 actions are the median of the protocol's 17 games.
ATARI = Problem('atari', (84, 84), 4, 9, networks.NatureNetwork)
MINATAR = Problem('minatar', (10, 10, 4), 1, 6, networks.MinAtarNetwork)


def write_log(
  folder: pathlib.Path, problem: Problem, num_rows: int
) -> pathlib.Path:
  """Writes random frames in episodes of 100 rows; what they show costs nothing.

  Returns:
    The log's folder.
  """
  log = folder / problem.name / '1'
  writer = log_writer.LogWriter(
    log / 'replay_logs',
    problem.observation_shape,
    problem.stack_size,
    num_rows + num_rows // 10,  # One file; padding rows are added.
  )
  rng = np.random.default_rng(0)
  for row in range(num_rows):
    # Coarse noise, which gzip makes small.
    frame = rng.integers(0, 2, problem.observation_shape, dtype=np.uint8)
    writer.add(
      frame if problem.stack_size == 1 else 255 * frame,
      int(rng.integers(problem.num_actions)),
      float(rng.integers(-1, 2)),
      row % 100 == 99,
    )
  writer.close()
  return log


def open_store(
  log: pathlib.Path, cache: pathlib.Path, problem: Problem
) -> replay_store.ReplayStore:
  """Returns the store of a log that `write_log` wrote."""
  return replay_store.open_store(
    log,
    cache,
    replay_subset.Subset('all', 1.0),
    problem.observation_shape,
    problem.num_actions,
    problem.stack_size,
  )


def _optimizer() -> tf.compat.v1.train.Optimizer:
  return tf.compat.v1.train.AdamOptimizer(5e-5, epsilon=3.125e-4)


def _constant(
  agent_class: type[offline.OfflineAgent],
) -> type[offline.OfflineAgent]:
  """Returns a subclass that learns from one batch and samples nothing."""

  class ConstantBatchAgent(agent_class):  # type: ignore[valid-type, misc]
    def _build_replay_buffer(
      self, use_staging: bool
    ) -> batches.FixedReplayBuffer:
      replay = super()._build_replay_buffer(use_staging)
      batch = replay.batch_at(replay.draw(replay.batch_size, 0))
      for name, array in batch.items():
        # A constant would be folded into the graph that is measured.
        replay.transition[name] = tf.compat.v1.placeholder_with_default(
          array, array.shape
        )
      return replay

  return ConstantBatchAgent


def agent(
  problem: Problem,
  store: replay_store.ReplayStore,
  method: str,
  with_dr3: bool = True,
  constant_batch: bool = False,
  **kwargs: Any,
) -> offline.OfflineAgent:
  """Returns one of the package's agents, in a graph of its own.

  Args:
    problem: what it learns.
    store: the data.
    method: 'rem' or 'cql'.
    with_dr3: whether with the DR3 term.
    constant_batch: whether it learns from one batch and samples nothing.
    **kwargs: the agent's.
  """
  added: list[penalties.Penalty] = []
  if method == 'cql':
    added.append(penalties.ConservativePenalty(ALPHA))
  if with_dr3:
    added.append(penalties.FeatureDotPenalty(C0[method]))
  agent_class: type[offline.OfflineAgent] = {
    'rem': bellman.FixedReplayREMAgent,
    'cql': bellman.FixedReplayQRCQLAgent,
  }[method]
  if constant_batch:
    agent_class = _constant(agent_class)
  with tf.Graph().as_default():
    return agent_class(
      None,
      problem.num_actions,
      store,
      penalties=added,
      network=problem.network,
      observation_shape=problem.observation_shape,
      stack_size=problem.stack_size,
      optimizer=_optimizer(),
      **kwargs,
    )


def stock_agent(
  problem: Problem,
  store: replay_store.ReplayStore,
  method: str,
  with_dr3: bool = True,
  constant_batch: bool = False,
) -> stock.StockAgent:
  """Returns Dopamine's agent with the same loss, in a graph of its own."""
  batch = None
  if constant_batch:
    valid = store.valid_indices()[:BATCH_SIZE]
    gathered = store.gather(valid)
    batch = {
      name.removesuffix('s') if name != 'indices' else name: array
      for name, array in gathered._asdict().items()
    }
  with tf.Graph().as_default():
    return stock.StockAgent(
      None,
      problem.num_actions,
      store,
      method,
      problem.network,
      NUM_ATOMS,
      ALPHA,
      C0[method] if with_dr3 else 0.0,
      constant_batch=batch,
      optimizer=_optimizer(),
    )


def stock_step(built: stock.StockAgent) -> Callable[[], Any]:
  """Returns a function that runs one training step as Dopamine does."""
  return lambda: built._sess.run(built._train_op)
