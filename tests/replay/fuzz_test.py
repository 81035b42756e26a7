"""Damages every kind of file in every kind of way: an error or right rows."""

import gzip
import io
import itertools
import pickle
import tracemalloc

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, sources

NAMES = checkpoint_format.ELEMENTS + checkpoint_format.ATTRIBUTES
_settings = settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope='module')
def log(tmp_path_factory, logs):
  folder = tmp_path_factory.mktemp('fuzz')
  logs.write_log(folder, logs.make_transitions(450))
  return folder


def _read(log, name):
  """Reads a file as a store's builder does."""
  source = sources.FolderSource(log)
  if name in checkpoint_format.ATTRIBUTES:
    return source.attribute(name, 0)
  if name == 'observation':
    shape, dtype = source.header(name, 1)
    checkpoint_format.check_frames(
      checkpoint_format.file_name(name, 0),
      source.header(name, 0),
      shape[1:],
      dtype,
    )
  return np.concatenate(list(source.rows(name, 0)))


class _Damaged:
  """A file with other bytes for a while."""

  def __init__(self, log, name, content):
    self.path = checkpoint_format.file_path(log, name, 0)
    self.content = content

  def __enter__(self):
    self.original = self.path.read_bytes()
    self.path.write_bytes(self.content)
    return self.path

  def __exit__(self, *args):
    self.path.write_bytes(self.original)


def _assert_refused_or_right(log, name, content, expected):
  with _Damaged(log, name, content) as path:
    try:
      rows = _read(log, name)
    except errors.DataError as error:
      message = str(error)
    else:
      message = path.name
      np.testing.assert_array_equal(rows, expected)
  assert path.name in message


@_settings
@given(st.sampled_from(NAMES), st.floats(0, 1), st.integers(0, 7))
def test_flips(log, name, place, bit):
  expected = _read(log, name)
  content = bytearray(checkpoint_format.file_path(log, name, 0).read_bytes())
  content[min(len(content) - 1, int(place * len(content)))] ^= 1 << bit
  _assert_refused_or_right(log, name, bytes(content), expected)


@_settings
@given(st.sampled_from(NAMES), st.floats(0, 1))
def test_truncations(log, name, place):
  expected = _read(log, name)
  content = checkpoint_format.file_path(log, name, 0).read_bytes()
  _assert_refused_or_right(
    log, name, content[: int(place * len(content))], expected
  )


@_settings
@given(
  st.sampled_from(NAMES), st.floats(0, 1), st.integers(1, 40), st.booleans()
)
def test_lost_and_repeated_bytes(log, name, place, count, lost):
  expected = _read(log, name)
  content = checkpoint_format.file_path(log, name, 0).read_bytes()
  at = int(place * len(content))
  rest = content[at + count :] if lost else content[max(0, at - count) :]
  _assert_refused_or_right(log, name, content[:at] + rest, expected)


@pytest.mark.parametrize(
  ('name', 'other'), list(itertools.permutations(NAMES, 2))
)
def test_swapped_files(log, name, other):
  content = checkpoint_format.file_path(log, other, 0).read_bytes()
  with _Damaged(log, name, content) as path:  # noqa: SIM117
    with pytest.raises(errors.DataError) as caught:
      _read(log, name)
  assert path.name in str(caught.value)


def _npy(array, allow_pickle=False):
  stream = io.BytesIO()
  np.save(stream, array, allow_pickle)
  return stream.getvalue()


@pytest.mark.parametrize('name', NAMES)
def test_other_arrays_and_other_things(log, name):
  array = _read(log, name)
  contents = [
    _npy(array.astype(np.float64)),
    _npy(array.astype(np.complex64)),
    _npy(array[..., None]),
    _npy(array.astype(array.dtype.newbyteorder('>'))[..., None]),
    _npy(np.asfortranarray(np.stack([array, array], -1))),
    _npy(np.array([object()] * 3, object), allow_pickle=True),
    _npy(np.zeros(3, [('a', np.int32), ('b', np.int32)])),
    pickle.dumps(array),
    _npy(array)[:8] + b'\xff' * 40,
    b'\x93NUMPY\x02\x00' + _npy(array)[8:],
    b'',
    bytes(1000),
  ]
  for content in contents:
    with _Damaged(log, name, gzip.compress(content)) as path:  # noqa: SIM117
      with pytest.raises(errors.DataError) as caught:
        _read(log, name)
    assert path.name in str(caught.value)


@pytest.mark.parametrize('name', NAMES)
def test_bombs_of_zeros_need_little_memory(log, name, monkeypatch):
  monkeypatch.setattr(checkpoint_format, '_BLOCK_BYTES', 1 << 18)
  zeros = gzip.compress(bytes(100 << 20), 1)
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header,
    {'descr': '<i8', 'fortran_order': False, 'shape': (10**12,)},
  )
  bombs = [
    zeros,  # No header at all.
    gzip.compress(_npy(_read(log, name))) + zeros,  # A second member.
    gzip.compress(header.getvalue()) + zeros,  # 8 TB claimed.
  ]
  for content in bombs:
    with _Damaged(log, name, content):
      tracemalloc.start()
      try:
        with pytest.raises(errors.DataError):
          _read(log, name)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
      finally:
        tracemalloc.stop()
