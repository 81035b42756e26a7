import importlib.util
import json

import pandas as pd
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.runs import results, run_tables
from batch_rl_dr3.sweeping import grid, kept, standing

HEADER = ','.join(run_tables.SCORE_COLUMNS)


@pytest.fixture
def run(make_sweep):
  return make_sweep(methods=['rem'], games=['breakout'], seeds=[7]).runs()[0]


@pytest.fixture
def folder(run, write_run):
  """A finished run of two evaluations, the second of three episodes."""
  folder = write_run(run, finished=True)
  who = 'minatar,breakout,rem,all,1,7'
  (folder / 'scores.csv').write_text(
    f'{HEADER}\n{who},0,100,0,1.5,20,0\n'
    f'{who},1,200,0,1.0,10,0\n{who},1,200,1,2.0,20,1\n{who},1,200,2,4.5,33,1\n'
  )
  (folder / 'metrics.csv').write_text(
    'iteration,gradient_steps,feature_dot_product,effective_rank\n'
    '0,0,1.23456789,9\n0,50,3,\n0,100,0.1,\n'
    '0,100,4.0000001,8\n1,200,inf,\n'
  )
  path = folder / 'provenance.json'
  provenance = json.loads(path.read_text())
  provenance |= {'data': {'files': [1, 2]}, 'command': ['--base_dir=/home/me']}
  path.write_text(json.dumps(provenance | {'data_hash': 'abc'}))
  return folder


@pytest.fixture
def study(run, folder, tmp_path):
  """A study of the run."""
  folder = str(tmp_path / 'results')
  assert kept.keep([run], tmp_path, folder) == [run.kept_folder]
  return folder


def load(pattern, tmp_path):
  globs = results.RunGlobs([pattern], tmp_path / 'cache', run_reader.CONTENTS)
  return run_reader.load(globs.patterns).runs, globs


def test_what_is_kept_is_reported_like_the_run(run, folder, study, tmp_path):
  ((before,), _), ((after,), globs) = (
    load(str(place), tmp_path) for place in (folder, study)
  )
  assert after.setting == before.setting
  assert after.finished
  # A study keeps the means of evaluations, not their single episodes.
  kept, whole = (
    run.evaluations.drop(columns='lowest') for run in (after, before)
  )
  assert kept.equals(whole)
  assert after.evaluations['return'].to_list() == [1.5, 2.5]
  assert after.evaluations['episodes'].to_list() == [1, 3]
  assert after.evaluations['truncated'].to_list() == [0, 2]
  assert globs.is_elsewhere
  assert globs.name_of(str(after.folder)) == f'{study}/{run.kept_folder}'
  # Only steps at which the run was evaluated, and its first; the later row of
  # a step that was logged twice; 6 digits.
  assert (after.folder / 'metrics.csv').read_text() == (
    'iteration,gradient_steps,feature_dot_product,effective_rank\n'
    '0,0,1.23457,9\n0,100,4,8\n1,200,inf,\n'
  )


def test_a_kept_run_of_other_numbers_is_not_taken_for_the_run(
  run, study, make_sweep, monkeypatch, tmp_path
):
  """Nor is the run's own folder: the sweep trains it anew, beside the old."""
  nowhere = str(tmp_path / 'nowhere')
  assert standing.is_done(run, str(tmp_path), None)
  assert standing.is_done(run, nowhere, study)
  monkeypatch.setattr(grid, 'NUMBERS_VERSION', grid.NUMBERS_VERSION + 1)
  sweep = make_sweep(methods=['rem'], games=['breakout'], seeds=[7])
  (again,) = sweep.runs()
  assert again.identity != run.identity
  assert not standing.is_done(again, str(tmp_path), study)


@pytest.mark.parametrize(
  ('pattern', 'is_there'),
  [
    ('results/runs.json', True),
    ('results/breakout/*/rem/*', True),
    ('results/*/all/*/seed7-*', True),
    ('results/**', True),
    ('res*', True),
    ('results/freeway/**', False),
  ],
)
def test_a_glob_goes_on_below_a_study(study, tmp_path, pattern, is_there):
  if is_there:
    runs, _ = load(f'{tmp_path}/{pattern}', tmp_path)
    assert len(runs) == 1
  else:
    with pytest.raises(errors.DataError):
      load(f'{tmp_path}/{pattern}', tmp_path)


def test_a_study_is_three_files_that_further_runs_are_added_to(
  run, study, make_sweep, write_run, tmp_path
):
  names = ['metrics.csv', 'runs.json', 'scores.csv']
  before = results.read(study)[run.kept_folder]
  other = make_sweep(methods=['dqn'], games=['breakout']).runs()[0]
  write_run(other, finished=True, steps=(50, 100))
  assert kept.keep([run, other], tmp_path, study) == [other.kept_folder]
  assert kept.keep([run, other], tmp_path, study) == []
  assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == names
  after = results.read(study)
  assert after[run.kept_folder] == before
  assert [
    row['gradient_steps']
    for row in after[other.kept_folder].tables['metrics.csv']
  ] == ['100']
  # Rows of a run that runs.json does not know are of a writer that was killed.
  path = tmp_path / 'results' / 'runs.json'
  runs = json.loads(path.read_text())
  del runs[run.kept_folder]
  path.write_text(json.dumps(runs))
  assert list(results.read(study)) == [other.kept_folder]


@pytest.mark.parametrize('content', ['{', '[]', '{"../up": {}}', '{"a": 3}'])
def test_a_damaged_study_is_named(run, study, tmp_path, content):
  (tmp_path / 'results' / 'runs.json').write_text(content)
  with pytest.raises(errors.DataError, match=r'results/runs\.json'):
    results.read(study)
  with pytest.raises(errors.DataError, match=r'results/runs\.json'):
    load(study, tmp_path)


def test_nothing_of_this_machine_is_kept(run, study, tmp_path):
  provenance = results.read(study)[run.kept_folder].files['provenance.json']
  assert provenance['data_hash'] == 'abc'
  assert 'data' not in provenance
  assert provenance['command'][:4] == [
    *('python', '-m', 'batch_rl_dr3.train'),
    '--gin_files=minatar/rem.gin',
  ]
  assert f'--base_dir=RUNS/{run.folder}' in provenance['command']
  text = ''.join(p.read_text() for p in (tmp_path / 'results').iterdir())
  assert '/home' not in text
  assert str(tmp_path) not in text


def test_what_is_kept_counts_as_done_and_is_collected(
  run, folder, study, tmp_path
):
  nowhere = str(tmp_path / 'nowhere')
  assert standing.is_done(run, nowhere, study)
  assert not standing.is_done(run, nowhere, None)
  tables = [
    *kept.collect([run], tmp_path, None),
    *kept.collect([run], nowhere, study),
  ]
  output = tmp_path / 'all.csv'
  assert kept.write(tables, str(output)) == 6
  rows = run_tables.read_rows(output)
  assert [row['episodes'] for row in rows] == ['1', '1', '1', '1', '1', '3']
  assert [float(row['return']) for row in rows[-2:]] == [1.5, 2.5]


@pytest.mark.parametrize('name', ['provenance.json', 'finished.json'])
def test_a_damaged_run_is_not_kept(run, folder, tmp_path, name):
  (folder / name).write_text('{')
  if name == 'finished.json':  # It is not finished, then.
    assert kept.keep([run], tmp_path, str(tmp_path / 'results')) == []
  else:
    with pytest.raises(errors.DataError, match=f'cannot keep {folder}'):
      kept.keep([run], tmp_path, str(tmp_path / 'results'))
  assert not (tmp_path / 'results').exists()


# One table of scores.


@pytest.fixture
def runs(make_sweep, write_run):
  """Six runs, three of them finished."""
  runs = make_sweep().runs()
  for run in runs[:3]:
    write_run(run, finished=True)
  return runs


def test_scores_of_all_runs_are_one_csv(runs, tmp_path):
  tables = list(kept.collect(runs, tmp_path, None))
  assert kept.write(tables, str(tmp_path / 'all.csv')) == 3
  table = pd.read_csv(tmp_path / 'all.csv')
  assert list(table.columns) == [*run_tables.SCORE_COLUMNS, 'episodes']
  assert list(table['method']) == ['dqn', 'rem', 'rem_dr3']
  assert list(table['return']) == [1.5] * 3
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'all.csv',
    'minatar',
  ]


@pytest.mark.skipif(
  importlib.util.find_spec('pyarrow') is None, reason='needs pyarrow'
)
def test_the_same_as_parquet(runs, tmp_path):
  tables = kept.collect(runs, tmp_path, None)
  assert kept.write(tables, str(tmp_path / 'all.parquet')) == 3
  table = pd.read_parquet(tmp_path / 'all.parquet')
  assert list(table['method']) == ['dqn', 'rem', 'rem_dr3']


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(kept, 'has_parquet', lambda: False)
  with pytest.raises(errors.UsageError, match='pip install pyarrow'):
    kept.write([], str(tmp_path / 'all.parquet'))
  with pytest.raises(errors.UsageError, match=r'neither \.parquet nor \.csv'):
    kept.write([], str(tmp_path / 'all.txt'))


def test_a_damaged_file_is_named_and_nothing_is_written(runs, tmp_path):
  path = tmp_path / runs[1].folder / 'scores.csv'
  path.write_text('game,return\nbreakout,1\n')
  with pytest.raises(errors.DataError, match=str(path)):
    kept.write(kept.collect(runs, tmp_path, None), str(tmp_path / 'all.csv'))
  assert [path.name for path in tmp_path.iterdir()] == ['minatar']
