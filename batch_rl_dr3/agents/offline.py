"""What every offline agent shares: all but its Bellman loss.

This module builds the loss and its parts, the training step and the measured
quantities, once; a subclass says how its Bellman loss is built.

The training step is one function of (weights, optimiser slots, penalties'
states, step number, store): sampling is keyed by (seed, step), the target
network is synchronised inside the step, and the step number lives in the graph
beside the weights. A run that is restored at step k therefore goes on bit for
bit.

Deviations from Dopamine's DQNAgent: both `target_update_period` and the step
number count gradient steps, and the target network is copied at the beginning
of the step that would be the first to see the copy, not at the end of the one
before it. No weight of the online network differs for it, but what is measured
between two steps is then never measured at a fresh copy, where the temporal
difference is another.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import (
  compiled_steps,
  devices,
  loss,
  measures,
  store_agent,
  update,
)
from batch_rl_dr3.agents.penalties import Penalty, UpdateBatch
from batch_rl_dr3.replay.store import store as replay_store


@gin.configurable
class OfflineAgent(store_agent.StoreAgent):
  """A Dopamine agent that learns from a fixed store and never writes to it.

  Attributes:
    steps_per_call: the gradient steps that one session call runs at most.
    metrics: what is logged of a batch, tensors by column name.
    loss_parts: the loss of the batch that the next step learns from.
  """

  def __init__(
    self,
    sess: tf.compat.v1.Session | None,
    num_actions: int,
    store: replay_store.ReplayStore,
    penalties: Sequence[Penalty] = (),
    steps_per_call: int | None = None,
    compute_dtype: str = 'float32',
    **kwargs: Any,
  ):
    """Builds the graph and initialises it.

    Args:
      sess: see StoreAgent.
      num_actions: see StoreAgent.
      store: see StoreAgent.
      penalties: added to the Bellman loss, each with its own coefficient.
      steps_per_call: gradient steps that one session call runs at most; None
        is the device's own number. It changes no bit of the result.
      compute_dtype: 'float32', or 'bfloat16' for the networks' arithmetic in
        training; weights, losses and the optimiser stay float32. Other numbers
        than float32's come out.
      **kwargs: StoreAgent's: seed, target_update_period, network, device,
        max_device_bytes, init_checkpoint and, of Dopamine's,
        observation_shape, stack_size, gamma, update_horizon, epsilon_eval,
        optimizer.

    Raises:
      ValueError: if two penalties share a name, or a parameter makes sense
        only for an agent that acts while it learns.
      ConfigError: if there is no such device, or what is compiled for it does
        not know the optimiser.
      DataError: see StoreAgent.
    """
    if compute_dtype not in ('float32', 'bfloat16'):
      raise ValueError(
        f"compute_dtype must be 'float32' or 'bfloat16', not {compute_dtype!r}."
      )
    if steps_per_call is not None and steps_per_call < 1:
      raise ValueError(f'steps_per_call is {steps_per_call}; it must be >= 1.')
    names = [penalty.name for penalty in penalties]
    if len(set(names)) < len(names):
      raise ValueError(f'two penalties have the same name: {names}.')
    self._penalties = tuple(penalties)
    self._compute_dtype = tf.as_dtype(compute_dtype)
    super().__init__(sess, num_actions, store, **kwargs)
    self.steps_per_call = 1
    if self._device.is_compiled:
      devices.initialise(self._device, self._sess)
      self._train_steps = self.make_compiled_steps(self._device.name)
      # Batches that are gathered on the host come one at a time.
      if all(replay.table is not None for replay in self._replays()):
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

  # The training step.

  def _build_train_op(self) -> tf.Operation:
    """Builds the loss, the metrics and the training step.

    Returns:
      The op of one whole training step: every `target_update_period` steps
      the target network, then gradient, optimiser and step number.
    """
    self._transition_tensors = (
      dict(self._replay.transition)
      if self._held_out_replay is None
      else self._transition(self._replay_data(), self._step)
    )
    self._is_step = tf.compat.v1.placeholder_with_default(True, [], 'is_step')
    copied = tf.cond(
      self._is_step & tf.equal(self._step % self.target_update_period, 0),
      lambda: tf.group(*self._build_sync_op()),
      tf.no_op,
    )
    weights = {name: n.variables for name, n in self._networks().items()}
    with tf.control_dependencies([copied]):
      weights[update.TARGET] = [
        variable.read_value() for variable in weights[update.TARGET]
      ]
    self._penalty_states = loss.state_variables(
      self._penalties, self.online_convnet.num_features
    )
    states = tf.nest.map_structure(
      lambda variable: variable.read_value(), self._penalty_states
    )
    batch = self._build_update(weights, self._step, self._transition_tensors)
    self._replay_net_outputs = batch.outputs
    self._replay_next_target_net_outputs = batch.next_target_outputs
    penalised, self.loss_parts = self._build_loss(batch, states)
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
      self.online_convnet.variables[-2],
    )
    # States are of the weights before the step, and so come before it.
    next_states = tf.nest.flatten(self.loss_parts.next_states)
    with tf.control_dependencies([copied, *next_states]):
      applied = [
        self.optimizer.apply_gradients(zip(gradients, learnt, strict=True)),
        *loss.assign_states(self._penalty_states, self.loss_parts.next_states),
      ]
    with tf.control_dependencies(applied):
      return self.gradient_steps.assign_add(1, read_value=False)

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

    def batch_loss(
      weights: update.Weights,
      step: tf.Tensor,
      data: Sequence[Any],
      states: loss.States,
    ) -> loss.LossParts:
      transition = self._transition(data, step)
      batch = self._build_update(weights, step, transition, is_compiled=True)
      return self._build_loss(batch, states)[1]

    with self._sess.graph.as_default(), tf.device(self._device.tf_device):
      return compiled_steps.CompiledSteps(
        self.gradient_steps,
        {name: n.variables for name, n in self._networks().items()},
        self._penalty_states,
        self._replay_data(),
        batch_loss,
        self.optimizer,
        self.target_update_period,
        self.loss_parts.by_name(),
      )

  def _build_loss(
    self, batch: update.Update, states: loss.States
  ) -> tuple[UpdateBatch, loss.LossParts]:
    """Returns what the penalties are given, and the loss."""
    next_policy = tf.stop_gradient(self._build_next_policy(batch))
    terminals = tf.cast(batch.transition['terminal'], tf.float32)
    penalised = UpdateBatch(
      q_values=batch.outputs.q_values,
      features=batch.outputs.features,
      next_features=batch.next_features,
      actions=batch.transition['action'],
      next_policy=next_policy,
      terminals=terminals,
      discounts=self.cumulative_gamma * (1.0 - terminals),
      step=batch.step,
    )
    parts = loss.build(
      self._build_bellman_loss(batch, next_policy),
      self._build_auxiliary_losses(batch),
      self._penalties,
      states,
      penalised,
    )
    return penalised, parts

  # What training and evaluation call.

  @property
  def penalties(self) -> tuple[Penalty, ...]:
    """The penalties, in the order in which they are added."""
    return self._penalties

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

  @property
  def metric_columns(self) -> tuple[str, ...]:
    """The names of what `measure` returns."""
    return (*self.metrics, *map(_share_column, self.loss_parts.weighted))

  def measure(
    self, batches: Sequence[Mapping[str, npt.NDArray[Any]]] = ({},)
  ) -> dict[str, float]:
    """Returns the metrics by name, averaged over batches.

    A penalty's share is its part of the loss, its coefficient included, over
    the Bellman loss.

    Args:
      batches: each as `replay.batch_at` returns it, of the batch size; without
        any, the batch that the next step will learn from.
    """
    weighted = {
      _share_column(name): value
      for name, value in self.loss_parts.weighted.items()
    }
    means = self._measure_means({**self.metrics, **weighted}, batches)
    for column in weighted:
      bellman = means['loss_bellman']
      means[column] = means[column] / bellman if bellman else math.nan
    return means

  @property
  def held_out_columns(self) -> tuple[str, ...]:
    """The names of what `measure_held_out` returns.

    Regression on returns has no loss there: single transitions have none.
    """
    names = ['loss_bellman', 'feature_dot_product', 'mean_q']
    if self._needs_monte_carlo_returns():
      names.remove('loss_bellman')
    return tuple(store_agent.HELD_OUT + name for name in names)

  def measure_held_out(
    self, batches: Sequence[Mapping[str, npt.NDArray[Any]]]
  ) -> dict[str, float]:
    """Returns what is measured of held-out batches, by column.

    Args:
      batches: as for `measure`.
    """
    prefix = store_agent.HELD_OUT
    metrics = {
      column: self.metrics[column.removeprefix(prefix)]
      for column in self.held_out_columns
    }
    return self._measure_means(metrics, batches)

  def _measure_means(
    self,
    metrics: Mapping[str, tf.Tensor],
    batches: Sequence[Mapping[str, npt.NDArray[Any]]],
  ) -> dict[str, float]:
    tensors = self._transition_tensors
    measured = [
      self._sess.run(
        metrics,
        {
          self._is_step: False,
          **{tensors[n]: batch[n] for n in batch if n in tensors},
        },
      )
      for batch in batches
    ]
    return {
      name: float(np.mean([values[name] for values in measured]))
      for name in metrics
    }


def _share_column(penalty: str) -> str:
  return f'share_{penalty}'
