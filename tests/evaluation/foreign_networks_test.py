"""Networks of other programs, read without executing anything of theirs."""

import collections
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.evaluation import foreign_networks

STATES = np.random.default_rng(0).integers(0, 256, (3, 84, 84, 4), np.uint8)


def jax_agent(num_actions):
  """Dopamine's own network, and what its agent writes."""
  from batch_rl_dr3.config import dopamine_compat  # noqa: F401

  jax = pytest.importorskip('jax')
  from dopamine.jax import networks
  import optax

  network = networks.NatureDQNNetwork(num_actions)
  parameters = network.init(jax.random.PRNGKey(0), STATES[0])
  q_values = [network.apply(parameters, s).q_values for s in STATES]
  bundle = {
    'state': np.zeros((1, 84, 84, 4), np.uint8),
    'training_steps': 7,
    'online_params': parameters,
    'optimizer_state': optax.adam(1e-3).init(parameters),
  }
  return bundle, np.asarray(q_values)


def test_a_checkpoint_of_dopamines_jax_agent_gives_its_q_values(tmp_path):
  bundle, expected = jax_agent(5)
  path = tmp_path / 'ckpt.3'
  path.write_bytes(pickle.dumps(bundle))
  network = foreign_networks.read(path)
  q_values, features = network.outputs(STATES)
  np.testing.assert_allclose(q_values, expected, rtol=1e-4, atol=1e-5)
  assert network.num_actions == 5
  assert features.shape == (3, 512)
  assert (features >= 0).all()


@pytest.fixture
def torch_stand_in(monkeypatch):
  """Modules with torch's names, so that files name what torch's would."""
  torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')

  def _rebuild_tensor_v2(*_):
    raise AssertionError

  _rebuild_tensor_v2.__module__ = 'torch._utils'
  _rebuild_tensor_v2.__qualname__ = '_rebuild_tensor_v2'
  utils._rebuild_tensor_v2 = _rebuild_tensor_v2
  torch.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
  torch._utils = utils
  monkeypatch.setitem(sys.modules, 'torch', torch)
  monkeypatch.setitem(sys.modules, 'torch._utils', utils)
  return torch


def torch_save(path, content, torch):
  """Writes arrays as torch.save does tensors."""
  storages = []

  class Storage:
    def __init__(self, array):
      self.array = array

  class Pickler(pickle.Pickler):
    def reducer_override(self, thing):
      if not isinstance(thing, np.ndarray):
        return NotImplemented
      strides = tuple(s // thing.itemsize for s in thing.strides)
      return torch._utils._rebuild_tensor_v2, (
        *(Storage(thing), 0, thing.shape, strides),
        *(False, collections.OrderedDict()),
      )

    def persistent_id(self, thing):
      if not isinstance(thing, Storage):
        return None
      storages.append(thing.array)
      key = str(len(storages) - 1)
      return 'storage', torch.FloatStorage, key, 'cpu', thing.array.size

  with zipfile.ZipFile(path, 'w') as archive:
    with archive.open('model/data.pkl', 'w') as file:
      Pickler(file, protocol=2).dump(content)
    for key, array in enumerate(storages):
      archive.writestr(f'model/data/{key}', array.tobytes())


def small_state_dict(prefix=''):
  """A convolution of 3x3 without padding on 4x4, and two dense layers."""
  rng = np.random.default_rng(1)
  shapes = {'conv': (2, 1, 3, 3), 'fc': (5, 8), 'head': (6, 5)}
  return collections.OrderedDict(
    (f'{prefix}{name}.{part}', rng.normal(size=size).astype(np.float32))
    for name, shape in shapes.items()
    for part, size in (('weight', shape), ('bias', shape[:1]))
  )


def small_outputs(weights, image):
  """The same network by loops, for a 4x4 image of one channel."""
  kernel, bias = weights['conv.weight'], weights['conv.bias']
  maps = np.zeros((2, 2, 2))
  for c in range(2):
    for i in range(2):
      for j in range(2):
        window = image[i : i + 3, j : j + 3]
        maps[c, i, j] = max((window * kernel[c, 0]).sum() + bias[c], 0)
  hidden = weights['fc.weight'] @ maps.reshape(-1) + weights['fc.bias']
  phi = np.maximum(hidden, 0)
  return weights['head.weight'] @ phi + weights['head.bias'], phi


def check_small(network):
  image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
  q_values, features = network.outputs(image)
  atoms, phi = small_outputs(small_state_dict(), image[0, :, :, 0] / 255)
  np.testing.assert_allclose(features[0], phi, rtol=1e-5)
  # Three quantiles of two actions.
  np.testing.assert_allclose(
    q_values[0], [atoms[:3].mean(), atoms[3:].mean()], rtol=1e-5
  )


def test_a_state_dict_of_torch_gives_what_loops_give(tmp_path, torch_stand_in):
  path = tmp_path / 'model.pt'
  torch_save(path, small_state_dict(), torch_stand_in)
  check_small(foreign_networks.read(path, num_actions=2))


def test_of_d3rlpys_ensemble_the_first_is_read(tmp_path, torch_stand_in):
  path = tmp_path / 'model.d3'
  second = {k: v + 1 for k, v in small_state_dict('1.').items()}
  content = {
    'q_funcs': collections.OrderedDict(small_state_dict('0.') | second),
    'q_optim': {'state': {}, 'param_groups': [{'lr': 1e-3}]},
  }
  torch_save(path, content, torch_stand_in)
  check_small(foreign_networks.read(path, num_actions=2))


def safetensors(path, weights):
  header, blob = {'__metadata__': {'format': 'pt'}}, b''
  for name, array in weights.items():
    start = len(blob)
    blob += array.tobytes()
    header[name] = {
      'dtype': 'F32',
      'shape': array.shape,
      'data_offsets': [start, len(blob)],
    }
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + blob)


def test_safetensors_are_read_in_the_order_that_names_say(tmp_path):
  path = tmp_path / 'model.safetensors'
  weights = small_state_dict()
  safetensors(path, dict(sorted(weights.items(), reverse=True)))
  names = ('conv', 'fc', 'head')
  check_small(foreign_networks.read(path, num_actions=2, names=names))
  with pytest.raises(errors.DataError, match=r'no tail\.weight; there are'):
    foreign_networks.read(path, names=('conv', 'tail'))


def test_what_does_not_fit_is_named(tmp_path, torch_stand_in):
  path = tmp_path / 'model.pt'
  torch_save(path, small_state_dict(), torch_stand_in)
  with pytest.raises(errors.DataError, match='6 outputs, which is no multiple'):
    foreign_networks.read(path, num_actions=4)
  network = foreign_networks.read(path, num_actions=2)
  with pytest.raises(errors.DataError, match='fc has 8 inputs, conv 1 ch'):
    network.outputs(STATES)
  with pytest.raises(errors.DataError, match=r'8, 5\] does not follow fc'):
    foreign_networks.read(path, names=('conv', 'fc', 'fc'))


class Payload:
  """A pickle of it executes something."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('place', ['online_params', 'elsewhere'])
def test_a_pickle_that_would_execute_something_does_not(tmp_path, place):
  path = tmp_path / 'ckpt.1'
  content = {'online_params': {}, place: Payload(tmp_path / 'executed')}
  path.write_bytes(pickle.dumps(content))
  with pytest.raises(errors.DataError, match=r'posix\.mkdir, which is refused'):
    foreign_networks.read(path)
  assert not (tmp_path / 'executed').exists()


def test_files_that_are_cut_or_of_another_kind_are_named(
  tmp_path, torch_stand_in
):
  whole = tmp_path / 'model.pt'
  torch_save(whole, small_state_dict(), torch_stand_in)
  bundle, _ = jax_agent(2)
  for content in (
    whole.read_bytes()[:-200],
    pickle.dumps(bundle)[:-9],
    struct.pack('<Q', 10**12) + b'{}',
    b'\x80\x04.',
    b'',
  ):
    path = tmp_path / 'damaged'
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match='damaged'):
      foreign_networks.read(path)
