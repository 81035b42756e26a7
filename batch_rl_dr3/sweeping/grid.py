"""What a sweep consists of: games x data sets x methods x seeds, as gin says.

A grid file binds `Sweep` and nothing that is trained; each of its runs is the
gin files and bindings that its templates give, and can be trained by hand with
the same command.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from typing import Any

import gin

import batch_rl_dr3
from batch_rl_dr3.config import errors, gin_files, ranges
from batch_rl_dr3.runs import run_identity

# Steps of an episode of continuous control, at most: those of the kitchen are
# 280, the others' 1,000.
_MAX_EPISODE_STEPS = 1_000
# The logged runs of the DQN Replay data set, and what `collect` leaves beside
# its own.
_PUBLIC_ROWS = 50_000_000
_PUBLIC_SHAPE = (84, 84)
_COLLECTION = 'collection.json'
# Action, reward and terminal of a row.
_ELEMENT_BYTES = 9


@dataclasses.dataclass(frozen=True)
class SweepRun:
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

  @property
  def kept_folder(self) -> str:
    """Its name in a study, which is of one suite."""
    return self.folder.partition('/')[2]

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


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs of a sweep, and what one of them needs.

  In `gin_files`, `gin_bindings` and `replay_dir`, {suite}, {game}, {dataset},
  {method}, {seed} and {run} stand for the run's own, and {data} for what
  `data_names` makes of them.

  Attributes:
    suite: the suite of the games.
    games: names of games.
    datasets: short names of data sets.
    methods: short names of methods.
    variants: bindings by name, such as {'c0_0.03':
      ['FeatureDotPenalty.coefficient = 0.03']}: each method is run with each,
      and is then called <method>_<name>. Templates see the method without it.
    seeds: seeds of each combination.
    logged_runs: the logged runs, dealt out to the seeds in turn.
    gin_files: templates of gin files.
    gin_bindings: templates of bindings that override them.
    replay_dir: template of where the logs are; None looks for the logged run
      in the public buckets.
    data_names: what {data} stands for, by game or by data set; it is the data
      set's own name where nothing is said.
    results_dir: a study of results that are kept apart from the runs, such as
      one under version control (see `runs.results`): what it holds is done.
    num_cpus: processor cores of a run.
    num_gpus: GPUs of a run; a fraction packs several on one.
    run_gigabytes: memory of a run, with frames that it holds for itself.
    store_memory_share: the share of a store, read as needed by all runs of a
      node, that is to fit in the node's memory.
    row_bytes: of a row in a store, in memory and on disk; 0 where there is no
      store, as in continuous control, whose data each run holds for itself;
      None where the data say it: those of `collect`, and the public ones.
    log_rows: rows of a logged run; None where the data say it.
    log_gigabytes: size of a logged run where it is read from; None where it
      is not known or on this machine.
    run_disk_gigabytes: disk of a finished run, checkpoints included; None
      where it is to be measured.
    max_attempts_without_progress: a run is set aside after so many.
  """

  suite: str = gin.REQUIRED
  games: Sequence[str] = gin.REQUIRED
  datasets: Sequence[str] = gin.REQUIRED
  methods: Sequence[str] = gin.REQUIRED
  variants: Mapping[str, Sequence[str]] | None = None
  seeds: Sequence[int] = gin.REQUIRED
  logged_runs: Sequence[int] = (1,)
  gin_files: Sequence[str] = gin.REQUIRED
  gin_bindings: Sequence[str] = ()
  replay_dir: str | None = None
  data_names: Mapping[str, str] | None = None
  results_dir: str | None = None
  num_cpus: ranges.Positive = 1.0
  num_gpus: ranges.NonNegative = 0.0
  run_gigabytes: ranges.Positive = 2.0
  store_memory_share: ranges.Share = 1.0
  row_bytes: ranges.Natural | None = None
  log_rows: ranges.Count | None = None
  log_gigabytes: ranges.Positive | None = None
  run_disk_gigabytes: ranges.Positive | None = None
  max_attempts_without_progress: ranges.Count = 5

  def runs(self) -> list[SweepRun]:
    """Returns the runs, in an order that never changes for one grid.

    A run's identity is a hash of what its files bind, which log it is, its
    seed and the version of this package. Runs of one store follow each other.

    Raises:
      ConfigError: if a file is missing, does not say what the grid says of
        it, or two runs are the same.
    """
    runs = [
      self._run(index, *combination)
      for index, combination in enumerate(self._combinations())
    ]
    seen: dict[str, SweepRun] = {}
    for run in runs:
      if seen.setdefault(run.folder, run) is not run:
        raise errors.ConfigError(
          f'runs {seen[run.folder].index} and {run.index} of the grid are the '
          f'same: {run.folder}. Is a name listed twice?'
        )
    return runs

  def _combinations(
    self,
  ) -> Iterator[tuple[str, str, str, str, int, int]]:
    """Yields game, dataset, method, variant, seed and logged run."""
    if not self.logged_runs:
      raise errors.ConfigError('Sweep.logged_runs is empty.')
    dealt = list(zip(self.seeds, itertools.cycle(self.logged_runs)))
    for game in self.games:
      for dataset in self.datasets:
        for seed, logged_run in dealt:
          for method, variant in itertools.product(
            self.methods, self.variants or ('',)
          ):
            yield game, dataset, method, variant, seed, logged_run

  def _run(
    self,
    index: int,
    game: str,
    dataset: str,
    method: str,
    variant: str,
    seed: int,
    logged_run: int,
  ) -> SweepRun:
    names: dict[str, Any] = {
      'suite': self.suite,
      'game': game,
      'dataset': dataset,
      'method': method,
      'seed': seed,
      'run': logged_run,
      'data': self._data_name(game, dataset),
    }
    files = tuple(_fill(text, names) for text in self.gin_files)
    lines = tuple(_fill(text, names) for text in self.gin_bindings)
    bound = gin_files.read_bindings(files, lines)
    runner = _runner(bound, files)
    if self.variants and variant:
      names['method'] = f'{method}_{variant}'
      lines += (
        f'{runner}.method = {names["method"]!r}',
        *self.variants[variant],
      )
      bound = gin_files.read_bindings(files, lines)
    replay_dir = (
      None if self.replay_dir is None else _fill(self.replay_dir, names)
    )
    for name in ('dataset', 'method'):
      said = bound.get(f'{runner}.{name}')
      if said != names[name]:
        raise errors.ConfigError(
          f'the grid has {name} {names[name]!r}, but {", ".join(files)} binds '
          f'{runner}.{name} to {said!r}.'
        )
    return SweepRun(
      index=index,
      suite=self.suite,
      game=game,
      dataset=dataset,
      method=names['method'],
      seed=seed,
      logged_run=logged_run,
      gin_files=files,
      gin_bindings=lines,
      replay_dir=replay_dir,
      identity=run_identity.run_identity(
        bound,
        # The log's name and not its place, which differs between machines.
        {'suite': self.suite, 'game': game, 'run': logged_run},
        seed,
        batch_rl_dr3.__version__,
      ),
      runner=runner,
      bound=bound,
    )

  def _data_name(self, game: str, dataset: str) -> str:
    names = self.data_names or {}
    return names.get(game, names.get(dataset, dataset))

  def store_bytes(self, run: SweepRun) -> int:
    """Returns the size of a run's store.

    Raises:
      ConfigError: if nothing says how large the log is.
    """
    rows, row_bytes = self.log_rows, self.row_bytes
    if rows is None or row_bytes is None:
      found_rows, found_bytes = _log_size(run)
      rows = found_rows if rows is None else rows
      row_bytes = found_bytes if row_bytes is None else row_bytes
    return math.ceil(run.fraction * rows) * row_bytes


def _log_size(run: SweepRun) -> tuple[int, int]:
  """Returns the rows of a run's log, and the bytes of one in a store."""
  if run.replay_dir is None:
    return _PUBLIC_ROWS, math.prod(_PUBLIC_SHAPE) + _ELEMENT_BYTES
  path = pathlib.Path(run.replay_dir) / _COLLECTION
  try:
    summary = json.loads(path.read_text())
    rows, game = int(summary['num_rows']), summary['game']
    # Of continuous control it is a name, and there is no store.
    if isinstance(game, str):
      return rows, 0
    return rows, math.prod(game['observation_shape']) + _ELEMENT_BYTES
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.ConfigError(
      f'nothing says how large {run.replay_dir} is ({path}: {error!r}): bind '
      'Sweep.row_bytes and Sweep.log_rows.'
    ) from error


def _runner(bound: Mapping[str, Any], files: Sequence[str]) -> str:
  """Returns what trains a run, as the gin files that bind it call it."""
  for name in bound:
    if name.endswith('Runner.method'):
      return name.removesuffix('.method')
  raise errors.ConfigError(
    f'{", ".join(files)} binds no method of a runner, such as '
    'FixedReplayRunner.method.'
  )


def _fill(template: str, names: dict[str, Any]) -> str:
  try:
    return template.format(**names)
  except (KeyError, IndexError, ValueError) as error:
    raise errors.ConfigError(
      f'cannot fill {template!r}: {error}; it may name '
      f'{", ".join("{" + name + "}" for name in names)}.'
    ) from error
