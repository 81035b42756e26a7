"""The online network of any checkpoint: its weights, and acting by them.

Only TensorFlow's own files (`.index`, `.data-*`) are read, never the pickles
beside Dopamine's. A layer's variables are named as by Keras
(`Online/Conv_1/kernel`: this package, Dopamine) or by TF-Slim
(`Online/Conv_1/weights`: Dopamine up to 2.0, batch_rl).
"""

from collections.abc import Callable, Collection, Sequence
import errno
import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import networks
from batch_rl_dr3.config import errors

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

  A DataError if it cannot be read, or holds no network of this kind.
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

  As the last layer is linear, that is the Q-value of heads and quantiles.
  """
  kernel, bias = weights[-2:]  # Outputs go by action and then by atom.
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


def check_shapes(
  variables: Sequence[tf.Variable],
  weights: Sequence[WeightArray],
  complaint: str,
) -> None:
  """Raises a DataError with this complaint if weights do not fit variables."""
  there = [list(weight.shape) for weight in weights]
  here = [variable.shape.as_list() for variable in variables]
  if there != here:
    raise errors.DataError(
      f'{complaint}: its layers have the shapes {there}, not {here}.'
    )


# What the tensors of `Actor.graph_def` are called.
INPUT = 'states'
OUTPUTS = ('q_values', 'features', 'action')


class Outputs(NamedTuple):
  """What the network says of n states."""

  q_values: npt.NDArray[np.float32]  # [n, A]
  features: npt.NDArray[np.float32]  # [n, D]


class Actor:
  """A value network that chooses greedy actions; threads may share it.

  The weights are constants of `graph_def`: oneDNN then arranges them for its
  kernels once and not in every call, a fifth of the time of small batches.
  `num_atoms` is K, the checkpoint's outputs per action.
  """

  def __init__(
    self,
    network: Callable[..., tf.keras.Model],
    prefix: str,
    num_actions: int,
    observation_shape: Sequence[int],
    stack_size: int,
    num_threads: int = 0,
    q_values_of: networks.QValues | None = None,
    observation_dtype: str = 'uint8',
  ):
    """Takes over the online network of a checkpoint, `<prefix>.index`.

    `network` makes a `ValueNetwork`, whose own Q-values `q_values_of` replaces.
    Calls use num_threads CPU threads, for 0 one per core. A DataError if the
    checkpoint is unreadable, or of another network or game.
    """
    weights = read(prefix)
    self.num_atoms = num_atoms(weights, num_actions)
    model = network(num_actions, num_atoms=self.num_atoms)
    if q_values_of is not None:
      model.q_values = q_values_of
    elif model.q_values is networks.mean_of_atoms:
      # The last layer is linear: its outputs' mean is that of its mean.
      weights = mean_over_atoms(weights, num_actions)
      model = network(num_actions, num_atoms=1)
    shape = (None, *observation_shape, stack_size)
    with tf.Graph().as_default():
      model.build(shape)
      check_shapes(
        model.weights,
        weights,
        f"{prefix} does not fit the configuration's network and game",
      )
    config = tf.compat.v1.ConfigProto(
      allow_soft_placement=True, intra_op_parallelism_threads=num_threads
    )
    config.gpu_options.allow_growth = True
    with tf.Graph().as_default() as graph:
      states = tf.compat.v1.placeholder(observation_dtype, shape, INPUT)
      constants = [tf.constant(weight) for weight in weights]
      said = model.output(constants, model.features(constants, states))
      results = (said.q_values, said.features, tf.argmax(said.q_values, axis=1))
      named = zip(results, OUTPUTS, strict=True)
      *outputs, greedy = (tf.identity(result, name) for result, name in named)
      self._session = tf.compat.v1.Session(config=config)
    self.graph_def = graph.as_graph_def()
    self._greedy = self._session.make_callable(greedy, [states])
    self._outputs = self._session.make_callable(outputs, [states])

  def greedy_actions(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns int64 [n] of states [n, *observation_shape, stack_size]."""
    return self._greedy(states)

  def outputs(self, states: npt.NDArray[Any]) -> Outputs:
    """Returns Q-values and features of states, likewise."""
    return Outputs(*self._outputs(states))

  def close(self) -> None:
    """Frees the session."""
    self._session.close()
