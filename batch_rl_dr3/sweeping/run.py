"""One run of a sweep: what it is, where it goes, and the command for it."""

import dataclasses
import functools
import pathlib
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory

# Steps of an episode of continuous control, at most: those of the kitchen are
# 280, the others' 1,000.
_MAX_EPISODE_STEPS = 1_000


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a sweep.

  Attributes:
    index: its place in the sweep, by which job arrays name it.
    suite: of the game.
    game: what it is evaluated in.
    dataset: the data set's short name.
    method: the method's short name.
    seed: the run's seed.
    logged_run: which logged run of the game it learns from.
    gin_files: what is trained.
    gin_bindings: overrides of the files.
    replay_dir: where its log is; None for the public buckets.
    identity: 8 hexadecimal digits, see `Sweep.runs`.
    runner: what trains it, as its files call it.
    bound: what its files and bindings bind, by name.
  """

  index: int
  suite: str
  game: str
  dataset: str
  method: str
  seed: int
  logged_run: int
  gin_files: tuple[str, ...]
  gin_bindings: tuple[str, ...]
  replay_dir: str | None
  identity: str
  runner: str
  bound: dict[str, Any] = dataclasses.field(repr=False, compare=False)

  @property
  def folder(self) -> str:
    """The run directory, below the folder of all runs."""
    name = f'seed{self.seed}-{self.identity}'
    return '/'.join((self.suite, self.game, self.dataset, self.method, name))

  def scores_apart(self, results_dir: str) -> pathlib.Path:
    """Returns where its scores are if results are kept apart.

    Args:
      results_dir: of one suite, so its name is left out there.
    """
    below = self.folder.partition('/')[2]
    return pathlib.Path(results_dir) / below / run_directory.SCORES

  @property
  def data(self) -> str:
    """The log that it learns from."""
    return self.replay_dir or f'{self.game}/{self.logged_run}'

  @functools.cached_property
  def store(self) -> str:
    """What runs have in common that learn from the same store."""
    subset = {n: v for n, v in self.bound.items() if n.startswith('Subset.')}
    return f'{self.data} {sorted(subset.items())}'

  @property
  def fraction(self) -> float:
    """The share of the log's rows that it learns from."""
    return float(self.bound.get('Subset.fraction', 1.0))

  @property
  def num_iterations(self) -> int:
    """Iterations of training and evaluation."""
    return self._bound('num_iterations')

  @property
  def num_gradient_steps(self) -> int:
    """Gradient steps of all iterations."""
    return self.num_iterations * self._bound('num_gradient_steps')

  @property
  def num_evaluation_agent_steps(self) -> int:
    """Agent steps of play of all iterations; of continuous control, at most."""
    if f'{self.runner}.num_evaluation_episodes' in self.bound:
      num_steps = _MAX_EPISODE_STEPS * self._bound('num_evaluation_episodes')
    else:
      num_steps = self._bound('num_evaluation_agent_steps')
    return self.num_iterations * num_steps

  def _bound(self, name: str) -> int:
    try:
      return int(self.bound[f'{self.runner}.{name}'])
    except (KeyError, ValueError) as error:
      raise errors.ConfigError(
        f'{self.gin_files[0]} binds no number to {self.runner}.{name}, which '
        'a sweep has to know.'
      ) from error

  def arguments(self, runs: str, cache_dir: str) -> list[str]:
    """Returns the flags of `python -m batch_rl_dr3.train` for this run.

    Args:
      runs: the folder of all runs.
      cache_dir: where stores are kept.
    """
    where = (
      f'--run={self.logged_run}'
      if self.replay_dir is None
      else f'--replay_dir={self.replay_dir}'
    )
    return [
      *(f'--gin_files={name}' for name in self.gin_files),
      *(f'--gin_bindings={line}' for line in self.gin_bindings),
      where,
      f'--seed={self.seed}',
      f'--base_dir={runs.rstrip("/")}/{self.folder}',
      f'--cache_dir={cache_dir}',
    ]
