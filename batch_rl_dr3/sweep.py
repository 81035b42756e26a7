"""Plans, executes and follows many runs."""

from collections.abc import Callable
import functools

from absl import flags

from batch_rl_dr3.config import cli

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
  string = functools.partial(flags.DEFINE_string, default=None)
  integer = functools.partial(flags.DEFINE_integer, lower_bound=0)
  number = functools.partial(flags.DEFINE_float, lower_bound=0)
  string('grid', help='Gin file of the grid: a path, or a shipped one.')
  flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    'Gin bindings that override the grid, such as "Sweep.games=[\'Pong\']". '
    'Repeat the flag for several.',
  )
  flags.DEFINE_boolean(
    'trust_gin',
    False,
    'Let the grid and the gin files of its runs import any module and name any '
    'function.',
  )
  cli.define_import()
  string(
    'runs',
    help='Folder of all runs, seen by all nodes: on a shared disk, or in a '
    'bucket, such as gs://BUCKET/RUNS.',
  )
  cli.define_cache_dir(
    'Where stores are kept, on each node, and what is read of runs in a bucket.'
  )
  rate = functools.partial(flags.DEFINE_float, lower_bound=1e-9)
  rate('rate', None, 'plan: gradient steps a second of one run.')
  rate('play_rate', None, 'plan: agent steps a second of evaluation.')
  string(
    'benchmark',
    help='plan: take the rates from this file, written by `benchmark --json`. '
    'Without it and --rate they are those of finished runs in --runs.',
  )
  number('price_per_hour', None, 'plan: of a GPU, or of a core without GPUs.')
  string('address', help='run: Ray cluster, such as auto or HOST:6379.')
  integer(
    'slots_per_node',
    0,
    'run: runs at a time on a node; 0 for as many as its cores and GPUs allow.',
  )
  number('stop_seconds', 120.0, 'run: how long runs have to save at a stop.')
  number(
    *('watch', None, 'status: show it every so many seconds, until Ctrl-C.'),
    lower_bound=0.1,
  )
  integer('limit', 20, 'status: runs that are listed of each state.')
  flags.DEFINE_boolean('json', False, 'status: print all runs as JSON.')
  string(
    'output',
    help='collect: the file, .parquet (needs pyarrow) or .csv (default: '
    'scores.parquet in --runs if pyarrow is installed, else scores.csv).',
  )
  flags.DEFINE_enum(
    'backend',
    None,
    ['gcp-batch', 'slurm', 'kubernetes'],
    'emit, reconcile: the system. Its gin bindings are those of GcpBatch, '
    'Slurm and Kubernetes.',
  )
  string('output_dir', help='emit, reconcile: where the files go.')
  string('only', help='task: the runs of the array, such as 0-2,5 (all).')
  integer('index', None, 'task: which of them (what the job array says).')


def _command(name: str) -> Callable[[], None]:
  def run() -> None:
    # Imported here so that --help needs no pandas.
    from batch_rl_dr3.sweeping import commands

    getattr(commands, name)()

  return run


COMMANDS = {
  name: _command(name)
  for name in (
    *('plan', 'run', 'status', 'retry', 'collect', 'keep'),
    *('emit', 'reconcile', 'task'),
  )
}


if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(COMMANDS, _USAGE)
