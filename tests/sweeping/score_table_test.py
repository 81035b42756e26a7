import importlib.util

import pandas as pd
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory
from batch_rl_dr3.sweeping import score_table


@pytest.fixture
def paths(make_sweep, write_run, tmp_path):
  runs = make_sweep().runs()
  for run in runs[:3]:
    write_run(run, finished=True)
  found = [score_table.find(run, str(tmp_path), None) for run in runs]
  assert found[3:] == [None] * 3
  return found[:3]


def test_scores_of_all_runs_are_one_csv(paths, tmp_path):
  assert score_table.write(paths, str(tmp_path / 'all.csv')) == 3
  table = pd.read_csv(tmp_path / 'all.csv')
  assert list(table.columns) == [*run_directory.SCORE_COLUMNS, 'episodes']
  assert list(table['method']) == ['dqn', 'rem', 'rem_dr3']
  assert list(table['return']) == [1.5] * 3
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'all.csv',
    'minatar',
  ]


@pytest.mark.skipif(
  importlib.util.find_spec('pyarrow') is None, reason='needs pyarrow'
)
def test_the_same_as_parquet(paths, tmp_path):
  assert score_table.write(paths, str(tmp_path / 'all.parquet')) == 3
  table = pd.read_parquet(tmp_path / 'all.parquet')
  assert list(table['method']) == ['dqn', 'rem', 'rem_dr3']


def test_parquet_without_pyarrow_says_what_to_do(paths, tmp_path, monkeypatch):
  monkeypatch.setattr(score_table, 'has_parquet', lambda: False)
  with pytest.raises(errors.UsageError, match='pip install pyarrow'):
    score_table.write(paths, str(tmp_path / 'all.parquet'))
  with pytest.raises(errors.UsageError, match=r'neither \.parquet nor \.csv'):
    score_table.write(paths, str(tmp_path / 'all.txt'))


def test_a_damaged_file_is_named_and_nothing_is_written(paths, tmp_path):
  paths[1].write_text('game,return\nbreakout,1\n')
  with pytest.raises(errors.DataError, match=str(paths[1])):
    score_table.write(paths, str(tmp_path / 'all.csv'))
  assert [path.name for path in tmp_path.iterdir()] == ['minatar']


def test_results_kept_apart_are_found(make_sweep, tmp_path):
  run = make_sweep().runs()[0]
  kept = tmp_path / run.folder.partition('/')[2] / 'scores.csv'
  kept.parent.mkdir(parents=True)
  kept.write_text('')
  assert score_table.find(run, 'nowhere', str(tmp_path)) == kept
