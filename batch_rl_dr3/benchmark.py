"""Measures the package's speed beside the stock Dopamine path.

  python -m batch_rl_dr3.benchmark
  python -m batch_rl_dr3.benchmark --quick --json=benchmark.json

prints one table: gradient steps per second of REM + DR3 and CQL + DR3 (Nature
network, batch 32, 9 actions), what share of them is the network's arithmetic,
sampling, evaluation, start-up, memory, and what the paper's runs would take.
The peer is Dopamine's DQNAgent on its own replay buffer with the same loss,
DR3 term included. Both sides run in this process, in alternating bursts; every
ratio is the median over the pairs of bursts. The data are made up and written
to a temporary folder.

Close other programs first: they change rates, and ratios too.

Exit status: 0 measured; 64 wrong command line; 73 the table cannot be written.
"""

import pathlib
import tempfile

from absl import flags

from batch_rl_dr3.config import cli, frameworks

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines --quick and --json."""
  flags.DEFINE_boolean('quick', False, 'Measure for 1 to 2 minutes, not for 4.')
  flags.DEFINE_string(
    'json',
    None,
    'File to write the rows to, as a list of {name, value, unit, peer, '
    'peer_value, ratio, goal}.',
  )


def main() -> None:
  """Measures, prints the table and writes it where the flags ask for it."""
  frameworks.import_tensorflow(announce=True)
  from batch_rl_dr3.benchmarking import measurements, setups, table
  from batch_rl_dr3.config import progress

  effort = measurements.QUICK if FLAGS.quick else measurements.FULL
  rows: list[table.Row] = []
  with (
    tempfile.TemporaryDirectory() as name,
    progress.bar(6, 'benchmark', 'part') as bar,
  ):
    folder = pathlib.Path(name)
    cache = folder / 'cache'
    log = setups.write_log(folder, setups.ATARI, 2000)
    store = setups.open_store(log, cache, setups.ATARI)
    # First, while no other child of this process has taken memory.
    startup = list(measurements.first_step(log, cache, folder))
    bar.update()
    rates: dict[tuple[str, bool], float] = {}
    for method in ('rem', 'cql'):
      measured, by_dr3 = measurements.training(store, method, effort)
      rows += measured
      rates |= {(method, with_dr3): r for with_dr3, r in by_dr3.items()}
      bar.update()
    small_log = setups.write_log(folder, setups.MINATAR, 2000)
    small_store = setups.open_store(small_log, cache, setups.MINATAR)
    rows += measurements.overhead(small_store, effort)
    bar.update()
    rows.append(measurements.sampling(store, effort))
    bar.update()
    play = measurements.evaluation(effort)
    bar.update()
  rows += [play, *startup, *measurements.protocol(rates, play.value)]
  print(table.to_text(rows))
  if FLAGS.json:
    table.write_json(FLAGS.json, rows)


if __name__ == '__main__':
  define_flags()
  cli.run(main, __doc__)
