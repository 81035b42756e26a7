import csv
import functools
import hashlib
import json

import fsspec
import numpy as np
import pandas as pd
import pytest

from batch_rl_dr3 import select
from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import selection


@pytest.fixture
def select_runs(run_command):
  return functools.partial(run_command, 'select')


@pytest.fixture
def runs(tmp_path):
  """A run with two checkpoints, of which the last is the worse."""
  folder = tmp_path / 'runs' / 'rem'
  (folder / 'checkpoints').mkdir(parents=True)
  (folder / 'provenance.json').write_text(
    json.dumps({'method': 'rem', 'game': 'Pong', 'seed': 0})
  )
  (folder / 'metrics.csv').write_text(
    'gradient_steps,feature_dot_product,mean_q\n10,1,2\n20,5,3\n'
  )
  (folder / 'scores.csv').write_text('gradient_steps,return\n10,21\n20,-21\n')
  for name, step in (('0', 10), ('1', 20)):
    inside = folder / 'checkpoints'
    (inside / f'tf_ckpt-{name}.index').write_text('weights')
    sha256 = hashlib.sha256(b'weights').hexdigest()
    files = {f'tf_ckpt-{name}.index': {'bytes': 7, 'sha256': sha256}}
    (inside / f'ckpt.{name}.json').write_text(
      json.dumps({'name': name, 'gradient_steps': step, 'files': files})
    )
  return tmp_path


def test_it_prints_the_choices_and_what_they_are_worth(select_runs, runs):
  result = select_runs('--runs=runs/*', '--output=all.csv', cwd=runs)
  assert (result.returncode, result.stderr) == (0, '')
  lines = [line.split() for line in result.stdout.splitlines()]
  # 1/10 against 5/20; the later has the higher mean Q.
  assert ['rem', 'dot_growth', '0', '10', '0.1000', '21.00'] in lines
  assert ['rem', 'q_peak', '1', '20', '3.00', '-21.00'] in lines
  assert 'Measured on 1 of 1 runs' in ' '.join(result.stdout.split())
  with open(runs / 'all.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  # Of q_settled only the second, which has two rows to compare.
  assert len(rows) == 2 * 3 + 1
  assert rows[2]['rule'] == 'dot_growth'
  assert (rows[2]['place'], rows[2]['checkpoint']) == ('1', '0')


def test_runs_in_a_bucket_are_ranked_by_what_is_fetched(runs, tmp_path):
  memory = fsspec.filesystem('memory')
  memory.put(str(runs / 'runs'), '/select', recursive=True)
  tables = {}
  for place in (f'{runs}/runs', 'memory://select'):
    output = tmp_path / 'all.csv'
    select.select([f'{place}/*'], output=str(output), cache_dir=str(tmp_path))
    tables[place] = output.read_text().replace(place, 'RUNS')
  memory.rm('/select', recursive=True)
  local, remote = tables.values()
  assert local == remote
  assert 'RUNS/rem' in local


def test_json_has_everything(runs, capsys, monkeypatch):
  monkeypatch.chdir(runs)
  select.select(['runs/*'], ['dot_growth', 'last'], output='all.json')
  found = json.loads((runs / 'all.json').read_text())
  assert [rule['name'] for rule in found['rules']] == ['last', 'dot_growth']
  assert [r['place'] for r in found['ranking']] == [1, 2, 1, 2]
  measured = {row['rule']: row['kept'] for row in found['measured']}
  assert measured == {'last': 0, 'dot_growth': 100, 'random': 50}
  assert [row['return'] for row in found['outcomes']] == [-21, 21, 0]
  assert 'q_peak' not in capsys.readouterr().out


def test_records_are_json():
  frame = pd.DataFrame(
    {
      'run': ['a', 'b'],
      'place': np.array([1, 2]),
      'value': [np.inf, 0.5],
      'return': [-1.0, np.nan],
    }
  )
  made = json.dumps(select.records(frame), allow_nan=False)
  assert json.loads(made) == [
    {'run': 'a', 'place': 1, 'value': None, 'return': -1.0},
    {'run': 'b', 'place': 2, 'value': 0.5, 'return': None},
  ]


def test_runs_that_cannot_be_ranked_are_named(runs, capsys, monkeypatch):
  monkeypatch.chdir(runs)
  (runs / 'runs' / 'rem' / 'checkpoints' / 'ckpt.1.json').unlink()
  select.select(['runs/*'], top=2)
  out, err = capsys.readouterr()
  assert out.startswith('Nothing to rank.\n')
  assert 'Measured on 1 of 1 runs' in ' '.join(out.split())
  assert err.startswith('not ranked')
  assert err.endswith(': rem\n')


def test_nothing_to_rank_at_all(runs, monkeypatch):
  monkeypatch.chdir(runs)
  (runs / 'runs' / 'rem' / 'checkpoints' / 'ckpt.1.json').unlink()
  (runs / 'runs' / 'rem' / 'scores.csv').unlink()
  with pytest.raises(errors.DataError, match='nothing to rank'):
    select.select(['runs/*'])


def test_an_output_that_cannot_be_written(runs, monkeypatch):
  monkeypatch.chdir(runs)
  with pytest.raises(errors.WriteError, match='cannot write'):
    select.select(['runs/*'], output='nowhere/all.csv')


@pytest.mark.parametrize(
  ('flags', 'code', 'expected'),
  [
    ([], 64, 'no runs given'),
    (['--runs=runs/*', '--output=all.txt'], 64, 'neither .csv nor .json'),
    (['--runs=nowhere/*'], 65, "'nowhere/*' matches nothing"),
  ],
)
def test_errors_are_one_line_and_a_code(
  select_runs, runs, flags, code, expected
):
  result = select_runs(*flags, cwd=runs)
  assert result.returncode == code
  assert expected in result.stderr
  assert result.stderr.count('\n') == 1
  assert result.stdout == ''


def test_help_explains_every_rule(select_runs, runs):
  result = select_runs('--help', cwd=runs)
  assert result.returncode == 0
  text = ' '.join(result.stdout.split())
  assert list(select.RULES) == [rule.name for rule in selection.RULES]
  for rule in selection.RULES:
    assert f' {rule.name} {rule.choice} ({rule.source})' in text
  for flag in ('--runs', '--rule', '--top', '--output'):
    assert flag in result.stdout
