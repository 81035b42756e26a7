import json
import os
import subprocess
import sys

import pytest


def _report(*flags, cwd=None):
  return subprocess.run(
    [sys.executable, '-m', 'batch_rl_dr3.report', *flags],
    capture_output=True,
    text=True,
    check=False,
    cwd=cwd,
  )


def test_the_command_writes_a_report_and_says_where(tmp_path):
  run = tmp_path / 'runs' / 'rem'
  run.mkdir(parents=True)
  (run / 'provenance.json').write_text(
    json.dumps({'method': 'rem', 'game': 'Pong', 'seed': 0})
  )
  (run / 'scores.csv').write_text('gradient_steps,return\n10,21\n')
  result = _report('--runs=runs/*', '--output_dir=out', cwd=tmp_path)
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
  ],
)
def test_errors_are_one_line_and_a_code(tmp_path, flags, code, expected):
  result = _report(*flags, cwd=tmp_path)
  assert result.returncode == code
  assert expected in result.stderr
  assert result.stderr.count('\n') == 1
  assert result.stdout == ''


def test_help_documents_the_command():
  result = _report('--help')
  assert result.returncode == 0
  for expected in ('--runs', '--output_dir', 'index.html', 'Exit status'):
    assert expected in result.stdout
