"""What every offline agent shares: all but its Bellman loss.

An agent is a Dopamine TF agent whose replay is a fixed store. This module
builds the networks, the loss and its parts, the training step, the measured
quantities and acting, once; a subclass says how its Bellman loss is built.

The training step is one function of (weights, optimiser slots, step number,
store): sampling is keyed by (seed, step), the target network is synchronised
inside the step, and the step number lives in the graph beside the weights. A
run that is restored at step k therefore goes on bit for bit.

Deviations from Dopamine's DQNAgent: the target network starts equal to the
online network (Dopamine's first sync comes after its first training step),
and both `target_update_period` and the step number count gradient steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3 import dopamine_compat
from batch_rl_dr3.agents import (
  compiled_steps,
  devices,
  measures,
  update,
  variables,
)
from batch_rl_dr3.networks import value_network
from batch_rl_dr3.penalties import Penalty, UpdateBatch
from batch_rl_dr3.replay import fixed_replay_buffer
from batch_rl_dr3.replay import store as replay_store

# Parameters of Dopamine's constructor that mean nothing without an
# environment to train in, or that this module replaces.
_ONLINE_ONLY = frozenset(
  (
    'min_replay_history',
    'update_period',
    'epsilon_fn',
    'epsilon_train',
    'epsilon_decay_period',
    'use_staging',
    'eval_mode',
    'max_tf_checkpoints_to_keep',
    'summary_writer',
    'summary_writing_frequency',
    'allow_partial_reload',
    'tf_device',
  )
)
# States per session call where features of many states are asked for.
_FEATURE_CHUNK = 256


@gin.configurable
class OfflineAgent(dopamine_compat.DQNAgent):
  """A Dopamine agent that learns from a fixed store and never writes to it.

  Attributes:
    steps_per_call: the gradient steps that one session call runs at most.
    metrics: what is logged of a batch, tensors by column name.
    loss_parts: the loss of the batch that the next step learns from.
  """

  # Outputs per action and the initialiser of the network's kernels.
  num_atoms = 1
  initialiser: Callable[..., Any] = staticmethod(value_network.glorot_uniform)

  def __init__(
    self,
    sess: tf.compat.v1.Session | None,
    num_actions: int,
    store: replay_store.ReplayStore,
    seed: int = 0,
    penalties: Sequence[Penalty] = (),
    target_update_period: int = 2000,
    network: Callable[..., tf.keras.Model] = value_network.NatureNetwork,
    device: devices.Name = 'auto',
    steps_per_call: int | None = None,
    max_device_bytes: int = 8 << 30,
    compute_dtype: str = 'float32',
    **kwargs: Any,
  ):
    """Builds the graph and initialises it.

    Args:
      sess: the session, or None for one of the agent's own.
      num_actions: int, A.
      store: the logged data.
      seed: fixes the initial weights and, with the step number, every batch.
      penalties: added to the Bellman loss, each with its own coefficient.
      target_update_period: gradient steps between copies of the online into
        the target network.
      network: makes a `ValueNetwork` from (num_actions, num_atoms=, ...).
      device: 'cpu', 'gpu', 'tpu', or 'auto' for the fastest that is there. On
        a CPU training is a plain graph, elsewhere it is compiled by XLA.
      steps_per_call: gradient steps that one session call runs at most; None
        is the device's own number. It changes no bit of the result.
      max_device_bytes: frames up to so many bytes are held in the memory of a
        GPU or TPU; batches of more are gathered on the host, step by step.
      compute_dtype: 'float32', or 'bfloat16' for the networks' arithmetic in
        training; weights, losses and the optimiser stay float32. Other numbers
        than float32's come out.
      **kwargs: Dopamine's DQNAgent's parameters: observation_shape,
        stack_size, gamma, update_horizon, epsilon_eval, optimizer.

    Raises:
      ValueError: if two penalties share a name, or a parameter makes sense
        only for an agent that acts while it learns.
      ConfigError: if there is no such device, or what is compiled for it does
        not know the optimiser.
    """
    if compute_dtype not in ('float32', 'bfloat16'):
      raise ValueError(
        f"compute_dtype must be 'float32' or 'bfloat16', not {compute_dtype!r}."
      )
    if steps_per_call is not None and steps_per_call < 1:
      raise ValueError(f'steps_per_call is {steps_per_call}; it must be >= 1.')
    unusable = sorted(_ONLINE_ONLY & kwargs.keys())
    if unusable:
      raise ValueError(
        f'{type(self).__name__} learns offline and has no use for '
        f'{", ".join(unusable)}.'
      )
    names = [penalty.name for penalty in penalties]
    if len(set(names)) < len(names):
      raise ValueError(f'two penalties have the same name: {names}.')
    self._store = store
    self._seed = seed
    self._penalties = tuple(penalties)
    self._device = devices.resolve(device)
    self._max_device_bytes = max_device_bytes
    self._compute_dtype = tf.as_dtype(compute_dtype)
    super().__init__(
      sess,
      num_actions,
      network=network,
      target_update_period=target_update_period,
      tf_device=self._device.tf_device,
      **kwargs,
    )
    self.eval_mode = True
    if self._replay.table is not None:
      self._replay.table.load(self._sess)
    self._sess.run(self._sync_qt_ops)
    self.steps_per_call = 1
    if self._device.is_compiled:
      devices.initialise(self._device, self._sess)
      self._train_steps = self.make_compiled_steps(self._device.name)
      # Batches that are gathered on the host come one at a time.
      if self._replay.table is not None:
        self.steps_per_call = steps_per_call or self._device.steps_per_call

  # What a subclass says.

  def _build_bellman_loss(
    self, batch: update.Update, next_policy: tf.Tensor
  ) -> tf.Tensor:
    """Returns the Bellman loss of a batch: float32 [B].

    Args:
      batch: the batch.
      next_policy: float32 [B, A], what `_build_next_policy` returns of it.
    """
    raise NotImplementedError

  def _build_next_policy(self, batch: update.Update) -> tf.Tensor:
    """Returns the distribution of the backup's a': float32 [B, A]."""
    return tf.one_hot(
      tf.argmax(batch.next_target_outputs.q_values, axis=1), self.num_actions
    )

  def _build_auxiliary_losses(
    self, batch: update.Update
  ) -> dict[str, tf.Tensor]:
    """Returns further losses by name, float32 scalars added with weight 1."""
    return {}

  def _needs_monte_carlo_returns(self) -> bool:
    return False

  # Dopamine's hooks.

  def _create_network(self, name: str) -> tf.keras.Model:
    return self.network(
      self.num_actions,
      num_atoms=self.num_atoms,
      initialiser=self.initialiser,
      seed=self._seed,
      name=name,
    )

  def _build_replay_buffer(
    self, use_staging: bool
  ) -> fixed_replay_buffer.FixedReplayBuffer:
    del use_staging
    self.gradient_steps = tf.compat.v1.get_variable(
      'gradient_steps',
      initializer=np.int64(0),
      trainable=False,
      use_resource=True,
    )
    self._step = self.gradient_steps.read_value()
    return fixed_replay_buffer.FixedReplayBuffer(
      self._store,
      step=self._step,
      seed=self._seed,
      update_horizon=self.update_horizon,
      gamma=self.gamma,
      stack_size=self.stack_size,
      monte_carlo=self._needs_monte_carlo_returns(),
      in_graph=True,
      max_device_bytes=(
        self._max_device_bytes if self._device.is_compiled else None
      ),
    )

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
    outputs = self.online_convnet(self._states_ph)
    self._greedy_actions = tf.argmax(outputs.q_values, axis=1)
    self._features = outputs.features
    self.target_convnet(self.state_ph)  # Creates its variables.

  def _networks(self) -> dict[str, tf.keras.Model]:
    """Returns the networks by name; all but the target network learn."""
    return {
      update.ONLINE: self.online_convnet,
      update.TARGET: self.target_convnet,
    }

  def _build_train_op(self) -> tf.Operation:
    """Builds the loss, the metrics and the training step.

    Returns:
      The op of one whole training step: gradient, optimiser, step number,
      and every `target_update_period` steps the target network.
    """
    weights = {name: n.variables for name, n in self._networks().items()}
    batch = self._build_update(weights, self._step, self._replay.transition)
    self._replay_net_outputs = batch.outputs
    self._replay_next_target_net_outputs = batch.next_target_outputs
    penalised, self.loss_parts = self._build_loss(batch)
    learnt = [
      variable
      for name, variables in weights.items()
      for variable in variables
      if name != update.TARGET
    ]
    gradients = tf.gradients(self.loss_parts.total, learnt)
    self.metrics = measures.build_metrics(
      penalised,
      self.loss_parts,
      batch.next_target_outputs.q_values,
      gradients,
    )
    applied = self.optimizer.apply_gradients(
      zip(gradients, learnt, strict=True)
    )
    with tf.control_dependencies([applied]):
      step = self.gradient_steps.assign_add(1, read_value=True)
    return tf.cond(
      tf.equal(step % self.target_update_period, 0),
      lambda: tf.group(*self._build_sync_op()),
      tf.no_op,
    )

  def _build_sync_op(self) -> list[tf.Operation]:
    """Returns ops that copy the online network into the target network.

    Dopamine's finds the variables by the name scope it is called in, which
    inside a tf.cond is another one.
    """
    return [
      target.assign(online)
      for online, target in zip(
        self.online_convnet.variables,
        self.target_convnet.variables,
        strict=True,
      )
    ]

  def _build_update(
    self,
    weights: update.Weights,
    step: tf.Tensor,
    transition: Mapping[str, tf.Tensor],
    is_compiled: bool = False,
  ) -> update.Update:
    return update.build(
      self.online_convnet,
      self.target_convnet,
      weights,
      step,
      transition,
      any(p.coefficient and p.moves_next_features for p in self._penalties),
      is_compiled,
      self._compute_dtype,
    )

  def compiled_steps(self) -> compiled_steps.CompiledSteps:
    """Returns the training steps as a function that XLA compiles.

    Raises:
      ConfigError: if the optimiser is not Adam.
    """

    def loss(
      weights: update.Weights,
      step: tf.Tensor,
      transition: Mapping[str, tf.Tensor],
    ) -> measures.LossParts:
      batch = self._build_update(weights, step, transition, is_compiled=True)
      return self._build_loss(batch)[1]

    with self._sess.graph.as_default(), tf.device(self._device.tf_device):
      return compiled_steps.CompiledSteps(
        self.gradient_steps,
        {name: n.variables for name, n in self._networks().items()},
        self._replay,
        loss,
        self.optimizer,
        self.target_update_period,
        self.loss_parts.by_name(),
      )

  def _build_loss(
    self, batch: update.Update
  ) -> tuple[UpdateBatch, measures.LossParts]:
    """Returns what the penalties are given, and the loss."""
    next_policy = tf.stop_gradient(self._build_next_policy(batch))
    penalised = UpdateBatch(
      q_values=batch.outputs.q_values,
      features=batch.outputs.features,
      next_features=batch.next_features,
      actions=batch.transition['action'],
      next_policy=next_policy,
      terminals=tf.cast(batch.transition['terminal'], tf.float32),
    )
    bellman = tf.reduce_mean(self._build_bellman_loss(batch, next_policy))
    auxiliary = self._build_auxiliary_losses(batch)
    penalties = {p.name: p(penalised) for p in self._penalties}
    total = tf.add_n([bellman, *auxiliary.values()])
    for penalty in self._penalties:
      if penalty.coefficient != 0:
        total += penalty.coefficient * penalties[penalty.name]
    return penalised, measures.LossParts(total, bellman, auxiliary, penalties)

  def _store_transition(self, *args: Any, **kwargs: Any) -> None:
    """Does nothing: the data are fixed, and acting never adds to them."""

  # What training and evaluation call.

  @property
  def replay(self) -> fixed_replay_buffer.FixedReplayBuffer:
    """What the batches are sampled from."""
    return self._replay

  @property
  def device(self) -> str:
    """What the training step runs on: 'cpu', 'gpu' or 'tpu'."""
    return self._device.name

  @property
  def penalties(self) -> tuple[Penalty, ...]:
    """The penalties, in the order in which they are added."""
    return self._penalties

  def save(self, prefix: str) -> None:
    """Writes weights, optimiser slots and the step number.

    Args:
      prefix: the path that TensorFlow's `.index` and `.data-*` are added to.

    Raises:
      OSError: if the disk refuses.
    """
    variables.save(self._sess, self._saver, prefix)

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote.

    Raises:
      DataError: if the checkpoint is not of this network and optimiser.
    """
    variables.restore(self._sess, self._saver, prefix)

  def make_train_steps(self) -> Callable[[int], dict[str, float]]:
    """Returns a function that runs a number of gradient steps.

    It returns the loss parts of the last batch that it has learnt from, by
    name, and stops early at one whose loss is not finite. The number may be up
    to `steps_per_call`.
    """
    if self._device.is_compiled:
      return self._train_steps
    train_step = self.make_train_step()
    return lambda num_steps: train_step()

  def make_compiled_steps(
    self, device: str
  ) -> Callable[[int], dict[str, float]]:
    """Returns `make_train_steps`'s function, compiled for a device by XLA."""
    with self._sess.graph.as_default(), tf.device(self._device.tf_device):
      return self.compiled_steps().make_callable(self._sess, device)

  def make_train_step(self) -> Callable[[], dict[str, float]]:
    """Returns a function that runs one gradient step of the plain graph.

    It returns the loss parts of the batch it has just learnt from, by name.
    """
    parts = self.loss_parts.by_name()
    step = self._sess.make_callable([self._train_op, *parts.values()])

    def train_step() -> dict[str, float]:
      return dict(zip(parts, step()[1:], strict=True))

    return train_step

  def measure(
    self, batches: Sequence[Mapping[str, npt.NDArray[Any]]] = ({},)
  ) -> dict[str, float]:
    """Returns the metrics by name, averaged over batches.

    Args:
      batches: each as `replay.batch_at` returns it, of the batch size; without
        any, the batch that the next step will learn from.
    """
    tensors = self._replay.transition
    measured = [
      self._sess.run(
        self.metrics, {tensors[name]: batch[name] for name in batch}
      )
      for batch in batches
    ]
    return {
      name: float(np.mean([values[name] for values in measured]))
      for name in self.metrics
    }

  def num_gradient_steps(self) -> int:
    """Returns how many gradient steps the weights have had."""
    return int(self._sess.run(self.gradient_steps))

  def greedy_actions(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the greedy action of each state.

    Args:
      states: uint8 [L, *observation_shape, stack_size].

    Returns:
      int64 [L].
    """
    return self._sess.run(self._greedy_actions, {self._states_ph: states})

  def features(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns phi of many states, in chunks that bound the memory.

    Args:
      states: uint8 [N, *observation_shape, stack_size].

    Returns:
      float32 [N, D].
    """
    return np.concatenate(
      [
        self._sess.run(
          self._features, {self._states_ph: states[i : i + _FEATURE_CHUNK]}
        )
        for i in range(0, len(states), _FEATURE_CHUNK)
      ]
    )
