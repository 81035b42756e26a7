import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import lease, run_directory


def test_csv_log_appends_and_goes_back(tmp_path):
  path = tmp_path / 'metrics.csv'
  log = run_directory.CsvLog(path, ('step', 'loss'))
  for step in range(4):
    log.append({'step': step, 'loss': step / 2})
  log.keep(lambda row: int(row['step']) < 2)
  log.append({'step': 9, 'loss': None})
  assert path.read_text().splitlines() == [
    'step,loss',
    '0,0.0',
    '1,0.5',
    '9,',
  ]


def test_a_torn_row_is_left_out(tmp_path):
  path = tmp_path / 'metrics.csv'
  path.write_text('step,loss\n0,0.5\n1,0.')
  assert run_directory.read_csv(path) == [{'step': '0', 'loss': '0.5'}]


def test_reading_a_file_that_is_not_there_gives_no_rows(tmp_path):
  assert run_directory.read_csv(tmp_path / 'none.csv') == []


def test_extending_is_all_or_nothing(tmp_path):
  path = tmp_path / 'scores.csv'
  log = run_directory.CsvLog(path, ('a',))
  log.extend_atomically([{'a': 1}, {'a': 2}])

  def broken():
    yield {'a': 3}
    raise KeyError('a')

  with pytest.raises(KeyError):
    log.extend_atomically(broken())
  assert path.read_text().splitlines() == ['a', '1', '2']
  assert [p.name for p in tmp_path.iterdir()] == ['scores.csv']


def test_write_atomically_keeps_the_old_file_when_it_fails(
  tmp_path, monkeypatch
):
  path = tmp_path / 'file'
  run_directory.write_atomically(path, 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(errors.WriteError, match='No space left'):
    run_directory.write_atomically(path, 'new')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_make_directory_names_what_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.WriteError, match='file/run'):
    run_directory.make_directory(tmp_path / 'file' / 'run')


def test_a_url_is_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.ConfigError, match='gs://bucket/run is a URL'):
    run_directory.make_directory('gs://bucket/run')
  assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time_writes_to_a_run_directory(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.05)
  with run_directory.lock(tmp_path):
    with (
      pytest.raises(run_directory.BusyError, match='in use') as raised,
      run_directory.lock(tmp_path),
    ):
      raise AssertionError
    assert raised.value.exit_code == 75
  with run_directory.lock(tmp_path):
    pass
  with (
    pytest.raises(errors.WriteError, match='none'),
    run_directory.lock(tmp_path / 'none'),
  ):
    raise AssertionError


def test_what_a_worker_left_half_written_is_removed(tmp_path):
  (tmp_path / 'checkpoints' / '.writing.3.ab').mkdir(parents=True)
  for name in ('.scores.csv.ab.tmp', '.attempt.json.ab.tmp'):
    (tmp_path / name).write_text('')
  with run_directory.lock(tmp_path):
    left = {path.name for path in tmp_path.rglob('.*')}
  assert left == {'.attempt.json.ab.tmp'}  # Somebody else's.
