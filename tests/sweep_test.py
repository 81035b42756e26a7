"""The command, all in one process that has neither TensorFlow nor Ray."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MINATAR = '--grid=sweeps/minatar.gin'
ATARI = '--grid=sweeps/dr3_atari17.gin'
RUNS = '--runs=RUNS'
CASES = {
  'plan': ['plan', ATARI, RUNS, '--rate=30', '--play_rate=2200'],
  'status': ['status', MINATAR, RUNS, '--json'],
  'table': ['status', MINATAR, RUNS],
  'retry': ['retry', MINATAR, RUNS],
  'reconcile': [
    *('reconcile', MINATAR, RUNS, '--backend=slurm', '--output_dir=RUNS/jobs')
  ],
  'collect': ['collect', MINATAR, RUNS, '--output=RUNS/all.csv'],
  'collect nothing': ['collect', ATARI, RUNS],
  'no grid': ['status', RUNS],
  'unknown grid': ['plan', '--grid=none.gin', RUNS],
  'no backend': ['emit', MINATAR, RUNS, '--output_dir=O'],
  'no index': ['task', MINATAR, RUNS],
  'no such task': ['task', MINATAR, RUNS, '--index=2', '--only=4-5'],
  'no such storage': ['status', MINATAR, '--runs=nosuch://bucket/runs'],
  'an empty bucket': [
    *('status', MINATAR, '--runs=memory://runs', '--cache_dir=RUNS/cache')
  ],
  'no Ray': ['run', MINATAR, RUNS],
}
# The same of runs in a bucket; each case is seen from another machine.
BUCKET = '--runs=memory://bucket/runs'
CASES |= {
  f'{name} of a bucket': [
    *(BUCKET if word == RUNS else word for word in CASES[name]),
    f'--cache_dir=RUNS/{name}',
  ]
  for name in ('status', 'table', 'plan', 'retry', 'reconcile', 'collect')
}
CASES |= {
  'status again': ['status', MINATAR, BUCKET, '--cache_dir=RUNS/again'],
  'collect into it': ['collect', MINATAR, BUCKET, '--cache_dir=RUNS/into'],
}
PROGRAM = """\
import contextlib, io, json, os, sys
import fsspec
fsspec.filesystem('memory').put(sys.argv[1], '/bucket/runs', recursive=True)
sys.modules['tensorflow'] = sys.modules['ray'] = None
import gin
from batch_rl_dr3 import sweep
from batch_rl_dr3.config import cli
sweep.define_flags()
answers = {}
for name, arguments in json.load(sys.stdin).items():
  for flag in cli.FLAGS:
    cli.FLAGS[flag].unparse()
  gin.clear_config()
  sys.argv = ['sweep', *arguments]
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      cli.run_subcommand(sweep.COMMANDS, '')
    except SystemExit as error:
      answers[name] = [error.code, out.getvalue(), err.getvalue()]
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """One finished run of MinAtar's grid, and one that was set aside."""
  folder = tmp_path_factory.mktemp('sweep') / 'runs'
  done = folder / 'done'
  done.mkdir(parents=True)
  (done / 'finished.json').write_text('{"num_iterations": 20}')
  (done / 'scores.csv').write_text(
    'suite,game,method,dataset,run,seed,iteration,gradient_steps,episode,'
    'return,length,truncated\n'
    'minatar,asterix,dqn,all,1,0,0,5000,0,1.5,20,0\n'
  )
  failed = folder / 'failed'
  failed.mkdir()
  (failed / 'attempt.json').write_text(
    json.dumps(
      {
        'attempts': 2,
        'progress': [0, 0],
        'exit_code': 70,
        'error': 'train: the loss is not finite',
        'is_set_aside': True,
      }
    )
  )
  return folder


@pytest.fixture(scope='module')
def answers(folder):
  """Exit code, output and errors of every case."""
  places = subprocess.run(
    [sys.executable, '-c', PLACES],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  ).stdout.split()
  for name, place in zip(('done', 'failed'), places, strict=True):
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).rename(folder / place)
  cases = {
    name: [
      *(word.replace('RUNS', str(folder)) for word in words),
      # Whatever results are under version control.
      '--gin_bindings=Sweep.results_dir=None',
    ]
    for name, words in CASES.items()
  }
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(folder)],
    input=json.dumps(cases),
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
    env={**os.environ, 'TF_USE_LEGACY_KERAS': '1'},
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


# Where the runs of the first and the second method are.
PLACES = """\
from batch_rl_dr3.config import cli
from batch_rl_dr3.sweeping import grid
cli.load_gin(['sweeps/minatar.gin'], [])
print(*[run.folder for run in grid.Sweep().runs()[:2]])
"""


def test_a_plan_of_the_papers_runs(answers):
  code, out, err = answers['plan']
  assert (code, err) == (0, '')
  assert 'runs       1,020: 1,020 waiting' in out
  # 340 runs of 6.5 and 680 of 12.5 million steps.
  assert 'to do      10,710,000,000 gradient steps' in out
  assert 'stores     255, 4.80TB uncompressed' in out


def test_status_says_how_each_run_stands(answers):
  code, out, err = answers['status']
  assert (code, err) == (0, '')
  states = [one['state'] for one in json.loads(out)]
  assert states[:3] == ['done', 'failed', 'waiting']
  assert len(states) == 60
  out = answers['table'][1]
  assert out.startswith('60 runs: 1 failed, 58 waiting, 1 done\n')
  assert 'attempt 2: train: the loss is not finite' in out
  code, out, _ = answers['an empty bucket']
  assert (code, out) == (
    0,
    '60 runs: 60 waiting\n0 of 6,000,000 gradient steps\n',
  )


def test_what_was_set_aside_is_retried_and_reconciled(answers, folder):
  code, out, _ = answers['retry']
  assert code == 0
  assert out.endswith('1 runs will be tried again from where they were left.\n')
  code, out, _ = answers['reconcile']
  assert (code, out.splitlines()[0]) == (
    0,
    f'59 runs are left. In {folder}/jobs:',
  )
  (script,) = (folder / 'jobs').iterdir()
  assert '--only=1-59' in script.read_text()


def test_runs_in_a_bucket_stand_as_they_do_on_a_disk(answers, folder):
  for name in ('status', 'table', 'plan', 'reconcile', 'collect'):
    remote = answers[f'{name} of a bucket']
    assert remote == answers[name], name
  assert answers['retry of a bucket'][1] == answers['retry'][1].replace(
    str(folder), 'memory://bucket/runs'
  )
  # What was set aside is so no more, for everybody.
  assert '59 waiting, 1 done' in answers['status again'][1]
  code, out, _ = answers['collect into it']
  assert (code, out.split(':')[0]) == (0, 'memory')
  assert out.startswith('memory://bucket/runs/scores.')


def test_collect_writes_one_file(answers, folder):
  code, out, _ = answers['collect']
  assert code == 0
  assert '1 episodes of 1 runs; 59 have no scores yet' in out
  assert 'asterix,dqn' in (folder / 'all.csv').read_text()


@pytest.mark.parametrize(
  ('case', 'code', 'expected'),
  [
    ('collect nothing', 65, 'no run of the sweep has scores'),
    ('no grid', 64, '--grid is needed'),
    ('unknown grid', 78, "no gin file 'none.gin'"),
    ('no backend', 64, '--backend is needed'),
    ('no index', 64, '--index is needed where none of BATCH_TASK_INDEX'),
    ('no such task', 64, 'there is no task 2 of 2'),
    ('no such storage', 78, 'nosuch://bucket/runs cannot be opened'),
    ('no Ray', 78, 'sweep run needs Ray'),
  ],
)
def test_errors_are_one_line_and_a_code(answers, case, code, expected):
  assert answers[case][0] == code
  assert expected in answers[case][2]
  assert answers[case][2].count('\n') == 1
