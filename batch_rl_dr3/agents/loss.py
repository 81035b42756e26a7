"""The loss of a batch: Bellman loss, penalties, and the penalties' states."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from batch_rl_dr3.agents.penalties import Penalty, State, UpdateBatch

# The states of penalties by the penalty's name: variables, or tensors.
States = Mapping[str, State]


class LossParts(NamedTuple):
  """The loss of one batch, whole and in parts.

  Attributes:
    total: float32 scalar, what the optimiser minimises.
    bellman: float32 scalar, the mean Bellman loss.
    auxiliary: further losses by name, each with weight 1.
    penalties: penalties by name, before their coefficients.
    weighted: penalties by name, times their coefficients.
    measures: what else the penalties log, by column.
    next_states: the penalties' states after a step on this batch.
  """

  total: tf.Tensor
  bellman: tf.Tensor
  auxiliary: dict[str, tf.Tensor]
  penalties: dict[str, tf.Tensor]
  weighted: dict[str, tf.Tensor]
  measures: dict[str, tf.Tensor]
  next_states: States

  def by_name(self) -> dict[str, tf.Tensor]:
    """Returns every part under the name that logs use, such as loss_total."""
    parts = {'total': self.total, 'bellman': self.bellman}
    parts.update(self.auxiliary)
    parts.update(self.penalties)
    return {f'loss_{name}': value for name, value in parts.items()}


def state_variables(
  penalties: Sequence[Penalty], num_features: int
) -> dict[str, dict[str, tf.Variable]]:
  """Creates the variables of the penalties' states, saved with the weights.

  Args:
    penalties: the agent's.
    num_features: int, D.
  """
  return {
    penalty.name: {
      name: tf.compat.v1.get_variable(
        f'{penalty.name}/{name}',
        initializer=array,
        trainable=False,
        use_resource=True,
      )
      for name, array in penalty.initial_state(num_features).items()
    }
    for penalty in penalties
  }


def assign_states(variables: States, states: States) -> list[tf.Operation]:
  """Returns ops that fill the variables of states with tensors."""
  return [
    variable.assign(value, read_value=False)
    for variable, value in zip(
      tf.nest.flatten(variables), tf.nest.flatten(states), strict=True
    )
  ]


def build(
  bellman_losses: tf.Tensor,
  auxiliary: dict[str, tf.Tensor],
  penalties: Sequence[Penalty],
  states: States,
  batch: UpdateBatch,
) -> LossParts:
  """Returns the loss of a batch.

  Args:
    bellman_losses: float32 [B].
    auxiliary: further losses, float32 scalars.
    penalties: the agent's.
    states: of every penalty, before the step.
    batch: what the penalties are given.
  """
  bellman = tf.reduce_mean(bellman_losses)
  values = {p.name: p(batch, states[p.name]) for p in penalties}
  total = tf.add_n([bellman, *auxiliary.values()])
  weighted = {
    p.name: p.weight(states[p.name]) * values[p.name] for p in penalties
  }
  for penalty in penalties:
    if penalty.coefficient != 0:
      total += weighted[penalty.name]
  measures: dict[str, tf.Tensor] = {}
  for penalty in penalties:
    measures |= penalty.measures(batch, states[penalty.name])
  next_states = {p.name: p.next_state(batch, states[p.name]) for p in penalties}
  return LossParts(
    total, bellman, auxiliary, values, weighted, measures, next_states
  )
