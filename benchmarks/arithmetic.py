"""How many floating-point operations a gradient step needs."""

from collections.abc import Iterator
import math

from batch_rl_dr3.agents import networks


def _multiplications(
  network: type[networks.ValueNetwork],
  observation_shape: tuple[int, int],
  stack_size: int,
  num_outputs: int,
) -> Iterator[int]:
  """Yields the multiplications of each layer for one state."""
  height, width = observation_shape
  depth = stack_size
  for filters, size, stride in network.convolutions:
    height, width = math.ceil(height / stride), math.ceil(width / stride)
    yield height * width * filters * size * size * depth
    depth = filters
  yield height * width * depth * network.num_features
  yield network.num_features * num_outputs


def operations_per_step(
  network: type[networks.ValueNetwork],
  observation_shape: tuple[int, int],
  stack_size: int,
  num_outputs: int,
  batch_size: int,
  with_dr3: bool,
) -> int:
  """Returns the operations of one step's products; a multiply-add is two.

  Each layer is run forward at s and, in the target network, at s'; backward it
  costs as much again for its weights, and again for its input, but for the
  first layer. DR3 runs all but the last layer forward and backward at s' too.
  The rest (losses, the optimiser) is left out.

  Args:
    network: the class.
    observation_shape: of a frame.
    stack_size: frames in a state.
    num_outputs: actions times atoms.
    batch_size: int.
    with_dr3: whether the step has the DR3 term.
  """
  layers = list(
    _multiplications(network, observation_shape, stack_size, num_outputs)
  )
  total = 4 * sum(layers) - layers[0]
  if with_dr3:
    total += 3 * sum(layers[:-1]) - layers[0]
  return 2 * batch_size * total
