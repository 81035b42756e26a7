"""A Dopamine agent whose replay is a fixed store, before it has a loss.

Here are the parts of Dopamine's DQNAgent that learning from logged data
changes: what its constructor takes, the replay, the networks and their
variables on disk. The step number is a variable of the graph beside the
weights, saved with them.

Deviation from Dopamine's DQNAgent: the target network starts equal to the
online network (Dopamine's first sync comes after its first training step).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import devices, update, value_network, variables
from batch_rl_dr3.config import dopamine_compat, ranges
from batch_rl_dr3.replay import batches
from batch_rl_dr3.replay.store import store as replay_store

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
# Begins the names of held-out batches' tensors and of what is measured there.
HELD_OUT = 'held_out_'
# Keeps their random stream apart from that of the other batches.
_HELD_OUT_STREAM = 15_485_863
# States per session call where features of many states are asked for.
_FEATURE_CHUNK = 256


@ranges.checked(
  gamma=ranges.Share, epsilon_eval=ranges.Share, update_horizon=ranges.Count
)
class StoreAgent(dopamine_compat.DQNAgent):
  """Networks, replay and acting of an agent that never writes to its store."""

  # Outputs per action and the initialiser of the network's kernels.
  num_atoms = 1
  initialiser: Callable[..., Any] = staticmethod(value_network.glorot_uniform)

  def __init__(
    self,
    sess: tf.compat.v1.Session | None,
    num_actions: int,
    store: replay_store.ReplayStore,
    seed: ranges.Natural = 0,
    target_update_period: ranges.Count = 2000,
    network: Callable[..., tf.keras.Model] = value_network.NatureNetwork,
    device: devices.Name = 'auto',
    max_device_bytes: int = 8 << 30,
    init_checkpoint: str | None = None,
    held_out_store: replay_store.ReplayStore | None = None,
    **kwargs: Any,
  ):
    """Builds the graph and initialises it.

    Args:
      sess: the session, or None for one of the agent's own.
      num_actions: int, A.
      store: the logged data.
      seed: fixes the initial weights and, with the step number, every batch.
      target_update_period: gradient steps between copies of the online into
        the target network.
      network: makes a `ValueNetwork` from (num_actions, num_atoms=, ...).
      device: 'cpu', 'gpu', 'tpu', or 'auto' for the fastest that is there. On
        a CPU training is a plain graph, elsewhere it is compiled by XLA.
      max_device_bytes: frames up to so many bytes are held in the memory of a
        GPU or TPU; batches of more are gathered on the host, step by step.
      init_checkpoint: the path, without `.index`, of a checkpoint whose online
        network's weights are the initial ones. Optimiser and step number start
        anew.
      held_out_store: transitions that the value function never learns from,
        for agents that have another use for them.
      **kwargs: Dopamine's DQNAgent's parameters: observation_shape,
        stack_size, gamma, update_horizon, epsilon_eval, optimizer.

    Raises:
      ValueError: if a parameter makes sense only for an agent that acts while
        it learns.
      ConfigError: if there is no such device.
      DataError: if init_checkpoint cannot be read or is of another network.
    """
    unusable = sorted(_ONLINE_ONLY & kwargs.keys())
    if unusable:
      raise ValueError(
        f'{type(self).__name__} learns offline and has no use for '
        f'{", ".join(unusable)}.'
      )
    self._store = store
    self._held_out_store = held_out_store
    self._seed = seed
    self._device = devices.resolve(device)
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
    for replay in self._replays():
      if replay.table is not None:
        replay.table.load(self._sess)
    if init_checkpoint is not None:
      variables.load_online(
        self._sess, self.online_convnet.variables, init_checkpoint
      )
    self._sess.run(self._sync_qt_ops)

  def _needs_monte_carlo_returns(self) -> bool:
    return False

  def _needs_held_out_batches(self) -> bool:
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
  ) -> batches.FixedReplayBuffer:
    del use_staging
    self.gradient_steps = tf.compat.v1.get_variable(
      'gradient_steps',
      initializer=np.int64(0),
      trainable=False,
      use_resource=True,
    )
    self._step = self.gradient_steps.read_value()
    self._held_out_replay = None
    if self._needs_held_out_batches():
      if self._held_out_store is None:
        raise ValueError(
          'there are no held-out transitions to learn from; bind '
          'FixedReplayRunner.num_held_out, and a Subset that is not the whole '
          'log'
        )
      self._held_out_replay = self._create_replay(
        self._held_out_store, self._seed + _HELD_OUT_STREAM
      )
    return self._create_replay(
      self._store, self._seed, self._needs_monte_carlo_returns()
    )

  def _create_replay(
    self, store: replay_store.ReplayStore, seed: int, monte_carlo: bool = False
  ) -> batches.FixedReplayBuffer:
    return batches.FixedReplayBuffer(
      store,
      step=self._step,
      seed=seed,
      update_horizon=self.update_horizon,
      gamma=self.gamma,
      stack_size=self.stack_size,
      monte_carlo=monte_carlo,
      in_graph=True,
      max_device_bytes=(
        self._max_device_bytes if self._device.is_compiled else None
      ),
    )

  def _replays(self) -> list[batches.FixedReplayBuffer]:
    held_out = self._held_out_replay
    return [self._replay, *([] if held_out is None else [held_out])]

  def _replay_data(self) -> list[Any]:
    """Returns the tensors that `_transition` makes a batch of."""
    return [
      dict(replay.transition) if replay.table is None else replay.table.tensors
      for replay in self._replays()
    ]

  def _transition(
    self, data: Sequence[Any], step: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    """Returns a step's batch by name; HELD_OUT precedes held-out names."""
    transition: dict[str, tf.Tensor] = {}
    prefixes = ('', HELD_OUT)
    for prefix, replay, tensors in zip(
      prefixes, self._replays(), data, strict=False
    ):
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
    return {
      update.ONLINE: self.online_convnet,
      update.TARGET: self.target_convnet,
    }

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

  def _store_transition(self, *args: Any, **kwargs: Any) -> None:
    """Does nothing: the data are fixed, and acting never adds to them."""

  # What training and evaluation call.

  @property
  def replay(self) -> batches.FixedReplayBuffer:
    """What the batches are sampled from."""
    return self._replay

  @property
  def held_out_store(self) -> replay_store.ReplayStore | None:
    """Transitions that the value function never learns from, if any."""
    return self._held_out_store

  @property
  def device(self) -> str:
    """What the training step runs on: 'cpu', 'gpu' or 'tpu'."""
    return self._device.name

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

  def num_gradient_steps(self) -> int:
    """Returns how many gradient steps the weights have had."""
    return int(self._sess.run(self.gradient_steps))

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
