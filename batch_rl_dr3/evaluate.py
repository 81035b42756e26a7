"""Plays checkpoints and writes their scores."""

from collections.abc import Callable, Iterable, Sequence
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys

from absl import flags

from batch_rl_dr3 import (
  cli,
  errors,
  mirror,
  progress,
  run_globs,
  tensorflow_start,
)
from batch_rl_dr3.evaluation import play
from batch_rl_dr3.training import (
  checkpoints,
  evaluation_pool,
  evaluation_targets,
  preemption,
  score_log,
)
from batch_rl_dr3.training import home as home_lib

_USAGE = """\
Plays checkpoints under the protocol of their run and writes their scores.

  python -m batch_rl_dr3.evaluate --checkpoints='RUNS/**'

Every run directory that the pattern finds says itself which game, network and
protocol it has; every checkpoint of it that has no scores yet is played with
the seeds that training would have used, and its rows are added to the run's
scores.csv. What is done is skipped, so the same command goes on after it was
stopped. Neither the logged data nor an agent is needed. Of runs in a bucket,
--checkpoints='gs://BUCKET/RUNS/**', those checkpoints are fetched that are to
be played.

Checkpoints of Dopamine's or batch_rl's TensorFlow agents (tf_ckpt-N.index, of
the Nature network with any number of heads or quantiles) are played too:

  python -m batch_rl_dr3.evaluate --checkpoints=DOPAMINE_RUN/checkpoints \\
    --gin_files=atari/protocol.gin \\
    --gin_bindings="atari_lib.create_atari_environment.game_name='Pong'" \\
    --method=dqn --dataset=1pct --output_dir=RUNS/dopamine_pong

Pickles are never opened. --output_dir becomes a run directory with scores.csv
and provenance.json, as report takes it.

Exit codes: 0 finished, 64 usage, 65 data, 70 a process died, 73 cannot write,
75 stopped and can go on, or another worker is at work there, 78 configuration.
"""

FLAGS = flags.FLAGS

# Memory of one worker process, in bytes: TensorFlow, a network and emulators.
_WORKER_BYTES = 1_500_000_000
_POLL_SECONDS = 0.5


def define_flags() -> None:
  """Defines the flags of the command."""
  cli.define_gin_flags()
  flags.DEFINE_multi_string(
    'checkpoints',
    [],
    'Run directories or folders of checkpoints, on a disk or in a bucket; ** '
    'stands for any folders. Repeat the flag for several.',
  )
  flags.DEFINE_enum(
    'which', 'all', ['all', 'last'], 'Which checkpoints of each are played.'
  )
  flags.DEFINE_integer(
    'num_workers',
    0,
    'Processes, each with a checkpoint; 0 chooses by cores and memory.',
    lower_bound=0,
  )
  flags.DEFINE_boolean(
    'video',
    False,
    "Also write an MP4 of each one's first episode to "
    f'{evaluation_targets.VIDEOS}/, with the Q-values and the feature dot '
    'product.',
  )
  cli.define_cache_dir('Where what is in a bucket is worked on.')
  flags.DEFINE_string(
    'output_dir', None, "Where scores of another program's checkpoints go."
  )
  flags.DEFINE_string('method', None, 'Their method, such as dqn.')
  flags.DEFINE_string('dataset', None, 'Their dataset, such as 1pct.')
  flags.DEFINE_integer('run', None, 'Their run of logged data, if known.')
  flags.DEFINE_integer('seed', 0, 'Their seed.', lower_bound=0)
  flags.DEFINE_integer(
    'gradient_steps_per_iteration',
    62_500,
    'Gradient steps between two of their checkpoints.',
    lower_bound=1,
  )


@dataclasses.dataclass(frozen=True)
class _Task:
  """One checkpoint to play, and whose it is."""

  target: evaluation_targets.Target
  iteration: int
  checkpoint: checkpoints.Checkpoint
  with_scores: bool
  with_video: bool
  home: home_lib.Home

  def job(self, num_threads: int) -> evaluation_pool.Job:
    """Returns what a worker is to do."""
    if self.target.is_run:
      checkpoints.check_whole(self.checkpoint)
    return evaluation_pool.Job(
      config=self.target.config,
      prefix=self.checkpoint.prefix,
      seed=play.evaluation_seed(self.target.provenance['seed'], self.iteration),
      rule=self.target.rule,
      num_threads=num_threads,
      with_scores=self.with_scores,
      video=str(_video(self.target, self.iteration))
      if self.with_video
      else None,
    )


def _video(target: evaluation_targets.Target, iteration: int) -> pathlib.Path:
  return (
    target.output_dir / evaluation_targets.VIDEOS / f'iteration_{iteration}.mp4'
  )


def evaluate(
  targets: Iterable[Callable[[], evaluation_targets.Target]],
  which: str = 'all',
  num_workers: int = 0,
  video: bool = False,
  cache_dir: str = '',
) -> None:
  """Plays every checkpoint that has no scores yet.

  Args:
    targets: each returns whose checkpoints are to be played.
    which: 'all', or 'last' of each.
    num_workers: processes; 0 chooses by cores and memory.
    video: whether a video of each is written, where there is none.
    cache_dir: where what lives in a bucket is worked on.

  Raises:
    BatchRLError: the first that went wrong, after everything else has been
      played; the others are printed.
  """
  problems: list[errors.BatchRLError] = []
  tasks: list[_Task] = []
  with contextlib.ExitStack() as stack:
    for open_target in targets:
      try:
        target = open_target()
        left = _todo(target, which, video)
        if left:
          names = {target.checkpoints[iteration].name for iteration in left}
          place = target.open_home(cache_dir, names)
          stack.enter_context(place.lock())
          target = target.within(place)
          # Somebody may just have done some of it.
          for iteration, kinds in _todo(target, which, video).items():
            tasks.append(
              _Task(
                target,
                iteration,
                target.checkpoints[iteration],
                *kinds,
                home=place,
              )
            )
      except errors.BatchRLError as error:
        problems.append(error)
    if tasks:
      problems += _play(tasks, num_workers)
  if not tasks and not problems:
    print('Everything is evaluated already.')
  for problem in problems[1:]:
    print(f'evaluate: {problem}', file=sys.stderr)
  if problems:
    raise problems[0]


def _todo(
  target: evaluation_targets.Target, which: str, video: bool
) -> dict[int, tuple[bool, bool]]:
  """Returns the iterations that are left: whether to score, and to film."""
  if not target.checkpoints:
    raise errors.DataError(
      f'{target.home} has no checkpoint of a finished iteration yet.'
    )
  found = list(target.checkpoints)
  done = score_log.ScoreLog(target.output_dir).iterations()
  kinds = {
    iteration: (
      iteration not in done,
      video and not _video(target, iteration).exists(),
    )
    for iteration in (found if which == 'all' else found[-1:])
  }
  return {iteration: kind for iteration, kind in kinds.items() if any(kind)}


def _play(
  tasks: Sequence[_Task], num_workers: int
) -> list[errors.BatchRLError]:
  """Plays the tasks, writes their scores, and returns what went wrong."""
  num_cores = len(os.sched_getaffinity(0))
  workers = min(num_workers or _default_workers(num_cores), len(tasks))
  stop_request = preemption.StopRequest()
  problems: list[errors.BatchRLError] = []
  pending = {}
  bar = progress.bar(
    sum(_num_agent_steps(task) for task in tasks), 'playing', 'step'
  )
  with (
    stop_request.listening(),
    bar,
    contextlib.closing(
      evaluation_pool.EvaluationPool(workers, _prepare)
    ) as pool,
  ):
    for task in tasks:
      try:
        pending[pool.submit(task.job(max(1, num_cores // workers)))] = task
      except errors.DataError as error:
        problems.append(error)
    while pending:
      bar.set_postfix_str(f'{len(pending)} checkpoints left', refresh=False)
      done = evaluation_pool.wait(set(pending), _POLL_SECONDS)
      bar.update(pool.num_played - bar.n)
      for future in done:
        task = pending.pop(future)
        try:
          bar.write(_record(task, evaluation_pool.result_of(future)))
        except evaluation_pool.WorkerDiedError:
          raise
        except errors.BatchRLError as error:
          problems.append(error)
      if stop_request and pending:
        raise errors.PreemptedError(
          f'stopped by {stop_request.signal_name}; {len(pending)} checkpoints '
          'are left, and the same command goes on with them.'
        )
  return problems


def _num_agent_steps(task: _Task) -> int:
  rule = task.target.rule or play.PUBLISHED
  return rule.num_agent_steps if task.with_scores else 0


def _default_workers(num_cores: int) -> int:
  """Returns a process for every two cores, if there is memory for them."""
  with open('/proc/meminfo') as file:
    kibibytes = dict(line.split()[:2] for line in file)
  free = 1024 * int(kibibytes['MemAvailable:'])
  return max(1, min(num_cores // 2, free // _WORKER_BYTES))


def _prepare() -> None:
  """Makes a worker process ready: it may meet names of shipped gin files."""
  tensorflow_start.import_tensorflow()
  import gin

  gin.add_config_file_search_path(str(cli.shipped_configs()))


def _record(task: _Task, result: evaluation_pool.Result) -> str:
  """Writes the scores of one checkpoint and returns what to say of them."""
  target, episodes = task.target, result.episodes
  name = f'{target.home} iteration {task.iteration}'
  if episodes:
    check = task.home.check
    provenance = evaluation_targets.write_provenance(target, result, check)
    score_log.ScoreLog(target.output_dir, check).append(
      provenance, task.iteration, task.checkpoint.gradient_steps, episodes
    )
  task.home.publish()
  if not episodes:
    return f'{name}: video written'
  mean_return = sum(e.episode_return for e in episodes) / len(episodes)
  return f'{name}: mean return {mean_return:.2f} over {len(episodes)} episodes'


def _targets() -> list[Callable[[], evaluation_targets.Target]]:
  """Returns what the flags name.

  Raises:
    DataError: if they name nothing.
    UsageError: if another flag is missing, or is of no use.
  """
  view = run_globs.RunGlobs(
    FLAGS.checkpoints, FLAGS.cache_dir, evaluation_targets.CONTENTS
  )
  view.refresh()
  runs, folders = evaluation_targets.find(view.patterns)
  targets: list[Callable[[], evaluation_targets.Target]] = [
    functools.partial(
      evaluation_targets.of_run, run, cli.trusts_gin(), view.name_of(str(run))
    )
    for run in runs
  ]
  if not folders:
    for name in ('gin_files', 'gin_bindings', 'output_dir', 'method'):
      if FLAGS[name].value:
        raise errors.UsageError(
          f"--{name} is for another program's checkpoints; a run directory "
          'says itself what it is (see --help).'
        )
    return targets
  for name in ('gin_files', 'output_dir', 'method', 'dataset'):
    if not FLAGS[name].value:
      raise errors.UsageError(
        f"--{name} is needed: {folders[0]} holds another program's "
        'checkpoints, which say neither game nor method (see --help).'
      )
  if len(folders) > 1:
    raise errors.UsageError(
      f'--output_dir takes one run, and there are {len(folders)} folders of '
      f"other programs' checkpoints: {folders[0]}, {folders[1]}."
    )
  return [
    *targets,
    functools.partial(_foreign_target, view.name_of(str(folders[0]))),
  ]


def _foreign_target(folder: str) -> evaluation_targets.Target:
  """Returns the target of a folder or URL of another program's checkpoints."""
  source, target = (
    mirror.open_runs(place, FLAGS.cache_dir, contents)
    for place, contents in (
      (folder, evaluation_targets.FOREIGN_CONTENTS),
      (FLAGS.output_dir, evaluation_targets.CONTENTS),
    )
  )
  source.refresh()
  target.refresh()
  identity = {
    name: FLAGS[name].value for name in ('method', 'dataset', 'run', 'seed')
  }
  return evaluation_targets.of_folder(
    source.folder,
    target.folder,
    cli.gin_text(FLAGS.gin_files, FLAGS.gin_bindings),
    identity,
    FLAGS.gradient_steps_per_iteration,
    FLAGS.output_dir,
  )


def main() -> None:
  """Runs the command that the flags ask for."""
  if not FLAGS.checkpoints:
    raise errors.UsageError('--checkpoints is needed (see --help).')
  evaluate(
    _targets(), FLAGS.which, FLAGS.num_workers, FLAGS.video, FLAGS.cache_dir
  )


if __name__ == '__main__':
  define_flags()
  cli.run(main, _USAGE)
