import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, sources
from batch_rl_dr3.replay.log.sources import Source


@pytest.fixture
def log(tmp_path, logs):
  logs.write_log(tmp_path / 'log', logs.make_transitions(450))
  return tmp_path / 'log'


def test_a_folder_is_a_source(log, logs):
  source: Source = sources.FolderSource(log)
  assert source.name == str(log.resolve())
  assert source.suffixes() == [0, 1, 2]
  assert source.header('observation', 1).shape == (200, *logs.SHAPE)
  assert int(source.attribute('add_count', 1)) == 400
  for name in checkpoint_format.ELEMENTS:
    path = checkpoint_format.file_path(log, name, 1)
    expected = logs.read_array(path)
    rows = source.rows(name, 1)
    np.testing.assert_array_equal(np.concatenate(list(rows)), expected)


def test_a_folder_without_logs_is_refused(tmp_path):
  with pytest.raises(errors.DataError, match='holds no replay logs'):
    sources.FolderSource(tmp_path)


def test_the_seventh_file_is_never_opened(log):
  before = sources.FolderSource(log).fingerprint()
  (log / 'episode_end_indices_ckpt.0.gz').write_bytes(b'a pickle')
  (log / 'notes_ckpt.9.gz').write_bytes(b'')
  source = sources.FolderSource(log)
  assert source.suffixes() == [0, 1, 2]
  assert source.fingerprint() == before


def test_the_fingerprint_tells_of_a_change(log, logs):
  source = sources.FolderSource(log)
  before = source.fingerprint()
  logs.write_array(log / 'add_count_ckpt.1.gz', np.int64(7))
  assert source.fingerprint() != before
