"""Plans, executes and follows many runs."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables, signals
from batch_rl_dr3.runs import mirror, place, state
from batch_rl_dr3.sweeping import (
  attempt,
  job_arrays,
  kept,
  queue,
  standing,
)
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun

FLAGS = flags.FLAGS

# Which task of a job array this is, as each system says it.
_TASK_VARIABLES = (
  'BATCH_TASK_INDEX',
  'SLURM_ARRAY_TASK_ID',
  'JOB_COMPLETION_INDEX',
)

_USAGE = """\
Plans, executes and follows many runs: games x data sets x methods x seeds.

  python -m batch_rl_dr3.sweep plan --grid=sweeps/dr3_atari17.gin --runs=RUNS \\
    --rate=30
  python -m batch_rl_dr3.sweep run --grid=sweeps/minatar.gin --runs=RUNS
  python -m batch_rl_dr3.sweep status --grid=sweeps/minatar.gin --runs=RUNS

The grid is a gin file that binds Sweep. Each of its runs is a command of
train, and has its directory
RUNS/<suite>/<game>/<dataset>/<method>/seed<k>-<identity>; the identity is a
hash of what the run's gin files bind, its data, its seed, the code that
--import names and the version of the numbers. All that is known of a run is in
its directory: any subcommand can be given at any time, from anywhere that sees
RUNS, and given again. RUNS is a folder of a disk that all nodes see, or a URL
such as gs://BUCKET/RUNS: runs are then worked on below --cache_dir of their
node and uploaded after every checkpoint and evaluation.

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


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_shared(
    *('code', 'cache'),
    cache_dir='Where stores are kept, on each node, and what is read of runs '
    'in a bucket.',
  )
  flag_tables.define('sweep')


def _load_sweep() -> tuple[Sweep, list[SweepRun]]:
  """Returns the sweep that the flags describe, and its runs."""
  cli.need('grid', 'runs')
  imports = cli.find_imports()
  cli.load_gin([FLAGS.grid], FLAGS.gin_bindings)
  with cli.gin_errors():
    sweep = Sweep()
  return sweep, sweep.runs(imports)


def _read_runs(
  runs_of_sweep: Sequence[SweepRun],
  contents: mirror.Contents = standing.CONTENTS,
) -> mirror.Mirror:
  """Returns the runs in --runs as they are now."""
  runs = mirror.Mirror(FLAGS.runs, FLAGS.cache_dir, contents)
  # Folders of games are listed at the same time.
  runs.refresh(sorted({f'{run.suite}/{run.game}' for run in runs_of_sweep}))
  return runs


def _plan() -> None:
  sweep, runs_of_sweep = _load_sweep()
  runs = _read_runs(runs_of_sweep)
  rates: standing.Rates | None
  if FLAGS.rate is not None:
    rates = standing.Rates({'': FLAGS.rate}, None, 'as given')
  elif FLAGS.benchmark is not None:
    rates = standing.of_benchmark(FLAGS.benchmark)
  else:
    rates = standing.of_finished(runs_of_sweep, runs)
  if rates is not None and FLAGS.play_rate is not None:
    rates = dataclasses.replace(rates, play=FLAGS.play_rate)
  standings = standing.read(runs_of_sweep, runs.folder, sweep.results_dir)
  plan = standing.SweepEstimate(sweep, standings, runs, rates)
  print(plan.describe(FLAGS.price_per_hour), end='')


def _status() -> None:
  sweep, runs_of_sweep = _load_sweep()

  def show() -> None:
    runs = _read_runs(runs_of_sweep)
    standings = standing.read(runs_of_sweep, runs.folder, sweep.results_dir)
    text = standing.to_text(standings, FLAGS.limit)
    if FLAGS.json:
      text = standing.to_json(standings)
    if FLAGS.watch is not None and sys.stdout.isatty():
      print('\x1b[H\x1b[2J', end='')  # In the place of the last one.
    print(text, flush=True)

  show()
  with contextlib.suppress(errors.PreemptedError):  # This is how it ends.
    while FLAGS.watch is not None:
      time.sleep(FLAGS.watch)
      show()


def _retry() -> None:
  _, runs_of_sweep = _load_sweep()
  runs = _read_runs(runs_of_sweep)
  aside = [
    run.folder
    for run in runs_of_sweep
    if state.read_attempts(runs.folder / run.folder).is_set_aside
  ]
  for folder in aside:
    runs.remove(f'{folder}/{state.NAME}')
    print(f'{runs.name}/{folder}')
  print(f'{len(aside):,} runs will be tried again from where they were left.')


def _collect() -> None:
  sweep, runs_of_sweep = _load_sweep()
  runs = _read_runs(runs_of_sweep, kept.SCORE_CONTENTS)
  tables = list(kept.collect(runs_of_sweep, runs.folder, sweep.results_dir))
  if not tables:
    raise errors.DataError(f'no run of the sweep has scores in {runs.name}.')
  ending = kept.PARQUET if kept.has_parquet() else kept.CSV
  name = f'scores{ending}'
  output = FLAGS.output or os.path.join(runs.folder, name)
  num_rows = kept.write(tables, output)
  if FLAGS.output is None:
    runs.upload(name)
    output = f'{runs.name}/{name}'
  print(
    f'{output}: {num_rows:,} episodes of {len(tables):,} runs; '
    f'{len(runs_of_sweep) - len(tables):,} have no scores yet.'
  )
  if FLAGS.output is None and ending == kept.CSV:
    print('It is CSV because pyarrow, which writes Parquet, is not installed.')


def _keep() -> None:
  sweep, runs_of_sweep = _load_sweep()
  if sweep.results_dir is None:
    raise errors.UsageError(
      f'{FLAGS.grid} does not say where to keep results: bind '
      'Sweep.results_dir.'
    )
  runs = _read_runs(runs_of_sweep, kept.CONTENTS)
  added = kept.keep(runs_of_sweep, runs.folder, sweep.results_dir)
  for folder in added:
    print(f'{sweep.results_dir}: {folder}')
  print(f'{len(added):,} runs are newly kept in {sweep.results_dir}.')


def _run() -> None:
  sweep, runs_of_sweep = _load_sweep()
  runs = _read_runs(runs_of_sweep)
  left = [
    run
    for run in runs_of_sweep
    if not standing.is_done(run, runs.folder, sweep.results_dir)
  ]
  print(f'{len(left):,} of {len(runs_of_sweep):,} runs are left to do.')
  if not left:
    return
  try:
    from batch_rl_dr3.sweeping import ray_cluster
  except ImportError as error:
    raise errors.ConfigError(
      f'sweep run needs Ray ({error}): `pip install ray`.'
    ) from error
  # Runs share the cores of a node: there are no more slots than runs.
  num_slots = min(FLAGS.slots_per_node or len(left), len(left))
  stop_request = signals.StopRequest()
  with (
    stop_request.listening(),
    contextlib.closing(
      ray_cluster.RayCluster(
        FLAGS.address, sweep.num_cpus, sweep.num_gpus, num_slots
      )
    ) as cluster,
    stop_request.listening(),  # Again: Ray has handlers of its own.
  ):
    tally = queue.Executor(
      cluster,
      queue.Queue(
        left,
        1e9 * sweep.run_gigabytes,
        lambda run: sweep.store_memory_share * sweep.store_bytes(run),
      ),
      functools.partial(_attempt, sweep),
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


def _attempt(sweep: Sweep, run: SweepRun) -> attempt.Attempt:
  path = place.local_path(FLAGS.runs)
  return attempt.Attempt.of_run(
    run,
    FLAGS.runs if path is None else os.path.abspath(path),
    FLAGS.cache_dir,
    ['-m', 'batch_rl_dr3.train', *_trust()],
    sweep.max_attempts_without_progress,
  )


def _trust() -> list[str]:
  return ['--trust_gin'] if cli.trusts_gin() else []


def _emit(states: Sequence[str]) -> None:
  cli.need('backend', 'output_dir')
  sweep, runs_of_sweep = _load_sweep()
  runs = _read_runs(runs_of_sweep)
  standings = standing.read(runs_of_sweep, runs.folder, sweep.results_dir)
  left = [one.run for one in standings if one.state in states]
  failed = sum(one.state == standing.FAILED for one in standings)
  if failed:
    print(f'{failed:,} runs are set aside; `sweep retry` lets them run again.')
  if not left:
    print('No run is left for a job array.')
    return
  task_flags = [
    f'--grid={FLAGS.grid}',
    *(f'--gin_bindings={line}' for line in FLAGS.gin_bindings),
    *(f'--import={name}' for name in FLAGS['import'].value or ()),
    f'--runs={FLAGS.runs}',
    *_trust(),
    *([f'--cache_dir={FLAGS.cache_dir}'] if FLAGS['cache_dir'].present else []),
  ]
  array = job_arrays.create(
    sweep, left, pathlib.Path(FLAGS.grid).stem, FLAGS.runs, task_flags
  )
  with cli.gin_errors():
    backend = job_arrays.BACKENDS[FLAGS.backend]()
  commands = backend.write(array, FLAGS.output_dir)
  print(f'{len(left):,} runs are left. In {FLAGS.output_dir}:')
  print(*(f'  {line}' for line in commands), sep='\n')


def _task() -> None:
  sweep, runs_of_sweep = _load_sweep()
  places: Sequence[int] = range(len(runs_of_sweep))
  if FLAGS.only is not None:
    places = job_arrays.parse_ranges(FLAGS.only)
  said = (os.environ[n] for n in _TASK_VARIABLES if n in os.environ)
  index = FLAGS.index
  if index is None:
    index = next(map(int, said), None)
  if index is None:
    raise errors.UsageError(
      f'--index is needed where none of {", ".join(_TASK_VARIABLES)} is set.'
    )
  if index >= len(places) or max(places) >= len(runs_of_sweep):
    raise errors.UsageError(
      f'there is no task {index} of {len(places)} in a grid of '
      f'{len(runs_of_sweep)} runs.'
    )
  run = runs_of_sweep[places[index]]
  if run.start is not None:
    runs = _read_runs([run.start])
    if not standing.is_done(run.start, runs.folder, None):
      raise errors.PreemptedError(
        f'{run.folder} starts from {run.start.folder}, which is not finished.'
      )
  job = _attempt(sweep, run)
  outcome = attempt.in_foreground(job)
  if outcome.error:
    print(f'{job.folder}: {outcome.error}', file=sys.stderr)
  # A signal counts as preemption, as whoever sent it knows better.
  code = outcome.exit_code
  sys.exit(code if code >= 0 else errors.PreemptedError.exit_code)


_LEFT = (standing.STALLED, standing.WAITING)
COMMANDS: dict[str, Callable[[], None]] = {
  'plan': _plan,
  'run': _run,
  'status': _status,
  'retry': _retry,
  'collect': _collect,
  'keep': _keep,
  'emit': functools.partial(_emit, (standing.RUNNING, *_LEFT)),
  'reconcile': functools.partial(_emit, _LEFT),
  'task': _task,
}


if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(COMMANDS, _USAGE)
