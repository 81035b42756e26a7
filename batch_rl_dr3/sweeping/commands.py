"""What the subcommands of `sweep` do that look at runs; flags say which."""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3.config import cli, errors
from batch_rl_dr3.runs import mirror
from batch_rl_dr3.sweeping.grid import Sweep
from batch_rl_dr3.sweeping.run import Run

if TYPE_CHECKING:
  from batch_rl_dr3.sweeping import estimate as estimate_lib
  from batch_rl_dr3.sweeping import standing as standing_lib

FLAGS = flags.FLAGS


def sweep_of_flags() -> Sweep:
  """Returns the sweep that --grid and --gin_bindings bind.

  Raises:
    ConfigError: if a file is missing or wrong.
    UsageError: if --grid or --runs is.
  """
  from batch_rl_dr3.sweeping import job_files  # noqa: F401  (for its bindings)

  for name in ('grid', 'runs'):
    if not FLAGS[name].value:
      raise errors.UsageError(f'--{name} is needed (see --help).')
  cli.load_gin([FLAGS.grid], FLAGS.gin_bindings)
  with cli.gin_errors():
    return Sweep()


def read_runs(
  runs_of_sweep: Sequence[Run], contents: mirror.Contents
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
  sweep: Sweep, runs_of_sweep: Sequence[Run]
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
  runs_of_sweep: Sequence[Run], runs: mirror.Runs
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
  from batch_rl_dr3.sweeping import standing, status_table

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()

  def show() -> None:
    _, standings = read_standings(sweep, runs_of_sweep)
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
  from batch_rl_dr3.runs import attempt_record
  from batch_rl_dr3.sweeping import standing

  runs_of_sweep = sweep_of_flags().runs()
  runs = read_runs(runs_of_sweep, standing.CONTENTS)
  aside = [
    run.folder
    for run in runs_of_sweep
    if attempt_record.read(runs.folder / run.folder).is_set_aside
  ]
  for folder in aside:
    runs.remove(f'{folder}/{attempt_record.NAME}')
    print(f'{runs.name}/{folder}')
  print(f'{len(aside):,} runs will be tried again from where they were left.')


def collect() -> None:
  """Writes the scores of all runs into one file.

  Raises:
    DataError: if no run has scores.
  """
  from batch_rl_dr3.sweeping import score_table

  sweep = sweep_of_flags()
  runs_of_sweep = sweep.runs()
  ending = score_table.PARQUET if score_table.has_parquet() else score_table.CSV
  runs = read_runs(runs_of_sweep, score_table.CONTENTS)
  paths = [
    path
    for run in runs_of_sweep
    if (path := score_table.find(run, runs.folder, sweep.results_dir))
  ]
  if not paths:
    raise errors.DataError(f'no run of the sweep has scores in {runs.name}.')
  name = f'scores{ending}'
  output = FLAGS.output or os.path.join(runs.folder, name)
  num_rows = score_table.write(paths, output)
  if FLAGS.output is None:
    runs.publish(name)
    output = f'{runs.name}/{name}'
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
  from batch_rl_dr3.runs import attempt_record
  from batch_rl_dr3.sweeping import kept

  sweep = sweep_of_flags()
  if sweep.results_dir is None:
    raise errors.UsageError(
      f'{FLAGS.grid} does not say where to keep results: bind '
      'Sweep.results_dir.'
    )
  runs_of_sweep = sweep.runs()
  runs = read_runs(runs_of_sweep, kept.CONTENTS)
  num_kept = 0
  for run in runs_of_sweep:
    folder = runs.folder / run.folder
    if run.scores_apart(sweep.results_dir).exists():
      continue
    if attempt_record.is_finished(folder, run.num_iterations):
      print(kept.keep(run, folder, sweep.results_dir))
      num_kept += 1
  print(f'{num_kept:,} runs are newly kept in {sweep.results_dir}.')
