"""Run directories as a report sees them: read in parallel, and cached."""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import time
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.config import errors, progress
from batch_rl_dr3.reporting import words
from batch_rl_dr3.runs import (
  atomic,
  mirror,
  records,
  results,
  run_directory,
  run_tables,
)

# The quantities of metrics.csv that the report uses.
TD_LOSS = 'loss_bellman'
DOT_PRODUCT = 'feature_dot_product'
NORM_SQUARED = 'feature_norm_squared'
EFFECTIVE_RANK = 'effective_rank'
MEAN_Q = 'mean_q'
# Proposition 3.2's ratio: `linear_td.divergence_ratio` of the sample, in which
# what follows a terminal counts as 0.
RATIO = 'divergence_ratio'
METRICS = (TD_LOSS, DOT_PRODUCT, NORM_SQUARED, RATIO, EFFECTIVE_RANK, MEAN_Q)
# Of scores.csv: the mean over the episodes of one evaluation.
RETURN = run_tables.RETURN
# What is read of a run.
CONTENTS = mirror.Contents('runs', whole=run_directory.RUN_FILES)

_STEPS = run_tables.STEPS
# Nanoseconds by which the clocks of two machines may differ unnoticed.
_CLOCK_TOLERANCE = 60_000_000_000
# A file that changed less than this many nanoseconds ago can change again
# without its time of change showing it.
_SETTLED = 2_000_000_000
_CACHE_VERSION = 4
_CHUNKS_PER_PROCESS = 16
# Seconds until a progress bar appears.
_PATIENCE = 3.0

Result = TypeVar('Result')
Stamp = list[list[int] | None]
# What the processes are to do. They are forked, so they find it here, and
# nothing has to be sent to them.
_tasks: Sequence[Callable[[], Any]] = ()


def run_tasks(
  tasks: Sequence[Callable[[], Result]],
  num_processes: int,
  desc: str,
  unit: str,
) -> list[Result]:
  """Returns the results of tasks, in order; `num_processes` 1 forks none."""
  global _tasks
  _tasks = tasks
  results = []
  with contextlib.ExitStack() as stack:
    bar = stack.enter_context(
      progress.bar(len(tasks), desc, unit, delay=_PATIENCE)
    )
    run: Callable[..., Iterable[Result]] = map
    if num_processes > 1:
      # Parsing and drawing hold Python's lock. Few tasks are long ones; of
      # many, several are sent at a time.
      chunk = 1 + len(tasks) // (_CHUNKS_PER_PROCESS * num_processes)
      fork = multiprocessing.get_context('fork')
      pool = futures.ProcessPoolExecutor(num_processes, fork)
      run = functools.partial(stack.enter_context(pool).map, chunksize=chunk)
    for result in run(_run_task, range(len(tasks))):
      results.append(result)
      bar.update()
  _tasks = ()
  return results


def _run_task(index: int) -> Any:
  return _tasks[index]()


def stamp(paths: Sequence[pathlib.Path]) -> Stamp:
  """Returns what changes when a file does; None for one that is not there."""
  found: Stamp = [None] * len(paths)
  for index, path in enumerate(paths):
    with contextlib.suppress(FileNotFoundError):
      status = path.stat()
      found[index] = [status.st_size, status.st_mtime_ns, status.st_ino]
  return found


class RunCache:
  """A folder with one file per run: its metrics and its evaluations."""

  def __init__(self, folder: str | os.PathLike[str]):
    """Names the folder, which is made when something is put there."""
    self._folder = pathlib.Path(folder).expanduser()

  def get(self, run: pathlib.Path, found: Stamp) -> list[pd.DataFrame] | None:
    """Returns the tables of a run; None if absent, outdated or damaged."""
    try:
      with open(self._path(run), 'rb') as file:
        header, *tables = (np.load(file, allow_pickle=False) for _ in range(3))
      is_current = header.tobytes() == _header(found)
      return [pd.DataFrame(table) for table in tables] if is_current else None
    except (OSError, EOFError, ValueError):
      return None

  def put(
    self, run: pathlib.Path, found: Stamp, tables: list[pd.DataFrame]
  ) -> None:
    """Keeps what was read of a run; WriteError if it cannot be written.

    Nothing is kept of files that changed just now, or are dated in the future:
    a later change of them need not show in their stamp.
    """
    latest = max((entry[1] for entry in found if entry), default=0)
    if latest >= time.time_ns() - _SETTLED:
      return
    atomic.make_directory(self._folder)
    with atomic.whole_file(self._path(run), durable=False) as file:
      np.save(file, np.frombuffer(_header(found), np.uint8))
      for table in tables:
        np.save(file, np.asarray(table.to_records(index=False)))

  def _path(self, run: pathlib.Path) -> pathlib.Path:
    name = hashlib.sha256(os.path.realpath(run).encode()).hexdigest()[:32]
    return self._folder / f'{name}.npy'


def _header(found: Stamp) -> bytes:
  return json.dumps({'version': _CACHE_VERSION, 'stamp': found}).encode()


class Setting(NamedTuple):
  """What methods have to share to be compared with each other."""

  suite: str
  game: str
  dataset: str

  @property
  def label(self) -> str:
    """As the reader sees it, such as 'Breakout, 1pct'."""
    return ', '.join(part for part in (self.game, self.dataset) if part)

  @property
  def slug(self) -> str:
    """As part of a file name."""
    parts = '_'.join(part for part in self if part)
    return re.sub(r'[^A-Za-z0-9.-]+', '_', parts).strip('_.').lower()


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run directory; its tables are by gradient steps."""

  folder: pathlib.Path
  name: str  # The folder, short but still unique in the collection.
  setting: Setting
  method: str
  logged_run: str  # That the data is from, such as '1'; may be ''.
  seed: str
  finished: bool
  provenance: dict[str, Any]
  # Those of `METRICS` that were logged: NaN is 'not measured', infinity 'not
  # finite'.
  metrics: pd.DataFrame
  evaluations: pd.DataFrame  # See `run_tables.read_evaluations`.
  from_future: tuple[str, ...] = ()  # Files that are dated later than now.

  @property
  def replicate(self) -> tuple[str, str]:
    """What tells apart the runs of one method: logged run and seed."""
    return self.logged_run, self.seed

  @property
  def num_gradient_steps(self) -> int:
    """The last gradient step of which the run has a record."""
    tables = (self.metrics.index, self.evaluations.index)
    return int(max((steps.max() for steps in tables if len(steps)), default=0))

  def series(self, quantity: str) -> pd.Series:
    """Returns a quantity over gradient steps, only where it was measured."""
    if quantity == RETURN:
      return self.evaluations[RETURN]
    if quantity not in self.metrics:
      return pd.Series(dtype=float)
    return self.metrics[quantity].dropna()

  def recorded(self, key: str) -> dict[str, Any]:
    """Returns a table of provenance.json, empty if there is none."""
    value = self.provenance.get(key)
    return value if isinstance(value, dict) else {}

  @property
  def data_hash(self) -> Any:
    """What identifies the data, None if it was not recorded."""
    data = self.recorded('data')
    return (
      data.get('hash')
      or data.get('data_hash')
      or self.provenance.get('data_hash')
    )


def align(
  series: Iterable[pd.Series],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
  """Returns the steps that all series have, int64 [T], and values [S, T]."""
  table = pd.concat(list(series), axis=1, join='inner').sort_index()
  values = np.ascontiguousarray(table.to_numpy(float).T)
  return table.index.to_numpy(np.int64), values


@dataclasses.dataclass(frozen=True)
class Collection:
  """The runs of one report, in the order in which a reader expects them."""

  runs: tuple[Run, ...]
  parent: pathlib.Path  # The folder that holds them all.
  skipped: tuple[pathlib.Path, ...]  # What was matched and is no run directory.
  # Names of damaged runs, with the reason, if these were to be left out.
  unreadable: tuple[tuple[str, str], ...] = ()

  @property
  def settings(self) -> list[Setting]:
    """Each setting once, sorted."""
    return sorted({run.setting for run in self.runs})

  def methods(self, setting: Setting) -> list[str]:
    """Returns the methods that were run in a setting."""
    return words.ordered(r.method for r in self.runs if r.setting == setting)

  @property
  def lines(self) -> list[tuple[Setting, str]]:
    """Each setting with each of its methods."""
    return [(s, method) for s in self.settings for method in self.methods(s)]

  def select(self, setting: Setting, method: str) -> list[Run]:
    """Returns the runs of a method in a setting, one per seed."""
    line = setting, method
    return [run for run in self.runs if (run.setting, run.method) == line]


def load(
  patterns: Sequence[str],
  cache: RunCache | None = None,
  num_processes: int = 1,
  quantities: Sequence[str] = METRICS,
  leave_out_unreadable: bool = False,
) -> Collection:
  """Returns the runs that glob patterns match; `**` matches any depth.

  Args:
    patterns: such as 'runs/quickstart/*'.
    cache: of unchanged runs, which holds `METRICS` alone; None reads every run.
    num_processes: how many runs are read into the cache at a time, by forks.
    quantities: columns of metrics.csv to read.
    leave_out_unreadable: whether damaged runs are named in the collection, not
      raised, as long as there are others.

  Raises:
    DataError: if a pattern matches nothing, nothing that matches is a run, a
      run cannot be read, or two runs are the same.
    WriteError: if the cache cannot be written.
  """
  names = _match(patterns)
  folders = [name for name in names if is_run(name)]
  if not folders:
    raise errors.DataError(
      f'{", ".join(map(repr, patterns))} matches no run directory: {names[0]} '
      f'holds neither {run_directory.PROVENANCE} nor {run_directory.METRICS}. '
      "Name the folders of runs, such as 'runs/quickstart/*'."
    )
  parent = pathlib.Path(
    os.path.commonpath([os.path.dirname(folder) for folder in folders])
  )
  paths = [pathlib.Path(folder) for folder in folders]
  if cache is not None and num_processes > 1:
    # To send tables from process to process would take as long as to read them.
    fills = [functools.partial(_fill_cache, path, cache) for path in paths]
    run_tasks(fills, num_processes, 'reading', 'run')
  runs: list[Run] = []
  damaged = []
  for path in paths:
    try:
      runs.append(_read_run(path, parent, cache, quantities))
    except errors.DataError as error:
      if not leave_out_unreadable:
        raise
      damaged.append((os.path.relpath(path, parent), error))
  if not runs:
    raise damaged[0][1]
  _refuse_duplicates(runs)
  order = words.ordered(run.method for run in runs)
  runs.sort(
    key=lambda run: (
      run.setting,
      order.index(run.method),
      *map(_natural, run.replicate),
    )
  )
  unreadable = tuple((name, str(error)) for name, error in damaged)
  return Collection(tuple(runs), parent, _outside(names, folders), unreadable)


def _match(patterns: Sequence[str]) -> list[str]:
  """Returns the real paths that patterns match, a folder before its own."""
  found: set[str] = set()
  real_folder = functools.lru_cache(maxsize=1024)(os.path.realpath)
  for pattern in patterns:
    names = glob.glob(os.path.expanduser(pattern), recursive=True)
    if not names:
      raise errors.DataError(
        f'{pattern!r} matches nothing in {os.getcwd()}. Train first, or name '
        'the folders of existing runs.'
      )
    for name in map(os.path.abspath, names):
      if os.path.islink(name):
        found.add(os.path.realpath(name))
      else:
        head, tail = os.path.split(name)
        found.add(os.path.join(real_folder(head), tail))
  return sorted(found)


def is_run(folder: str) -> bool:
  """Returns whether a folder is a run directory."""
  marks = (run_directory.PROVENANCE, run_directory.METRICS)
  return any(os.path.isfile(os.path.join(folder, mark)) for mark in marks)


def _outside(
  names: Iterable[str], folders: Sequence[str]
) -> tuple[pathlib.Path, ...]:
  """Returns the names that are no run, in no run and above none."""
  above = {
    str(parent) for folder in folders for parent in pathlib.Path(folder).parents
  }
  inside = set(folders)
  found = []
  for name in names:
    if os.path.dirname(name) in inside:
      inside.add(name)
    elif name not in inside and name not in above:
      found.append(pathlib.Path(name))
  return tuple(found)


def _read_run(
  folder: pathlib.Path,
  parent: pathlib.Path,
  cache: RunCache | None,
  quantities: Sequence[str] = METRICS,
) -> Run:
  provenance = records.read_provenance(folder)
  if provenance is None:
    raise errors.DataError(
      f'{folder} has no {run_directory.PROVENANCE}, so it does not say which '
      'method and game it is of. Leave it out of --runs, or train it again.'
    )
  recorded = {name: provenance.get(name) for name in run_tables.IDENTITY}
  identity = {n: '' if v is None else str(v) for n, v in recorded.items()}
  files = [folder / run_directory.METRICS, folder / run_directory.SCORES]
  found = stamp(files)
  tables = cache.get(folder, found) if cache else None
  if tables is None:
    tables = [
      run_tables.read_metrics(files[0], quantities),
      run_tables.read_evaluations(files[1], identity),
    ]
    if cache and stamp(files) == found:
      cache.put(folder, found, tables)
  metrics, evaluations = (table.set_index(_STEPS) for table in tables)
  now = time.time_ns() + _CLOCK_TOLERANCE
  return Run(
    folder=folder,
    name=os.path.relpath(folder, parent),
    setting=Setting(identity['suite'], identity['game'], identity['dataset']),
    method=identity['method'],
    logged_run=identity['run'],
    seed=identity['seed'],
    finished=records.read_finished(folder) is not None,
    provenance=provenance,
    metrics=metrics,
    evaluations=evaluations,
    from_future=tuple(
      path.name
      for path, entry in zip(files, found, strict=True)
      if entry is not None and entry[1] > now
    ),
  )


def _fill_cache(folder: pathlib.Path, cache: RunCache) -> None:
  # Whoever reads the run from the cache meets the same error and raises it.
  with contextlib.suppress(errors.BatchRLError):
    _read_run(folder, folder, cache)


def _refuse_duplicates(runs: Iterable[Run]) -> None:
  seen: dict[tuple[Any, ...], Run] = {}
  for run in runs:
    other = seen.setdefault((run.setting, run.method, run.replicate), run)
    if other is not run:
      raise errors.DataError(
        f'{other.folder} and {run.folder} are the same run: '
        f'{run.setting.label}, {run.method}, seed {run.seed}. If their '
        'configurations differ, name them apart by FixedReplayRunner.method '
        '(ContinuousRunner.method); else leave one of them out of --runs.'
      )


def _natural(text: str) -> list[tuple[int, str]]:
  """Returns a key that puts seed 2 before seed 10."""
  parts = re.split(r'(\d+)', text)
  return [(int(p), '') if p.isdigit() else (-1, p) for p in parts]


class RunTables(NamedTuple):
  """The tables of several runs, each row with its run's keys.

  These are suite, game, dataset, method, logged_run, seed and folder. `scores`
  has a row an evaluation: gradient_steps, the mean `return`, its `episodes`;
  `metrics` a row a log step: gradient_steps and the quantities.
  """

  scores: pd.DataFrame
  metrics: pd.DataFrame

  def score_matrices(
    self, num_last: int | None = 5
  ) -> dict[str, npt.NDArray[np.float64]]:
    """Returns what rliable takes: float64 [runs, games] by method.

    A run's score is the mean of `num_last` evaluations; None takes all of them.

    Raises:
      DataError: if a method has not the same number of runs on every game.
    """
    keys = ['method', 'game', 'dataset', 'logged_run', 'seed']
    runs = self.scores.sort_values(_STEPS).groupby(keys)[RETURN]
    scores = runs.apply(lambda run: run.iloc[-(num_last or len(run)) :].mean())
    matrices = {}
    for method, of_method in scores.groupby('method'):
      by_game = [part.to_numpy() for _, part in of_method.groupby('game')]
      counts = sorted({len(part) for part in by_game})
      if len(counts) > 1:
        raise errors.DataError(
          f'{method} has {counts} runs a game; rliable needs as many on each.'
        )
      matrices[str(method)] = np.stack(by_game, axis=1)
    return matrices


def read_runs(
  patterns: str | Sequence[str],
  quantities: Sequence[str] = METRICS,
  cache_dir: str = '',
) -> RunTables:
  """Returns the scores and metrics of the runs that glob patterns match.

  Args:
    patterns: one or several, as `report --runs` takes them.
    quantities: columns of metrics.csv.
    cache_dir: where what is read of runs in a bucket is kept.

  Raises:
    DataError: see `load`.
  """
  patterns = [patterns] if isinstance(patterns, str) else patterns
  view = results.RunGlobs(patterns, cache_dir, CONTENTS)
  view.refresh()
  runs = load(view.patterns, quantities=quantities).runs
  names = [*Setting._fields, 'method', 'logged_run', 'seed', 'folder', _STEPS]
  keys = [(*r.setting, r.method, *r.replicate, str(r.folder)) for r in runs]

  def labelled(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(list(tables), keys=keys, names=names).reset_index()

  return RunTables(
    labelled(run.evaluations for run in runs),
    labelled(run.metrics for run in runs),
  )
