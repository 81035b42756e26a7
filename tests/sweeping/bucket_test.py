"""A sweep whose runs are in a bucket, from its beginning to its report."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from batch_rl_dr3.runs import place

pytestmark = pytest.mark.slow

RUNS = '--runs=gs://bucket/sweep'


@pytest.fixture
def command(bucket, tmp_path, write_grid, tiny_bindings, monkeypatch):
  """Runs a command of the package, each on a machine of its own."""
  bindings = [*tiny_bindings, 'FixedReplayRunner.num_threads=1']
  grid = write_grid(['rem', 'rem_dr3'], bindings)
  monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
  machines = iter(range(100))

  def command(name, *flags):
    if name == 'sweep':
      flags = (*flags, f'--grid={grid}')
    result = subprocess.run(
      [
        *(sys.executable, '-m', f'batch_rl_dr3.{name}', *flags),
        f'--cache_dir={tmp_path}/machine{next(machines)}',
      ],
      capture_output=True,
      text=True,
      check=False,
      cwd=tmp_path,
      env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 0, result.stderr
    assert 'Traceback' not in result.stderr
    return result.stdout

  return command


def test_a_sweep_in_a_bucket(bucket, command, tmp_path):
  local = tmp_path / 'disk'
  command('sweep', 'run', f'--runs={local}', '--slots_per_node=1')
  assert '2 waiting' in command('sweep', 'plan', RUNS, '--rate=30')
  # A storage that refuses, and a network that loses answers.
  bucket.faults = [None] * 20 + [503, 'lost'] + [None] * 20 + ['lost', 503]
  bucket.read_faults = ['cut', None, 503]
  done = command('sweep', 'run', RUNS, '--slots_per_node=1')
  assert '2 runs finished, 0 set aside' in done
  assert bucket.faults == bucket.read_faults == []
  standings = json.loads(command('sweep', 'status', RUNS, '--json'))
  assert [one['state'] for one in standings] == ['done', 'done']

  remote = place.Place('gs://bucket/sweep')
  for one in standings:
    for name in ('scores.csv', 'finished.json'):
      name = f'{one["folder"]}/{name}'
      assert remote.read(name) == (local / name).read_bytes()
    record = json.loads(remote.read(f'{one["folder"]}/attempt.json'))
    assert record['exit_code'] == 0
    log = remote.read(f'{one["folder"]}/train.log').decode()
    assert log.count('--- attempt') == record['attempts'] >= 1

  command('sweep', 'collect', RUNS, f'--output={tmp_path}/scores.csv')
  command('sweep', 'collect', f'--runs={local}', f'--output={tmp_path}/l.csv')
  collected = (tmp_path / 'scores.csv').read_text()
  assert collected == (tmp_path / 'l.csv').read_text()

  globs = '--runs=gs://bucket/sweep/**'
  command('report', globs, '--output_dir=report')
  assert (tmp_path / 'report' / 'index.html').stat().st_size > 10_000
  command('select', globs, '--output=ranking.csv')
  ranking = (tmp_path / 'ranking.csv').read_text()
  assert 'gs://bucket/sweep/minatar/breakout/all/rem/' in ranking

  # A run that lost its scores gets them again, from its checkpoints.
  name = f'{standings[0]["folder"]}/scores.csv'
  scores = remote.read(name)
  remote.remove(name)
  command('evaluate', '--checkpoints=gs://bucket/sweep/**', '--num_workers=1')
  assert sorted(remote.read(name).split()) == sorted(scores.split())
  assert not list(pathlib.Path(tmp_path).glob('machine*/**/*.tmp'))
