"""An agent's variables on disk, and the online network's in any checkpoint.

Only TensorFlow's own files (`.index`, `.data-*`) are read, never the pickles
beside Dopamine's. A layer's variables are named as by Keras
(`Online/Conv_1/kernel`: this package, Dopamine) or by TF-Slim
(`Online/Conv_1/weights`: Dopamine up to 2.0, batch_rl).
"""

from collections.abc import Collection, Sequence
import errno
import re

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import errors, frameworks

WeightArray = npt.NDArray[np.float32]

_SCOPE = 'Online'
# The variables of a layer norm, which only this package's networks have.
_NORM = ('gamma', 'beta')
# Those of other layers, by the first.
_NAMINGS = {'kernel': ('kernel', 'bias'), 'weights': ('weights', 'biases')}
_KERNEL = re.compile(
  rf'{_SCOPE}/(?P<kind>Conv|fully_connected)(_(?P<number>\d+))?/(kernel|weights)'
)


def read(prefix: str) -> list[WeightArray]:
  """Returns kernel and bias of every layer of `<prefix>.index`, in order.

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


def _layers(variables: Collection[str]) -> list[str]:
  layers = sorted(
    (layer['kind'] == 'fully_connected', int(layer['number'] or 0), name)
    for name in variables
    if (layer := _KERNEL.fullmatch(name))
  )
  names = [
    f'{name.rpartition("/")[0]}/{variable}'
    for *_, name in layers
    for variable in _NAMINGS[name.rpartition('/')[2]]
  ]
  if not names or not all(name in variables for name in names):
    raise ValueError(
      f'it has no {_SCOPE}/Conv and {_SCOPE}/fully_connected layers; its '
      f'variables are {", ".join(sorted(variables)[:6]) or "none"}'
    )
  norm = [f'{_SCOPE}/layer_norm/{name}' for name in _NORM]
  if all(name in variables for name in norm):
    names[-2:-2] = norm
  return names


def num_atoms(weights: Sequence[WeightArray], num_actions: int) -> int:
  """Returns K, the outputs per action; a DataError if it is not whole."""
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

  The last layer is linear, so that this mean is the Q-value of heads and
  quantiles. Its outputs [A * K] are ordered by action and then by atom.
  """
  kernel, bias = weights[-2:]
  shape = (num_actions, num_atoms(weights, num_actions))
  return [
    *weights[:-2],
    kernel.reshape(len(kernel), *shape).mean(axis=2),
    bias.reshape(shape).mean(axis=1),
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
  """Writes a checkpoint of what `read` returns; may raise OSError."""
  names = [
    f'{_SCOPE}/{layer}/{variable}'
    for layer in layer_names(weights)
    for variable in (_NORM if layer == 'layer_norm' else _NAMINGS['kernel'])
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
  """Writes every variable of the saver; an OSError if the disk refuses."""
  try:
    saver.save(session, prefix, write_meta_graph=False, write_state=False)
  except tf.errors.OpError as error:
    raise frameworks.disk_error(error) from error
  except ValueError as error:
    raise OSError(errno.EIO, str(error)) from error


def restore(
  session: tf.compat.v1.Session, saver: tf.compat.v1.train.Saver, prefix: str
) -> None:
  """Reads what `save` wrote; a DataError if that was another graph's."""
  try:
    _check_shapes(session, prefix)
    saver.restore(session, prefix)
  except (tf.errors.OpError, ValueError) as error:
    raise errors.DataError(
      f'{prefix} is no checkpoint of this agent: {error}'
    ) from error


def assign(
  session: tf.compat.v1.Session,
  variables: Sequence[tf.Variable],
  weights: Sequence[WeightArray],
  complaint: str,
) -> None:
  """Fills variables; if shapes differ, a DataError with this complaint."""
  there = [list(weight.shape) for weight in weights]
  here = [variable.shape.as_list() for variable in variables]
  if there != here:
    raise errors.DataError(
      f'{complaint}: its layers have the shapes {there}, not {here}.'
    )
  for variable, weight in zip(variables, weights, strict=True):
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
