"""Saving and restoring an agent's variables through TensorFlow's Saver."""

from collections.abc import Sequence
import errno

import tensorflow as tf

from batch_rl_dr3.agents import online_weights
from batch_rl_dr3.config import errors, frameworks


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
  weights = online_weights.read(prefix)
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
