"""Plans, executes and follows many runs."""

from collections.abc import Callable

from absl import flags

from batch_rl_dr3.config import cli
from batch_rl_dr3.sweeping import commands

_USAGE = """\
Plans, executes and follows many runs: games x data sets x methods x seeds.

  python -m batch_rl_dr3.sweep plan --grid=sweeps/dr3_atari17.gin --runs=RUNS \\
    --rate=30
  python -m batch_rl_dr3.sweep run --grid=sweeps/minatar.gin --runs=RUNS
  python -m batch_rl_dr3.sweep status --grid=sweeps/minatar.gin --runs=RUNS

The grid is a gin file that binds Sweep. Each of its runs is a command of
train, and has its directory
RUNS/<suite>/<game>/<dataset>/<method>/seed<k>-<identity>; the identity is a
hash of what the run's gin files bind, its data, its seed and this package's
version. What a run is, how far it is and whether it is finished is in its
directory alone: any subcommand can be given at any time, from anywhere that
sees RUNS, and given again. RUNS is a folder of a disk that all nodes see, or a
URL such as gs://BUCKET/RUNS: runs are then worked on below --cache_dir of their
node and uploaded after every checkpoint and evaluation, their logs at the end
of each attempt.

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

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string(
    'grid', None, 'Gin file of the grid: a path, or the name of a shipped one.'
  )
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
  flags.DEFINE_string(
    'runs',
    None,
    'Folder of all runs, seen by all nodes: on a shared disk, or in a bucket, '
    'such as gs://BUCKET/RUNS.',
  )
  cli.define_cache_dir(
    'Where stores are kept, on each node, and what is read of runs in a bucket.'
  )
  flags.DEFINE_float(
    'rate', None, 'plan: gradient steps a second of one run.', lower_bound=1e-9
  )
  flags.DEFINE_float(
    'play_rate',
    None,
    'plan: agent steps a second of evaluation.',
    lower_bound=1e-9,
  )
  flags.DEFINE_string(
    'benchmark',
    None,
    'plan: take the rates from this file, written by `benchmark --json`. '
    'Without it and --rate they are those of finished runs in --runs.',
  )
  flags.DEFINE_float(
    'price_per_hour',
    None,
    'plan: of a GPU, or of a core if runs use no GPU.',
    lower_bound=0,
  )
  flags.DEFINE_string(
    'address', None, 'run: Ray cluster, such as auto or HOST:6379.'
  )
  flags.DEFINE_integer(
    'slots_per_node',
    0,
    'run: runs at a time on a node; 0 for as many as its cores and GPUs allow.',
    lower_bound=0,
  )
  flags.DEFINE_float(
    'stop_seconds',
    120.0,
    'run: how long runs have to save when the sweep is stopped.',
    lower_bound=0,
  )
  flags.DEFINE_float(
    'watch',
    None,
    'status: show it again every so many seconds, until Ctrl-C.',
    lower_bound=0.1,
  )
  flags.DEFINE_integer(
    'limit', 20, 'status: runs that are listed of each state.', lower_bound=0
  )
  flags.DEFINE_boolean('json', False, 'status: print all runs as JSON.')
  flags.DEFINE_string(
    'output',
    None,
    'collect: the file, .parquet (needs pyarrow) or .csv (default: '
    'scores.parquet in --runs if pyarrow is installed, else scores.csv).',
  )
  flags.DEFINE_enum(
    'backend',
    None,
    ['gcp-batch', 'slurm', 'kubernetes'],
    'emit, reconcile: the system. Its gin bindings are those of GcpBatch, '
    'Slurm and Kubernetes.',
  )
  flags.DEFINE_string(
    'output_dir', None, 'emit, reconcile: where the files go.'
  )
  flags.DEFINE_string(
    'only',
    None,
    'task: the runs of the job array, such as 0-2,5 (default: all of the '
    'grid).',
  )
  flags.DEFINE_integer(
    'index',
    None,
    'task: which of the runs (default: what the job array says in '
    f'{", ".join(commands.TASK_VARIABLES)}).',
    lower_bound=0,
  )


COMMANDS: dict[str, Callable[[], None]] = {
  command.__name__: command
  for command in (
    commands.plan,
    commands.run,
    commands.status,
    commands.retry,
    commands.collect,
    commands.keep,
    commands.emit,
    commands.reconcile,
    commands.task,
  )
}


if __name__ == '__main__':
  define_flags()
  cli.run_subcommand(COMMANDS, _USAGE)
