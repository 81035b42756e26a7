"""Python functions in a graph, whose errors come out as they were raised.

TensorFlow reports an error of such a function as one of its own, with a
traceback for its message, so that a damaged file would look like a defect of
the program.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from typing import Any

import tensorflow as tf

# The error of the call that failed last; `raising` clears it.
_failures: list[Exception] = []


def call(
  function: Callable[..., Any],
  inputs: Sequence[tf.Tensor],
  dtypes: Any,
  name: str | None = None,
) -> Any:
  """Returns the tensors of a Python function, called on the CPU.

  Args:
    function: takes and returns NumPy arrays.
    inputs: its arguments.
    dtypes: of its results, as `tf.numpy_function` takes them.
    name: of the operation.
  """

  def remembering(*arguments: Any) -> Any:
    try:
      return function(*arguments)
    except Exception as error:
      _failures[:] = [error]
      raise

  with tf.device('/cpu:*'):
    return tf.numpy_function(remembering, inputs, dtypes, name=name)


@contextlib.contextmanager
def raising() -> Iterator[None]:
  """Raises the error of a function called inside, in place of TensorFlow's."""
  _failures.clear()
  try:
    yield
  except tf.errors.OpError as error:
    if _failures:
      raise _failures.pop() from error
    raise
