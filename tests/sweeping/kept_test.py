import json

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.runs import run_directory
from batch_rl_dr3.sweeping import kept, score_table, standing

HEADER = ','.join(run_directory.SCORE_COLUMNS)


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


def test_what_is_kept_is_reported_like_the_run(run, folder, tmp_path):
  target = kept.keep(run, folder, str(tmp_path / 'results'))
  assert target == tmp_path / f'results/breakout/all/rem/{folder.name}'
  before, after = (run_reader.load([str(f)]).runs[0] for f in (folder, target))
  assert after.setting == before.setting
  assert after.finished
  assert after.evaluations.equals(before.evaluations)
  assert after.evaluations['return'].to_list() == [1.5, 2.5]
  assert after.evaluations['episodes'].to_list() == [1, 3]
  assert after.evaluations['truncated'].to_list() == [0, 2]
  # Only steps at which the run was evaluated, and its first; the later row of
  # a step that was logged twice; 6 digits.
  assert (target / 'metrics.csv').read_text() == (
    'iteration,gradient_steps,feature_dot_product,effective_rank\n'
    '0,0,1.23457,9\n0,100,4,8\n1,200,inf,\n'
  )


def test_nothing_of_this_machine_is_kept(run, folder, tmp_path):
  target = kept.keep(run, folder, str(tmp_path / 'results'))
  provenance = json.loads((target / 'provenance.json').read_text())
  assert provenance['data_hash'] == 'abc'
  assert 'data' not in provenance
  assert provenance['command'][:4] == [
    *('python', '-m', 'batch_rl_dr3.train'),
    '--gin_files=minatar/rem.gin',
  ]
  assert f'--base_dir=RUNS/{run.folder}' in provenance['command']
  text = ''.join(path.read_text() for path in target.iterdir())
  assert '/home' not in text
  assert str(tmp_path) not in text


def test_what_is_kept_counts_as_done_and_is_collected(run, folder, tmp_path):
  results = str(tmp_path / 'results')
  kept.keep(run, folder, results)
  nowhere = str(tmp_path / 'nowhere')
  assert standing.is_done(run, nowhere, results)
  path = score_table.find(run, nowhere, results)
  output = tmp_path / 'all.csv'
  assert score_table.write([folder / 'scores.csv', path], str(output)) == 6
  rows = run_directory.read_csv(output)
  assert [row['episodes'] for row in rows] == ['1', '1', '1', '1', '1', '3']
  assert [float(row['return']) for row in rows[-2:]] == [1.5, 2.5]


@pytest.mark.parametrize('name', ['provenance.json', 'finished.json'])
def test_a_damaged_run_is_not_kept(run, folder, tmp_path, name):
  (folder / name).write_text('{')
  with pytest.raises(errors.DataError, match=f'cannot keep {folder}'):
    kept.keep(run, folder, str(tmp_path / 'results'))
  assert not (tmp_path / 'results').exists()
