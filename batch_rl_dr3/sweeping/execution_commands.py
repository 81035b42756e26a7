"""What the subcommands of `sweep` do that execute runs, or have them executed.

Flags say which runs, and where.
"""

from collections.abc import Callable, Sequence
import contextlib
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3.config import cli, errors
from batch_rl_dr3.runs import folders
from batch_rl_dr3.sweeping import commands
from batch_rl_dr3.sweeping.grid import Sweep
from batch_rl_dr3.sweeping.run import Run

if TYPE_CHECKING:
  from batch_rl_dr3.sweeping import executor as executor_lib
  from batch_rl_dr3.sweeping import ray_cluster

FLAGS = flags.FLAGS

# Which task of a job array this is, as each system says it.
TASK_VARIABLES = (
  'BATCH_TASK_INDEX',
  'SLURM_ARRAY_TASK_ID',
  'JOB_COMPLETION_INDEX',
)


def run() -> None:
  """Executes what is left of the sweep.

  Raises:
    DataError: if runs were set aside.
  """
  from batch_rl_dr3.sweeping import executor, run_queue, standing

  sweep = commands.sweep_of_flags()
  runs_of_sweep = sweep.runs()
  runs = commands.read_runs(runs_of_sweep, standing.CONTENTS)
  left = [
    run
    for run in runs_of_sweep
    if not standing.is_done(run, runs.folder, sweep.results_dir)
  ]
  print(f'{len(left):,} of {len(runs_of_sweep):,} runs are left to do.')
  if not left:
    return
  from batch_rl_dr3.config import signals

  stop_request = signals.StopRequest()
  with (
    stop_request.listening(),
    contextlib.closing(_cluster(sweep)) as cluster,
    stop_request.listening(),  # Again: Ray has handlers of its own.
  ):
    tally = executor.Executor(
      cluster,
      run_queue.Queue(
        left,
        1e9 * sweep.run_gigabytes,
        lambda run: sweep.store_memory_share * sweep.store_bytes(run),
      ),
      _jobs(sweep),
      lambda: bool(stop_request),
      FLAGS.stop_seconds,
    ).run()
  print(
    f'{tally.num_done:,} runs finished, {len(tally.set_aside):,} set aside; '
    f'{tally.num_again:,} attempts were made again.'
  )
  if tally.set_aside:
    raise errors.DataError(
      f'{len(tally.set_aside)} runs were set aside, the first is '
      f'{tally.set_aside[0]}: `sweep status` says why, and `sweep retry` lets '
      'them run again.'
    )


def _jobs(sweep: Sweep) -> 'Callable[[Run], executor_lib.Job]':
  from batch_rl_dr3.sweeping import executor

  path = folders.local_path(FLAGS.runs)
  return executor.jobs(
    FLAGS.runs if path is None else os.path.abspath(path),
    FLAGS.cache_dir,
    ['-m', 'batch_rl_dr3.train', *_trust()],
    sweep.max_attempts_without_progress,
  )


def _trust() -> list[str]:
  return ['--trust_gin'] if cli.trusts_gin() else []


def _cluster(sweep: Sweep) -> 'ray_cluster.RayCluster':
  try:
    from batch_rl_dr3.sweeping import ray_cluster
  except ImportError as error:
    raise errors.ConfigError(
      f'sweep run needs Ray ({error}): `pip install ray`.'
    ) from error
  return ray_cluster.RayCluster(
    FLAGS.address, sweep.num_cpus, sweep.num_gpus, FLAGS.slots_per_node
  )


def emit() -> None:
  """Writes a job array of all runs that are left."""
  from batch_rl_dr3.sweeping import standing

  _emit((standing.RUNNING, standing.STALLED, standing.WAITING))


def reconcile() -> None:
  """Writes a job array of the runs that are left and that nobody executes."""
  from batch_rl_dr3.sweeping import standing

  _emit((standing.STALLED, standing.WAITING))


def _emit(states: Sequence[str]) -> None:
  from batch_rl_dr3.sweeping import job_array, job_files, standing

  for name in ('backend', 'output_dir'):
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')
  sweep = commands.sweep_of_flags()
  _, standings = commands.read_standings(sweep, sweep.runs())
  left = [one.run for one in standings if one.state in states]
  failed = sum(one.state == standing.FAILED for one in standings)
  if failed:
    print(f'{failed:,} runs are set aside; `sweep retry` lets them run again.')
  if not left:
    print('No run is left for a job array.')
    return
  array = job_array.create(
    sweep, left, pathlib.Path(FLAGS.grid).stem, FLAGS.runs, _task_flags()
  )
  with cli.gin_errors():
    lines = job_files.write(FLAGS.backend, array, FLAGS.output_dir)
  print(f'{len(left):,} runs are left. In {FLAGS.output_dir}:')
  for line in lines:
    print(f'  {line}')


def _task_flags() -> list[str]:
  """Returns the flags with which a task finds this sweep."""
  return [
    f'--grid={FLAGS.grid}',
    *(f'--gin_bindings={line}' for line in FLAGS.gin_bindings),
    f'--runs={FLAGS.runs}',
    *_trust(),
    *([f'--cache_dir={FLAGS.cache_dir}'] if FLAGS['cache_dir'].present else []),
  ]


def task() -> None:
  """Executes one run and ends with its exit code."""
  from batch_rl_dr3.sweeping import attempt, job_array

  sweep = commands.sweep_of_flags()
  runs_of_sweep = sweep.runs()
  places = (
    range(len(runs_of_sweep))
    if FLAGS.only is None
    else job_array.parse_ranges(FLAGS.only)
  )
  index = _index()
  if index >= len(places) or max(places) >= len(runs_of_sweep):
    raise errors.UsageError(
      f'there is no task {index} of {len(places)} in a grid of '
      f'{len(runs_of_sweep)} runs.'
    )
  job = _jobs(sweep)(runs_of_sweep[places[index]])
  outcome = attempt.in_foreground(job.attempt())
  if outcome.error:
    print(f'{job.folder}: {outcome.error}', file=sys.stderr)
  # A signal counts as preemption, as whoever sent it knows better.
  code = outcome.exit_code
  sys.exit(code if code >= 0 else errors.PreemptedError.exit_code)


def _index() -> int:
  if FLAGS.index is not None:
    index: int = FLAGS.index
    return index
  for name in TASK_VARIABLES:
    if name in os.environ:
      return int(os.environ[name])
  raise errors.UsageError(
    f'--index is needed where none of {", ".join(TASK_VARIABLES)} is set.'
  )
