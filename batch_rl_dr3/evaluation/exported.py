"""Policies in files that other programs read: SavedModel and ONNX.

What is written takes `states`, stacked as the game's evaluation does it, and
gives `q_values`, `features` and `action`; of continuous control `action` alone.
Anybody's file is played that takes such states, in this order or with the
channels first, and gives `q_values` or an `action`; a single output of another
name is known by its shape. Pixels reach it as they are, 0 to 255.

A SavedModel is a program: play those of people you trust. ONNX executes
nothing but arithmetic.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import errors, frameworks
from batch_rl_dr3.runs import atomic

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

INPUT = 'states'
_OPSET = 17
_ONNX_DTYPES = {
  'tensor(uint8)': 'uint8',
  'tensor(float)': 'float32',
  'tensor(double)': 'float64',
  'tensor(float16)': 'float16',
}


class FrozenGraph(NamedTuple):
  """A TensorFlow graph without variables, with nodes INPUT and the results'.

  `state` is the shape of one state, `results` those of the outputs for it.
  """

  graph_def: Any
  state: Shape
  results: Mapping[str, Shape]


def write_saved_model(frozen: FrozenGraph, folder: pathlib.Path) -> None:
  """Writes a SavedModel, whole or not at all, in place of what was there."""
  tf.get_logger().setLevel('ERROR')  # What is called is deprecated.
  with (
    atomic.whole_folder(folder) as staging,
    tf.Graph().as_default() as graph,
    tf.compat.v1.Session() as session,
  ):
    tf.import_graph_def(frozen.graph_def, name='')
    inputs, tensors = (
      {name: graph.get_tensor_by_name(f'{name}:0') for name in names}
      for names in ([INPUT], frozen.results)
    )
    try:
      tf.compat.v1.saved_model.simple_save(
        session, str(staging), inputs, tensors
      )
    except tf.errors.OpError as error:
      raise frameworks.disk_error(error) from error


def write_onnx(frozen: FrozenGraph, path: pathlib.Path) -> None:
  """Writes an ONNX file, whole or not at all; ConfigError if tf2onnx cannot."""
  tf2onnx = _import('tf2onnx', 'to write')
  tensors = {f'{name}:0': name for name in (INPUT, *frozen.results)}
  with contextlib.redirect_stderr(io.StringIO()):  # It tells of its progress.
    model, _ = tf2onnx.convert.from_graph_def(
      frozen.graph_def,
      input_names=list(tensors)[:1],
      output_names=list(tensors)[1:],
      opset=_OPSET,
      tensors_to_rename=tensors,
    )
  onnx = _import('onnx', 'to write')
  try:
    onnx.checker.check_model(model)
  except onnx.checker.ValidationError as error:
    raise errors.ConfigError(
      f'the network cannot be written as ONNX: {str(error).splitlines()[0]} '
      'Give --format=savedmodel.'
    ) from error
  with atomic.whole_path(path) as temporary:
    temporary.write_bytes(model.SerializeToString())


def _import(package: str, purpose: str) -> Any:
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise errors.ConfigError(
      f'{purpose} ONNX takes {package}: pip install "batch-rl-dr3[export]".'
    ) from error


class _Program(NamedTuple):
  """What a file holds, whatever its format."""

  inputs: Mapping[str, tuple[Sequence[Any], Any]]  # Shape [n, ...] and dtype.
  outputs: Sequence[str]
  call: Callable[[Array], Sequence[Any]]
  close: Callable[[], object]


def _read_onnx(path: str, num_threads: int) -> _Program:
  onnxruntime = _import('onnxruntime', 'to read')
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = num_threads
  session = onnxruntime.InferenceSession(
    path, options, providers=['CPUExecutionProvider']
  )
  inputs = session.get_inputs()
  return _Program(
    {i.name: (i.shape, _ONNX_DTYPES.get(i.type, i.type)) for i in inputs},
    [output.name for output in session.get_outputs()],
    lambda states: session.run(None, {inputs[0].name: states}),
    lambda: None,
  )


def _read_saved_model(path: str, num_threads: int) -> _Program:
  tf.get_logger().setLevel('ERROR')  # What is called is deprecated.
  config = tf.compat.v1.ConfigProto(
    allow_soft_placement=True, intra_op_parallelism_threads=num_threads
  )
  config.gpu_options.allow_growth = True
  with tf.Graph().as_default() as graph:
    session = tf.compat.v1.Session(config=config)
    loaded = tf.compat.v1.saved_model.load(session, ['serve'], path)
  signature = loaded.signature_def['serving_default']
  inputs, outputs = (
    {name: graph.get_tensor_by_name(info.name) for name, info in infos.items()}
    for infos in (signature.inputs, signature.outputs)
  )
  return _Program(
    {n: (t.shape.as_list(), t.dtype.as_numpy_dtype) for n, t in inputs.items()},
    list(outputs),
    session.make_callable(list(outputs.values()), [*inputs.values()][:1]),
    session.close,
  )


class Model:
  """The function of states in an ONNX file or a SavedModel.

  Threads may share it.
  """

  def __init__(
    self,
    path: str,
    state_shape: Shape,
    results: Mapping[str, Shape],
    num_threads: int = 0,
  ):
    """Opens a file and has it look at two states of zeros.

    `results` are the outputs that are understood, at least one of which must be
    there, with their shapes for one state.

    Raises:
      ConfigError: if it is ONNX and onnxruntime is not installed.
      DataError: if it cannot be read, or takes or gives something else.
    """
    self.path, self.results = path, results
    read = _read_onnx if path.endswith('.onnx') else _read_saved_model
    with self._errors('cannot be read'):
      self._program = read(path, num_threads)
    self.close = self._program.close
    if len(self._program.inputs) != 1:
      names = ', '.join(self._program.inputs)
      raise self._error(f'has the inputs {names}, not the states alone')
    ((shape, self._dtype),) = self._program.inputs.values()
    self._shape, self._order = self._arrangement(shape[1:], state_shape)
    with self._errors('cannot look at two states'):
      states = np.zeros((2, *state_shape), np.uint8)
      outputs = [np.asarray(output) for output in self._call(states)]
    self._names = self._understood(outputs)

  def _error(self, what: str) -> errors.DataError:
    return errors.DataError(f'{self.path} {what}.')

  @contextlib.contextmanager
  def _errors(self, what: str) -> Iterator[None]:
    try:
      yield
    except errors.BatchRLError:
      raise
    except Exception as error:  # Each library has kinds of its own.
      first = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise self._error(f'{what}: {first}') from error

  def _arrangement(
    self, taken: Sequence[Any], state_shape: Shape
  ) -> tuple[Shape, Sequence[int]]:
    """Returns a shape of a state, and the order of axes that is taken."""
    shapes = [state_shape]
    while len(shapes[-1]) > 1 and shapes[-1][-1] == 1:  # One frame.
      shapes.append(shapes[-1][:-1])
    known = []
    for shape in shapes:
      for channels in range(1 + (len(shape) >= 3)):  # Last, then first.
        order = np.roll(range(len(shape)), channels)
        own = [shape[axis] for axis in order]
        if len(own) == len(taken) and all(
          size == side or not isinstance(size, int)
          for size, side in zip(taken, own, strict=True)
        ):
          return shape, [0, *(order + 1)]
        known.append(str(own))
    raise self._error(
      f'takes states {list(taken)}, and the game has {" or ".join(known)}'
    )

  def _call(self, states: Array) -> Sequence[Any]:
    ordered = states.reshape(-1, *self._shape).transpose(self._order)
    return self._program.call(ordered.astype(self._dtype))

  def _understood(self, outputs: Sequence[Array]) -> Sequence[str]:
    """Returns the outputs' names; raises DataError if none is understood."""
    names, results = list(self._program.outputs), self.results
    shapes = [output.shape[1:] for output in outputs]
    if len(names) == 1 and names[0] not in results:
      fitting = (n for n, shape in results.items() if shape == shapes[0])
      names = [next(fitting, next(iter(results)))]
    for name, shape in zip(names, shapes, strict=True):
      if shape != results.get(name, shape):
        raise self._error(
          f'gives {name} {list(shape)} of a state, and the game has '
          f'{list(results[name])}'
        )
    if not results.keys() & set(names):
      raise self._error(
        f'gives {", ".join(names)}, none of which is {" or ".join(results)}'
      )
    return names

  def __call__(self, states: Array) -> dict[str, Array]:
    """Returns the outputs, by name, of states [n, *state_shape]."""
    return dict(zip(self._names, self._call(states), strict=True))
