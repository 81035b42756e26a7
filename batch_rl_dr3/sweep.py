"""Plans, executes and follows many runs."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3 import cli, errors

if TYPE_CHECKING:
  from batch_rl_dr3.sweeping import estimate as estimate_lib
  from batch_rl_dr3.sweeping import ray_cluster
  from batch_rl_dr3.sweeping.grid import Run, Sweep

_USAGE = """\
Plans, executes and follows many runs: games x data sets x methods x seeds.

  python -m batch_rl_dr3.sweep plan --grid=sweeps/dr3_atari17.gin --runs=RUNS \\
    --rate=30
  python -m batch_rl_dr3.sweep run --grid=sweeps/minatar.gin --runs=RUNS
  python -m batch_rl_dr3.sweep status --grid=sweeps/minatar.gin --runs=RUNS

The grid is a gin file that binds Sweep. Each of its runs is a command of
train, and has its directory
RUNS/<suite>/<game>/<dataset>/<method>/seed<k>-<identity>; the identity is a
hash of what the run's gin files bind, its data, its seed and this package's
version. What a run is, how far it is and whether it is finished is in its
directory alone: any subcommand can be given at any time, from anywhere that
sees RUNS, and given again.

  plan       what is left to do, and what time, money, disk and download it
             will cost, from a rate that was measured
  run        executes what is left on a Ray cluster (--address), by default one
             that is started on this machine. Ctrl-C and SIGTERM save all runs
             and end it; the same command goes on
  status     what is done, what runs and how fast, what has failed and why
  retry      lets runs that were set aside be tried again
  collect    writes the scores of all runs into one file
  keep       writes what is worth keeping of finished runs, some 10 kB each, to
             Sweep.results_dir, as for version control: they count as done then
  emit       writes the files of a job array for another system, all runs that
             are left in it, and says how to submit them (--backend)
  reconcile  the same for the runs that are left and that nobody executes now:
             for what an array did not finish. A run that two arrays begin is
             executed by one of them
  task       executes one run, as a task of a job array does

A run that fails by its own fault (exit codes 64, 65, 70, 78) is set aside,
with its error in attempt.json and its log in train.log of its directory. One
that was preempted (75, a signal, a lost node) is tried again, with growing
delays; only after Sweep.max_attempts_without_progress attempts in a row that
led to no newer checkpoint and no score is it set aside too.

Exit codes: 0 all runs are finished, 64 usage, 65 a run was set aside, 73
cannot write, 75 stopped and can go on, 78 configuration. task: what the run
ended with.
"""

FLAGS = flags.FLAGS

# Which task of a job array this is, as each system says it.
_TASK_VARIABLES = (
  'BATCH_TASK_INDEX',
  'SLURM_ARRAY_TASK_ID',
  'JOB_COMPLETION_INDEX',
)


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string(
    'grid', None, 'Gin file of the grid: a path, or the name of a shipped one.'
  )
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    'Gin bindings that override the grid, such as "Sweep.games=[\'Pong\']". '
    'Repeat the flag for several.',
  )
  flags.DEFINE_boolean(
    'trust_gin',
    False,
    'Let the grid and the gin files of its runs import any module and name any '
    'function.',
  )
  flags.DEFINE_string('runs', None, 'Folder of all runs, seen by all nodes.')
  cli.define_cache_dir('Where stores are kept, on each node.')
  flags.DEFINE_float(
    'rate', None, 'plan: gradient steps a second of one run.', lower_bound=1e-9
  )
  flags.DEFINE_float(
    'play_rate',
    None,
    'plan: agent steps a second of evaluation.',
    lower_bound=1e-9,
  )
  flags.DEFINE_string(
    'benchmark',
    None,
    'plan: take the rates from this file, written by `benchmark --json`. '
    'Without it and --rate they are those of finished runs in --runs.',
  )
  flags.DEFINE_float(
    'price_per_hour',
    None,
    'plan: of a GPU, or of a core if runs use no GPU.',
    lower_bound=0,
  )
  flags.DEFINE_string(
    'address', None, 'run: Ray cluster, such as auto or HOST:6379.'
  )
  flags.DEFINE_integer(
    'slots_per_node',
    0,
    'run: runs at a time on a node; 0 for as many as its cores and GPUs allow.',
    lower_bound=0,
  )
  flags.DEFINE_float(
    'stop_seconds',
    120.0,
    'run: how long runs have to save when the sweep is stopped.',
    lower_bound=0,
  )
  flags.DEFINE_float(
    'watch',
    None,
    'status: show it again every so many seconds, until Ctrl-C.',
    lower_bound=0.1,
  )
  flags.DEFINE_integer(
    'limit', 20, 'status: runs that are listed of each state.', lower_bound=0
  )
  flags.DEFINE_boolean('json', False, 'status: print all runs as JSON.')
  flags.DEFINE_string(
    'output',
    None,
    'collect: the file, .parquet (needs pyarrow) or .csv (default: '
    'scores.parquet in --runs if pyarrow is installed, else scores.csv).',
  )
  flags.DEFINE_enum(
    'backend',
    None,
    ['gcp-batch', 'slurm', 'kubernetes'],
    'emit, reconcile: the system. Its gin bindings are those of GcpBatch, '
    'Slurm and Kubernetes.',
  )
  flags.DEFINE_string(
    'output_dir', None, 'emit, reconcile: where the files go.'
  )
  flags.DEFINE_string(
    'only',
    None,
    'task: the runs of the job array, such as 0-2,5 (default: all of the '
    'grid).',
  )
  flags.DEFINE_integer(
    'index',
    None,
    'task: which of the runs (default: what the job array says in '
    f'{", ".join(_TASK_VARIABLES)}).',
    lower_bound=0,
  )


def _sweep() -> 'Sweep':
  # Both register with gin what a binding can name.
  from batch_rl_dr3.sweeping import grid, job_files  # noqa: F401

  for name in ('grid', 'runs'):
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')
  if '://' in FLAGS.runs:
    raise errors.UsageError(
      f'--runs={FLAGS.runs} is a URL; a sweep needs a folder of a disk that '
      'all its nodes see.'
    )
  cli.load_gin([FLAGS.grid], FLAGS.gin_bindings)
  with cli.gin_errors():
    return grid.Sweep()


def _rates(runs_of_sweep: 'Sequence[Run]') -> 'estimate_lib.Rates | None':
  from batch_rl_dr3.sweeping import estimate

  if FLAGS.rate is not None:
    rates: estimate.Rates | None = estimate.given(FLAGS.rate)
  elif FLAGS.benchmark is not None:
    rates = estimate.of_benchmark(FLAGS.benchmark)
  else:
    rates = estimate.of_finished(runs_of_sweep, FLAGS.runs)
  if rates is not None and FLAGS.play_rate is not None:
    rates = dataclasses.replace(rates, play=FLAGS.play_rate)
  return rates


def plan() -> None:
  """Prints what the sweep will cost."""
  from batch_rl_dr3.sweeping import estimate, standing

  sweep = _sweep()
  runs_of_sweep = sweep.runs()
  rates = _rates(runs_of_sweep)
  standings = standing.read(runs_of_sweep, FLAGS.runs, sweep.results_dir)
  plan = estimate.estimate(sweep, standings, FLAGS.runs, rates)
  for line in estimate.describe(sweep, plan, rates, FLAGS.price_per_hour):
    print(line)


def run() -> None:
  """Executes what is left of the sweep.

  Raises:
    DataError: if runs were set aside.
  """
  from batch_rl_dr3.sweeping import executor, run_queue, standing

  sweep = _sweep()
  runs_of_sweep = sweep.runs()
  left = [
    run
    for run in runs_of_sweep
    if not standing.is_done(run, FLAGS.runs, sweep.results_dir)
  ]
  print(f'{len(left):,} of {len(runs_of_sweep):,} runs are left to do.')
  if not left:
    return
  from batch_rl_dr3.training import preemption

  stop_request = preemption.StopRequest()
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
      executor.jobs(
        os.path.abspath(FLAGS.runs),
        FLAGS.cache_dir,
        _train(),
        sweep.max_attempts_without_progress,
      ),
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


def _train() -> list[str]:
  """Returns what follows `python` in each run's command."""
  trust = ['--trust_gin'] if cli.trusts_gin() else []
  return ['-m', 'batch_rl_dr3.train', *trust]


def _cluster(sweep: 'Sweep') -> 'ray_cluster.RayCluster':
  try:
    from batch_rl_dr3.sweeping import ray_cluster
  except ImportError as error:
    raise errors.ConfigError(
      f'sweep run needs Ray ({error}): `pip install ray`.'
    ) from error
  return ray_cluster.RayCluster(
    FLAGS.address, sweep.num_cpus, sweep.num_gpus, FLAGS.slots_per_node
  )


def status() -> None:
  """Shows how the runs stand."""
  from batch_rl_dr3.sweeping import standing, status_table

  sweep = _sweep()
  runs_of_sweep = sweep.runs()

  def show() -> None:
    standings = standing.read(runs_of_sweep, FLAGS.runs, sweep.results_dir)
    text = (
      standing.to_json(standings)
      if FLAGS.json
      else status_table.to_text(standings, FLAGS.limit)
    )
    if FLAGS.watch is not None and sys.stdout.isatty():
      print('\x1b[H\x1b[2J', end='')  # In the place of the last one.
    print(text, flush=True)

  show()
  with contextlib.suppress(KeyboardInterrupt):
    while FLAGS.watch is not None:
      time.sleep(FLAGS.watch)
      show()


def retry() -> None:
  """Lets runs that were set aside be tried again."""
  from batch_rl_dr3.sweeping import attempt

  folders = [pathlib.Path(FLAGS.runs) / run.folder for run in _sweep().runs()]
  aside = [f for f in folders if attempt.read_record(f).is_set_aside]
  for folder in aside:
    attempt.forget(folder)
    print(folder)
  print(f'{len(aside):,} runs will be tried again from where they were left.')


def collect() -> None:
  """Writes the scores of all runs into one file.

  Raises:
    DataError: if no run has scores.
  """
  from batch_rl_dr3.sweeping import score_table

  sweep = _sweep()
  runs_of_sweep = sweep.runs()
  ending = score_table.PARQUET if score_table.has_parquet() else score_table.CSV
  output = FLAGS.output or os.path.join(FLAGS.runs, f'scores{ending}')
  paths = [
    path
    for run in runs_of_sweep
    if (path := score_table.find(run, FLAGS.runs, sweep.results_dir))
  ]
  if not paths:
    raise errors.DataError(f'no run of the sweep has scores in {FLAGS.runs}.')
  num_rows = score_table.write(paths, output)
  print(
    f'{output}: {num_rows:,} episodes of {len(paths):,} runs; '
    f'{len(runs_of_sweep) - len(paths):,} have no scores yet.'
  )
  if FLAGS.output is None and ending == score_table.CSV:
    print('It is CSV because pyarrow, which writes Parquet, is not installed.')


def keep() -> None:
  """Writes what is kept of finished runs to the sweep's results.

  Raises:
    UsageError: if the sweep has no place for them.
  """
  from batch_rl_dr3.sweeping import attempt, kept

  sweep = _sweep()
  if sweep.results_dir is None:
    raise errors.UsageError(
      f'{FLAGS.grid} does not say where to keep results: bind '
      'Sweep.results_dir.'
    )
  num_kept = 0
  for run in sweep.runs():
    folder = pathlib.Path(FLAGS.runs) / run.folder
    if run.scores_apart(sweep.results_dir).exists():
      continue
    if attempt.is_finished(folder, run.num_iterations):
      print(kept.keep(run, folder, sweep.results_dir))
      num_kept += 1
  print(f'{num_kept:,} runs are newly kept in {sweep.results_dir}.')


def emit() -> None:
  """Writes a job array of all runs that are left."""
  from batch_rl_dr3.sweeping import standing

  _emit((standing.RUNNING, standing.STALLED, standing.WAITING))


def reconcile() -> None:
  """Writes a job array of the runs that are left and that nobody executes."""
  from batch_rl_dr3.sweeping import standing

  _emit((standing.STALLED, standing.WAITING))


def _emit(states: 'Sequence[str]') -> None:
  from batch_rl_dr3.sweeping import job_array, job_files, standing

  for name in ('backend', 'output_dir'):
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')
  sweep = _sweep()
  standings = standing.read(sweep.runs(), FLAGS.runs, sweep.results_dir)
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
    commands = job_files.write(FLAGS.backend, array, FLAGS.output_dir)
  print(f'{len(left):,} runs are left. In {FLAGS.output_dir}:')
  for command in commands:
    print(f'  {command}')


def _task_flags() -> list[str]:
  """Returns the flags with which a task finds this sweep."""
  return [
    f'--grid={FLAGS.grid}',
    *(f'--gin_bindings={line}' for line in FLAGS.gin_bindings),
    f'--runs={FLAGS.runs}',
    *(['--trust_gin'] if cli.trusts_gin() else []),
    *([f'--cache_dir={FLAGS.cache_dir}'] if FLAGS['cache_dir'].present else []),
  ]


def task() -> None:
  """Executes one run and ends with its exit code."""
  from batch_rl_dr3.sweeping import attempt, executor, job_array

  sweep = _sweep()
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
  job = executor.jobs(
    os.path.abspath(FLAGS.runs),
    FLAGS.cache_dir,
    _train(),
    sweep.max_attempts_without_progress,
  )(runs_of_sweep[places[index]])
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
  for name in _TASK_VARIABLES:
    if name in os.environ:
      return int(os.environ[name])
  raise errors.UsageError(
    f'--index is needed where none of {", ".join(_TASK_VARIABLES)} is set.'
  )


COMMANDS: dict[str, Callable[[], None]] = {
  command.__name__: command
  for command in (
    plan,
    run,
    status,
    retry,
    collect,
    keep,
    emit,
    reconcile,
    task,
  )
}


if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(COMMANDS, _USAGE)
