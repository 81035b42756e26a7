"""Writes a report of training runs: a page, its figures and its tables.

  python -m batch_rl_dr3.report --runs='runs/quickstart/*'

reads the run directories that the glob matches and writes
runs/quickstart/report:

  index.html    everything on one page that needs no other file
  figures/      return, TD loss, feature dot product and effective rank over
                gradient steps, as PNG, one figure per game and data set
  tables/       final scores, the effect of DR3, final metrics and
                co-adaptation, as CSV with exact numbers

Quote the glob, so that the shell does not expand it, and repeat --runs for
several. Runs that are still training are shown as far as they are. A report
that is already there is replaced, once the new one is whole.

  --watch[=SECONDS]  goes on, and writes the report again when runs change
  --serve[=PORT]     serves a live page of the runs in progress in place of
                     writing a report, and the last report under /report/;
                     together with --watch that is kept up to date

Both go on until Ctrl-C or SIGTERM, and wait for runs that are not there yet.
The page is for this machine alone unless --host says otherwise.

Exit status: 0 written, or ended; 64 wrong command line; 65 no runs, damaged
runs, or the same run twice; 73 the report cannot be written.
"""

from collections.abc import Callable
import functools
from typing import Any

from absl import flags

from batch_rl_dr3 import cli, errors

FLAGS = flags.FLAGS

_DEFAULT_PORT = 8765
_DEFAULT_WATCH_SECONDS = 30.0


class _OptionalNumber(flags.ArgumentParser):  # type: ignore[type-arg]
  """Parses --flag, which stands for a default, and --flag=NUMBER."""

  def __init__(
    self, default: float, kind: Callable[[str], float], low: float, high: float
  ):
    self._default = default
    self._kind = kind
    self._range = (low, high)
    self.syntactic_help = f'a number from {low:g} to {high:g}'

  def parse(self, argument: Any) -> float | None:
    """Returns the number, or None for --noflag."""
    if argument in ('true', 'false'):
      return self._default if argument == 'true' else None
    number = self._kind(argument)
    if not self._range[0] <= number <= self._range[1]:
      raise ValueError(f'it has to be {self.syntactic_help}')
    return number


def _define_optional_number(
  name: str, parser: _OptionalNumber, help_text: str
) -> None:
  flags.DEFINE_flag(
    flags.Flag(parser, None, name, None, help_text, boolean=True)
  )


def define_flags() -> None:
  """Defines --runs and --output_dir."""
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
  _define_optional_number(
    'watch',
    _OptionalNumber(_DEFAULT_WATCH_SECONDS, float, 0.1, 86_400),
    'Write the report again whenever runs change, until Ctrl-C; '
    f'--watch=SECONDS is how often to look ({_DEFAULT_WATCH_SECONDS:g}).',
  )
  _define_optional_number(
    'serve',
    _OptionalNumber(_DEFAULT_PORT, int, 0, 65_535),
    'Serve a live page of the runs; --serve=PORT is where '
    f'({_DEFAULT_PORT}; 0 takes a free one).',
  )
  flags.DEFINE_string(
    'host',
    '127.0.0.1',
    'With --serve: the address to listen on. Any but a local one shows the '
    'runs to everybody who can reach this machine.',
  )


def main() -> None:
  """Writes the report that the flags ask for."""
  if not FLAGS.runs:
    raise errors.UsageError(
      "no runs given: name them, such as --runs='runs/quickstart/*'."
    )
  # Imported here so that --help and usage errors are instant.
  from batch_rl_dr3.reporting import page

  write = functools.partial(page.write_report, FLAGS.runs, FLAGS.output_dir)
  if FLAGS.serve is not None or FLAGS.watch is not None:
    from batch_rl_dr3.reporting import live

    live.run(
      FLAGS.runs, FLAGS.output_dir, FLAGS.serve, FLAGS.host, FLAGS.watch, write
    )
    return
  index = write()
  print(f'report: {index}')


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
