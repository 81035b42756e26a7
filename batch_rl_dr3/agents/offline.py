"""What every offline agent shares: all but its Bellman loss.

The training step is one function of (weights, optimiser slots, penalties'
states, step number, store): sampling is keyed by (seed, step), and the target
network is copied inside the step. So a run restored at step k goes on bit for
bit.

Deviations from Dopamine's DQNAgent: `target_update_period` and the step number
count gradient steps. The target network starts equal to the online network
(Dopamine's first copy comes after its first training step), and is copied as
the first step to see the copy begins: no online weight differs, but nothing is
measured at a fresh copy, where the temporal difference is another.
"""

from collections.abc import Callable, Mapping, Sequence
import errno
import functools
import math
from typing import Any, NamedTuple

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

# Penalties with a state have no importer but gin.
from batch_rl_dr3.agents import (
  accelerator,
  checkpoint_weights,
  kernels,
  losses,
  networks,
  stateful_penalties,  # noqa: F401
)
from batch_rl_dr3.agents.accelerator import ONLINE, TARGET
from batch_rl_dr3.agents.penalties import Penalty, State, UpdateBatch
from batch_rl_dr3.config import dopamine_compat, errors, frameworks, ranges
from batch_rl_dr3.replay import batches
from batch_rl_dr3.replay.store import store as replay_store

# Parameters of Dopamine's constructor that mean something offline, and that
# OfflineAgent does not replace.
_DOPAMINES = {
  *('observation_shape', 'observation_dtype', 'stack_size', 'gamma'),
  *('update_horizon', 'epsilon_eval', 'optimizer'),
}
# Begins the names of held-out batches' tensors and of what is measured there.
HELD_OUT = 'held_out_'
# Keeps their random stream apart from the other batches'.
_HELD_OUT_STREAM = 15_485_863
# Begins the columns of penalties' shares of the loss.
_SHARE = 'share_'
# States per session call where features of many states are asked for.
_FEATURE_CHUNK = 256
# The states of penalties by the penalty's name: variables, or tensors.
States = Mapping[str, State]


class LossParts(NamedTuple):
  """The loss of one batch, whole and in parts: float32 scalars."""

  total: tf.Tensor  # What the optimiser minimises.
  # By the name that logs use: loss_total, loss_bellman, further losses, and
  # penalties before their coefficients.
  by_name: dict[str, tf.Tensor]
  weighted: dict[str, tf.Tensor]  # Penalties times their coefficients.
  measures: dict[str, tf.Tensor]  # What else the penalties log, by column.
  next_states: dict[str, State]


@gin.configurable
@ranges.checked(
  gamma=ranges.Share, epsilon_eval=ranges.Share, update_horizon=ranges.Count
)
class OfflineAgent(dopamine_compat.DQNAgent):
  """A Dopamine agent that learns from a fixed store and never writes to it.

  `replay` is what batches are sampled from, `batch` what the next step learns
  from, `loss_parts` its loss, and `metrics` are tensors of it by column.
  """

  # Outputs per action and the initialiser of the network's kernels.
  num_atoms = 1
  initialiser: Callable[..., Any] = staticmethod(networks.glorot_uniform)
  # Whether batches hold Monte-Carlo returns, and held-out batches stand beside
  # them.
  is_monte_carlo = False
  learns_from_held_out = False

  def __init__(
    self,
    sess: tf.compat.v1.Session | None,  # None makes one.
    num_actions: int,
    store: replay_store.ReplayStore,
    penalties: Sequence[Penalty] = (),
    seed: ranges.Natural = 0,
    target_update_period: ranges.Count = 2000,  # Gradient steps.
    network: Callable[..., tf.keras.Model] = networks.NatureNetwork,
    device: accelerator.DeviceName = 'auto',
    steps_per_call: ranges.Count | None = None,
    compute_dtype: accelerator.DtypeName = 'float32',
    max_device_bytes: int = 8 << 30,
    init_checkpoint: str | None = None,
    held_out_store: replay_store.ReplayStore | None = None,
    recorded_dtype: str | None = None,  # Of the run that goes on.
    **kwargs: Any,  # Dopamine's, those of _DOPAMINES.
  ):
    """Builds the graph and initialises it.

    All but a CPU's steps are compiled by XLA, whose convolutions on a CPU are
    20 times as slow as oneDNN's, with at most `steps_per_call` (None is the
    device's own number; it changes no bit) in one session call. Frames up to
    `max_device_bytes` are held in the memory of a GPU or TPU; larger stores are
    gathered from on the host, step by step. `compute_dtype` is of the networks'
    arithmetic: weights, losses and optimiser stay float32. `init_checkpoint` is
    the path, without `.index`, of one whose online weights are the initial
    ones; optimiser and step number start anew. The value function never learns
    from `held_out_store`.

    Raises:
      ValueError: if two penalties share a name, or a parameter is for agents
        that act while they learn.
      ConfigError: if a number or name is out of range, there is no such device,
        or it cannot compile the optimiser.
      DataError: if init_checkpoint is unreadable or of another network.
    """
    names = [penalty.name for penalty in penalties]
    if len(set(names)) < len(names):
      raise ValueError(f'two penalties have the same name: {names}.')
    unusable = sorted(kwargs.keys() - _DOPAMINES)
    if unusable:
      raise ValueError(
        f'{type(self).__name__} learns offline and has no use for '
        f'{", ".join(unusable)}.'
      )
    self.penalties = tuple(penalties)
    self._store = store
    self.held_out_store = held_out_store
    self._seed = seed
    self.device = accelerator.find_device(device)
    # Variables of a TPU stay on the host's side of the rewrite.
    self._tf_device = '/gpu:0' if self.device == 'gpu' else '/cpu:0'
    self.compute_dtype = accelerator.find_dtype(
      compute_dtype, self.device, recorded_dtype
    )
    self._is_compiled = self.device != 'cpu'
    self._max_device_bytes = max_device_bytes
    super().__init__(
      sess,
      num_actions,
      network=network,
      target_update_period=target_update_period,
      tf_device=self._tf_device,
      **kwargs,
    )
    self.eval_mode = True
    self.replay = self._replay
    tables = [replay.table for replay in self._replays.values()]
    for table in filter(None, tables):
      table.load(self._sess)
    if init_checkpoint is not None:
      initial = checkpoint_weights.read(init_checkpoint)
      checkpoint_weights.check_shapes(
        self.online_convnet.variables,
        initial,
        f'the weights of {init_checkpoint} do not fit, as those of an agent of '
        'the same kind do',
      )
      for variable, weight in zip(
        self.online_convnet.variables, initial, strict=True
      ):
        variable.load(weight, self._sess)
    self._sess.run(self._sync_qt_ops)
    self.steps_per_call = 1
    if self._is_compiled:
      # Batches that are gathered on the host come one at a time.
      if None not in tables:
        default = accelerator.STEPS_PER_CALL[self.device]
        self.steps_per_call = steps_per_call or default
      accelerator.initialise(self.device, self._sess)
      self._train_steps = self.make_compiled_steps(self.device)
    else:
      train_step = self.make_train_step()
      self._train_steps = lambda num_steps: train_step()

  # What a subclass says.

  def _build_bellman_loss(self, batch: UpdateBatch) -> tf.Tensor:
    """Returns the Bellman loss of a batch: float32 [B]."""
    raise NotImplementedError

  def _build_next_policy(self, batch: UpdateBatch) -> tf.Tensor:
    """Returns the distribution of the backup's a': float32 [B, A]."""
    greedy = tf.argmax(batch.target_q_values, axis=1)
    return tf.one_hot(greedy, self.num_actions)

  def _build_auxiliary_losses(self, batch: UpdateBatch) -> dict[str, tf.Tensor]:
    """Returns further losses by name, float32 scalars added with weight 1."""
    return {}

  @staticmethod
  def q_values(atoms: tf.Tensor) -> tf.Tensor:
    """Returns the Q-values [B, A] that outputs [B, A, K] stand for."""
    return networks.mean_of_atoms(atoms)

  def _bellman_target(
    self, batch: UpdateBatch, next_values: tf.Tensor
  ) -> tf.Tensor:
    """Returns the target of next values [B, A] or [B, A, K] under the a'."""
    return losses.bellman_target(
      batch.transition['reward'],
      batch.terminals,
      losses.expected_values(next_values, batch.next_policy),
      self.cumulative_gamma,
    )

  # The training step.

  def _build_batch(
    self,
    values: Mapping[str, Sequence[tf.Tensor]],
    step: tf.Tensor,
    transition: Mapping[str, tf.Tensor],
  ) -> UpdateBatch:
    """Runs the networks, with given weights, on a batch."""
    states, next_states = transition['state'], transition['next_state']
    online, target = self.online_convnet, self.target_convnet
    features, next_features = kernels.pair_features(
      online,
      values[ONLINE],
      states,
      next_states,
      any(p.coefficient and p.moves_next_features for p in self.penalties),
    )
    outputs = online.output(values[ONLINE], features)
    target_outputs = target.output(
      values[TARGET], target.features(values[TARGET], next_states)
    )
    terminals = tf.cast(transition['terminal'], tf.float32)
    batch = UpdateBatch(
      q_values=outputs.q_values,
      features=features,
      next_features=next_features,
      actions=transition['action'],
      next_policy=None,
      terminals=terminals,
      discounts=self.cumulative_gamma * (1.0 - terminals),
      step=step,
      atoms=outputs.atoms,
      target_q_values=target_outputs.q_values,
      target_atoms=target_outputs.atoms,
      transition=transition,
      weights=values,
    )
    next_policy = tf.stop_gradient(self._build_next_policy(batch))
    return batch._replace(next_policy=next_policy)

  def _build_loss(self, batch: UpdateBatch, states: States) -> LossParts:
    """Returns the loss of a batch, given the penalties' states before it."""
    bellman = tf.reduce_mean(self._build_bellman_loss(batch))
    auxiliary = self._build_auxiliary_losses(batch)
    total = tf.add_n([bellman, *auxiliary.values()])
    parts = {'bellman': bellman, **auxiliary}
    weighted: dict[str, tf.Tensor] = {}
    measures: dict[str, tf.Tensor] = {}
    next_states: dict[str, State] = {}
    for penalty in self.penalties:
      name, state = penalty.name, states[penalty.name]
      parts[name] = penalty(batch, state)
      weighted[name] = penalty.weight(state) * parts[name]
      if penalty.coefficient != 0:
        total += weighted[name]
      measures.update(penalty.measures(batch, state))
      next_states[name] = penalty.next_state(batch, state)
    by_name = {
      f'loss_{n}': part for n, part in ({'total': total} | parts).items()
    }
    return LossParts(total, by_name, weighted, measures, next_states)

  def _build_train_op(self) -> tf.Operation:
    """Returns a whole step: target network, gradient, optimiser, number."""
    self._transition_tensors = {
      prefix + name: tensor
      for prefix, replay in self._replays.items()
      for name, tensor in replay.transition.items()
    }
    self._is_step = tf.compat.v1.placeholder_with_default(True, [], 'is_step')
    step = self.gradient_steps.read_value()
    copied = tf.cond(
      self._is_step & tf.equal(step % self.target_update_period, 0),
      lambda: tf.group(*self._build_sync_op()),
      tf.no_op,
    )
    self.weights = {
      n: list(net.variables) for n, net in self._networks().items()
    }
    with tf.control_dependencies([copied]):
      values = _read(self.weights)
    self.penalty_states = {
      penalty.name: {
        name: _create_variable(f'{penalty.name}/{name}', array)
        for name, array in penalty.initial_state(
          self.online_convnet.num_features
        ).items()
      }
      for penalty in self.penalties
    }
    self.batch = self._build_batch(values, step, self._transition_tensors)
    self.loss_parts = self._build_loss(self.batch, _read(self.penalty_states))
    learnt = [v for n, vs in self.weights.items() if n != TARGET for v in vs]
    gradients = tf.gradients(self.loss_parts.total, learnt)
    self.metrics = self._build_metrics(gradients)
    # States are of the weights before the step, and so come before it.
    next_states = tf.nest.flatten(self.loss_parts.next_states)
    states = tf.nest.flatten(self.penalty_states)
    with tf.control_dependencies([copied, *next_states]):
      applied = [
        self.optimizer.apply_gradients(zip(gradients, learnt, strict=True)),
        *(
          variable.assign(value, read_value=False)
          for variable, value in zip(states, next_states, strict=True)
        ),
      ]
    with tf.control_dependencies(applied):
      return self.gradient_steps.assign_add(1, read_value=False)

  def _build_metrics(
    self, gradients: Sequence[tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    """Returns what is logged of a batch: float32 scalars by column."""
    batch, mean = self.batch, tf.reduce_mean
    sides = batch.features, batch.next_features
    squared_norms = tf.reduce_sum(tf.square(batch.features), axis=1)
    dot_products = losses.feature_dot_product(*sides)
    chosen_q = losses.chosen_values(batch.q_values, batch.actions)
    next_q = losses.expected_values(batch.target_q_values, batch.next_policy)
    return {
      **self.loss_parts.by_name,
      'feature_dot_product': mean(dot_products),
      'discounted_dot_product': mean(batch.discounts * dot_products),
      'feature_norm_squared': mean(squared_norms),
      'feature_norm': mean(tf.sqrt(squared_norms)),
      'feature_cosine': mean(losses.feature_cosine(*sides)),
      'last_layer_norm': tf.norm(self.online_convnet.variables[-2]),
      'mean_q': mean(chosen_q),
      'mean_target_q': mean(next_q),
      'gradient_norm': tf.linalg.global_norm(gradients),
      **self.loss_parts.measures,
      # `measure` divides them by the Bellman loss.
      **{f'{_SHARE}{n}': w for n, w in self.loss_parts.weighted.items()},
    }

  # What `CompiledSteps` compiles.

  def compiled_steps(self) -> accelerator.CompiledSteps:
    """Returns the training steps as a function that XLA compiles."""
    with self._sess.graph.as_default(), tf.device(self._tf_device):
      return accelerator.CompiledSteps(self)

  def data(self) -> list[Any]:
    """Returns the tensors that `loss_at` makes its batches of.

    They are tables to sample from, or one batch, where the steps must be one.
    """
    return [
      dict(r.transition) if r.table is None else r.table.tensors
      for r in self._replays.values()
    ]

  def loss_at(
    self,
    values: Mapping[str, Sequence[tf.Tensor]],
    step: tf.Tensor,
    data: Sequence[Any],
    states: States,
  ) -> LossParts:
    """Returns the loss of a step's batch, under given weights."""
    transition: dict[str, tf.Tensor] = {}
    for (prefix, replay), tensors in zip(
      self._replays.items(), data, strict=True
    ):
      if replay.table is not None:
        tensors = replay.transition_from(tensors, step)
      transition |= {prefix + name: tensors[name] for name in tensors}
    return self._build_loss(self._build_batch(values, step, transition), states)

  # Dopamine's hooks.

  def _create_network(self, name: str) -> tf.keras.Model:
    network = self.network(
      self.num_actions,
      num_atoms=self.num_atoms,
      initialiser=self.initialiser,
      seed=self._seed,
      name=name,
      q_values=self.q_values,
    )
    network.arithmetic_dtype = tf.as_dtype(self.compute_dtype)
    return network

  def _build_replay_buffer(
    self, use_staging: bool
  ) -> batches.FixedReplayBuffer:
    del use_staging
    self.gradient_steps = _create_variable('gradient_steps', np.int64(0))
    stores = {'': self._store}
    if self.learns_from_held_out:
      if self.held_out_store is None:
        raise ValueError(
          'there are no held-out transitions to learn from; bind '
          'FixedReplayRunner.num_held_out, and a Subset that is not the whole '
          'log'
        )
      stores[HELD_OUT] = self.held_out_store
    self._replays = {
      prefix: batches.FixedReplayBuffer(
        store,
        step=self.gradient_steps.read_value(),
        seed=self._seed + (_HELD_OUT_STREAM if prefix else 0),
        update_horizon=self.update_horizon,
        gamma=self.gamma,
        stack_size=self.stack_size,
        monte_carlo=self.is_monte_carlo and not prefix,
        in_graph=True,
        max_device_bytes=(
          self._max_device_bytes if self._is_compiled else None
        ),
      )
      for prefix, store in stores.items()
    }
    return self._replays['']

  def _build_networks(self) -> None:
    self.online_convnet = self._create_network(name='Online')
    self.target_convnet = self._create_network(name='Target')
    self._net_outputs = self.online_convnet(self.state_ph)
    self._q_argmax = tf.argmax(self._net_outputs.q_values, axis=1)[0]
    self._states_ph = tf.compat.v1.placeholder(
      self.observation_dtype,
      (None, *self.observation_shape, self.stack_size),
      name='states_ph',
    )
    self._features = self.online_convnet(self._states_ph).features
    self.target_convnet(self.state_ph)  # Creates its variables.

  def _networks(self) -> dict[str, tf.keras.Model]:
    """Returns the networks by name; all but the target network learn."""
    return {ONLINE: self.online_convnet, TARGET: self.target_convnet}

  def _build_sync_op(self) -> list[tf.Operation]:
    # Dopamine's finds the variables by the name scope it is called in, which
    # inside a tf.cond is another one.
    online, target = self.online_convnet, self.target_convnet
    return [
      old.assign(new)
      for old, new in zip(target.variables, online.variables, strict=True)
    ]

  def _store_transition(self, *args: Any, **kwargs: Any) -> None:
    """Does nothing: acting never adds to the data."""

  def _train_step(self) -> None:
    raise RuntimeError(
      f'{type(self).__name__} does not learn by acting: its data are fixed. '
      'Call make_train_step() and what it returns, and set eval_mode = True to '
      'act.'
    )

  # What training and evaluation call.

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:
    """Returns a function that runs up to `steps_per_call` gradient steps.

    It returns the last loss by name, and stops early at one that is not finite.
    """
    return self._train_steps

  def make_compiled_steps(
    self, device: str
  ) -> Callable[[int], dict[str, float]]:
    """Returns `make_train_steps`'s function, compiled for a device by XLA."""
    with self._sess.graph.as_default(), tf.device(self._tf_device):
      return self.compiled_steps().make_callable(self._sess, device)

  def make_train_step(self) -> Callable[[], dict[str, float]]:
    """Returns a function that runs one step of the plain graph, likewise."""
    parts = self.loss_parts.by_name
    step = self._sess.make_callable([self._train_op, *parts.values()])
    return lambda: dict(zip(parts, step()[1:], strict=True))

  def measure(
    self,
    batches: Sequence[Mapping[str, npt.NDArray[Any]]] = ({},),
    columns: Sequence[str] | None = None,
  ) -> dict[str, float]:
    """Returns metrics by column (by default all), averaged over batches.

    Batches are as `replay.batch_at` returns them; the default is the next
    step's.
    """
    metrics = {c: self.metrics[c] for c in columns or self.metrics}
    tensors = self._transition_tensors
    measured = []
    for batch in batches:
      fed = {tensors[n]: batch[n] for n in batch if n in tensors}
      measured.append(self._sess.run(metrics, {self._is_step: False, **fed}))
    means = {c: float(np.mean([m[c] for m in measured])) for c in metrics}
    for column in means:
      if column.startswith(_SHARE):
        bellman = means['loss_bellman']
        means[column] = means[column] / bellman if bellman else math.nan
    return means

  @property
  def acting_network(self) -> Callable[..., tf.keras.Model]:
    """The network with the agent's Q-values, for `checkpoint_weights.Actor`."""
    return functools.partial(self.network, q_values=self.q_values)

  def save(self, prefix: str) -> None:
    """Writes weights, slots, states and the step number; may raise OSError."""
    try:
      self._saver.save(
        self._sess, prefix, write_meta_graph=False, write_state=False
      )
    except tf.errors.OpError as error:
      raise frameworks.disk_error(error) from error
    except ValueError as error:
      raise OSError(errno.EIO, str(error)) from error

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote; a DataError if that was another agent."""
    try:
      reader = tf.compat.v1.train.NewCheckpointReader(prefix)
      there = reader.get_variable_to_shape_map()
      with self._sess.graph.as_default():
        variables = tf.compat.v1.global_variables()
      here = {v.op.name: v.shape.as_list() for v in variables}
      for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):  # The Saver checks no shape.
          raise ValueError(
            f'{name} has shape {there.get(name)} there and {here.get(name)} '
            'here'
          )
      self._saver.restore(self._sess, prefix)
    except (tf.errors.OpError, ValueError) as error:
      raise errors.DataError(
        f'{prefix} is no checkpoint of this agent: {error}'
      ) from error

  def num_gradient_steps(self) -> int:
    """Returns how many gradient steps the weights have had."""
    return int(self._sess.run(self.gradient_steps))

  def features(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns phi: float32 [N, D] of states [N, *observation_shape, stack]."""
    # In chunks, which bound the memory.
    chunks = np.split(
      states, range(_FEATURE_CHUNK, len(states), _FEATURE_CHUNK)
    )
    return np.concatenate(
      [self._sess.run(self._features, {self._states_ph: c}) for c in chunks]
    )


def _create_variable(name: str, value: Any) -> tf.Variable:
  return tf.compat.v1.get_variable(
    name, initializer=value, trainable=False, use_resource=True
  )


def _read(variables: Any) -> Any:
  return tf.nest.map_structure(lambda v: v.read_value(), variables)
