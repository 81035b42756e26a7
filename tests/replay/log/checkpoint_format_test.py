import gzip
import io
import pickle
import tracemalloc

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, sources
from batch_rl_dr3.runs.place import local_file

ROW_SHAPE = (3, 2)


def _read(path, dtype=np.uint8, row_shape=ROW_SHAPE, num_rows=None):
  blocks = checkpoint_format.read_rows(
    local_file(path), dtype, row_shape, num_rows
  )
  return np.concatenate(list(blocks))


def _npy(array, **kwargs):
  stream = io.BytesIO()
  np.save(stream, array, **kwargs)
  return stream.getvalue()


@pytest.fixture
def rows():
  return np.random.default_rng(0).integers(0, 256, (50, *ROW_SHAPE), np.uint8)


@pytest.fixture
def path(tmp_path, logs, rows):
  path = tmp_path / 'rows.gz'
  logs.write_array(path, rows)
  return path


@pytest.fixture
def log(tmp_path, logs):
  logs.write_log(tmp_path / 'log', logs.make_transitions(450))
  return tmp_path / 'log'


def test_rows_are_read_in_blocks(path, rows, monkeypatch):
  monkeypatch.setattr(checkpoint_format, '_BLOCK_BYTES', 7 * 6)
  blocks = list(
    checkpoint_format.read_rows(local_file(path), np.uint8, ROW_SHAPE)
  )
  assert [len(block) for block in blocks] == [7] * 7 + [1]
  np.testing.assert_array_equal(np.concatenate(blocks), rows)
  np.testing.assert_array_equal(_read(path, num_rows=9), rows[:9])


def test_header(path):
  header = checkpoint_format.read_header(local_file(path))
  assert header == checkpoint_format.Header((50, 3, 2), np.dtype(np.uint8))


def test_folder_or_its_parent(log, tmp_path):
  assert sources.FolderSource(log).name == str(log)
  log.rename(tmp_path / 'replay_logs')
  found = sources.FolderSource(tmp_path)
  assert found.name == str(tmp_path / 'replay_logs')


def test_missing_and_empty_folders_are_named(tmp_path):
  with pytest.raises(errors.DataError, match=r'absent is not a folder'):
    sources.FolderSource(tmp_path / 'absent')
  with pytest.raises(errors.DataError, match='holds no replay logs'):
    sources.FolderSource(tmp_path)


def test_suffixes_are_sorted_as_numbers(tmp_path, logs):
  folder = tmp_path / 'log'
  logs.write_log(folder, logs.make_transitions(1300), rows_per_file=120)
  suffixes = sources.FolderSource(folder).suffixes()
  assert suffixes == list(range(len(suffixes)))
  assert len(suffixes) > 10


@pytest.mark.parametrize(
  'name',
  [
    '$store$_observation',
    '$store$_action',
    '$store$_reward',
    '$store$_terminal',
    'add_count',
    'invalid_range',
  ],
)
def test_a_missing_file_is_named(log, name):
  (log / f'{name}_ckpt.0.gz').unlink()
  with pytest.raises(errors.DataError) as caught:
    sources.FolderSource(log).suffixes()
  assert f'{name}_ckpt.0.gz' in str(caught.value)


@pytest.mark.parametrize('kept', [0, 1, 5, 12, 40, 0.5, 0.9, -9, -8, -1])
def test_truncated_files_are_refused(path, kept):
  content = path.read_bytes()
  end = int(kept * len(content)) if isinstance(kept, float) else kept
  path.write_bytes(content[:end])
  with pytest.raises(errors.DataError, match=r'rows\.gz'):
    _read(path)


def test_bit_flips_never_give_wrong_rows(path, rows):
  content = path.read_bytes()
  num_refused = 0
  for position in range(len(content)):
    damaged = bytearray(content)
    damaged[position] ^= 1 << (position % 8)
    path.write_bytes(damaged)
    try:
      np.testing.assert_array_equal(_read(path), rows)
    except errors.DataError:
      num_refused += 1
  # A few bits, such as gzip's time stamp, are not content.
  assert num_refused > 0.9 * len(content)


def test_trailing_bytes_are_refused(path, rows):
  path.write_bytes(gzip.compress(_npy(rows) + b'x'))
  with pytest.raises(errors.DataError, match='goes on after'):
    _read(path)
  path.write_bytes(gzip.compress(_npy(rows)) + b'x')
  with pytest.raises(errors.DataError, match='damaged'):
    _read(path)


def test_fewer_rows_than_claimed_are_refused(path, rows):
  path.write_bytes(gzip.compress(_npy(rows)[:-1]))
  with pytest.raises(errors.DataError, match='cut short'):
    _read(path)


def test_more_rows_than_there_are_cannot_be_asked_for(path):
  with pytest.raises(errors.DataError, match='has 50 rows; 51'):
    _read(path, num_rows=51)


class _Bomb:
  """Makes a file when it is unpickled."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return open, (str(self.target), 'w')


def test_pickles_are_refused_and_not_executed(path, tmp_path):
  target = tmp_path / 'executed'
  bomb = _Bomb(target)
  objects = np.empty(2, dtype=object)
  objects[:] = bomb
  for content in (pickle.dumps(bomb), _npy(objects, allow_pickle=True)):
    path.write_bytes(gzip.compress(content))
    with pytest.raises(errors.DataError, match=r'rows\.gz'):
      checkpoint_format.read_header(local_file(path))
    with pytest.raises(errors.DataError, match=r'rows\.gz'):
      _read(path)
    assert not target.exists()


def test_other_arrays_are_refused(path):
  structured = np.zeros(3, dtype=[('a', 'i4'), ('b', 'f4')])
  fortran = np.asfortranarray(np.zeros((4, 3, 2), np.uint8))
  wrong = [
    np.zeros((4, 3, 2), np.int16),
    np.zeros((4, 3), np.uint8),
    np.zeros((4, 2, 3), np.uint8),
    np.uint8(3),
    structured,
    fortran,
  ]
  for array in wrong:
    path.write_bytes(gzip.compress(_npy(array)))
    with pytest.raises(errors.DataError, match=r'rows\.gz'):
      _read(path)
  path.write_bytes(b'not gzip at all')
  with pytest.raises(errors.DataError, match=r'rows\.gz'):
    _read(path)


@pytest.mark.parametrize('shape', [(10**15, 3, 2), (10**5, 10**9), (-1, 3, 2)])
def test_absurd_headers_are_refused_without_allocating(path, shape):
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    stream, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  )
  path.write_bytes(gzip.compress(stream.getvalue() + bytes(100)))
  tracemalloc.start()
  try:
    with pytest.raises(errors.DataError, match=r'rows\.gz'):
      _read(path, row_shape=shape[1:])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()


def test_reading_all_rows_needs_one_block_of_memory(path, monkeypatch):
  monkeypatch.setattr(checkpoint_format, '_BLOCK_BYTES', 1 << 16)
  path.write_bytes(gzip.compress(_npy(np.zeros((700_000, 3, 2), np.uint8)), 1))
  tracemalloc.start()
  try:
    for _ in checkpoint_format.read_rows(local_file(path), np.uint8, ROW_SHAPE):
      pass
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()


def test_attributes(log, logs):
  def read(folder, name, suffix):
    file = local_file(checkpoint_format.file_path(folder, name, suffix))
    return checkpoint_format.read_attribute(file, name)

  assert int(read(log, 'add_count', 1)) == 400
  np.testing.assert_array_equal(
    read(log, 'invalid_range', 1), [199, 0, 1, 2, 3]
  )
  for wrong in (np.zeros(3, np.int64), np.float64(3), [[1, 2]]):
    logs.write_array(log / 'add_count_ckpt.1.gz', wrong)
    with pytest.raises(errors.DataError, match=r'add_count_ckpt\.1\.gz'):
      read(log, 'add_count', 1)
  logs.write_array(log / 'invalid_range_ckpt.1.gz', np.zeros(10**6, np.int64))
  with pytest.raises(errors.DataError, match=r'invalid_range_ckpt\.1\.gz'):
    read(log, 'invalid_range', 1)


def test_suffixes_in_words():
  assert checkpoint_format.format_suffixes([]) == ''
  assert checkpoint_format.format_suffixes([3]) == '3'
  assert checkpoint_format.format_suffixes([0, 1, 3, 5, 6, 7]) == '0-1, 3, 5-7'
  # A name that claims a huge number is not of the format.
  names = checkpoint_format.file_names(10**9)
  assert checkpoint_format.found_suffixes(names) == set()
