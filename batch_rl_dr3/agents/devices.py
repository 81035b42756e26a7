"""Where training runs: which device there is, and how each is used."""

from collections.abc import Callable
import dataclasses
from typing import Any, Literal

import tensorflow as tf

from batch_rl_dr3.config import errors

Name = Literal['auto', 'cpu', 'gpu', 'tpu']
NAMES = ('auto', 'cpu', 'gpu', 'tpu')


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


_DEVICES = {
  # XLA's convolutions are 20 times as slow as oneDNN's on a CPU, and longer
  # session calls measured no faster.
  'cpu': Device('cpu', '/cpu:0', is_compiled=False, steps_per_call=1),
  'gpu': Device('gpu', '/gpu:0', is_compiled=True, steps_per_call=100),
  # Variables stay on the host's side of the rewrite.
  'tpu': Device('tpu', '/cpu:0', is_compiled=True, steps_per_call=500),
}


def resolve(name: Name) -> Device:
  """Returns the device of a name; 'auto' is the fastest kind there is.

  Raises:
    ConfigError: if the name is none of NAMES, or there is no such device.
  """
  if name not in NAMES:
    raise errors.ConfigError(
      f'device is {name!r}; it must be one of {", ".join(NAMES)}.'
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


def initialise(device: Device, session: tf.compat.v1.Session) -> None:
  """Starts a device that has to be started: a TPU."""
  if device.name == 'tpu':
    with session.graph.as_default():
      session.run(tf.compat.v1.tpu.initialize_system())


def compiled(device: str, function: Callable[..., Any], arguments: Any) -> Any:
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
