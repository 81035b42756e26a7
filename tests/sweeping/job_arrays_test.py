"""Job files: by the systems' own rules, and executed as a task would be."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import time

import gin
import kubernetes_validate
import pytest

from batch_rl_dr3.config import cli, errors
from batch_rl_dr3.sweeping import grid, job_arrays

ROOT = pathlib.Path(__file__).parent.parent.parent
GRID = 'sweeps/dr3_atari17.gin'
BACKENDS = {
  'gcp_batch': job_arrays.GcpBatch(nfs='10.0.0.2:/share'),
  'slurm': job_arrays.Slurm(),
  'kubernetes': job_arrays.Kubernetes(),
}


@pytest.fixture(scope='module')
def array():
  gin.clear_config()
  cli.load_gin([GRID], [])
  sweep = grid.Sweep()
  gin.clear_config()
  flags = [f'--grid={GRID}', '--runs=/mnt/disks/runs']
  return job_arrays.create(
    sweep, sweep.runs(), 'dr3_atari17', '/mnt/disks/runs', flags
  )


@pytest.fixture
def small_array(make_sweep):
  def make(**bound):
    sweep = make_sweep(**bound)
    runs = [sweep.runs()[k] for k in (0, 1, 2, 5)]
    return job_arrays.create(sweep, runs, 'small', 'runs', ['--grid=g.gin'])

  return make


def test_runs_in_a_bucket_need_no_disk(small_array):
  array = dataclasses.replace(small_array(), runs='gs://bucket/runs')
  (text,) = job_arrays.Kubernetes().files(array).values()
  assert 'volume' not in text
  (text,) = job_arrays.GcpBatch().files(array).values()
  (task,) = json.loads(text)['taskGroups']
  assert 'volumes' not in task['taskSpec']
  with pytest.raises(errors.ConfigError, match='leave one of them out'):
    job_arrays.GcpBatch(nfs='10.0.0.2:/share').files(array)


@pytest.mark.parametrize('name', job_arrays.BACKENDS)
def test_a_job_array_is_written_with_the_commands_to_submit_it(
  small_array, tmp_path, name
):
  array = small_array()
  (command,) = job_arrays.BACKENDS[name]().write(array, tmp_path / 'jobs')
  (path,) = (tmp_path / 'jobs').iterdir()
  assert path.name in command
  text = path.read_text()
  assert array.name in text
  assert '--only=0-2,5' in text
  assert text.endswith('\n')
  # Nothing of the template is left.
  assert '{{' not in text
  assert '{%' not in text


@pytest.mark.parametrize(
  ('indices', 'text'),
  [
    ([0, 1, 2, 5], '0-2,5'),
    ([7], '7'),
    (range(1020), '0-1019'),
    ([3, 1], '1,3'),
  ],
)
def test_ranges(indices, text):
  assert job_arrays.format_ranges(indices) == text
  assert job_arrays.parse_ranges(text) == sorted(indices)


def test_a_list_of_runs_that_is_none_is_refused():
  with pytest.raises(errors.UsageError, match="'1,x' is no list of runs"):
    job_arrays.parse_ranges('1,x')


def test_the_same_runs_have_the_same_name(small_array):
  assert small_array().name == small_array().name
  assert re.fullmatch(r'small-[0-9a-f]{8}', small_array().name)
  assert small_array(seeds=[1]).name != small_array().name
  assert small_array().command[-1] == '--only=0-2,5'


# It says that it will not support this Python for ever.
@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_google_cloud_batch_reads_its_job(array):
  from google.cloud import batch_v1

  (text,) = BACKENDS['gcp_batch'].files(array).values()
  job = batch_v1.Job.from_json(text, ignore_unknown_fields=False)
  (group,) = job.task_groups
  spec = group.task_spec
  assert (group.task_count, group.parallelism) == (1020, 100)
  # A quarter of a GPU a run.
  assert group.task_count_per_node == 4
  assert spec.max_retry_count == 10
  (policy,) = spec.lifecycle_policies
  assert policy.action == batch_v1.LifecyclePolicy.Action.RETRY_TASK
  assert list(policy.action_condition.exit_codes) == [
    50001,
    50002,
    50003,
    50006,
    75,
  ]
  # The machine has room for its tasks: 8 cores and 32 GB.
  assert 4 * spec.compute_resource.cpu_milli <= 8_000
  assert 4 * spec.compute_resource.memory_mib <= 32 * 1024
  instance = job.allocation_policy.instances[0]
  spot = batch_v1.AllocationPolicy.ProvisioningModel.SPOT
  assert instance.policy.provisioning_model == spot
  assert instance.policy.accelerators[0].count == 1
  assert spec.volumes[0].mount_path == '/mnt/disks/runs'
  with pytest.raises(Exception, match='taskCuont'):
    batch_v1.Job.from_json(
      text.replace('"taskCount"', '"taskCuont"'), ignore_unknown_fields=False
    )


@pytest.mark.parametrize('version', ['1.29', '1.37'])
def test_kubernetes_accepts_its_job(array, version):
  (text,) = BACKENDS['kubernetes'].files(array).values()
  job = json.loads(text)
  kubernetes_validate.validate(job, version, strict=True)
  spec = job['spec']
  assert (spec['completions'], spec['backoffLimitPerIndex']) == (1020, 10)
  rules = spec['podFailurePolicy']['rules']
  assert [rule['action'] for rule in rules] == ['FailIndex', 'Ignore', 'Ignore']
  assert rules[0]['onExitCodes']['values'] == [64, 65, 70, 78]
  assert rules[1]['onPodConditions'][0]['type'] == 'DisruptionTarget'
  assert rules[2]['onExitCodes']['values'] == [75]
  del spec['podFailurePolicy']['rules'][0]['action']
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(job, version, strict=True)


def test_tolerations_and_selectors_are_taken(small_array):
  spot = job_arrays.Kubernetes(
    node_selector={'cloud.google.com/gke-spot': 'true'},
    tolerations=[{'key': 'spot', 'operator': 'Exists'}],
    runs_claim=None,
  )
  (text,) = spot.files(small_array(num_gpus=0.0)).values()
  kubernetes_validate.validate(json.loads(text), '1.29', strict=True)
  pod = json.loads(text)['spec']['template']['spec']
  assert pod['nodeSelector'] == {'cloud.google.com/gke-spot': 'true'}
  assert 'nvidia.com/gpu' not in pod['containers'][0]['resources']['limits']
  assert 'volumes' not in pod


# What sbatch takes, of the options that a script may have: sbatch(1).
SBATCH = {
  'job-name': r'[\w-]+',
  'array': r'\d+-\d+%\d+',
  'cpus-per-task': r'\d+',
  'mem': r'\d+[KMGT]',
  'time': r'(\d+-)?\d+:\d\d:\d\d',
  'signal': r'(B:)?[A-Z]+\d?@\d+',
  'open-mode': r'append|truncate',
  'output': r'\S+',
  'gres': r'gpu(:\w+)?:\d+',
  'partition': r'[\w,-]+',
  'requeue': None,
}


@pytest.mark.parametrize('partition', [None, 'long'])
def test_scripts_for_slurm_are_shell_with_options_of_sbatch(
  array, tmp_path, partition
):
  scripts = job_arrays.Slurm(partition=partition).files(array)
  # A site takes 1,000 tasks an array unless it says otherwise.
  assert len(scripts) == 2
  tasks = []
  for name, text in scripts.items():
    (tmp_path / name).write_text(text)
    subprocess.run(['bash', '-n', tmp_path / name], check=True)
    lines = text.splitlines()
    assert lines[0] == '#!/usr/bin/env bash'
    options = dict(
      re.fullmatch(r'#SBATCH --([a-z-]+)(?:=(.*))?', line).groups()
      for line in lines
      if line.startswith('#SBATCH')
    )
    # sbatch reads no option after the first line of the script itself.
    assert all(
      line.startswith('#SBATCH') for line in lines[1 : len(options) + 1]
    )
    for option, value in options.items():
      pattern = SBATCH[option]
      assert (
        (value is None) if pattern is None else re.fullmatch(pattern, value)
      )
    assert ('partition' in options) == (partition is not None)
    only = re.search(r'--only=(\S+)', text)[1]
    last = int(re.match(r'0-(\d+)', options['array'])[1])
    indices = job_arrays.parse_ranges(only)
    assert last == len(indices) - 1
    tasks += indices
  assert tasks == list(range(1020))


@pytest.fixture
def run_script(small_array, tmp_path):
  """Starts the script of an array whose task is another command."""

  def run(command, setup='true', **environment):
    (text,) = job_arrays.Slurm(setup=setup).files(small_array()).values()
    start = text.index('python \\\n')
    end = text.index(' &\n')
    script = tmp_path / 'task.sbatch'
    script.write_text(text[:start] + command + text[end:])
    binaries = tmp_path / 'bin'
    binaries.mkdir(exist_ok=True)
    scontrol = binaries / 'scontrol'
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    return subprocess.Popen(
      ['bash', script],
      env={
        'PATH': f'{binaries}:{os.environ["PATH"]}',
        'SLURM_ARRAY_JOB_ID': '12',
        'SLURM_ARRAY_TASK_ID': '3',
        **environment,
      },
    )

  run.requeued = tmp_path / 'requeued'
  return run


def test_slurm_requeues_what_was_preempted_ten_times(run_script):
  assert run_script("bash -c 'exit 75'").wait() == 75
  assert run_script.requeued.read_text() == 'requeue 12_3\n'
  run_script("bash -c 'exit 75'", SLURM_RESTART_COUNT='9').wait()
  run_script("bash -c 'exit 75'", SLURM_RESTART_COUNT='10').wait()
  assert run_script.requeued.read_text() == 'requeue 12_3\n' * 2
  for code in (0, 65, 70, 78):
    assert run_script(f"bash -c 'exit {code}'").wait() == code
  assert run_script.requeued.read_text() == 'requeue 12_3\n' * 2


def test_slurms_warning_reaches_the_run(run_script, tmp_path):
  ready = tmp_path / 'ready'
  process = run_script(
    f'bash -c \'trap "sleep 0.2; exit 75" TERM; touch {ready}; '
    "while true; do sleep 0.05; done'"
  )
  deadline = time.monotonic() + 20
  while not ready.exists():
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  assert process.wait(20) == 75
  assert run_script.requeued.read_text() == 'requeue 12_3\n'


def test_slurms_warning_is_heard_before_the_task_listens(run_script, tmp_path):
  started = tmp_path / 'started'
  process = run_script('sleep 20', setup=f'touch {started}; sleep 0.5')
  while not started.exists():
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  assert process.wait(10) == 75
  assert run_script.requeued.read_text() == 'requeue 12_3\n'


def test_the_image_copies_what_is_there_and_is_not_ignored():
  root = ROOT
  ignored = (root / '.dockerignore').read_text().splitlines()
  for line in (root / 'Dockerfile').read_text().splitlines():
    if line.startswith('COPY '):
      for name in line.split()[1:-1]:
        assert (root / name).exists()
        assert f'!{name}' in ignored
