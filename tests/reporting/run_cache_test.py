import os
import time

import numpy as np
import pandas as pd
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.runs import run_tables


def _age(folder, seconds=60.0):
  """Dates a run's files back, so that they count as settled."""
  for path in folder.iterdir():
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def run(make_run):
  folder = make_run(
    'rem',
    returns={100: [1, 3], 200: [4, 6]},
    metrics=[
      {'gradient_steps': 100, 'mean_q': 'nan'},
      {'gradient_steps': 200, 'loss_bellman': 0.1},
    ],
    truncated={(200, 0)},
  )
  _age(folder)
  return folder


@pytest.fixture
def cache(tmp_path):
  return run_reader.RunCache(tmp_path / 'cache')


@pytest.fixture
def read_files(monkeypatch):
  """The paths of the CSV files that are read."""
  paths = []
  read = run_tables.read_columns

  def recording(path, *args):
    paths.append(path.name)
    return read(path, *args)

  monkeypatch.setattr(run_tables, 'read_columns', recording)
  return paths


def _load(run, cache):
  return run_reader.load([str(run)], cache).runs[0]


def test_an_unchanged_run_is_not_read_again(run, cache, read_files):
  first = _load(run, cache)
  assert sorted(read_files) == ['metrics.csv', 'scores.csv']
  second = _load(run, cache)
  assert len(read_files) == 2
  pd.testing.assert_frame_equal(first.metrics, second.metrics)
  pd.testing.assert_frame_equal(first.evaluations, second.evaluations)
  assert second.metrics['mean_q'].tolist() == pytest.approx(
    [np.inf, np.nan], nan_ok=True
  )
  assert second.evaluations.to_dict('index') == {
    100: {'return': 2.0, 'episodes': 2, 'truncated': 0, 'lowest': 1.0},
    200: {'return': 5.0, 'episodes': 2, 'truncated': 1, 'lowest': 4.0},
  }


def test_a_changed_run_is_read_again(run, cache, read_files):
  _load(run, cache)
  with open(run / 'metrics.csv', 'a') as file:
    file.write('0,300,,,,,,,,7.5,,,\n')
  _age(run, 30)
  changed = _load(run, cache)
  assert len(read_files) == 4
  assert changed.series(run_reader.MEAN_Q).to_dict() == {100: np.inf, 300: 7.5}


def test_a_file_of_equal_size_and_time_is_known_by_its_inode(run, cache):
  _load(run, cache)
  path = run / 'scores.csv'
  status = path.stat()
  new = run / 'new'
  new.write_bytes(path.read_bytes().replace(b',6,10,', b',8,10,'))
  os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
  new.replace(path)
  assert path.stat().st_size == status.st_size
  assert _load(run, cache).evaluations.loc[200, 'return'] == 6.0


def test_what_changed_just_now_is_not_kept(run, cache, read_files):
  (run / 'metrics.csv').touch()
  _load(run, cache)
  _load(run, cache)
  assert len(read_files) == 4


def test_a_file_from_the_future_is_named_and_not_kept(run, cache, read_files):
  then = time.time() + 3600
  os.utime(run / 'scores.csv', (then, then))
  assert _load(run, cache).from_future == ('scores.csv',)
  assert _load(run, cache).from_future == ('scores.csv',)
  assert len(read_files) == 4


@pytest.mark.parametrize(
  'spoil',
  [
    lambda content: b'',
    lambda content: content[:-1],
    lambda content: content[:100],
    lambda content: b'\x80\x04' + content[2:],
    lambda content: content.replace(b'"version": 4', b'"version": 0'),
    lambda content: content.replace(b'"stamp"', b'"stomp"'),
  ],
)
def test_a_damaged_cache_is_read_past(run, cache, tmp_path, read_files, spoil):
  _load(run, cache)
  (path,) = (tmp_path / 'cache').iterdir()
  path.write_bytes(spoil(path.read_bytes()))
  assert _load(run, cache).evaluations.loc[200, 'return'] == 5.0
  assert len(read_files) == 4
  _load(run, cache)
  assert len(read_files) == 4


def test_nothing_is_unpickled(run, cache, tmp_path):
  _load(run, cache)
  (path,) = (tmp_path / 'cache').iterdir()
  with open(path, 'wb') as file:
    np.save(file, np.array([{'version': 1}], dtype=object))
  assert cache.get(run, []) is None


def test_runs_without_files_are_kept_too(make_run, cache, read_files):
  folder = make_run('rem')
  _age(folder)
  for _ in range(2):
    run = _load(folder, cache)
    assert run.metrics.empty
    assert run.evaluations.empty
  assert len(read_files) == 2


def test_a_cache_that_cannot_be_written(run, tmp_path):
  (tmp_path / 'file').touch()
  cache = run_reader.RunCache(tmp_path / 'file')
  with pytest.raises(errors.WriteError, match='cannot write'):
    _load(run, cache)


def test_other_processes_fill_the_cache(make_run, tmp_path, read_files, cache):
  for seed in range(3):
    folder = make_run('rem', name=str(seed), seed=seed, returns={1: [seed]})
    _age(folder)
  runs = run_reader.load([str(tmp_path / 'runs' / '*')], cache, 2).runs
  assert [run.evaluations.loc[1, 'return'] for run in runs] == [0, 1, 2]
  assert read_files == []  # In this process, that is.


def test_damage_is_named_whoever_meets_it(run, cache):
  (run / 'metrics.csv').write_text('gradient_steps,mean_q\n1,x\n')
  with pytest.raises(errors.DataError, match="line 2: mean_q is 'x'"):
    run_reader.load([str(run)], cache, 2)
