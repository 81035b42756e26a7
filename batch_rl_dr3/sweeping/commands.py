"""What the subcommands of `sweep` do; flags say to which runs, and where."""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import os
import pathlib
import sys
import time

from absl import flags

from batch_rl_dr3.config import cli, errors, signals
from batch_rl_dr3.runs import mirror, place, state
from batch_rl_dr3.sweeping import (
  attempt,
  estimate,
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


def _need(*names: str) -> None:
  for name in names:
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')


def load_sweep() -> tuple[Sweep, list[SweepRun]]:
  """Returns the sweep that the flags describe, and its runs."""
  _need('grid', 'runs')
  imports = cli.find_imports()
  cli.load_gin([FLAGS.grid], FLAGS.gin_bindings)
  with cli.gin_errors():
    sweep = Sweep()
  return sweep, sweep.runs(imports)


def read_runs(
  runs_of_sweep: Sequence[SweepRun], contents: mirror.Contents
) -> mirror.Runs:
  """Returns the runs in --runs as they are now."""
  runs = mirror.Runs(FLAGS.runs, FLAGS.cache_dir, contents)
  # Folders of games are listed at the same time.
  runs.refresh(sorted({f'{run.suite}/{run.game}' for run in runs_of_sweep}))
  return runs


def plan() -> None:
  """Prints what the sweep will cost."""
  sweep, runs_of_sweep = load_sweep()
  runs = read_runs(runs_of_sweep, standing.CONTENTS)
  if FLAGS.rate is not None:
    rates: estimate.Rates | None = estimate.given(FLAGS.rate)
  elif FLAGS.benchmark is not None:
    rates = estimate.of_benchmark(FLAGS.benchmark)
  else:
    rates = estimate.of_finished(runs_of_sweep, runs)
  if rates is not None and FLAGS.play_rate is not None:
    rates = dataclasses.replace(rates, play=FLAGS.play_rate)
  standings = standing.read(runs_of_sweep, runs.folder, sweep.results_dir)
  plan = estimate.estimate(sweep, standings, runs, rates)
  for line in estimate.describe(sweep, plan, rates, FLAGS.price_per_hour):
    print(line)


def status() -> None:
  """Shows how the runs stand."""
  sweep, runs_of_sweep = load_sweep()

  def show() -> None:
    runs = read_runs(runs_of_sweep, standing.CONTENTS)
    standings = standing.read(runs_of_sweep, runs.folder, sweep.results_dir)
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
  _, runs_of_sweep = load_sweep()
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
  """Writes the scores of all runs into one file."""
  sweep, runs_of_sweep = load_sweep()
  runs = read_runs(runs_of_sweep, kept.SCORE_CONTENTS)
  tables = list(kept.collect(runs_of_sweep, runs.folder, sweep.results_dir))
  if not tables:
    raise errors.DataError(f'no run of the sweep has scores in {runs.name}.')
  ending = kept.PARQUET if kept.has_parquet() else kept.CSV
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
  """Writes what is kept of finished runs to the sweep's results."""
  sweep, runs_of_sweep = load_sweep()
  if sweep.results_dir is None:
    raise errors.UsageError(
      f'{FLAGS.grid} does not say where to keep results: bind '
      'Sweep.results_dir.'
    )
  runs = read_runs(runs_of_sweep, kept.CONTENTS)
  added = kept.keep(runs_of_sweep, runs.folder, sweep.results_dir)
  for folder in added:
    print(f'{sweep.results_dir}: {folder}')
  print(f'{len(added):,} runs are newly kept in {sweep.results_dir}.')


def run() -> None:
  """Executes what is left of the sweep."""
  sweep, runs_of_sweep = load_sweep()
  runs = read_runs(runs_of_sweep, standing.CONTENTS)
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
      _attempts(sweep),
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


def _attempts(sweep: Sweep) -> Callable[[SweepRun], attempt.Attempt]:
  path = place.local_path(FLAGS.runs)
  return queue.jobs(
    FLAGS.runs if path is None else os.path.abspath(path),
    FLAGS.cache_dir,
    ['-m', 'batch_rl_dr3.train', *_trust()],
    sweep.max_attempts_without_progress,
  )


def _trust() -> list[str]:
  return ['--trust_gin'] if cli.trusts_gin() else []


def emit() -> None:
  """Writes a job array of all runs that are left."""
  _emit((standing.RUNNING, standing.STALLED, standing.WAITING))


def reconcile() -> None:
  """Writes a job array of the runs that are left and that nobody executes."""
  _emit((standing.STALLED, standing.WAITING))


def _emit(states: Sequence[str]) -> None:
  _need('backend', 'output_dir')
  sweep, runs_of_sweep = load_sweep()
  runs = read_runs(runs_of_sweep, standing.CONTENTS)
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
    lines = job_arrays.write(FLAGS.backend, array, FLAGS.output_dir)
  print(f'{len(left):,} runs are left. In {FLAGS.output_dir}:')
  for line in lines:
    print(f'  {line}')


def task() -> None:
  """Executes one run and ends with its exit code."""
  sweep, runs_of_sweep = load_sweep()
  places: Sequence[int] = range(len(runs_of_sweep))
  if FLAGS.only is not None:
    places = job_arrays.parse_ranges(FLAGS.only)
  index = _index()
  if index >= len(places) or max(places) >= len(runs_of_sweep):
    raise errors.UsageError(
      f'there is no task {index} of {len(places)} in a grid of '
      f'{len(runs_of_sweep)} runs.'
    )
  run = runs_of_sweep[places[index]]
  if run.start is not None:
    runs = read_runs([run.start], standing.CONTENTS)
    if not standing.is_done(run.start, runs.folder, None):
      raise errors.PreemptedError(
        f'{run.folder} starts from {run.start.folder}, which is not finished.'
      )
  job = _attempts(sweep)(run)
  outcome = attempt.in_foreground(job)
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
