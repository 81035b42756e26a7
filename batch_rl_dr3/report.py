"""Writes a report of training runs: a page, its figures and its tables.

  python -m batch_rl_dr3.report --runs='runs/quickstart/*'

reads the run directories that the glob matches and writes
runs/quickstart/report:

  index.html    everything on one page that needs no other file
  figures/      return, TD loss, feature dot product and effective rank over
                gradient steps, as PNG and PDF, one figure per game and data set
  tables/       final scores, the effect of DR3, final metrics and
                co-adaptation, as CSV with exact numbers and as LaTeX (booktabs)

Quote the glob, so that the shell does not expand it, and repeat --runs for
several. Runs that are still training are shown as far as they are. A report
that is already there is replaced, once the new one is whole.

  python -m batch_rl_dr3.report --preset=dr3_atari17 --runs='RUNS/**'

takes the runs for the paper's Atari study, 17 games x 4 methods x 3 data sets x
5 runs, and sets their numbers beside the published ones: Table 1 (IQM of
normalised scores, average over training and final), Figure 4 (IQM against
gradient steps), Figure 5 (effective rank) and the feature dot product, median,
mean, optimality gap, probability of improvement, performance profiles and
stability, scores and curves of each game, and which runs are missing. All
intervals are 95% stratified bootstrap intervals by rliable. What is computed
on an incomplete set is marked.

Runs are refused that cannot share a table, by their provenance.json: runs of
one suite that differ in protocol or version of this package, of one game that
differ in ROM, of one game, data set and logged run that differ in data.

Exit status: 0 written; 64 wrong command line; 65 no runs, damaged runs, the
same run twice, or runs that cannot share a table; 73 the report cannot be
written.
"""

import os
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from batch_rl_dr3 import cli, errors, run_directory
from batch_rl_dr3.reporting import preset

if TYPE_CHECKING:
  from batch_rl_dr3.reporting import run_cache

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines what is read, what the report is about and where it goes."""
  flags.DEFINE_multi_string(
    'runs',
    [],
    'Glob of run directories, such as runs/quickstart/*; ** matches any depth. '
    'Folders that are no run directories are skipped. Repeat the flag for '
    'several.',
  )
  flags.DEFINE_string(
    'output_dir',
    None,
    'Folder of the report (default: report, in the folder that holds the '
    'runs).',
  )
  flags.DEFINE_enum(
    'preset',
    None,
    list(preset.PRESETS),
    'Study that the runs are taken for (default: each game and data set on '
    'its own).',
  )
  flags.DEFINE_enum(
    'normalisation',
    'dqn',
    ['dqn', 'human'],
    "Scale of a study's scores: 0 is random play, 1 the final score of the "
    'online DQN that made the data, or that of a human.',
  )
  flags.DEFINE_boolean(
    'allow_mixed',
    False,
    'Report on runs that cannot share a table, and say so on the page.',
  )
  flags.DEFINE_integer(
    'num_resamples',
    2_000,
    "Resamples of the bootstrap of a study's intervals; time grows with them.",
    lower_bound=100,
  )
  flags.DEFINE_integer(
    'seed', 0, 'Seed of the bootstrap of a study.', lower_bound=0
  )
  flags.DEFINE_integer(
    'num_processes',
    os.cpu_count() or 1,
    'Runs that are read, and figures of a study that are drawn, at a time.',
    lower_bound=1,
  )
  flags.DEFINE_string(
    'cache_dir',
    os.path.join(
      os.environ.get('XDG_CACHE_HOME') or str(pathlib.Path.home() / '.cache'),
      'batch_rl_dr3',
    ),
    'Where what was read of unchanged runs is kept for the next report; empty '
    'keeps nothing.',
  )


def _open_cache() -> 'run_cache.RunCache | None':
  """Returns the cache, None if there is to be none or it cannot be written."""
  if not FLAGS.cache_dir:
    return None
  from batch_rl_dr3.reporting import run_cache

  folder = os.path.join(FLAGS.cache_dir, 'runs')
  try:
    run_directory.make_directory(folder)
  except errors.WriteError as error:
    print(
      f'report: {error} Until then every run is read again (--cache_dir).',
      file=sys.stderr,
    )
    return None
  return run_cache.RunCache(folder)


def main() -> None:
  """Writes the report that the flags ask for."""
  if not FLAGS.runs:
    raise errors.UsageError(
      "no runs given: name them, such as --runs='runs/quickstart/*'."
    )
  # Imported here so that --help and usage errors are instant.
  from batch_rl_dr3.reporting import (
    intervals,
    page,
    reference,
  )

  options = page.Options(
    preset=FLAGS.preset,
    normalisation=reference.Normalisation(FLAGS.normalisation),
    bootstrap=intervals.Bootstrap(FLAGS.num_resamples, FLAGS.seed),
    allow_mixed=FLAGS.allow_mixed,
    cache=_open_cache(),
    num_processes=FLAGS.num_processes,
  )
  index = page.write_report(FLAGS.runs, FLAGS.output_dir, options)
  print(f'report: {index}')


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
