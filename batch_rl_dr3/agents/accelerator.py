"""Gradient steps as one pure function of all that they read and change.

The loop over steps is inside, so that a call runs many without the host. That
is what accelerators compile; on a CPU the plain graph is faster.
"""

from collections.abc import Callable
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


# The names of the network that acts and of the one that is backed up.
ONLINE = 'online'
TARGET = 'target'


def adam_step(
  adam: tf.compat.v1.train.AdamOptimizer,
  state: StepState,
  gradients: dict[str, list[Any]],
) -> StepState:
  """Returns the state after one step; the target network is not touched."""
  beta_1_power, beta_2_power = state.powers
  rate = adam._lr * tf.sqrt(1.0 - beta_2_power) / (1.0 - beta_1_power)
  # In float32, as TensorFlow's kernel: 1 - 0.999 is 5e-5 off in it.
  decay_1, decay_2 = (
    np.float32(1) - np.float32(beta) for beta in (adam._beta1, adam._beta2)
  )
  firsts, seconds = state.moments
  first = tf.nest.map_structure(
    lambda m, g: m + (g - m) * decay_1, firsts, gradients
  )
  second = tf.nest.map_structure(
    lambda v, g: v + (tf.square(g) - v) * decay_2, seconds, gradients
  )
  learnt = tf.nest.map_structure(
    lambda w, m, v: w - rate * m / (tf.sqrt(v) + adam._epsilon),
    {name: state.weights[name] for name in gradients},
    first,
    second,
  )
  return state._replace(
    weights={**state.weights, **learnt},
    moments=(first, second),
    powers=(beta_1_power * adam._beta1, beta_2_power * adam._beta2),
  )


class CompiledSteps:
  """The gradient steps of an `OfflineAgent` as one function for XLA.

  Attributes:
    arguments: flat list of tensors: the state, the data, the number of steps.
  """

  def __init__(self, agent: Any):
    """Reads variables and data in the current graph; a ConfigError if not Adam.

    The optimiser must have been applied.
    """
    self._agent, adam = agent, agent.optimizer
    if type(adam) is not tf.compat.v1.train.AdamOptimizer:
      raise errors.ConfigError(
        f'{type(adam).__name__} is not known to the compiled step; bind '
        "tf.train.AdamOptimizer, or OfflineAgent.device = 'cpu'."
      )

    def slots(name: str) -> dict[str, list[tf.Variable]]:
      return {
        network: [adam.get_slot(variable, name) for variable in variables]
        for network, variables in agent.weights.items()
        if network != TARGET
      }

    self._variables = StepState(
      agent.gradient_steps,
      agent.weights,
      agent.penalty_states,
      (slots('m'), slots('v')),
      adam._get_beta_accumulators(),
    )
    self._part_names = sorted(agent.loss_parts.by_name)
    self._num_steps = tf.compat.v1.placeholder(tf.int64, [])
    self._structure = (
      tf.nest.map_structure(lambda v: v.read_value(), self._variables),
      agent.data(),
      self._num_steps,
    )
    self.arguments = tf.nest.flatten(self._structure)

  def __call__(self, *arguments: tf.Tensor) -> list[tf.Tensor]:
    """Returns the new state's tensors and the last loss's parts, as a list.

    It stops after a step whose loss is not finite.
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
    agent, weights = self._agent, dict(state.weights)
    is_due = tf.equal(state.step % agent.target_update_period, 0)
    weights[TARGET] = [
      tf.where(is_due, online, old)
      for online, old in zip(weights[ONLINE], weights[TARGET], strict=True)
    ]
    state = state._replace(weights=weights)
    with kernels.compiling():
      loss = agent.loss_at(weights, state.step, data, state.penalties)
    learnt = {n: w for n, w in weights.items() if n != TARGET}
    gradients = tf.nest.pack_sequence_as(
      learnt, tf.gradients(loss.total, tf.nest.flatten(learnt))
    )
    state = adam_step(agent.optimizer, state, gradients)
    state = state._replace(step=state.step + 1, penalties=loss.next_states)
    return state, loss.by_name

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
# Of the networks' arithmetic.
DtypeName = Literal['float32', 'bfloat16', 'auto']
# Gradient steps a session call, unless gin says, where XLA compiles them.
STEPS_PER_CALL = {'gpu': 100, 'tpu': 500}
# What Linux says of the processor, and the words for fast bfloat16 there.
CPU_INFO = pathlib.Path('/proc/cpuinfo')
_BFLOAT16_FLAGS = {'avx512_bf16', 'amx_bf16'}


def find_device(name: DeviceName) -> str:
  """Returns 'cpu', 'gpu' or 'tpu'; 'auto' is the fastest kind there is.

  A ConfigError if the machine has no such device.
  """
  there = [
    kind
    for kind in ('gpu', 'tpu', 'cpu')
    if tf.config.list_physical_devices(kind.upper())
  ]
  if name == 'auto':
    return there[0]
  if name not in there:
    raise errors.ConfigError(
      f'device is {name!r}, but TensorFlow finds none: it finds '
      f"{', '.join(there)}. Bind OfflineAgent.device = 'auto' to use what is "
      'there, or install what it needs (for a GPU: pip install '
      '"tensorflow[and-cuda]==2.18.1").'
    )
  return name


def find_dtype(
  name: DtypeName, device: str, recorded: str | None = None
) -> str:
  """Returns 'float32' or 'bfloat16'; 'auto' is the faster one of a device.

  That is bfloat16, except on CPUs without AVX-512 BF16 and AMX. A run that goes
  on keeps what is `recorded` of it.
  """
  if name != 'auto':
    return name
  if recorded in get_args(DtypeName):
    return str(recorded)
  is_fast = device != 'cpu' or (
    CPU_INFO.exists() and _BFLOAT16_FLAGS & set(CPU_INFO.read_text().split())
  )
  return 'bfloat16' if is_fast else 'float32'


def initialise(device: str, session: tf.compat.v1.Session) -> None:
  """Starts a device that has to be started: a TPU."""
  if device == 'tpu':
    with session.graph.as_default():
      session.run(tf.compat.v1.tpu.initialize_system())


def _compiled(device: str, function: Callable[..., Any], arguments: Any) -> Any:
  """Returns what a pure function of flat tensors makes of them, by XLA."""
  if device == 'tpu':
    return tf.compat.v1.tpu.rewrite(function, arguments)
  return tf.function(function, jit_compile=True, autograph=False)(*arguments)
