"""What the subcommands of `sweep` do; flags say to which runs, and where."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3.config import cli, errors, signals
from batch_rl_dr3.runs import folders, mirror
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun

if TYPE_CHECKING:
  from batch_rl_dr3.sweeping import estimate as estimate_lib
  from batch_rl_dr3.sweeping import queue as queue_lib
  from batch_rl_dr3.sweeping import ray_cluster
  from batch_rl_dr3.sweeping import standing as standing_lib

FLAGS = flags.FLAGS

# Which task of a job array this is, as each system says it.
TASK_VARIABLES = (
  'BATCH_TASK_INDEX',
  'SLURM_ARRAY_TASK_ID',
  'JOB_COMPLETION_INDEX',
)


def sweep_of_flags() -> Sweep:
  """Returns the sweep that --grid and --gin_bindings bind.

  Raises:
    ConfigError: if a file is missing or wrong.
    UsageError: if --grid or --runs is.
  """
  from batch_rl_dr3.sweeping import job_arrays  # noqa: F401  (for its bindings)

  for name in ('grid', 'runs'):
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')
  cli.load_gin([FLAGS.grid], FLAGS.gin_bindings)
  with cli.gin_errors():
    return Sweep()


def read_runs(
  runs_of_sweep: Sequence[SweepRun], contents: mirror.Contents
) -> mirror.Runs:
  """Returns the runs in --runs as they are now.

  Args:
    runs_of_sweep: the runs.
    contents: what is read of each.

  Raises:
    DataError: if they cannot be read.
  """
  runs = mirror.open_runs(FLAGS.runs, FLAGS.cache_dir, contents)
  # Folders of games are listed at the same time.
  runs.refresh(sorted({f'{run.suite}/{run.game}' for run in runs_of_sweep}))
  return runs


def read_standings(
  sweep: Sweep, runs_of_sweep: Sequence[SweepRun]
) -> tuple[mirror.Runs, 'list[standing_lib.Standing]']:
  """Returns the runs in --runs, and how each of the sweep's stands."""
  from batch_rl_dr3.sweeping import standing

  runs = read_runs(runs_of_sweep, standing.CONTENTS)
  return runs, standing.read(runs_of_sweep, runs.folder, sweep.results_dir)


def plan() -> None:
  """Prints what the sweep will cost."""
  from batch_rl_dr3.sweeping import estimate

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()
  runs, standings = read_standings(sweep, runs_of_sweep)
  rates = _rates(runs_of_sweep, runs)
  plan = estimate.estimate(sweep, standings, runs, rates)
  for line in estimate.describe(sweep, plan, rates, FLAGS.price_per_hour):
    print(line)


def _rates(
  runs_of_sweep: Sequence[SweepRun], runs: mirror.Runs
) -> 'estimate_lib.Rates | None':
  from batch_rl_dr3.sweeping import estimate

  if FLAGS.rate is not None:
    rates: estimate.Rates | None = estimate.given(FLAGS.rate)
  elif FLAGS.benchmark is not None:
    rates = estimate.of_benchmark(FLAGS.benchmark)
  else:
    rates = estimate.of_finished(runs_of_sweep, runs)
  if rates is not None and FLAGS.play_rate is not None:
    rates = dataclasses.replace(rates, play=FLAGS.play_rate)
  return rates


def status() -> None:
  """Shows how the runs stand."""
  from batch_rl_dr3.sweeping import standing

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()

  def show() -> None:
    _, standings = read_standings(sweep, runs_of_sweep)
    text = (
      standing.to_json(standings)
      if FLAGS.json
      else standing.to_text(standings, FLAGS.limit)
    )
    if FLAGS.watch is not None and sys.stdout.isatty():
      print('\x1b[H\x1b[2J', end='')  # In the place of the last one.
    print(text, flush=True)

  show()
  with contextlib.suppress(errors.PreemptedError):  # This is how it ends.
    while FLAGS.watch is not None:
      time.sleep(FLAGS.watch)
      show()


def retry() -> None:
  """Lets runs that were set aside be tried again."""
  from batch_rl_dr3.runs import state
  from batch_rl_dr3.sweeping import standing

  runs_of_sweep = sweep_of_flags().runs()
  runs = read_runs(runs_of_sweep, standing.CONTENTS)
  aside = [
    run.folder
    for run in runs_of_sweep
    if state.read_attempts(runs.folder / run.folder).is_set_aside
  ]
  for folder in aside:
    runs.remove(f'{folder}/{state.NAME}')
    print(f'{runs.name}/{folder}')
  print(f'{len(aside):,} runs will be tried again from where they were left.')


def collect() -> None:
  """Writes the scores of all runs into one file.

  Raises:
    DataError: if no run has scores.
  """
  from batch_rl_dr3.sweeping import kept

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()
  ending = kept.PARQUET if kept.has_parquet() else kept.CSV
  runs = read_runs(runs_of_sweep, kept.SCORE_CONTENTS)
  tables = list(kept.collect(runs_of_sweep, runs.folder, sweep.results_dir))
  if not tables:
    raise errors.DataError(f'no run of the sweep has scores in {runs.name}.')
  name = f'scores{ending}'
  output = FLAGS.output or os.path.join(runs.folder, name)
  num_rows = kept.write(tables, output)
  if FLAGS.output is None:
    runs.publish(name)
    output = f'{runs.name}/{name}'
  print(
    f'{output}: {num_rows:,} episodes of {len(tables):,} runs; '
    f'{len(runs_of_sweep) - len(tables):,} have no scores yet.'
  )
  if FLAGS.output is None and ending == kept.CSV:
    print('It is CSV because pyarrow, which writes Parquet, is not installed.')


def keep() -> None:
  """Writes what is kept of finished runs to the sweep's results.

  Raises:
    UsageError: if the sweep has no place for them.
  """
  from batch_rl_dr3.sweeping import kept

  sweep = sweep_of_flags()
  if sweep.results_dir is None:
    raise errors.UsageError(
      f'{FLAGS.grid} does not say where to keep results: bind '
      'Sweep.results_dir.'
    )
  runs_of_sweep = sweep.runs()
  runs = read_runs(runs_of_sweep, kept.CONTENTS)
  added = kept.keep(runs_of_sweep, runs.folder, sweep.results_dir)
  for folder in added:
    print(f'{sweep.results_dir}: {folder}')
  print(f'{len(added):,} runs are newly kept in {sweep.results_dir}.')


def run() -> None:
  """Executes what is left of the sweep.

  Raises:
    DataError: if runs were set aside.
  """
  from batch_rl_dr3.sweeping import queue, standing

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()
  runs = read_runs(runs_of_sweep, standing.CONTENTS)
  left = [
    run
    for run in runs_of_sweep
    if not standing.is_done(run, runs.folder, sweep.results_dir)
  ]
  print(f'{len(left):,} of {len(runs_of_sweep):,} runs are left to do.')
  if not left:
    return
  stop_request = signals.StopRequest()
  with (
    stop_request.listening(),
    contextlib.closing(_cluster(sweep)) as cluster,
    stop_request.listening(),  # Again: Ray has handlers of its own.
  ):
    tally = queue.Executor(
      cluster,
      queue.Queue(
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


def _jobs(sweep: Sweep) -> 'Callable[[SweepRun], queue_lib.Job]':
  from batch_rl_dr3.sweeping import queue

  path = folders.local_path(FLAGS.runs)
  return queue.jobs(
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
  from batch_rl_dr3.sweeping import job_arrays, standing

  for name in ('backend', 'output_dir'):
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')
  sweep = sweep_of_flags()
  _, standings = read_standings(sweep, sweep.runs())
  left = [one.run for one in standings if one.state in states]
  failed = sum(one.state == standing.FAILED for one in standings)
  if failed:
    print(f'{failed:,} runs are set aside; `sweep retry` lets them run again.')
  if not left:
    print('No run is left for a job array.')
    return
  array = job_arrays.create(
    sweep, left, pathlib.Path(FLAGS.grid).stem, FLAGS.runs, _task_flags()
  )
  with cli.gin_errors():
    lines = job_arrays.write(FLAGS.backend, array, FLAGS.output_dir)
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
  from batch_rl_dr3.sweeping import attempt, job_arrays

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()
  places = (
    range(len(runs_of_sweep))
    if FLAGS.only is None
    else job_arrays.parse_ranges(FLAGS.only)
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
