"""Acting alone: the online network of a checkpoint, without its data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import checkpoint_weights, networks

# What the tensors of `Actor.graph_def` are called.
INPUT = 'states'
OUTPUTS = ('q_values', 'features', 'action')


class Outputs(NamedTuple):
  """What the network says of n states."""

  q_values: npt.NDArray[np.float32]  # [n, A]
  features: npt.NDArray[np.float32]  # [n, D]


class Actor:
  """A value network that chooses greedy actions.

  The weights are constants of its graph: oneDNN then arranges them for its
  kernels once and not in every call, a fifth of the time of small batches.
  Threads may share it. `num_atoms` is K, the checkpoint's outputs per action;
  `graph_def` is that graph.
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
    States are of observation_dtype. Calls use num_threads CPU threads, for 0
    one per core.

    Raises:
      DataError: if the checkpoint is unreadable, or of another network or game.
    """
    weights = checkpoint_weights.read(prefix)
    self.num_atoms = checkpoint_weights.num_atoms(weights, num_actions)
    with tf.Graph().as_default() as graph:
      model = network(num_actions, num_atoms=self.num_atoms, name='Online')
      if q_values_of is not None:
        model.q_values = q_values_of
      elif model.q_values is networks.mean_of_atoms:
        # The last layer is linear: its outputs' mean is that of its mean.
        weights = checkpoint_weights.mean_over_atoms(weights, num_actions)
        model = network(num_actions, num_atoms=1, name='Online')
      states = tf.compat.v1.placeholder(
        observation_dtype, (None, *observation_shape, stack_size), INPUT
      )
      outputs = model(states)
      action = tf.argmax(outputs.q_values, axis=1)
      results = (outputs.q_values, outputs.features, action)
      for result, name in zip(results, OUTPUTS, strict=True):
        tf.identity(result, name)
      cpu = tf.compat.v1.ConfigProto(device_count={'GPU': 0})
      with tf.compat.v1.Session(config=cpu) as session:
        checkpoint_weights.assign(
          session,
          model.weights,
          weights,
          f"{prefix} does not fit the configuration's network and game",
        )
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
          session, graph.as_graph_def(), OUTPUTS
        )
    self.graph_def = frozen
    config = tf.compat.v1.ConfigProto(
      allow_soft_placement=True, intra_op_parallelism_threads=num_threads
    )
    config.gpu_options.allow_growth = True
    with tf.Graph().as_default():
      states, q_values, features, greedy = tf.import_graph_def(
        frozen,
        return_elements=[f'{name}:0' for name in (INPUT, *OUTPUTS)],
        name='',
      )
      self._session = tf.compat.v1.Session(config=config)
    self._greedy = self._session.make_callable(greedy, [states])
    self._outputs = self._session.make_callable([q_values, features], [states])

  def greedy_actions(self, states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns int64 [n] of states [n, *observation_shape, stack_size]."""
    return self._greedy(states)

  def outputs(self, states: npt.NDArray[Any]) -> Outputs:
    """Returns Q-values and features of states, likewise."""
    return Outputs(*self._outputs(states))

  def close(self) -> None:
    """Frees the session."""
    self._session.close()
