"""What a sweep consists of: games x data sets x methods x seeds, as gin says.

A grid file binds `Sweep`; each run's gin files and bindings follow from its
templates, and the same command trains it by hand.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import gin

from batch_rl_dr3._version import NUMBERS_VERSION
from batch_rl_dr3.config import errors, gin_files, own_code, ranges
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.runs import run_directory, run_identity

# Of an episode of continuous control, at most.
_MAX_EPISODE_STEPS = 1_000
# Of a logged run of the DQN Replay data set.
_PUBLIC_ROWS = 50_000_000
_PUBLIC_SHAPE = (84, 84)
_ELEMENT_BYTES = 9  # Action, reward and terminal of a row.


@dataclasses.dataclass(frozen=True)
class SweepRun:
  """One run of a sweep."""

  index: int  # Its place in the sweep, by which job arrays name it.
  suite: str
  game: str
  dataset: str
  method: str
  seed: int
  logged_run: int
  gin_files: tuple[str, ...]
  gin_bindings: tuple[str, ...]
  replay_dir: str | None  # None for the public buckets.
  identity: str  # 8 hexadecimal digits, see `Sweep.runs`.
  runner: str  # What trains it, as its files call it.
  # What its files and bindings bind, by name.
  bound: dict[str, Any] = dataclasses.field(repr=False, compare=False)
  imports: tuple[own_code.OwnCode, ...] = ()
  start: 'SweepRun | None' = None  # Its last checkpoint is begun with.

  @property
  def folder(self) -> str:
    """Its directory, below the folder of all runs."""
    name = f'seed{self.seed}-{self.identity}'
    return '/'.join((self.suite, self.game, self.dataset, self.method, name))

  @property
  def kept_folder(self) -> str:
    """Its name in a study, which is of one suite."""
    return self.folder.partition('/')[2]

  @functools.cached_property
  def store(self) -> str:
    """What runs have in common that learn from the same store."""
    subset = {n: v for n, v in self.bound.items() if n.startswith('Subset.')}
    log = self.replay_dir or f'{self.game}/{self.logged_run}'
    return f'{log} {sorted(subset.items())}'

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
      episodes = self._bound('num_evaluation_episodes')
      return self.num_iterations * episodes * _MAX_EPISODE_STEPS
    return self.num_iterations * self._bound('num_evaluation_agent_steps')

  def _bound(self, name: str) -> int:
    try:
      return int(self.bound[f'{self.runner}.{name}'])
    except (KeyError, ValueError) as error:
      raise errors.ConfigError(
        f'{self.gin_files[0]} binds no number to {self.runner}.{name}, which '
        'a sweep has to know.'
      ) from error

  def start_checkpoint(self, runs: str) -> str | None:
    """Returns the checkpoint that it starts from, if it does."""
    if self.start is None:
      return None
    name = f'tf_ckpt-{self.start.num_iterations - 1}'
    folder = f'{runs.rstrip("/")}/{self.start.folder}'
    return f'{folder}/{run_directory.CHECKPOINTS}/{name}'

  def arguments(
    self, runs: str, cache_dir: str, local: bool = True
  ) -> list[str]:
    """Returns the flags of `python -m batch_rl_dr3.train` for this run.

    If `local`, files of the user's own are named by their place here.
    """
    data = ('replay_dir', self.replay_dir)
    if self.replay_dir is None:
      data = ('run', str(self.logged_run))
    flags = [
      *(
        ('import', code.path if local and code.is_file else code.name)
        for code in self.imports
      ),
      *(('gin_files', name) for name in self.gin_files),
      *(('gin_bindings', line) for line in self.gin_bindings),
      data,
      ('init_checkpoint', self.start_checkpoint(runs)),
      ('seed', self.seed),
      ('base_dir', f'{runs.rstrip("/")}/{self.folder}'),
      ('cache_dir', cache_dir),
    ]
    return [f'--{name}={value}' for name, value in flags if value is not None]


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Sweep:
  """The runs of a sweep, and what one of them needs.

  In `gin_files`, `gin_bindings` and `replay_dir`, {suite}, {game}, {dataset},
  {method}, {seed} and {run} stand for the run's own, {data} for what
  `data_names` makes of them, and {family} for the game's name before a hyphen.

  Attributes:
    derived: methods made of others, such as {'cql_norm': ['cql', 'A.b = 1']}:
      the method that templates see, and what overrides `gin_bindings`.
    variants: bindings by name, such as {'c0_0.03':
      ['FeatureDotPenalty.coefficient = 0.03']}: each method is run with each,
      as <method>_<name>. Templates see the method without it.
    starts_from: methods that start from the last checkpoint of another.
    logged_runs: the logged runs, dealt out to the seeds in turn.
    gin_files: templates of gin files.
    gin_bindings: templates of bindings that override them.
    replay_dir: template of where the logs are; None for the public buckets.
    data_bindings: further ones by the data set's name.
    data_names: {data} by game or data set; the data set's own name by default.
    results_dir: a study (see `runs.results`) whose runs count as done.
    num_cpus: processor cores of a run.
    num_gpus: GPUs of a run; a fraction packs several on one.
    run_gigabytes: memory of a run, with frames that it holds for itself.
    store_memory_share: the share of a store, read as needed by all runs of a
      node, that is to fit in the node's memory.
    row_bytes: of a store's row, in memory and on disk; 0 where there is no
      store, as in continuous control; None where the data say it.
    log_rows: rows of a logged run; None where the data say it.
    log_gigabytes: of a logged run to download; None if unknown or local.
    run_disk_gigabytes: of a finished run with checkpoints; None to measure it.
    max_attempts_without_progress: a run is set aside after so many.
  """

  suite: str = gin.REQUIRED
  games: Sequence[str] = gin.REQUIRED
  datasets: Sequence[str] = gin.REQUIRED
  methods: Sequence[str] = gin.REQUIRED
  derived: Mapping[str, Sequence[str]] | None = None
  variants: Mapping[str, Sequence[str]] | None = None
  starts_from: Mapping[str, str] | None = None
  seeds: Sequence[int] = gin.REQUIRED
  logged_runs: Sequence[int] = (1,)
  gin_files: Sequence[str] = gin.REQUIRED
  gin_bindings: Sequence[str] = ()
  replay_dir: str | None = None
  data_bindings: Mapping[str, Sequence[str]] | None = None
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

  def runs(self, imports: Sequence[own_code.OwnCode] = ()) -> list[SweepRun]:
    """Returns the runs, in an order that never changes for one grid.

    A run's identity is a hash of what its files bind, which log it is, its
    seed, the code that it imports and the version of the numbers. Runs of one
    store follow each other.

    Raises:
      ConfigError: if a file is missing, does not say what the grid says of
        it, or two runs are the same.
    """
    if not self.logged_runs:
      raise errors.ConfigError('Sweep.logged_runs is empty.')
    dealt = list(zip(self.seeds, itertools.cycle(self.logged_runs)))
    combinations = itertools.product(
      self.games, self.datasets, dealt, self.methods, self.variants or ('',)
    )
    data_names = self.data_names or {}
    seen: dict[str, SweepRun] = {}
    for index, combination in enumerate(combinations):
      game, dataset, (seed, logged_run), method, variant = combination
      names = {
        'suite': self.suite,
        'game': game,
        'family': game.partition('-')[0],
        'dataset': dataset,
        'method': method,
        'seed': seed,
        'run': logged_run,
        'data': data_names.get(game, data_names.get(dataset, dataset)),
      }
      run = self._run(index, names, variant, tuple(imports))
      other = seen.setdefault(run.folder, run)
      if other is not run:
        raise errors.ConfigError(
          f'runs {other.index} and {index} of the grid are the same: '
          f'{run.folder}. Is a name listed twice?'
        )
    return list(seen.values())

  def _run(
    self,
    index: int,
    names: dict[str, Any],
    variant: str,
    imports: tuple[own_code.OwnCode, ...],
  ) -> SweepRun:
    method, dataset = names['method'], names['dataset']
    base, *changes = (self.derived or {}).get(method, (method,))
    seen = names | {'method': base}  # By the templates.
    files = tuple(_fill(text, seen) for text in self.gin_files)
    lines = (
      *(_fill(text, seen) for text in self.gin_bindings),
      *(self.data_bindings or {}).get(dataset, ()),
      *changes,
    )
    bound = gin_files.read_bindings(files, lines)
    runners = [n for n in bound if n.endswith('Runner.method')]
    if not runners:
      raise errors.ConfigError(
        f'{", ".join(files)} binds no method of a runner, such as '
        'FixedReplayRunner.method.'
      )
    runner = runners[0].removesuffix('.method')
    name = f'{method}_{variant}' if variant else method
    if name != base:
      further = (self.variants or {}).get(variant, ())
      lines += (f'{runner}.method = {name!r}', *further)
      bound = gin_files.read_bindings(files, lines)
    for what, expected in (('dataset', dataset), ('method', name)):
      said = bound.get(f'{runner}.{what}')
      if said != expected:
        raise errors.ConfigError(
          f'the grid has {what} {expected!r}, but {", ".join(files)} binds '
          f'{runner}.{what} to {said!r}.'
        )
    # The log's name and not its place, which differs between machines.
    data = {n: names[n] for n in ('suite', 'game', 'run')}
    if imports:
      data['imports'] = own_code.record(imports)
    start = None
    if source := (self.starts_from or {}).get(method):
      start = self._run(-1, names | {'method': source}, '', imports)
      data['start'] = start.identity
    seed, folder = names['seed'], self.replay_dir
    return SweepRun(
      index,
      *(self.suite, names['game'], dataset, name, seed, names['run']),
      gin_files=files,
      gin_bindings=lines,
      replay_dir=None if folder is None else _fill(folder, seen),
      identity=run_identity.run_identity(bound, data, seed, NUMBERS_VERSION),
      runner=runner,
      bound=bound,
      imports=imports,
      start=start,
    )

  def store_bytes(self, run: SweepRun) -> int:
    """Returns the size of a run's store; ConfigError if nothing says it."""
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
  try:
    collection = checkpoint_format.read_collection(run.replay_dir) or {}
    rows, game = int(collection['num_rows']), collection['game']
    # Of continuous control it is a name, and there is no store.
    if isinstance(game, str):
      return rows, 0
    return rows, math.prod(game['observation_shape']) + _ELEMENT_BYTES
  except (KeyError, errors.DataError) as error:
    name = checkpoint_format.COLLECTION
    raise errors.ConfigError(
      f'nothing says how large {run.replay_dir} is ({name}: {error!r}): bind '
      'Sweep.row_bytes and Sweep.log_rows.'
    ) from error


def _fill(template: str, names: dict[str, Any]) -> str:
  try:
    return template.format(**names)
  except (KeyError, IndexError, ValueError) as error:
    raise errors.ConfigError(
      f'cannot fill {template!r}: {error}; it may name '
      f'{", ".join("{" + name + "}" for name in names)}.'
    ) from error
