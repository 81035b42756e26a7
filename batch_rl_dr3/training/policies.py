"""Checkpoints as functions of states, and logged data as batches, in Python."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import math
import os
import pathlib
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf

from batch_rl_dr3.agents import checkpoint_weights
from batch_rl_dr3.analysis import diagnosis
from batch_rl_dr3.config import cli, errors, own_code
from batch_rl_dr3.evaluation import foreign_networks, pool, targets
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play
from batch_rl_dr3.replay import batches
from batch_rl_dr3.replay.log import checkpoint_format, source_chain, sources
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset, episode_returns
from batch_rl_dr3.training import discrete

Array = npt.NDArray[Any]
# States [n, *observation_shape, stack_size] -> float32 [n, A], [n, D].
Outputs = Callable[[Array], tuple[Array, Array]]
_CHUNK = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
  """The Q-values, features and greedy actions of a checkpoint."""

  function: Outputs
  # Its layers, where they are convolutions and dense ones.
  network: foreign_networks.ForeignNetwork | None = None
  # Of a checkpoint of a run: the game that it was evaluated in, how it was
  # played, the run, and the gradient steps.
  lanes: lanes_lib.Lanes | None = None
  rule: play.PlayRule | None = None
  run: targets.Target | None = None
  gradient_steps: int | None = None

  def outputs(self, states: Array) -> tuple[Array, Array]:
    """Returns Q-values, float32 [n, A], and features, float32 [n, D].

    States are [n, *observation_shape, stack_size], of the observations' dtype.
    """
    chunks = np.split(states, range(_CHUNK, len(states), _CHUNK))
    q_values, features = zip(*map(self.function, chunks), strict=True)
    return np.concatenate(q_values), np.concatenate(features)

  def q_values(self, states: Array) -> Array:
    """Returns float32 [n, A]."""
    return self.outputs(states)[0]

  def features(self, states: Array) -> Array:
    """Returns phi, float32 [n, D]."""
    return self.outputs(states)[1]

  def act(self, states: Array) -> Array:
    """Returns the greedy action of each state, int64 [n]."""
    return np.argmax(self.q_values(states), axis=1)


def load_policy(
  checkpoint: str | os.PathLike[str],
  num_actions: int | None = None,
  layers: Sequence[str] = (),
  imports: Sequence[own_code.OwnCode] = (),
) -> Policy:
  """Returns the policy of a checkpoint; DataError if it cannot be read.

  It is a run directory, whose newest checkpoint is taken; the path of a
  TensorFlow checkpoint without `.index`; or a file of another program, of which
  `num_actions` is needed where it has K outputs per action, and for `layers`
  see `foreign_networks.read`. `imports` is code that the run was made with.
  """
  path = pathlib.Path(checkpoint)
  found = targets.of_checkpoint(path, imports)
  if found is not None:
    return _policy_of_run(*found)
  if path.with_name(f'{path.name}.index').exists():
    network = _network(str(path), num_actions)
    if network is None:
      raise errors.DataError(f'{path} has a layer norm and is of no run.')
  elif path.is_file():
    network = foreign_networks.read(path, num_actions, layers)
  else:
    raise errors.DataError(f'{path} is no run directory and no checkpoint.')
  return Policy(network.outputs, network)


def _network(
  prefix: str, num_actions: int | None
) -> foreign_networks.ForeignNetwork | None:
  """Returns the layers of a TensorFlow checkpoint, None with a layer norm."""
  weights = checkpoint_weights.read(prefix)
  names = checkpoint_weights.layer_names(weights)
  if 'layer_norm' in names:
    return None
  arrays = zip(names, weights[::2], weights[1::2], strict=True)
  layers = [foreign_networks.Layer(*each) for each in arrays]
  # MinAtar's observations are 0 and 1.
  scale = 255.0 if len(weights[0]) == 8 else 1.0
  return foreign_networks.ForeignNetwork(layers, num_actions or 0, scale)


def _policy_of_run(
  target: targets.Target, prefix: str, gradient_steps: int | None
) -> Policy:
  own_code.load(target.imports)
  player = discrete.create_evaluator(target.setup())
  game = player.lanes.game
  outputs = player.load(prefix).outputs
  states = np.random.default_rng(0).integers(
    256, size=(8, *game.observation_shape, game.stack_size), dtype=np.uint8
  )
  states = states.astype(game.observation_dtype)
  # Only of a chain do the layers say what the network does.
  layers = None
  with contextlib.suppress(errors.DataError):
    network = _network(prefix, game.num_actions)
    if network is not None and np.allclose(
      network.outputs(states)[0], outputs(states)[0], rtol=1e-3, atol=1e-4
    ):
      layers = network
  return Policy(
    outputs, layers, player.lanes, player.rule, target, gradient_steps
  )


def evaluate_policy(
  policy: Policy,
  game: str | None = None,
  num_agent_steps: int | None = None,
  epsilon: float | None = None,
  seed: int = 0,
) -> pd.DataFrame:
  """Plays whole episodes and returns one a row: return, length, truncated.

  The game is one of ALE ('Pong', under the published protocol), MinAtar
  ('breakout') or gymnasium ('CartPole-v1'); None is that of the policy's run,
  under its protocol, and a UsageError without one. At least num_agent_steps are
  played, a share epsilon of them at random: None is the run's own, or 125,000
  and 0.001.
  """
  lanes = policy.lanes if game is None else create_lanes(game)
  if lanes is None:
    raise errors.UsageError('the checkpoint names no game; name it.')
  rule = (policy.rule if game is None else None) or play.PUBLISHED
  if num_agent_steps is not None:
    rule = dataclasses.replace(rule, num_agent_steps=num_agent_steps)
  if epsilon is not None:
    rule = dataclasses.replace(rule, epsilon=epsilon)
  episodes = play.play(lanes, policy.act, rule, seed)
  return pd.DataFrame([dataclasses.asdict(episode) for episode in episodes])


def create_lanes(game: str) -> lanes_lib.Lanes:
  """Returns lanes of a game of MinAtar, of gymnasium's id, or of ALE."""
  cli.load_gin(*targets.protocol_of(game))
  lanes: lanes_lib.Lanes = pool.bound('FixedReplayRunner.create_lanes', None)()
  return lanes


class LoggedData:
  """A log that is opened: transitions by row, and training's batches."""

  def __init__(self, store: replay_store.ReplayStore, source: sources.Source):
    self.store = store
    self._source = source

  def batch(
    self,
    seed: int,
    step: int,
    batch_size: int = 32,
    update_horizon: int = 1,
    gamma: float = 0.99,
  ) -> replay_store.ReplayTransitions:
    """Returns the batch that a run of a seed learns from at a step."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      buffer = batches.FixedReplayBuffer(
        self.store,
        tf.constant(step, tf.int64),
        seed,
        batch_size,
        update_horizon,
        gamma,
        self.store.stack_size,
      )
      rows = session.run(buffer.transition['indices'])
    return self.store.gather(rows, update_horizon, gamma)

  def sample(
    self,
    count: int,
    seed: int = 0,
    update_horizon: int = 1,
    gamma: float = 0.99,
  ) -> replay_store.ReplayTransitions:
    """Returns up to `count` different transitions, drawn by a seed."""
    valid = self.store.valid_indices(update_horizon)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(valid, min(count, len(valid)), replace=False))
    return self.store.gather(rows, update_horizon, gamma)

  def returns(self, rows: Array, gamma: float = 0.99) -> Array:
    """Returns the discounted return that was logged from each row on.

    float32 [n], NaN where the episode was cut. Of transitions that were drawn,
    the store does not hold it, and the log's rewards and terminals are read.
    """
    if not self.store.is_drawn:
      return self.store.returns_to_go(gamma)[rows]
    source, segments = self._source, []
    rewards: list[Array] = []
    terminals: list[Array] = []
    num_rows = 0
    for suffix in source.suffixes():
      segment = source.segment(suffix)
      for name, parts in (('reward', rewards), ('terminal', terminals)):
        column = np.concatenate([*source.rows(name, suffix)])
        parts.append(column[: segment.num_rows])
      segments.append(dataclasses.replace(segment, first_row=num_rows))
      num_rows += segment.num_rows
    returns = episode_returns(
      segments, np.concatenate(rewards), np.concatenate(terminals), gamma
    )
    # Where each row of the store is in the log.
    first_rows = {s.suffix: s.first_row for s in segments}
    offsets = np.repeat(
      [first_rows[s.suffix] for s in self.store.segments],
      [s.num_rows for s in self.store.segments],
    )
    return returns[(offsets + self.store.source_rows())[rows]]


def open_store(
  log: str | os.PathLike[str],
  subset: Subset | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  stack_size: int | None = None,
) -> LoggedData:
  """Opens a log, or the store of one; DataError if it is damaged.

  The log is a folder or URL, of which `subset` (None: all) is used. A state has
  `stack_size` frames: by default what collection.json says, or 4. `cache_dir`,
  where stores are kept, is by default the commands' own.
  """
  if stack_size is None:
    said = (checkpoint_format.read_collection(log) or {}).get('game')
    stack_size = said['stack_size'] if isinstance(said, dict) else 4
  source = source_chain.open_source(log)
  cache_dir = cache_dir or cli.default_cache_dir()
  store = replay_store.open_store(
    source, cache_dir, subset or Subset(), None, None, stack_size
  )
  return LoggedData(store, source)


def subset_of_run(
  run: targets.Target, num_held_out: int
) -> tuple[Subset, Subset | None]:
  """Returns what a run learns from, and rows that it never does."""
  with pool.gin_config(run.config):
    subset = gin.query_parameter('FixedReplayRunner.subset')
    subset = subset.scoped_configurable_fn()
  subset = subset.for_run(int(run.provenance['seed']))
  return subset, subset.held_out(num_held_out)


def transitions_of(
  policy: Policy,
  data: LoggedData,
  batch: replay_store.ReplayTransitions,
  gamma: float = 0.99,
  update_horizon: int = 1,
) -> diagnosis.LoggedOutputs:
  """Returns what a policy says of transitions of the data, for `diagnosis`."""
  q_values, features = policy.outputs(batch.states)
  if batch.actions.max() >= q_values.shape[1]:
    raise errors.DataError(
      f'the network has {q_values.shape[1]} actions, and action '
      f'{batch.actions.max()} was logged. Is it of another game, or are there '
      'several outputs per action (num_actions)?'
    )
  _, next_features = policy.outputs(batch.next_states)
  discounts = gamma**update_horizon * (1.0 - batch.terminals)
  return diagnosis.LoggedOutputs(
    features,
    next_features,
    discounts,
    q_values[np.arange(len(q_values)), batch.actions],
    data.returns(batch.indices, gamma),
  )


def sensitivity(policy: Policy, states: Array, seed: int = 0) -> pd.DataFrame:
  """Returns how much each layer's weights matter: a row a layer.

  A layer is drawn afresh, uniformly as Glorot has it and without bias, all
  others stay (Zhang et al. 2019, arXiv:1902.01996): its name, and
  `diagnosis.compare_outputs`.
  """
  network = policy.network
  if network is None:
    raise errors.DataError('the layers of the network are not known.')
  rng = np.random.default_rng(seed)
  before, _ = network.outputs(states)
  rows = []
  for i, layer in enumerate(network.layers):
    *field, fan_in, fan_out = layer.kernel.shape
    limit = np.sqrt(6 / (math.prod(field) * (fan_in + fan_out)))
    kernel = rng.uniform(-limit, limit, layer.kernel.shape)
    layers = [*network.layers]
    layers[i] = foreign_networks.Layer(
      layer.name, kernel.astype(np.float32), np.zeros_like(layer.bias)
    )
    after, _ = dataclasses.replace(network, layers=layers).outputs(states)
    changes = diagnosis.compare_outputs(before, after)
    rows.append({'layer': layer.name, **changes})
  return pd.DataFrame(rows)
