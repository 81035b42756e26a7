"""An agent's variables on disk, and the online network's in any checkpoint.

Only TensorFlow's own files (`.index`, `.data-*`) are read; the pickles that
Dopamine writes beside them are never opened. Three ways to name a layer's
variables are known: this package's and Dopamine's Keras agents'
(`Online/Conv_1/kernel`), and those of Dopamine up to 2.0 and of batch_rl,
which used TF-Slim (`Online/Conv_1/weights`).
"""

from collections.abc import Sequence
import errno
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import errors, frameworks

WeightArray = npt.NDArray[np.float32]

_SCOPE = 'Online'
# The variables of a layer norm, which only this package's networks have.
_NORM = ('layer_norm/gamma', 'layer_norm/beta')
_NAMINGS = (('kernel', 'bias'), ('weights', 'biases'))


def read(prefix: str) -> list[WeightArray]:
  """Returns kernel and bias of every layer, from the first to the last.

  Args:
    prefix: the path without `.index`.

  Raises:
    DataError: if it cannot be read, or holds no network of this kind.
  """
  try:
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    names = _layers(reader.get_variable_to_shape_map())
    return [reader.get_tensor(name) for name in names]
  except (tf.errors.OpError, ValueError, RuntimeError) as error:
    raise errors.DataError(
      f'{prefix} cannot be read as a checkpoint: {error}'
    ) from error


def _layers(variables: dict[str, Any]) -> list[str]:
  """Returns the names of the variables of every layer, in order."""
  for kernel, bias in _NAMINGS:
    names = [
      f'{_SCOPE}/{layer}/{variable}'
      for kind in ('Conv', 'fully_connected')
      for layer in _numbered(kind, kernel, variables)
      for variable in (kernel, bias)
    ]
    if names and all(name in variables for name in names):
      norm = [f'{_SCOPE}/{name}' for name in _NORM]
      has_norm = all(name in variables for name in norm)
      return [*names[:-2], *(norm if has_norm else ()), *names[-2:]]
  raise ValueError(
    f'it has no {_SCOPE}/Conv and {_SCOPE}/fully_connected layers; its '
    f'variables are {", ".join(sorted(variables)[:6]) or "none"}'
  )


def _numbered(kind: str, kernel: str, variables: dict[str, Any]) -> list[str]:
  """Returns `Conv`, `Conv_1`, ... as far as there are such layers."""
  layers = (kind if i == 0 else f'{kind}_{i}' for i in itertools.count())
  return list(
    itertools.takewhile(
      lambda layer: f'{_SCOPE}/{layer}/{kernel}' in variables, layers
    )
  )


def num_atoms(weights: Sequence[WeightArray], num_actions: int) -> int:
  """Returns K, the outputs per action of the last layer.

  Raises:
    DataError: if the outputs cannot be shared out over the actions.
  """
  num_outputs = weights[-1].shape[0]
  if num_outputs % num_actions:
    raise errors.DataError(
      f'the network has {num_outputs} outputs, which is no multiple of '
      f"the game's {num_actions} actions. Is it of another game?"
    )
  return num_outputs // num_actions


def mean_over_atoms(
  weights: list[WeightArray], num_actions: int
) -> list[WeightArray]:
  """Returns the weights with one output per action, the mean of its K.

  Q-values are means over heads or quantiles, and the last layer is linear:
  the mean of its outputs is the output of its mean.

  Args:
    weights: as `read` returns them; the last two are float32 [D, A * K] and
      [A * K], ordered by action and then by head or quantile.
    num_actions: int, A.

  Raises:
    DataError: if the outputs cannot be shared out over A actions.
  """
  kernel, bias = weights[-2:]
  num_atoms(weights, num_actions)  # Checks them.
  num_features = kernel.shape[0]
  return [
    *weights[:-2],
    kernel.reshape(num_features, num_actions, -1).mean(axis=2),
    bias.reshape(num_actions, -1).mean(axis=1),
  ]


def layer_names(weights: Sequence[WeightArray]) -> list[str]:
  """Returns the name of each layer of weights as `read` returns them."""
  by_rank = {1: 'layer_norm', 2: 'fully_connected', 4: 'Conv'}
  kinds = [by_rank[kernel.ndim] for kernel in weights[::2]]
  return [
    kind if kinds[:i].count(kind) == 0 else f'{kind}_{kinds[:i].count(kind)}'
    for i, kind in enumerate(kinds)
  ]


def write(prefix: str, weights: Sequence[WeightArray]) -> None:
  """Writes weights so that `read` returns them: a checkpoint without more.

  Args:
    prefix: the path without `.index`.
    weights: kernel and bias of every layer.

  Raises:
    OSError: if the disk refuses.
  """
  names = [
    f'{_SCOPE}/{layer}/{variable}'
    for layer in layer_names(weights)
    for variable in (
      ('gamma', 'beta') if layer == 'layer_norm' else _NAMINGS[0]
    )
  ]
  try:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      session.run(
        tf.raw_ops.SaveV2(
          prefix=prefix,
          tensor_names=names,
          shape_and_slices=[''] * len(names),
          tensors=[tf.constant(weight) for weight in weights],
        )
      )
  except tf.errors.OpError as error:
    raise OSError(errno.EIO, str(error)) from error


def save(
  session: tf.compat.v1.Session, saver: tf.compat.v1.train.Saver, prefix: str
) -> None:
  """Writes every variable of the saver to `<prefix>.index` and `.data-*`.

  Raises:
    OSError: if the disk refuses.
  """
  try:
    saver.save(session, prefix, write_meta_graph=False, write_state=False)
  except tf.errors.OpError as error:
    raise frameworks.disk_error(error) from error
  except ValueError as error:
    raise OSError(errno.EIO, str(error)) from error


def restore(
  session: tf.compat.v1.Session, saver: tf.compat.v1.train.Saver, prefix: str
) -> None:
  """Reads what `save` wrote.

  Raises:
    DataError: if the checkpoint does not hold the variables of this graph.
  """
  try:
    _check_shapes(session, prefix)
    saver.restore(session, prefix)
  except (tf.errors.OpError, ValueError) as error:
    raise errors.DataError(
      f'{prefix} is no checkpoint of this agent: {error}'
    ) from error


def load_online(
  session: tf.compat.v1.Session, network: Sequence[tf.Variable], prefix: str
) -> None:
  """Fills a network's variables with the online weights of a checkpoint.

  Args:
    session: the variables'.
    network: the variables, in the network's order.
    prefix: the checkpoint's path without `.index`.

  Raises:
    DataError: if it cannot be read, or is of a network with other shapes.
  """
  weights = read(prefix)
  there = [list(weight.shape) for weight in weights]
  here = [variable.shape.as_list() for variable in network]
  if there != here:
    raise errors.DataError(
      f'the weights of {prefix} do not fit: its layers have the shapes '
      f'{there}, not {here}. Start from an agent of the same kind.'
    )
  for variable, weight in zip(network, weights, strict=True):
    variable.load(weight, session)


def _check_shapes(session: tf.compat.v1.Session, prefix: str) -> None:
  """Raises ValueError on a difference: the Saver itself checks no shape."""
  reader = tf.compat.v1.train.NewCheckpointReader(prefix)
  there = reader.get_variable_to_shape_map()
  with session.graph.as_default():
    variables = tf.compat.v1.global_variables()
  here = {v.op.name: v.shape.as_list() for v in variables}
  for name in sorted(here.keys() | there.keys()):
    if here.get(name) != there.get(name):
      raise ValueError(
        f'{name} has shape {there.get(name)} there and {here.get(name)} here'
      )
