"""Gradient steps as one pure function, which is what accelerators compile.

Weights, moments, penalties' states, the step number and the data come in as
arguments, and the new ones go out; nothing else is read or written. The loop
over steps is inside, so that a compiled call runs many of them without a word
from the host. On a CPU the agent's plain graph is faster (XLA's convolutions
there take 20 times as long) and does the same arithmetic.

Below are the pure step, the function that runs it between an agent's variables
(read, run compiled, assign), and the devices that there are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from batch_rl_dr3.agents import kernels
from batch_rl_dr3.config import errors


class StepState(NamedTuple):
  """All that a gradient step changes: tensors, or the variables they are of.

  Attributes:
    step: int64 scalar, gradient steps so far.
    weights: of every network, by name.
    penalties: the penalties' states, by name.
    moments: Adam's first and second, each like the weights that learn.
    powers: Adam's beta_1^t and beta_2^t, float32 scalars.
  """

  step: Any
  weights: dict[str, list[Any]]
  penalties: Any
  moments: tuple[dict[str, list[Any]], dict[str, list[Any]]]
  powers: tuple[Any, Any]


# (weights, step, data, penalties' states) -> the loss of that step's batch, its
# parts by name, and the penalties' states after the step.
Loss = Callable[
  [Mapping[str, Sequence[Any]], tf.Tensor, Any, Any],
  tuple[tf.Tensor, dict[str, tf.Tensor], Any],
]
# The names of the network that acts and of the one that is backed up.
ONLINE = 'online'
TARGET = 'target'


class Adam(NamedTuple):
  """Adam (arXiv:1412.6980), as TensorFlow's optimiser of that name has it."""

  learning_rate: float
  beta_1: float
  beta_2: float
  epsilon: float

  @classmethod
  def of(cls, optimizer: tf.compat.v1.train.Optimizer) -> 'Adam':
    """Returns the parameters of TensorFlow's optimiser.

    Raises:
      ConfigError: if it is not Adam.
    """
    if type(optimizer) is not tf.compat.v1.train.AdamOptimizer:
      raise errors.ConfigError(
        f'{type(optimizer).__name__} is not known to the compiled step; bind '
        "tf.train.AdamOptimizer, or OfflineAgent.device = 'cpu'."
      )
    return cls(
      *(getattr(optimizer, n) for n in ('_lr', '_beta1', '_beta2', '_epsilon'))
    )

  def step(
    self, state: StepState, gradients: dict[str, list[Any]]
  ) -> StepState:
    """Returns the state after one step; the target network is not touched."""
    beta_1_power, beta_2_power = state.powers
    rate = (
      self.learning_rate * tf.sqrt(1.0 - beta_2_power) / (1.0 - beta_1_power)
    )
    firsts, seconds = state.moments
    # As float32, which TensorFlow's kernel computes them in: 1 - 0.999 is
    # 5e-5 off in it.
    decay_1, decay_2 = (
      np.float32(1) - np.float32(beta) for beta in (self.beta_1, self.beta_2)
    )
    first = tf.nest.map_structure(
      lambda m, g: m + (g - m) * decay_1, firsts, gradients
    )
    second = tf.nest.map_structure(
      lambda v, g: v + (tf.square(g) - v) * decay_2,
      seconds,
      gradients,
    )
    learnt = tf.nest.map_structure(
      lambda w, m, v: w - rate * m / (tf.sqrt(v) + self.epsilon),
      {name: state.weights[name] for name in gradients},
      first,
      second,
    )
    return state._replace(
      weights={**state.weights, **learnt},
      moments=(first, second),
      powers=(beta_1_power * self.beta_1, beta_2_power * self.beta_2),
    )


def run_steps(
  state: StepState,
  data: Any,
  num_steps: tf.Tensor,
  loss: Loss,
  adam: Adam,
  target_update_period: int,
  part_names: Iterable[str],
) -> tuple[StepState, Mapping[str, tf.Tensor]]:
  """Returns the state after some steps, and the last step's loss in parts.

  It stops after a step whose loss is not finite.

  Args:
    state: tensors.
    data: what `loss` makes the batches of.
    num_steps: int64 scalar, at least 1.
    loss: the loss of one step.
    adam: the optimiser.
    target_update_period: gradient steps between copies of the online into the
      target network.
    part_names: the names of the loss's parts.
  """

  def step(state: StepState) -> tuple[StepState, dict[str, tf.Tensor]]:
    is_due = tf.equal(state.step % target_update_period, 0)
    target = [
      tf.where(is_due, online, old)
      for online, old in zip(
        state.weights[ONLINE], state.weights[TARGET], strict=True
      )
    ]
    state = state._replace(weights={**state.weights, TARGET: target})
    with kernels.compiling():
      total, parts, penalties = loss(
        state.weights, state.step, data, state.penalties
      )
    learnt = {n: w for n, w in state.weights.items() if n != TARGET}
    gradients = tf.nest.pack_sequence_as(
      learnt, tf.gradients(total, tf.nest.flatten(learnt))
    )
    state = adam.step(state, gradients)
    state = state._replace(step=state.step + 1, penalties=penalties)
    return state, parts

  def body(state: StepState, parts: dict[str, tf.Tensor]) -> Any:
    del parts
    return step(state)

  end = state.step + num_steps
  return tf.while_loop(
    lambda state, parts: tf.logical_and(
      state.step < end, tf.math.is_finite(parts['loss_total'])
    ),
    body,
    (state, {name: tf.zeros([]) for name in part_names}),
  )


def _state_variables(
  step: tf.Variable,
  weights: Mapping[str, list[tf.Variable]],
  penalties: Any,
  optimizer: tf.compat.v1.train.Optimizer,
) -> StepState:
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
      if network != TARGET
    }

  return StepState(
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
    loss: Loss,
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
      target_update_period: see `run_steps`.
      part_names: see `run_steps`.

    Raises:
      ConfigError: if the optimiser is not Adam.
    """
    self._adam = Adam.of(optimizer)
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
    state, parts = run_steps(
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
      device: as for `_compiled`.
    """
    results = _compiled(device, self, self.arguments)
    variables = tf.nest.flatten(self._variables)
    values, parts = results[: len(variables)], results[len(variables) :]
    assigned = tf.group(
      *(v.assign(value) for v, value in zip(variables, values, strict=True))
    )
    call = session.make_callable([assigned, *parts], [self._num_steps])
    names = self._part_names
    return lambda num_steps: dict(zip(names, call(num_steps)[1:], strict=True))


DeviceName = Literal['auto', 'cpu', 'gpu', 'tpu']
DEVICE_NAMES = ('auto', 'cpu', 'gpu', 'tpu')


@dataclasses.dataclass(frozen=True)
class Device:
  """A kind of device.

  Attributes:
    name: 'cpu', 'gpu' or 'tpu'.
    tf_device: where TensorFlow puts the graph.
    is_compiled: whether the training step is compiled by XLA.
    steps_per_call: gradient steps a session call, unless gin says otherwise.
  """

  name: str
  tf_device: str
  is_compiled: bool
  steps_per_call: int

  def num_steps(self, bound: int | None, in_graph: bool) -> int:
    """Returns the gradient steps of one session call, at most.

    Args:
      bound: what the user asks for, if anything.
      in_graph: whether batches are sampled in the graph.
    """
    if not self.is_compiled or not in_graph:
      return 1
    return bound or self.steps_per_call

  def train_steps(self, agent: Any) -> Callable[[int], dict[str, float]]:
    """Returns the function that runs an agent's gradient steps here."""
    if not self.is_compiled:
      train_step = agent.make_train_step()
      return lambda num_steps: train_step()
    _initialise(self, agent._sess)
    return agent.make_compiled_steps(self.name)


_DEVICES = {
  # XLA's convolutions are 20 times as slow as oneDNN's on a CPU, and longer
  # session calls measured no faster.
  'cpu': Device('cpu', '/cpu:0', is_compiled=False, steps_per_call=1),
  'gpu': Device('gpu', '/gpu:0', is_compiled=True, steps_per_call=100),
  # Variables stay on the host's side of the rewrite.
  'tpu': Device('tpu', '/cpu:0', is_compiled=True, steps_per_call=500),
}


def find_device(name: DeviceName) -> Device:
  """Returns the device of a name; 'auto' is the fastest kind there is.

  Raises:
    ConfigError: if the name is none of DEVICE_NAMES, or the machine has
      no such device.
  """
  if name not in DEVICE_NAMES:
    raise errors.ConfigError(
      f'device is {name!r}; it must be one of {", ".join(DEVICE_NAMES)}.'
    )
  there = [
    kind
    for kind in ('gpu', 'tpu', 'cpu')
    if tf.config.list_physical_devices(kind.upper())
  ]
  if name == 'auto':
    return _DEVICES[there[0]]
  if name not in there:
    raise errors.ConfigError(
      f'device is {name!r}, but TensorFlow finds none: it finds '
      f"{', '.join(there)}. Bind OfflineAgent.device = 'auto' to use what is "
      'there, or install what it needs (for a GPU: pip install '
      '"tensorflow[and-cuda]==2.18.1").'
    )
  return _DEVICES[name]


def _initialise(device: Device, session: tf.compat.v1.Session) -> None:
  """Starts a device that has to be started: a TPU."""
  if device.name == 'tpu':
    with session.graph.as_default():
      session.run(tf.compat.v1.tpu.initialize_system())


def _compiled(device: str, function: Callable[..., Any], arguments: Any) -> Any:
  """Returns what a pure function makes of its arguments, compiled by XLA.

  Args:
    device: 'tpu' rewrites the graph for one; any other compiles for where the
      graph is placed.
    function: takes and returns flat lists of tensors.
    arguments: a flat list of tensors.
  """
  if device == 'tpu':
    return tf.compat.v1.tpu.rewrite(function, arguments)
  return tf.function(function, jit_compile=True, autograph=False)(*arguments)
