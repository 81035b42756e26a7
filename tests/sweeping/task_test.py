"""A task of each kind of job array, executed as its system would."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from batch_rl_dr3.config import cli
from batch_rl_dr3.sweeping import grid, job_arrays

pytestmark = pytest.mark.slow


@pytest.fixture
def array(clear_gin, tmp_path, write_grid, tiny_bindings):
  """Runs 1 and 2 of a grid of three."""
  bindings = [line for line in tiny_bindings if 'REM' not in line]
  path = write_grid(['dqn', 'rem', 'cql'], bindings)
  cli.load_gin([str(path)], [])
  sweep = grid.Sweep()
  runs = str(tmp_path / 'runs')
  flags = [
    f'--grid={path}',
    f'--runs={runs}',
    f'--cache_dir={tmp_path / "cache"}',
  ]
  chosen = sweep.runs()[1:]
  array = job_arrays.create(sweep, chosen, 'tiny', runs, flags)
  return array, [pathlib.Path(runs) / run.folder for run in chosen]


def execute(command, **variables):
  # `python` is this one, as an image and Slurm.setup see to.
  path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  return subprocess.run(
    command, check=False, env={**os.environ, 'PATH': path, **variables}
  ).returncode


def gcp_task(array, tmp_path, index):
  (text,) = job_arrays.GcpBatch().files(array).values()
  spec = json.loads(text)['taskGroups'][0]['taskSpec']
  command = spec['runnables'][0]['container']['commands']
  return execute(command, BATCH_TASK_INDEX=index)


def slurm_task(array, tmp_path, index):
  ((name, text),) = job_arrays.Slurm(setup='true').files(array).items()
  (tmp_path / name).write_text(text)
  return execute(['bash', tmp_path / name], SLURM_ARRAY_TASK_ID=index)


def kubernetes_task(array, tmp_path, index):
  (text,) = job_arrays.Kubernetes().files(array).values()
  pod = json.loads(text)['spec']['template']['spec']
  command = pod['containers'][0]['command']
  return execute(command, JOB_COMPLETION_INDEX=index)


@pytest.mark.parametrize('task', [gcp_task, slurm_task, kubernetes_task])
def test_a_task_executes_its_run_and_no_other(array, tmp_path, task):
  array, folders = array
  assert task(array, tmp_path, '1') == 0
  assert (folders[1] / 'finished.json').exists()
  assert not folders[0].exists()
  # Again, it has nothing to do.
  log = (folders[1] / 'train.log').read_text()
  assert task(array, tmp_path, '1') == 0
  assert (folders[1] / 'train.log').read_text() == log
