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

Exit status: 0 written; 64 wrong command line; 65 no runs, damaged runs, or the
same run twice; 73 the report cannot be written.
"""

from absl import flags

from batch_rl_dr3 import cli, errors

FLAGS = flags.FLAGS


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


def main() -> None:
  """Writes the report that the flags ask for."""
  if not FLAGS.runs:
    raise errors.UsageError(
      "no runs given: name them, such as --runs='runs/quickstart/*'."
    )
  # Imported here so that --help and usage errors are instant.
  from batch_rl_dr3.reporting import page

  index = page.write_report(FLAGS.runs, FLAGS.output_dir)
  print(f'report: {index}')


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
