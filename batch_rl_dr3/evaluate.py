"""Plays checkpoints and writes their scores."""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import functools
import math
import os
import pathlib
import sys

from absl import flags

from batch_rl_dr3.config import (
  cli,
  errors,
  flag_tables,
  own_code,
  progress,
  signals,
)
from batch_rl_dr3.evaluation import pool as pool_lib
from batch_rl_dr3.evaluation import targets as targets_lib
from batch_rl_dr3.runs import mirror, results, run_directory

_USAGE = """\
Plays checkpoints under the protocol of their run and writes their scores.

  python -m batch_rl_dr3.evaluate --checkpoints='RUNS/**'

Every run directory that the pattern finds says itself which game, network and
protocol it has; every checkpoint of it that has no scores yet is played with
the seeds that training would have used, and its rows are added to the run's
scores.csv. What is done is skipped, so the same command goes on after it was
stopped. The logged data are not needed. Runs of continuous control are played
in the same way; a --video of them takes a driver of OpenGL. Of runs in a
bucket, --checkpoints='gs://BUCKET/RUNS/**', those checkpoints are fetched that
are to be played.

Checkpoints of Dopamine's or batch_rl's TensorFlow agents (tf_ckpt-N.index, of
the Nature network with any number of heads or quantiles) are played too:

  python -m batch_rl_dr3.evaluate --checkpoints=DOPAMINE_RUN/checkpoints \\
    --gin_files=atari/protocol.gin \\
    --gin_bindings="atari_lib.create_atari_environment.game_name='Pong'" \\
    --method=dqn --dataset=1pct --output_dir=RUNS/dopamine_pong

Where a network has several outputs per action, say what they are: REM's heads,
QR-DQN's quantiles, or (--atoms=categorical --support=-10,10) the logits of
C51 and Rainbow. Pickles are never opened. --output_dir becomes a run directory
with scores.csv and provenance.json, as report takes it.

Anybody's policy in an ONNX file or a SavedModel, `export`'s among them:

  python -m batch_rl_dr3.evaluate --policy=model.onnx --game=Pong \
    --method=mine --dataset=1pct --output_dir=RUNS/mine_pong

It takes states, [n, 84, 84, 4] of Atari and [n, 10, 10, C] of MinAtar or either
with the channels first, and gives q_values [n, A] or an action [n].

Exit codes: 0 finished, 64 usage, 65 data, 70 a process died, 73 cannot write,
75 stopped and can go on, or another worker is at work there, 78 configuration.
"""

FLAGS = flags.FLAGS

# Memory of one worker process, in bytes: TensorFlow, a network and emulators.
_WORKER_BYTES = 1_500_000_000
# A checkpoint to play, and the home of its scores, locked.
_Task = tuple[targets_lib.RemainingEvaluation, run_directory.Home]
# Flags for another program's checkpoints alone.
_FOREIGN_FLAGS = (
  *('gin_files', 'gin_bindings', 'game', 'output_dir', 'method', 'atoms'),
  'support',
)


def define_flags() -> None:
  """Defines the flags of the command."""
  cache_help = 'Where what is in a bucket is worked on.'
  cli.define_shared('gin', 'code', 'cache', cache_dir=cache_help)
  flag_tables.define('evaluate', atoms={'enum_values': pool_lib.ATOMS})


def evaluate(
  targets: Iterable[Callable[[], targets_lib.Target]],
  which: str = 'all',
  num_workers: int = 0,
  video: bool = False,
  cache_dir: str = '',
) -> None:
  """Plays every checkpoint that has no scores yet.

  The targets are opened here, by calls; the rest are the command's flags.

  Raises:
    BatchRLError: the first, after everything else has been played; the others
      are printed.
  """
  problems: list[errors.BatchRLError] = []
  tasks: list[_Task] = []
  with contextlib.ExitStack() as stack:
    for open_target in targets:
      try:
        target = open_target()
        left = targets_lib.remaining_evaluations(target, which, video)
        if left:
          names = {task.checkpoint.name for task in left}
          home = target.open_home(cache_dir, names)
          stack.enter_context(home.lock())
          # Somebody may just have done some of it.
          target = target.within(home)
          left = targets_lib.remaining_evaluations(target, which, video)
          tasks += [(task, home) for task in left]
      except errors.BatchRLError as error:
        problems.append(error)
    # A process plays games or continuous control, never both.
    for worker, is_continuous in (
      (pool_lib.GAMES, False),
      (pool_lib.CONTINUOUS_CONTROL, True),
    ):
      of_kind = [t for t in tasks if t[0].target.is_continuous == is_continuous]
      if of_kind:
        problems += _play(of_kind, num_workers, worker)
  if not tasks and not problems:
    print('Everything is evaluated already.')
  for problem in problems[1:]:
    print(f'evaluate: {problem}', file=sys.stderr)
  if problems:
    raise problems[0]


def _play(
  tasks: Sequence[_Task], num_workers: int, worker: str
) -> list[errors.BatchRLError]:
  """Plays the tasks, writes their scores, and returns what went wrong."""
  num_cores = len(os.sched_getaffinity(0))
  workers = min(num_workers or _default_workers(num_cores), len(tasks))
  problems: list[errors.BatchRLError] = []
  # Episodes of continuous control end when they end.
  num_agent_steps = sum(task.num_agent_steps for task, _ in tasks) or None
  stop_request = signals.StopRequest()
  pool = pool_lib.EvaluationPool(workers, worker, stop_request)
  with (
    stop_request.listening(),
    progress.bar(num_agent_steps, 'playing', 'step') as bar,
    contextlib.closing(pool),
  ):
    for task, home in tasks:
      try:
        job = task.job(max(1, num_cores // workers))
        pool.submit(job, functools.partial(task.record, home=home))
      except errors.DataError as error:
        problems.append(error)

    def show(num_left: int) -> None:
      bar.set_postfix_str(f'{num_left} checkpoints left', refresh=False)
      bar.update(pool.num_played - bar.n)

    for record, future in pool.done(on_poll=show):
      try:
        bar.write(record(future.result()))
      except errors.BatchRLError as error:
        problems.append(error)
  return problems


def _default_workers(num_cores: int) -> int:
  """Returns a process for every two cores, if there is memory for them."""
  with open('/proc/meminfo') as file:
    kibibytes = dict(line.split()[:2] for line in file)
  free = 1024 * int(kibibytes['MemAvailable:'])
  return max(1, min(num_cores // 2, free // _WORKER_BYTES))


def _targets() -> list[Callable[[], targets_lib.Target]]:
  """Returns what the flags name."""
  imports = cli.find_imports()
  targets: list[Callable[[], targets_lib.Target]] = []
  others = []
  if FLAGS.policy:
    if not pool_lib.is_exported(FLAGS.policy):
      raise errors.DataError(
        f'{FLAGS.policy} is no policy: neither a file that ends in .onnx nor '
        'the folder of a SavedModel.'
      )
    others.append(FLAGS.policy)
  if FLAGS.checkpoints:
    view = results.RunGlobs(
      FLAGS.checkpoints, FLAGS.cache_dir, targets_lib.CONTENTS
    )
    view.refresh()
    runs, folders = targets_lib.find(view.patterns)
    others += [view.name_of(str(folder)) for folder in folders]
    targets += [
      functools.partial(
        targets_lib.of_run, run, view.name_of(str(run)), imports
      )
      for run in runs
    ]
  if others:
    _check_others(others)
    atoms = parse_atoms(FLAGS.atoms, FLAGS.support)
    targets.append(functools.partial(_foreign, others[0], atoms, imports))
  elif given := [name for name in _FOREIGN_FLAGS if FLAGS[name].value]:
    raise errors.UsageError(
      f"--{given[0]} is for another program's checkpoints; a run directory "
      'says itself what it is (see --help).'
    )
  return targets


def _check_others(others: Sequence[str]) -> None:
  """Raises UsageError if the flags do not say what other programs' files are.

  They are one, as their scores go to one place.
  """
  if not FLAGS.game and not FLAGS.gin_files:
    raise errors.UsageError(
      f'--game or --gin_files is needed: {others[0]} does not say its game '
      '(see --help).'
    )
  cli.need(
    *('output_dir', 'method', 'dataset'),
    why=f": {others[0]} holds another program's checkpoints, which say neither "
    'game nor method',
  )
  if len(others) > 1:
    raise errors.UsageError(
      f'--output_dir takes one run, and there are {len(others)} folders of '
      f"other programs' checkpoints: {others[0]}, {others[1]}."
    )


def parse_atoms(
  kind: str | None, support: Sequence[str] | None
) -> pool_lib.Atoms:
  """Returns what --atoms and --support say; a UsageError if they do not fit."""
  if kind != pool_lib.CATEGORICAL:
    if support:
      raise errors.UsageError('--support is for --atoms=categorical alone.')
    return pool_lib.Atoms(kind)
  try:
    low, high = map(float, support or ())
  except ValueError:
    low = high = math.nan
  if not -math.inf < low < high < math.inf:
    raise errors.UsageError(
      '--atoms=categorical needs the lowest and the highest return of its '
      'support, such as --support=-10,10.'
    )
  return pool_lib.Atoms(kind, (low, high))


def _foreign(
  folder: str, atoms: pool_lib.Atoms, imports: Sequence[own_code.OwnCode]
) -> targets_lib.Target:
  """Returns the target of another program's checkpoints, or of a policy."""

  def fetch(place: str, contents: mirror.Contents) -> pathlib.Path:
    runs = mirror.Mirror(place, FLAGS.cache_dir, contents)
    runs.refresh()
    return runs.folder

  source = pathlib.Path(folder)
  if not pool_lib.is_exported(folder):
    source = fetch(folder, targets_lib.FOREIGN_CONTENTS)
  files, bindings = FLAGS.gin_files, FLAGS.gin_bindings
  if FLAGS.game:
    of_game = targets_lib.protocol_of(FLAGS.game)
    files, bindings = [*of_game[0], *files], [*of_game[1], *bindings]
  return targets_lib.of_folder(
    source,
    fetch(FLAGS.output_dir, targets_lib.CONTENTS),
    cli.gin_text(files, bindings, imports),
    {name: FLAGS[name].value for name in ('method', 'dataset', 'run', 'seed')},
    FLAGS.gradient_steps_per_iteration,
    FLAGS.output_dir,
    atoms,
    imports,
  )


def main() -> None:
  """Runs the command that the flags ask for."""
  if not FLAGS.checkpoints and not FLAGS.policy:
    raise errors.UsageError(
      '--checkpoints is needed, or --policy (see --help).'
    )
  evaluate(
    _targets(), FLAGS.which, FLAGS.num_workers, FLAGS.video, FLAGS.cache_dir
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main, _USAGE)
