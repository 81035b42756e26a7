"""The scores of a run's checkpoints: which are missing, and writing them."""

from collections.abc import Callable, Mapping
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.evaluation import evaluations
from batch_rl_dr3.games import play
from batch_rl_dr3.runs import checkpoints, home, score_log
from batch_rl_dr3.training import metrics


class Scoring:
  """Has every checkpoint that ends an iteration played, once.

  An evaluation is a function of the checkpoint and (seed, iteration). One that
  was interrupted is played again from its beginning, which comes to the same,
  bit for bit, and costs at most one evaluation.
  """

  def __init__(
    self,
    home: home.Home,
    provenance: Mapping[str, Any],
    kept: checkpoints.Checkpoints,
    played: evaluations.Evaluations,
    log: metrics.MetricsLog,
    normalised: Callable[[float], float | None] = lambda mean_return: None,
  ):
    """Takes note of who takes part.

    Args:
      home: of the run.
      provenance: what the run is, as in provenance.json.
      kept: the run's checkpoints.
      played: plays them, here or elsewhere.
      log: where the mean return is shown.
      normalised: makes a score in percent of a mean return, None of one that
        is on no scale.
    """
    self._home = home
    self._provenance = provenance
    self._checkpoints = kept
    self._evaluations = played
    self._metrics = log
    self._normalised = normalised
    self._scores = score_log.ScoreLog(home.folder, home.check)
    # Prints a line; a progress bar has its own way to.
    self.write: Callable[[str], object] = print

  @property
  def is_wanted(self) -> bool:
    """Whether the run is evaluated at all."""
    return not isinstance(self._evaluations, evaluations.NoEvaluations)

  def start(self, steps: int) -> None:
    """Goes back to `steps` gradient steps, whatever was scored since."""
    self._scores.keep(steps)

  def iterations(self) -> set[int]:
    """Returns the iterations that have scores."""
    return self._scores.iterations()

  def play_missing(self, steps: int) -> None:
    """Plays every checkpoint so far that has no scores, or has it played.

    Args:
      steps: gradient steps so far.
    """
    if not self.is_wanted:
      return
    done = self._scores.iterations()
    for iteration, checkpoint in self._checkpoints.of_iterations().items():
      if iteration not in done and checkpoint.gradient_steps <= steps:
        # It must outlive the next ones until its scores are written.
        self._checkpoints.protect(checkpoint.name)
        seed = play.evaluation_seed(self._provenance['seed'], iteration)
        self._evaluations.submit(iteration, checkpoint, seed)
    for finished in self._evaluations.finished():
      self._record(finished)

  def finish(self, num_iterations: int) -> None:
    """Waits until every iteration has its scores.

    Raises:
      DataError: if one never can have them.
    """
    for finished in self._evaluations.all():
      self._record(finished)
    missing = set(range(num_iterations)) - self._scores.iterations()
    if missing and self.is_wanted:
      raise errors.DataError(
        f'iteration {min(missing)} has no scores in {self._home.name}, and its '
        'checkpoint is gone or damaged. Restore it, or start over with '
        '--overwrite.'
      )

  def _record(self, finished: evaluations.Finished) -> None:
    """Writes the scores of one iteration, all or none."""
    checkpoint, episodes = finished.checkpoint, finished.episodes
    steps = checkpoint.gradient_steps
    self._scores.append(self._provenance, finished.iteration, steps, episodes)
    self._home.publish()
    self._checkpoints.release(checkpoint.name)
    mean_return = sum(e.episode_return for e in episodes) / len(episodes)
    shown = {'eval_return': mean_return}
    text = f'iteration {finished.iteration}: mean return {mean_return:.2f}'
    score = self._normalised(mean_return)
    if score is not None:
      shown['eval_normalised_score'] = score
      text += f', normalised {score:.1f},'
    self._metrics.scalars(shown, steps)
    self.write(f'{text} over {len(episodes)} episodes')
