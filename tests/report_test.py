import functools
import json
import os

import pytest

from batch_rl_dr3 import report
from batch_rl_dr3.reporting import study


@pytest.fixture
def run_report(run_command):
  return functools.partial(run_command, 'report')


def test_the_command_writes_a_report_and_says_where(run_report, tmp_path):
  run = tmp_path / 'runs' / 'rem'
  run.mkdir(parents=True)
  (run / 'provenance.json').write_text(
    json.dumps({'method': 'rem', 'game': 'Pong', 'seed': 0})
  )
  (run / 'scores.csv').write_text('gradient_steps,return\n10,21\n')
  result = run_report(
    '--runs=runs/*', '--output_dir=out', '--cache_dir=', cwd=tmp_path
  )
  assert (result.returncode, result.stderr) == (0, '')
  assert result.stdout == f'report: {tmp_path}/out/index.html\n'
  assert 'Pong' in (tmp_path / 'out' / 'index.html').read_text()
  assert sorted(os.listdir(tmp_path / 'out')) == [
    'figures',
    'index.html',
    'tables',
  ]


@pytest.mark.parametrize(
  ('flags', 'code', 'expected'),
  [
    ([], 64, 'no runs given'),
    (['--runs=nowhere/*'], 65, "'nowhere/*' matches nothing"),
    (['--runs=memory://runs/*'], 64, '--output_dir and --cache_dir are needed'),
  ],
)
def test_errors_are_one_line_and_a_code(
  run_report, tmp_path, flags, code, expected
):
  result = run_report(*flags, cwd=tmp_path)
  assert result.returncode == code
  assert expected in result.stderr
  assert result.stderr.count('\n') == 1
  assert result.stdout == ''


def test_the_flag_knows_every_preset():
  assert sorted(report.PRESETS) == sorted([*study.PRESETS, *study.CONTROL])


def test_help_documents_the_command(run_report):
  result = run_report('--help')
  assert result.returncode == 0
  for expected in ('--runs', '--preset', 'allow_mixed', 'Exit status'):
    assert expected in result.stdout


def _make_run(folder, **record):
  folder.mkdir(parents=True)
  record = {
    'method': 'rem',
    'suite': 'atari',
    'game': 'Pong',
    'dataset': '1pct',
    'seed': 0,
  } | record
  (folder / 'provenance.json').write_text(json.dumps(record))
  (folder / 'scores.csv').write_text('gradient_steps,return\n6500000,-2.4\n')


def test_a_study_of_one_run_has_the_papers_tables(run_report, tmp_path):
  _make_run(tmp_path / 'runs' / 'rem')
  result = run_report(
    '--preset=dr3_atari17',
    '--runs=runs/**',
    '--num_resamples=100',
    '--num_processes=1',
    f'--cache_dir={tmp_path}/cache',
    cwd=tmp_path,
  )
  assert (result.returncode, result.stderr) == (0, '')
  tables = tmp_path / 'runs' / 'report' / 'tables'
  # Pong: half-way between random play (-20.7) and the online DQN (15.9).
  row = (tables / 'table_1.csv').read_text().splitlines()[1]
  assert row.startswith('1pct,rem,50.')
  for name in ('stability', 'statistics', 'final_1pct', 'average_1pct', 'runs'):
    assert (tables / f'{name}.csv').exists()
    assert (tables / f'{name}.tex').exists()


@pytest.mark.parametrize(
  ('flags', 'code', 'expected'),
  [
    (['--preset=atari100k'], 64, 'dr3_atari17'),
    (['--normalisation=best'], 64, 'normalisation'),
    ([], 65, 'minatar: epsilon_eval (0.001 in a; 0.05 in b)'),
  ],
)
def test_what_cannot_be_reported_on(
  run_report, tmp_path, flags, code, expected
):
  for name, epsilon in (('a', 0.001), ('b', 0.05)):
    _make_run(
      tmp_path / 'runs' / name,
      suite='minatar',
      game=name,
      protocol={'epsilon_eval': epsilon},
    )
  result = run_report('--runs=runs/*', '--cache_dir=', *flags, cwd=tmp_path)
  assert result.returncode == code
  assert expected in result.stderr
  assert result.stderr.count('\n') == 1
