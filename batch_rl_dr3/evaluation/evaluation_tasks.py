"""What is left to play of a target, one checkpoint a task."""

import dataclasses
import pathlib

from batch_rl_dr3.config import errors
from batch_rl_dr3.evaluation import evaluation_pool, evaluation_targets
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import checkpoints, score_log
from batch_rl_dr3.runs import home as home_lib


@dataclasses.dataclass(frozen=True)
class Task:
  """One checkpoint to play, and whose it is.

  Attributes:
    target: whose it is.
    iteration: the iteration that it ends.
    checkpoint: the checkpoint.
    with_scores: whether the whole evaluation is played.
    with_video: whether a video is written.
    num_agent_steps: of play; 0 where episodes are counted, or for a video.
    home: where its scores go, locked; None before that.
  """

  target: evaluation_targets.Target
  iteration: int
  checkpoint: checkpoints.Checkpoint
  with_scores: bool
  with_video: bool
  num_agent_steps: int
  home: home_lib.Home | None = None

  def job(self, num_threads: int) -> evaluation_pool.Job:
    """Returns what a worker is to do.

    Raises:
      DataError: if the checkpoint is damaged.
    """
    if self.target.is_run:
      checkpoints.check_whole(self.checkpoint)
    return evaluation_pool.Job(
      config=self.target.config,
      prefix=self.checkpoint.prefix,
      seed=play.evaluation_seed(self.target.provenance['seed'], self.iteration),
      protocol=self.target.protocol,
      num_threads=num_threads,
      with_scores=self.with_scores,
      video=str(_video(self.target, self.iteration))
      if self.with_video
      else None,
    )

  def record(self, result: evaluation_pool.Result) -> str:
    """Writes the scores and returns what to say of them.

    Raises:
      DataError: see `evaluation_targets.write_provenance`.
      WriteError: if the disk refuses.
    """
    assert self.home is not None
    target, episodes = self.target, result.episodes
    name = f'{target.home} iteration {self.iteration}'
    if episodes:
      check = self.home.check
      provenance = evaluation_targets.write_provenance(target, result, check)
      score_log.ScoreLog(target.output_dir, check).append(
        provenance, self.iteration, self.checkpoint.gradient_steps, episodes
      )
    self.home.publish()
    if not episodes:
      return f'{name}: video written'
    mean_return = sum(e.episode_return for e in episodes) / len(episodes)
    return (
      f'{name}: mean return {mean_return:.2f} over {len(episodes)} episodes'
    )


def left(
  target: evaluation_targets.Target,
  which: str,
  video: bool,
  home: home_lib.Home | None = None,
) -> list[Task]:
  """Returns what is left to do for one target.

  Args:
    target: the target.
    which: 'all' checkpoints, or the 'last'.
    video: whether a video of each is written, where there is none.
    home: see `Task`.

  Raises:
    DataError: if there is no checkpoint yet, or the protocol is not whole.
  """
  if not target.checkpoints:
    raise errors.DataError(
      f'{target.home} has no checkpoint of a finished iteration yet.'
    )
  found = list(target.checkpoints.items())
  done = score_log.ScoreLog(target.output_dir).iterations()
  tasks = [
    Task(
      target,
      iteration,
      checkpoint,
      with_scores=iteration not in done,
      with_video=video and not _video(target, iteration).exists(),
      num_agent_steps=0 if iteration in done else _num_agent_steps(target),
      home=home,
    )
    for iteration, checkpoint in (found if which == 'all' else found[-1:])
  ]
  return [task for task in tasks if task.with_scores or task.with_video]


def _num_agent_steps(target: evaluation_targets.Target) -> int:
  if target.protocol is None:
    return play.PUBLISHED.num_agent_steps
  if 'num_evaluation_episodes' in target.protocol:
    return 0
  return play.Rule.recorded(target.protocol).num_agent_steps


def _video(target: evaluation_targets.Target, iteration: int) -> pathlib.Path:
  return (
    target.output_dir / evaluation_targets.VIDEOS / f'iteration_{iteration}.mp4'
  )
