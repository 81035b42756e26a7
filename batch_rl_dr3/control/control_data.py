"""What a run learns from: which data, which part, which rewards."""

import dataclasses
import hashlib
import json

import gin
import numpy as np

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import (
  d4rl_file,
  minari_folder,
  stored_data,
  tasks,
  transitions,
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ControlData:
  """How logged data are made into transitions to learn from.

  Attributes:
    fraction: the share of the transitions that is kept, drawn uniformly and
      without replacement.
    fraction_seed: fixes which.
    reward_scale: rewards become scale * (reward + shift).
    reward_shift: see above; CQL's authors take 4 * (r - 0.5) on antmaze.
    end_at_reward: count a transition with a positive reward as the end, as
      D4RL's antmaze files do and Minari's, which play on at the goal, do not.
    max_episode_steps: see `d4rl_file.read`.
  """

  fraction: float = 1.0
  fraction_seed: int = 0
  reward_scale: float = 1.0
  reward_shift: float = 0.0
  end_at_reward: bool = False
  max_episode_steps: int | None = None

  def __post_init__(self) -> None:
    """Raises ConfigError if the fraction is out of range."""
    if not 0.0 < self.fraction <= 1.0:
      raise errors.ConfigError(
        f'ControlData.fraction is {self.fraction}; it must be in (0, 1].'
      )

  def load(
    self, path: str, cache_dir: str, game: str
  ) -> tuple[tasks.Task, transitions.Transitions]:
    """Returns the task that the data are of, and the transitions.

    Args:
      path: an HDF5 file of D4RL's layout or its URL, the folder of a Minari
        data set, or minari:ID.
      cache_dir: where what is fetched is kept.
      game: the game.

    Raises:
      ConfigError: if there is no such game.
      DataError: if the data cannot be used.
    """
    file = stored_data.locate(path, cache_dir)
    if file.is_dir():
      if not minari_folder.is_one(file):
        raise errors.DataError(
          f'{path} is a folder and no Minari data set; of D4RL, name the '
          '.hdf5 file.'
        )
      task = tasks.find(game, tasks.MINARI)
      data = minari_folder.read(path, file, task)
    else:
      task = tasks.find(game, tasks.D4RL)
      data = d4rl_file.read(path, file, task, self.max_episode_steps)
    return task, self._prepare(data)

  def _prepare(self, data: transitions.Transitions) -> transitions.Transitions:
    if self.fraction < 1.0:
      rng = np.random.default_rng(self.fraction_seed)
      size = max(1, round(self.fraction * len(data)))
      data = data.take(np.sort(rng.permutation(len(data))[:size]))
    terminals = data.terminals
    if self.end_at_reward:
      terminals = np.maximum(terminals, data.rewards > 0).astype(np.float32)
    rewards = self.reward_scale * (data.rewards + self.reward_shift)
    settings = dataclasses.asdict(self)
    text = json.dumps([data.manifest['sha256'], settings], sort_keys=True)
    return dataclasses.replace(
      data,
      rewards=rewards.astype(np.float32),
      terminals=terminals,
      manifest={
        **data.manifest,
        'settings': settings,
        'num_transitions_kept': len(data),
        'hash': hashlib.sha256(text.encode()).hexdigest(),
      },
    )
