"""Gradient steps as one pure function, which is what accelerators compile.

Weights, moments, penalties' states, the step number and the data come in as
arguments, and the new ones go out. The loop over steps is inside, so that a
call runs many without the host. On a CPU the plain graph is faster.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import pathlib
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tensorflow as tf

from batch_rl_dr3.agents import kernels
from batch_rl_dr3.config import errors


class StepState(NamedTuple):
  """All that a gradient step changes: tensors, or the variables they are of."""

  step: Any  # int64 scalar, gradient steps so far.
  weights: dict[str, list[Any]]  # Of every network.
  penalties: Any  # Their states, by name.
  # Adam's first and second, each like the weights that learn.
  moments: tuple[dict[str, list[Any]], dict[str, list[Any]]]
  powers: tuple[Any, Any]  # Adam's beta_1^t and beta_2^t, float32 scalars.


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
    """Returns the parameters of TensorFlow's; a ConfigError if not Adam."""
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
    # In float32, as TensorFlow's kernel: 1 - 0.999 is 5e-5 off in it.
    decay_1, decay_2 = (
      np.float32(1) - np.float32(beta) for beta in (self.beta_1, self.beta_2)
    )
    first = tf.nest.map_structure(
      lambda m, g: m + (g - m) * decay_1, firsts, gradients
    )
    second = tf.nest.map_structure(
      lambda v, g: v + (tf.square(g) - v) * decay_2, seconds, gradients
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


class CompiledSteps:
  """Gradient steps as one function that XLA compiles.

  Attributes:
    arguments: flat list of tensors: the state, the data, the number of steps.
  """

  def __init__(
    self,
    step: tf.Variable,
    weights: Mapping[str, Sequence[tf.Variable]],
    penalties: Any,
    data: Any,
    loss: Loss,
    optimizer: tf.compat.v1.train.Optimizer,
    target_update_period: int,
    part_names: Iterable[str],
  ):
    """Reads the variables and the data in the current graph.

    `data` are tensors that the loss makes its batches of: tables to sample
    from, or one batch, where the steps must be one. The optimiser must be Adam,
    and have been applied; another is a ConfigError.
    """

    def slots(name: str) -> dict[str, list[tf.Variable]]:
      return {
        network: [optimizer.get_slot(variable, name) for variable in variables]
        for network, variables in weights.items()
        if network != TARGET
      }

    self._adam = Adam.of(optimizer)
    self._variables = StepState(
      step,
      {name: list(variables) for name, variables in weights.items()},
      penalties,
      (slots('m'), slots('v')),
      optimizer._get_beta_accumulators(),
    )
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
    """Returns the new state's tensors and the last loss's parts, as a list.

    It reads its arguments and nothing else, and stops after a step whose loss
    is not finite.
    """
    state, data, num_steps = tf.nest.pack_sequence_as(
      self._structure, arguments
    )
    end = state.step + num_steps
    state, parts = tf.while_loop(
      lambda state, parts: tf.logical_and(
        state.step < end, tf.math.is_finite(parts['loss_total'])
      ),
      lambda state, parts: self._step(state, data),
      (state, {name: tf.zeros([]) for name in self._part_names}),
    )
    return [*tf.nest.flatten(state), *(parts[n] for n in self._part_names)]

  def _step(
    self, state: StepState, data: Any
  ) -> tuple[StepState, dict[str, tf.Tensor]]:
    is_due = tf.equal(state.step % self._target_update_period, 0)
    target = [
      tf.where(is_due, online, old)
      for online, old in zip(
        state.weights[ONLINE], state.weights[TARGET], strict=True
      )
    ]
    state = state._replace(weights={**state.weights, TARGET: target})
    with kernels.compiling():
      total, parts, penalties = self._loss(
        state.weights, state.step, data, state.penalties
      )
    learnt = {n: w for n, w in state.weights.items() if n != TARGET}
    gradients = tf.nest.pack_sequence_as(
      learnt, tf.gradients(total, tf.nest.flatten(learnt))
    )
    state = self._adam.step(state, gradients)
    return state._replace(step=state.step + 1, penalties=penalties), parts

  def make_callable(
    self, session: tf.compat.v1.Session, device: str
  ) -> Callable[[int], dict[str, float]]:
    """Returns a function that runs steps, and returns the last one's loss."""
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
DEVICE_NAMES = get_args(DeviceName)
# Of the networks' arithmetic.
DtypeName = Literal['float32', 'bfloat16', 'auto']
# What Linux says of the processor, and the words for fast bfloat16 there.
CPU_INFO = pathlib.Path('/proc/cpuinfo')
_BFLOAT16_FLAGS = {'avx512_bf16', 'amx_bf16'}


class Device(NamedTuple):
  """A kind of device, 'cpu', 'gpu' or 'tpu', and how training uses it."""

  name: str
  tf_device: str  # Where TensorFlow puts the graph.
  is_compiled: bool  # Whether XLA compiles the training step.
  steps_per_call: int  # Gradient steps a session call, unless gin says.


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
    ConfigError: if the name is unknown, or the machine has no such device.
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


def find_dtype(
  name: DtypeName, device: Device, recorded: str | None = None
) -> str:
  """Returns 'float32' or 'bfloat16'; 'auto' is the faster one of a device.

  That is bfloat16, except on CPUs without AVX-512 BF16 and AMX. A run that goes
  on keeps what is `recorded` of it. ValueError if the name is unknown.
  """
  names = get_args(DtypeName)
  if name not in names:
    raise ValueError(f'compute_dtype must be one of {names}, not {name!r}.')
  if name != 'auto':
    return name
  if recorded is not None and recorded in names:
    return recorded
  is_fast = device.name != 'cpu' or (
    CPU_INFO.exists() and _BFLOAT16_FLAGS & set(CPU_INFO.read_text().split())
  )
  return 'bfloat16' if is_fast else 'float32'


def initialise(device: Device, session: tf.compat.v1.Session) -> None:
  """Starts a device that has to be started: a TPU."""
  if device.name == 'tpu':
    with session.graph.as_default():
      session.run(tf.compat.v1.tpu.initialize_system())


def _compiled(device: str, function: Callable[..., Any], arguments: Any) -> Any:
  """Returns what a pure function of flat tensors makes of them, by XLA."""
  if device == 'tpu':
    return tf.compat.v1.tpu.rewrite(function, arguments)
  return tf.function(function, jit_compile=True, autograph=False)(*arguments)
