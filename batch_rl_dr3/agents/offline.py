"""What every offline agent shares: all but its Bellman loss.

Dopamine's DQNAgent on a fixed store; a subclass says how its loss is built. The
training step is one function of (weights, optimiser slots, penalties' states,
step number, store): sampling is keyed by (seed, step), and the target network
is copied inside the step. So a run restored at step k goes on bit for bit.

Deviations from Dopamine's DQNAgent: `target_update_period` and the step number
count gradient steps. The target network starts equal to the online network
(Dopamine's first copy comes after its first training step), and is copied as
the first step to see the copy begins: no online weight differs, but nothing is
measured at a fresh copy, where the temporal difference is another.
"""

from collections.abc import Callable, Mapping, Sequence
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
from batch_rl_dr3.config import dopamine_compat, ranges
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
# States per session call where features of many states are asked for.
_FEATURE_CHUNK = 256
# The states of penalties by the penalty's name: variables, or tensors.
States = Mapping[str, State]


class LossParts(NamedTuple):
  """The loss of one batch, whole and in parts: float32 scalars."""

  total: tf.Tensor  # What the optimiser minimises.
  bellman: tf.Tensor
  auxiliary: dict[str, tf.Tensor]  # Further losses, each with weight 1.
  penalties: dict[str, tf.Tensor]  # Before their coefficients.
  weighted: dict[str, tf.Tensor]  # Times their coefficients.
  measures: dict[str, tf.Tensor]  # What else the penalties log, by column.
  next_states: dict[str, State]

  def by_name(self) -> dict[str, tf.Tensor]:
    """Returns every part under the name that logs use, such as loss_total."""
    parts = {'total': self.total, 'bellman': self.bellman}
    parts |= self.auxiliary | self.penalties
    return {f'loss_{name}': value for name, value in parts.items()}


@gin.configurable
@ranges.checked(
  gamma=ranges.Share, epsilon_eval=ranges.Share, update_horizon=ranges.Count
)
class OfflineAgent(dopamine_compat.DQNAgent):
  """A Dopamine agent that learns from a fixed store and never writes to it.

  Attributes:
    replay: what the batches are sampled from.
    held_out_store: transitions that the value function never learns from, or
      None.
    device: what the training step runs on: 'cpu', 'gpu' or 'tpu'.
    compute_dtype: 'float32' or 'bfloat16'.
    batch, loss_parts: what the next step learns from, and its loss.
    metrics: what is logged of a batch: tensors by column.
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
    sess: tf.compat.v1.Session | None,
    num_actions: int,
    store: replay_store.ReplayStore,
    penalties: Sequence[Penalty] = (),
    seed: ranges.Natural = 0,
    target_update_period: ranges.Count = 2000,
    network: Callable[..., tf.keras.Model] = networks.NatureNetwork,
    device: accelerator.DeviceName = 'auto',
    steps_per_call: ranges.Count | None = None,
    compute_dtype: accelerator.DtypeName = 'float32',
    max_device_bytes: int = 8 << 30,
    init_checkpoint: str | None = None,
    held_out_store: replay_store.ReplayStore | None = None,
    recorded_dtype: str | None = None,
    **kwargs: Any,
  ):
    """Builds the graph and initialises it.

    Args:
      sess: the session; None makes one.
      num_actions: A.
      store: the logged data.
      penalties: added to the Bellman loss.
      seed: fixes the initial weights and, with the step number, every batch.
      target_update_period: gradient steps between copies of the online into
        the target network.
      network: makes a `ValueNetwork` from (num_actions, num_atoms=, ...).
      device: one of accelerator.DEVICE_NAMES; all but a CPU's steps are
        compiled by XLA.
      steps_per_call: the most gradient steps in one session call; None is the
        device's own number. It changes no bit of the result.
      compute_dtype: of the networks' arithmetic: 'float32', 'bfloat16', or
        'auto', the faster one; weights, losses and optimiser stay float32.
      max_device_bytes: frames up to this size are held in the memory of a GPU
        or TPU; larger stores are gathered from on the host, step by step.
      init_checkpoint: path, without `.index`, of a checkpoint whose online
        weights are the initial ones. Optimiser and step number start anew.
      held_out_store: see the class.
      recorded_dtype: what 'auto' has been in the run that goes on.
      **kwargs: Dopamine's, those of _DOPAMINES.

    Raises:
      ValueError: if two penalties share a name, or a parameter is for agents
        that act while they learn.
      ConfigError: if there is no such device, or it cannot compile the
        optimiser.
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
    self._device = accelerator.find_device(device)
    self.device = self._device.name
    self.compute_dtype = accelerator.find_dtype(
      compute_dtype, self._device, recorded_dtype
    )
    self._max_device_bytes = max_device_bytes
    super().__init__(
      sess,
      num_actions,
      network=network,
      target_update_period=target_update_period,
      tf_device=self._device.tf_device,
      **kwargs,
    )
    self.eval_mode = True
    self.replay = self._replay
    tables = [replay.table for replay in self._replays.values()]
    for table in tables:
      if table is not None:
        table.load(self._sess)
    if init_checkpoint is not None:
      checkpoint_weights.assign(
        self._sess,
        self.online_convnet.variables,
        checkpoint_weights.read(init_checkpoint),
        f'the weights of {init_checkpoint} do not fit, as those of an agent of '
        'the same kind do',
      )
    self._sess.run(self._sync_qt_ops)
    self.steps_per_call = 1
    if self._device.is_compiled:
      # Batches that are gathered on the host come one at a time.
      if None not in tables:
        self.steps_per_call = steps_per_call or self._device.steps_per_call
      accelerator.initialise(self._device, self._sess)
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
    """Returns the Q-values [B, A] that outputs [B, A, K] stand for.

    Training, metrics, penalties and acting all use it.
    """
    return networks.mean_of_atoms(atoms)

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
    parts = LossParts(total, bellman, auxiliary, {}, {}, {}, {})
    for penalty in self.penalties:
      name, state = penalty.name, states[penalty.name]
      parts.penalties[name] = penalty(batch, state)
      parts.weighted[name] = penalty.weight(state) * parts.penalties[name]
      if penalty.coefficient != 0:
        total += parts.weighted[name]
      parts.measures.update(penalty.measures(batch, state))
      parts.next_states[name] = penalty.next_state(batch, state)
    return parts._replace(total=total)

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
    variables = {name: n.variables for name, n in self._networks().items()}
    with tf.control_dependencies([copied]):
      values = _read(variables)
    self._penalty_states = self._create_states()
    self.batch = self._build_batch(values, step, self._transition_tensors)
    self.loss_parts = self._build_loss(self.batch, _read(self._penalty_states))
    learnt = [v for name, vs in variables.items() if name != TARGET for v in vs]
    gradients = tf.gradients(self.loss_parts.total, learnt)
    self.metrics = self._build_metrics(gradients)
    # States are of the weights before the step, and so come before it.
    next_states = tf.nest.flatten(self.loss_parts.next_states)
    states = tf.nest.flatten(self._penalty_states)
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

  def _create_states(self) -> dict[str, dict[str, tf.Variable]]:
    num_features = self.online_convnet.num_features
    return {
      penalty.name: {
        name: _create_variable(f'{penalty.name}/{name}', array)
        for name, array in penalty.initial_state(num_features).items()
      }
      for penalty in self.penalties
    }

  def _build_metrics(
    self, gradients: Sequence[tf.Tensor]
  ) -> dict[str, tf.Tensor]:
    """Returns what is logged of a batch: float32 scalars by column.

    `mean_q` is of the logged actions, `mean_target_q` of the backup's.
    """
    batch, mean = self.batch, tf.reduce_mean
    sides = batch.features, batch.next_features
    squared_norms = tf.reduce_sum(tf.square(batch.features), axis=1)
    dot_products = losses.feature_dot_product(*sides)
    chosen_q = losses.chosen_values(batch.q_values, batch.actions)
    next_q = losses.expected_values(batch.target_q_values, batch.next_policy)
    cosines = losses.feature_cosine(*sides)
    return {
      **self.loss_parts.by_name(),
      'feature_dot_product': mean(dot_products),
      'discounted_dot_product': mean(batch.discounts * dot_products),
      'feature_norm_squared': mean(squared_norms),
      'feature_norm': mean(tf.sqrt(squared_norms)),
      'feature_cosine': mean(cosines),
      'last_layer_norm': tf.norm(self.online_convnet.variables[-2]),
      'mean_q': mean(chosen_q),
      'mean_target_q': mean(next_q),
      'gradient_norm': tf.linalg.global_norm(gradients),
      **self.loss_parts.measures,
    }

  def compiled_steps(self) -> accelerator.CompiledSteps:
    """Returns the training steps as a function that XLA compiles."""

    def loss(
      values: Mapping[str, Sequence[tf.Tensor]],
      step: tf.Tensor,
      data: Sequence[Any],
      states: States,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], States]:
      batch = self._build_batch(values, step, self._transition(data, step))
      parts = self._build_loss(batch, states)
      return parts.total, parts.by_name(), parts.next_states

    with self._sess.graph.as_default(), tf.device(self._device.tf_device):
      return accelerator.CompiledSteps(
        self.gradient_steps,
        {name: n.variables for name, n in self._networks().items()},
        self._penalty_states,
        [
          dict(r.transition) if r.table is None else r.table.tensors
          for r in self._replays.values()
        ],
        loss,
        self.optimizer,
        self.target_update_period,
        self.loss_parts.by_name(),
      )

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
          self._max_device_bytes if self._device.is_compiled else None
        ),
      )
      for prefix, store in stores.items()
    }
    return self._replays['']

  def _transition(
    self, data: Sequence[Any], step: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    """Returns a step's batch of the compiled step's data, by name."""
    transition: dict[str, tf.Tensor] = {}
    for prefix, tensors in zip(self._replays, data, strict=True):
      replay = self._replays[prefix]
      if replay.table is not None:
        tensors = replay.transition_from(tensors, step)
      transition |= {prefix + name: tensors[name] for name in tensors}
    return transition

  def _build_networks(self) -> None:
    """Builds the networks and every output that training and acting read."""
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
    """Refuses: this is what Dopamine's agents do between two actions."""
    raise RuntimeError(
      f'{type(self).__name__} does not learn by acting: its data are fixed. '
      'Call make_train_step() and what it returns, and set eval_mode = True to '
      'act.'
    )

  # What training and evaluation call.

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:
    """Returns a function that runs up to `steps_per_call` gradient steps.

    It returns the last batch's loss parts by name, and stops early where a
    loss is not finite.
    """
    return self._train_steps

  def make_compiled_steps(
    self, device: str
  ) -> Callable[[int], dict[str, float]]:
    """Returns `make_train_steps`'s function, compiled for a device by XLA."""
    with self._sess.graph.as_default(), tf.device(self._device.tf_device):
      return self.compiled_steps().make_callable(self._sess, device)

  def make_train_step(self) -> Callable[[], dict[str, float]]:
    """Returns a function that runs one step of the plain graph, likewise."""
    parts = self.loss_parts.by_name()
    step = self._sess.make_callable([self._train_op, *parts.values()])
    return lambda: dict(zip(parts, step()[1:], strict=True))

  @property
  def metric_columns(self) -> tuple[str, ...]:
    """The names of what `measure` returns by default."""
    return (*self.metrics, *map(_share_column, self.loss_parts.weighted))

  def measure(
    self,
    batches: Sequence[Mapping[str, npt.NDArray[Any]]] = ({},),
    columns: Sequence[str] | None = None,
  ) -> dict[str, float]:
    """Returns metrics by column (by default all), averaged over batches.

    A penalty's share is its part of the loss over the Bellman loss. Batches are
    as `replay.batch_at` returns them; the default is the next step's.
    """
    shares = {_share_column(n): n for n in self.loss_parts.weighted}
    weighted = {c: self.loss_parts.weighted[n] for c, n in shares.items()}
    metrics = {**self.metrics, **weighted}
    metrics = {c: metrics[c] for c in columns or metrics}
    tensors = self._transition_tensors
    measured = []
    for batch in batches:
      fed = {tensors[n]: batch[n] for n in batch if n in tensors}
      measured.append(self._sess.run(metrics, {self._is_step: False, **fed}))
    means = {c: float(np.mean([m[c] for m in measured])) for c in metrics}
    for column in shares.keys() & means.keys():
      bellman = means['loss_bellman']
      means[column] = means[column] / bellman if bellman else math.nan
    return means

  @property
  def acting_network(self) -> Callable[..., tf.keras.Model]:
    """The network with the agent's Q-values, for `acting.Actor`."""
    return functools.partial(self.network, q_values=self.q_values)

  def save(self, prefix: str) -> None:
    """Writes weights, slots, states and the step number; may raise OSError."""
    checkpoint_weights.save(self._sess, self._saver, prefix)

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote; a DataError if that was another agent."""
    checkpoint_weights.restore(self._sess, self._saver, prefix)

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


def _share_column(penalty: str) -> str:
  return f'share_{penalty}'


def _create_variable(name: str, value: Any) -> tf.Variable:
  return tf.compat.v1.get_variable(
    name, initializer=value, trainable=False, use_resource=True
  )


def _read(variables: Any) -> Any:
  return tf.nest.map_structure(lambda v: v.read_value(), variables)
