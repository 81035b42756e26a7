"""The scores of one run: scores.csv, whole iterations only."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

from batch_rl_dr3.runs import run_directory

# Entries of provenance.json that every row repeats.
_IDENTITY = ('suite', 'game', 'method', 'dataset', 'run', 'seed')


@dataclasses.dataclass(frozen=True)
class Episode:
  """One finished episode.

  Attributes:
    lane: the lane that played it.
    episode_return: the sum of its unclipped rewards.
    length: its length in agent steps.
    truncated: whether the time limit ended it, not the game.
  """

  lane: int
  episode_return: float
  length: int
  truncated: bool


class ScoreLog:
  """Rows of evaluation episodes, all or none of an iteration."""

  def __init__(
    self,
    base_dir: str | os.PathLike[str],
    check: run_directory.Check = run_directory.unchecked,
  ):
    """Opens the log of a run directory; nothing is written yet.

    Args:
      base_dir: the run directory.
      check: asked before anything is published.
    """
    self._path = os.path.join(base_dir, run_directory.SCORES)
    self._csv = run_directory.CsvLog(
      self._path, run_directory.SCORE_COLUMNS, check
    )

  def iterations(self) -> set[int]:
    """Returns the iterations that have scores."""
    rows = run_directory.read_csv(self._path)
    return {int(row['iteration']) for row in rows}

  def keep(self, gradient_steps: int) -> None:
    """Drops what was scored after so many gradient steps."""
    self._csv.keep(lambda row: int(row['gradient_steps']) <= gradient_steps)

  def append(
    self,
    provenance: Mapping[str, Any],
    iteration: int,
    gradient_steps: int,
    episodes: Sequence[Episode],
  ) -> None:
    """Adds the episodes of one iteration, all or none.

    Args:
      provenance: what the run is, as in provenance.json.
      iteration: the iteration.
      gradient_steps: how many the weights have had.
      episodes: what was played.

    Raises:
      WriteError: if the disk refuses.
    """
    self._csv.extend_atomically(
      {
        **{name: provenance[name] for name in _IDENTITY},
        'iteration': iteration,
        'gradient_steps': gradient_steps,
        'episode': number,
        'return': episode.episode_return,
        'length': episode.length,
        'truncated': int(episode.truncated),
      }
      for number, episode in enumerate(episodes)
    )
