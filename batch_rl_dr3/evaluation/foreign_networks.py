"""Value networks of other programs, read without executing anything of theirs.

What this package has trained is written for them by `write`, as safetensors.

Three kinds of files are known by their content: those of `torch.save` (a
d3rlpy DiscreteCQL or DQN, or a state dict), safetensors, and the pickles of
Dopamine's JAX agents (`ckpt.N`). A pickle is read by an unpickler that knows
arrays and plain values alone; of all else in it only the name is kept. What is
read are convolutions and dense layers with biases and ReLUs in between, whose
last layer gives A x K outputs. Strides are those of the Nature network, by the
size of the kernel; which padding was used follows from the dense layer.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import io
import itertools
import pathlib
import pickle
from typing import Any
import zipfile

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors import numpy as safetensors_numpy

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic

Array = npt.NDArray[Any]

_STRIDES = {8: 4, 4: 2, 3: 1}
_TORCH_DTYPES = {
  'FloatStorage': '<f4',
  'DoubleStorage': '<f8',
  'HalfStorage': '<f2',
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ByteStorage': 'u1',
  'BoolStorage': '?',
}
# What `write` says of a network in the metadata of safetensors, as text.
_SETTINGS = {'num_actions': int, 'scale': float}
_CHUNK = 64  # States of one pass.


@dataclasses.dataclass(frozen=True)
class Layer:
  """A convolution, kernel [h, w, in, out], or a dense layer, [in, out]."""

  name: str
  kernel: Array
  bias: Array


@dataclasses.dataclass
class ForeignNetwork:
  """The Q-values and features of a network that another program trained.

  Raises:
    DataError: if the layers do not follow one another, or the last one's
      outputs cannot be shared out over the actions.
  """

  layers: Sequence[Layer]  # Convolutions, then dense layers, in order.
  num_actions: int = 0  # A; 0 is one output per action.
  scale: float = 255.0  # What observations are divided by.
  # Whether the first dense layer's rows are ordered channel, row, column, as in
  # torch.
  is_channels_first: bool = False

  def __post_init__(self) -> None:
    num_outputs = len(self.layers[-1].bias)
    self.num_actions = self.num_actions or num_outputs
    if num_outputs % self.num_actions:
      raise errors.DataError(
        f'the network has {num_outputs} outputs, which is no multiple of '
        f'{self.num_actions} actions.'
      )
    for before, after in itertools.pairwise(self.layers):
      units = len(before.bias)
      fits = after.kernel.shape[-2] == units
      if before.kernel.ndim == 4 and after.kernel.ndim == 2:
        fits = after.kernel.shape[0] % units == 0
      if not fits or after.kernel.ndim > before.kernel.ndim:
        raise errors.DataError(
          f'{after.name} {list(after.kernel.shape)} does not follow '
          f'{before.name} {list(before.kernel.shape)}.'
        )
    self._num_convolutions = sum(la.kernel.ndim == 4 for la in self.layers)

  def outputs(self, states: Array) -> tuple[Array, Array]:
    """Returns Q-values, float32 [n, A] and features [n, D].

    States are [n, height, width, channels], or [n, d] without convolutions;
    DataError if the network is of others.
    """
    starts = range(_CHUNK, len(states), _CHUNK)
    parts = [self._forward(part) for part in np.split(states, starts)]
    q_values, features = zip(*parts, strict=True)
    return np.concatenate(q_values), np.concatenate(features)

  def _forward(self, states: Array) -> tuple[Array, Array]:
    x = states.astype(np.float32) / np.float32(self.scale)
    if self._num_convolutions:
      # Channels of several frames are one axis.
      x = x.reshape(*x.shape[:3], -1)
      is_padded, _ = self.padding(x.shape[1:])
      for layer in self.layers[: self._num_convolutions]:
        x = np.maximum(_convolve(x, layer.kernel, is_padded) + layer.bias, 0)
      if self.is_channels_first:
        x = x.transpose(0, 3, 1, 2)
    x = x.reshape(len(x), -1)
    *hidden, last = self.layers[self._num_convolutions :]
    for layer in hidden:
      x = np.maximum(x @ layer.kernel + layer.bias, 0)
    atoms = (x @ last.kernel + last.bias).reshape(len(x), self.num_actions, -1)
    return atoms.mean(axis=2), x

  def padding(self, shape: Sequence[int]) -> tuple[bool, list[int]]:
    """Returns whether edges are padded, and the sides of the last maps.

    Observations are of `shape`: height, width, channels; DataError if not.
    """
    if not self._num_convolutions:
      return False, []
    *_, last = convolutions = self.layers[: self._num_convolutions]
    first, dense = self.layers[0], self.layers[self._num_convolutions]
    for is_padded in (True, False):
      sides = np.array(shape[:2])
      for layer in convolutions:
        size = layer.kernel.shape[0]
        missing = 0 if is_padded else size - 1
        sides = -(-(sides - missing) // _STRIDES.get(size, 1))
      if (
        sides.prod() * len(last.bias) == dense.kernel.shape[0]
        and first.kernel.shape[2] == shape[2]
      ):
        return is_padded, sides.tolist()
    raise errors.DataError(
      f'the network is not of observations {list(shape)}: {dense.name} has '
      f'{dense.kernel.shape[0]} inputs, {first.name} {first.kernel.shape[2]} '
      'channels.'
    )


def _convolve(x: Array, kernel: Array, is_padded: bool) -> Array:
  size, stride = kernel.shape[0], _STRIDES.get(kernel.shape[0], 1)
  if is_padded:  # As TensorFlow pads: the odd row goes to the end.
    pads = [(0, 0)]
    for side in x.shape[1:3]:
      total = max((-(-side // stride) - 1) * stride + size - side, 0)
      pads.append((total // 2, total - total // 2))
    x = np.pad(x, [*pads, (0, 0)])
  windows: Array = np.lib.stride_tricks.sliding_window_view(
    x,
    (size, size),
    axis=(1, 2),  # type: ignore[call-overload]
  )
  return np.tensordot(
    windows[:, ::stride, ::stride], kernel, axes=([4, 5, 3], [0, 1, 2])
  )


def read(
  path: pathlib.Path,
  num_actions: int | None = None,
  names: Sequence[str] = (),
  scale: float = 255.0,
) -> ForeignNetwork:
  """Returns the network in a file.

  The last layer has K outputs for each of `num_actions`. `names` are the
  layers, in order, without `.weight` and `.bias`, where a safetensors file or a
  state dict holds more than one network. Observations are divided by `scale`.
  What `write` has said of a file need not be said again.

  Raises:
    DataError: if the file is of another kind, damaged, holds code, or its
      network has other layers.
  """
  try:
    weights, metadata, is_torch = _weights(path)
    names = names or metadata.get('layers', '').split()
    layers = [*_layers(weights, names, is_torch)]
    settings: dict[str, Any] = {'num_actions': num_actions or 0, 'scale': scale}
    for name in _SETTINGS.keys() & metadata.keys():
      settings[name] = _SETTINGS[name](metadata[name])
    return ForeignNetwork(layers, is_channels_first=is_torch, **settings)
  except OSError as error:
    reason: object = error.strerror or error
  except errors.DataError as error:
    reason = error
  except Exception as error:  # A damaged pickle raises what it likes.
    reason = f'it cannot be read: {errors.one_line(error)}'
  raise errors.DataError(f'{path}: {reason}')


def _weights(
  path: pathlib.Path,
) -> tuple[Mapping[str, Array], Mapping[str, str], bool]:
  """Returns a file's arrays, its metadata, and whether its axes are torch's."""
  with path.open('rb') as file:
    beginning = file.read(9)
  if beginning.startswith(b'PK'):
    return _torch_weights(path), {}, True
  if beginning.startswith(b'\x80'):
    return _jax_weights(path), {}, False
  if beginning[8:9] != b'{':
    raise errors.DataError(
      'it is no file of torch.save, safetensors or Dopamine (JAX).'
    )
  with safetensors.safe_open(path, 'np') as tensors:
    weights = {name: tensors.get_tensor(name) for name in tensors.offset_keys()}
    return weights, tensors.metadata() or {}, True


def _layers(
  weights: Mapping[str, Array], names: Sequence[str], is_torch: bool
) -> Iterator[Layer]:
  weight = 'weight' if is_torch else 'kernel'
  names = names or [
    key.rpartition('.')[0] for key in weights if key.endswith(f'.{weight}')
  ]
  if not names:
    raise errors.DataError('it has no layer with a weight and a bias.')
  for name in names:
    try:
      kernel, bias = (weights[f'{name}.{part}'] for part in (weight, 'bias'))
    except KeyError as error:
      raise errors.DataError(
        f'there is no {error.args[0]}; there are '
        f'{", ".join(list(weights)[:8])}.'
      ) from error
    if kernel.ndim not in (2, 4) or bias.ndim != 1:
      raise errors.DataError(
        f'{name} is no convolution and no dense layer: {list(kernel.shape)}.'
      )
    if is_torch:  # [out, in] and [out, in, h, w] there.
      kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)
    yield Layer(name, kernel.astype(np.float32), bias.astype(np.float32))


def write(
  path: pathlib.Path, network: ForeignNetwork, shape: Sequence[int]
) -> None:
  """Writes a network of TensorFlow as safetensors, in torch's order of axes.

  `shape` is that of its observations: height, width, channels. The metadata
  hold what the weights do not say: num_actions, scale, and the padding, where
  'same' is TensorFlow's: an odd row of zeros goes to the end.
  """
  is_padded, sides = network.padding(shape)
  metadata = {
    'format': 'pt',
    'padding': 'same' if is_padded else 'valid',
    'layers': ' '.join(layer.name for layer in network.layers),
    **{name: str(getattr(network, name)) for name in _SETTINGS},
  }
  weights = {}
  before = None
  for layer in network.layers:
    kernel = layer.kernel
    if before is not None and kernel.ndim < before.kernel.ndim:
      # From row, column, channel to channel, row, column.
      maps = kernel.reshape(*sides, len(before.bias), -1)
      kernel = maps.transpose(2, 0, 1, 3).reshape(kernel.shape)
    kernel = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
    weights[f'{layer.name}.weight'] = np.ascontiguousarray(kernel)
    weights[f'{layer.name}.bias'] = layer.bias
    before = layer
  with atomic.whole_path(path) as temporary:
    temporary.write_bytes(safetensors_numpy.save(weights, metadata))


class _Opaque:
  """Stands for an object whose class is not known here; holds nothing."""

  def __init__(self, *_: Any, **__: Any):
    """Takes and forgets what a pickle builds it with."""

  def __setstate__(self, _: Any) -> None:
    """Likewise."""


# What a pickle begins an array with, whatever it asks for.
def _empty_array(*_: Any) -> Array:
  return np.ndarray((0,), 'b')


# The state of a JAX array is that of a NumPy array.
def _jax_array(_: Any, __: Any, state: Any, ___: Any) -> Array:
  array = _empty_array()
  array.__setstate__(state)
  return array


def _torch_tensor(
  storage: Array, offset: int, shape: Any, strides: Any, *_: Any
) -> Array:
  size = storage.itemsize
  # NumPy refuses a tensor that is larger than its storage.
  return np.ndarray(
    shape, storage.dtype, storage, offset * size, [size * s for s in strides]
  ).copy()


def _refuse(what: str) -> Any:
  raise pickle.UnpicklingError(f'it holds {what}.')


class _Unpickler(pickle.Unpickler):
  """Knows arrays, plain values and ordered dicts; executes nothing else.

  Raises UnpicklingError at a name outside the libraries whose objects such
  files hold beside the weights.
  """

  _KNOWN: Mapping[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('flax.core.frozen_dict', 'FrozenDict'): dict,
    ('jax._src.array', '_reconstruct_array'): _jax_array,
    ('numpy', 'dtype'): np.dtype,
    ('numpy.core.multiarray', '_reconstruct'): _empty_array,
    ('numpy._core.multiarray', '_reconstruct'): _empty_array,
    ('torch._utils', '_rebuild_tensor_v2'): _torch_tensor,
  }
  _OPAQUE = ('optax', 'jax', 'flax', 'torch', 'numpy')

  def __init__(
    self, file: Any, storage: Callable[[str, str], Array] | None = None
  ):
    super().__init__(file)
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self._KNOWN:
      return self._KNOWN[module, name]
    if module == 'torch' and name in _TORCH_DTYPES:
      return name
    if module.partition('.')[0] in self._OPAQUE:
      return _Opaque
    return _refuse(f'{module}.{name}, which is refused')

  def persistent_load(self, pid: Any) -> Any:
    kind, dtype, key, *_ = pid
    if kind != 'storage' or self._storage is None:
      return _refuse(f'a persistent {kind!r}')
    return self._storage(dtype, str(key))


def _torch_weights(path: pathlib.Path) -> dict[str, Array]:
  with zipfile.ZipFile(path) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith('/data.pkl')]
    folder = name.removesuffix('data.pkl')

    def storage(dtype: str, key: str) -> Array:
      return np.frombuffer(
        archive.read(f'{folder}data/{key}'), _TORCH_DTYPES[dtype]
      )

    content = _Unpickler(io.BytesIO(archive.read(name)), storage).load()
  # d3rlpy has the Q-functions of its ensemble beside targets and optimisers.
  content = content.get('q_funcs', content)
  members = {key.partition('.')[0] for key in content}
  if '0' in members and all(member.isdigit() for member in members):
    content = {k: v for k, v in content.items() if k.startswith('0.')}
  return {k: v for k, v in content.items() if isinstance(v, np.ndarray)}


def _jax_weights(path: pathlib.Path) -> dict[str, Array]:
  content = _Unpickler(io.BytesIO(path.read_bytes())).load()
  if not isinstance(content, dict) or 'online_params' not in content:
    raise errors.DataError('it has no online_params.')
  parameters = content['online_params']
  layers = parameters.get('params', parameters)
  kinds = ('Conv', 'Dense')

  def order(name: str) -> tuple[int, int]:
    kind, _, number = name.partition('_')
    if kind not in kinds or not number.isdigit():
      raise errors.DataError(f'it has a layer {name}, which is not known.')
    return kinds.index(kind), int(number)

  return {
    f'{name}.{part}': layers[name][part]
    for name in sorted(layers, key=order)
    for part in ('kernel', 'bias')
  }
