"""The pure step between an agent's variables: read, run compiled, assign."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from batch_rl_dr3.agents import devices, pure_step, update


def _state_variables(
  step: tf.Variable,
  weights: Mapping[str, list[tf.Variable]],
  penalties: Any,
  optimizer: tf.compat.v1.train.Optimizer,
) -> pure_step.State:
  """Returns the variables that a gradient step changes.

  Args:
    step: the step number.
    weights: every network's variables.
    penalties: those of the penalties' states.
    optimizer: TensorFlow's Adam, after it has been applied.
  """

  def slots(name: str) -> dict[str, list[tf.Variable]]:
    return {
      network: [optimizer.get_slot(variable, name) for variable in variables]
      for network, variables in weights.items()
      if network != update.TARGET
    }

  return pure_step.State(
    step,
    {name: list(variables) for name, variables in weights.items()},
    penalties,
    (slots('m'), slots('v')),
    optimizer._get_beta_accumulators(),
  )


class CompiledSteps:
  """Gradient steps as one function that XLA compiles.

  Attributes:
    arguments: flat list of tensors: the state, the data, the number of steps.
  """

  def __init__(
    self,
    step: tf.Variable,
    weights: Mapping[str, list[tf.Variable]],
    penalties: Any,
    data: Any,
    loss: pure_step.Loss,
    optimizer: tf.compat.v1.train.Optimizer,
    target_update_period: int,
    part_names: Iterable[str],
  ):
    """Reads the variables and the data in the current graph.

    Args:
      step: the step number.
      weights: every network's variables, by name.
      penalties: those of the penalties' states, by name.
      data: tensors that the loss makes its batches of: tables to sample from,
        or one batch, where the steps must be one.
      loss: the loss of one step.
      optimizer: Adam.
      target_update_period: see `pure_step.run`.
      part_names: see `pure_step.run`.

    Raises:
      ConfigError: if the optimiser is not Adam.
    """
    self._adam = pure_step.Adam.of(optimizer)
    self._variables = _state_variables(step, weights, penalties, optimizer)
    self._loss = loss
    self._target_update_period = target_update_period
    self._part_names = sorted(part_names)
    self._num_steps = tf.compat.v1.placeholder(tf.int64, [])
    self._structure = (
      tf.nest.map_structure(lambda v: v.read_value(), self._variables),
      data,
      self._num_steps,
    )
    self.arguments = tf.nest.flatten(self._structure)

  def __call__(self, *arguments: tf.Tensor) -> list[tf.Tensor]:
    """Returns the new state's tensors and the loss parts, as a flat list.

    It is pure: it reads its arguments and nothing else.
    """
    state, data, num_steps = tf.nest.pack_sequence_as(
      self._structure, arguments
    )
    state, parts = pure_step.run(
      state,
      data,
      num_steps,
      self._loss,
      self._adam,
      self._target_update_period,
      self._part_names,
    )
    return [*tf.nest.flatten(state), *(parts[n] for n in self._part_names)]

  def make_callable(
    self, session: tf.compat.v1.Session, device: str
  ) -> Callable[[int], dict[str, float]]:
    """Returns a function that runs steps, and returns the last one's loss.

    Args:
      session: whose graph the variables are in.
      device: as for `devices.compiled`.
    """
    results = devices.compiled(device, self, self.arguments)
    variables = tf.nest.flatten(self._variables)
    values, parts = results[: len(variables)], results[len(variables) :]
    assigned = tf.group(
      *(v.assign(value) for v, value in zip(variables, values, strict=True))
    )
    call = session.make_callable([assigned, *parts], [self._num_steps])
    names = self._part_names
    return lambda num_steps: dict(zip(names, call(num_steps)[1:], strict=True))
