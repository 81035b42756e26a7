"""Measures the package's speed beside the stock Dopamine path.

  python -m batch_rl_dr3.benchmark
  python -m batch_rl_dr3.benchmark --quick --json=benchmark.json

prints one table: gradient steps per second of REM + DR3 and CQL + DR3 (Nature
network, batch 32, 9 actions), what share of them is the network's arithmetic
and what share is sampling, evaluation, start-up, memory, and what the paper's
runs would take. The peer is Dopamine's DQNAgent on its own replay buffer with
the same loss, DR3 term included. Both run here in alternating bursts; a ratio
is the median over the pairs of bursts, beside their quartiles. The data are
made up. Close other programs first: they change rates, and ratios too.

Exit status: 0 measured; 64 wrong command line, or no source checkout; 73 the
table cannot be written.
"""

import importlib
import pathlib
import sys

from absl import flags

from batch_rl_dr3.config import cli, errors, flag_tables, frameworks

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  flag_tables.define('benchmark')


def main() -> None:
  """Measures, in a source checkout: the measurements are not shipped."""
  root = pathlib.Path(__file__).resolve().parent.parent
  if not (root / 'benchmarks' / 'gradient_steps.py').is_file():
    raise errors.UsageError(
      'the measurements are not shipped with the package: run this command in '
      'a source checkout (git clone).'
    )
  sys.path.insert(0, str(root))
  frameworks.import_tensorflow(announce=True)
  measurements = importlib.import_module('benchmarks.gradient_steps')
  measurements.measure(FLAGS.quick, FLAGS.json)


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
