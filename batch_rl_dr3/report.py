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
that is already there is replaced, once the new one is whole. Of runs in a
bucket, --runs='gs://BUCKET/RUNS/**', what has changed is fetched first.

  --watch[=SECONDS]  writes the report again when runs change; the page loads
                     itself again, and begins with how each run stands
  --serve[=PORT]     serves the report's folder on 127.0.0.1

Both go on until Ctrl-C or SIGTERM; --watch waits for runs that are not there
yet.

  python -m batch_rl_dr3.report --preset=dr3_atari17 --runs='RUNS/**'

takes the runs for the paper's Atari study, 17 games x 4 methods x 3 data sets x
5 runs, and sets their numbers beside the published ones: Table 1, Figures 4 and
5, other statistics, what the paper finds, each game, and which runs are
missing. All intervals are 95% stratified bootstrap intervals by rliable. What
is computed on an incomplete set is marked.

Runs are refused that cannot share a table, by their provenance.json: runs of
one suite that differ in protocol or version of this package, of one game that
differ in ROM, of one game, data set, logged run and seed that differ in data.

Exit status: 0 written, or ended; 64 wrong command line; 65 no runs, damaged
runs, the same run twice, or runs that cannot share a table; 73 the report
cannot be written.
"""

from collections.abc import Callable
import functools
import os
import pathlib
import tomllib
from typing import Any

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables
from batch_rl_dr3.runs import results

FLAGS = flags.FLAGS

_PUBLISHED = pathlib.Path(__file__).parent / 'reporting' / 'published'
PRESETS = tuple(tomllib.loads((_PUBLISHED / 'presets.toml').read_text()))
_PORT = 8765
_SECONDS = 30.0


class _OptionalNumber(flags.ArgumentParser):  # type: ignore[type-arg]
  """Parses --flag, which stands for a default, and --flag=NUMBER."""

  def __init__(
    self, default: float, kind: Callable[[str], float], low: float, high: float
  ):
    self._default, self._kind, self._range = default, kind, (low, high)
    self.syntactic_help = f'a number from {low:g} to {high:g}'

  def parse(self, argument: Any) -> float | None:
    """Returns the number, or None for --noflag."""
    if argument in ('true', 'false'):
      return self._default if argument == 'true' else None
    number = self._kind(argument)
    if not self._range[0] <= number <= self._range[1]:
      raise ValueError(f'it has to be {self.syntactic_help}')
    return number


def define_flags() -> None:
  """Defines what is read, what the report is about and where it goes."""
  watch = _OptionalNumber(_SECONDS, float, 0.1, 86_400)
  serve = _OptionalNumber(_PORT, int, 0, 65_535)
  watch_help = (
    'Write the report again whenever runs change, until Ctrl-C; '
    f'--watch=SECONDS is how often to look ({_SECONDS:g}).'
  )
  serve_help = (
    "Serve the report's folder to this machine; --serve=PORT is where "
    f'({_PORT}; 0 takes a free one).'
  )
  for flag in (
    flags.Flag(watch, None, 'watch', None, watch_help, boolean=True),
    flags.Flag(serve, None, 'serve', None, serve_help, boolean=True),
  ):
    flags.DEFINE_flag(flag)
  flag_tables.define(
    'report',
    preset={'enum_values': PRESETS},
    num_processes={'default': os.cpu_count() or 1},
  )
  cache_help = 'Where what is read of runs in a bucket is kept.'
  cli.define_shared('cache', cache_dir=cache_help)


def main() -> None:
  """Writes the report that the flags ask for."""
  if not FLAGS.runs:
    raise errors.UsageError(
      "no runs given: name them, such as --runs='runs/quickstart/*'."
    )
  # Imported here so that --help and usage errors are instant.
  from batch_rl_dr3.reporting import (
    page,
    reference,
    run_reader,
    statistics,
    watch,
  )

  options = page.Options(
    preset=FLAGS.preset,
    normalisation=reference.Normalisation(FLAGS.normalisation),
    bootstrap=statistics.Bootstrap(FLAGS.num_resamples, FLAGS.seed),
    allow_mixed=FLAGS.allow_mixed,
    # A process with a server's threads in it must not fork.
    num_processes=1 if FLAGS.serve is not None else FLAGS.num_processes,
    refresh_seconds=FLAGS.watch,
  )
  view = results.RunGlobs(FLAGS.runs, FLAGS.cache_dir, run_reader.CONTENTS)
  if view.is_elsewhere and not (FLAGS.output_dir and FLAGS.cache_dir):
    raise errors.UsageError(
      '--output_dir and --cache_dir are needed for runs in a bucket or in '
      f"a study's {results.RUNS}."
    )
  view.refresh()
  write = functools.partial(
    page.write_report, view.patterns, FLAGS.output_dir, options
  )
  if FLAGS.serve is not None or FLAGS.watch is not None:
    with view.kept_fresh(FLAGS.watch or _SECONDS):
      watch.follow(view.patterns, write, FLAGS.watch, FLAGS.serve)
    return
  print(f'report: {write()}')


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
