"""Run directories as a report sees them, and the curves of their seeds."""

from collections.abc import Callable, Iterable, Sequence, Set
from concurrent import futures
import contextlib
import dataclasses
import functools
import glob
import multiprocessing
import os
import pathlib
import re
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.config import errors, progress
from batch_rl_dr3.reporting import words
from batch_rl_dr3.runs import (
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
# Proposition 3.2's ratio: `td_theory.divergence_ratio` of the sample, in which
# what follows a terminal counts as 0.
RATIO = 'divergence_ratio'
METRICS = (TD_LOSS, DOT_PRODUCT, NORM_SQUARED, RATIO, EFFECTIVE_RANK, MEAN_Q)
# Of scores.csv: the mean over the episodes of one evaluation.
RETURN = run_tables.RETURN
# What is read of a run.
CONTENTS = mirror.Contents('runs', whole=run_directory.RUN_FILES)

_STEPS = run_tables.STEPS
_CHUNKS_PER_PROCESS = 16
# Seconds until a progress bar appears.
_PATIENCE = 3.0

Result = TypeVar('Result')
# The logged run and the seed: what tells apart the runs of one method.
Replicate = tuple[str, str]
# What forked processes are to do: it need not be sent to them.
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
  run: Callable[..., Iterable[Result]] = map
  with contextlib.ExitStack() as stack:
    if num_processes > 1:
      # Parsing and drawing hold Python's lock. Few tasks are long ones; of
      # many, several are sent at a time.
      chunk = 1 + len(tasks) // (_CHUNKS_PER_PROCESS * num_processes)
      fork = multiprocessing.get_context('fork')
      pool = futures.ProcessPoolExecutor(num_processes, fork)
      run = functools.partial(stack.enter_context(pool).map, chunksize=chunk)
    bar = {'iterable': run(_run_task, range(len(tasks))), 'delay': _PATIENCE}
    found = list(progress.bar(len(tasks), desc, unit, **bar))
  return found


def _run_task(index: int) -> Any:
  return _tasks[index]()


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

  @property
  def replicate(self) -> Replicate:
    """What tells apart the runs of one method."""
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
    places = (data.get('hash'), data.get('data_hash'))
    return next(filter(None, places), None) or self.provenance.get('data_hash')


def align(
  series: Iterable[pd.Series],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
  """Returns the steps that all series have, int64 [T], and values [S, T]."""
  table = pd.concat(list(series), axis=1, join='inner').sort_index()
  values = np.ascontiguousarray(table.to_numpy(float).T)
  return table.index.to_numpy(np.int64), values


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
  """A quantity at the gradient steps at which every seed has it.

  A mean over seeds that come and go would jump for that reason alone, so a
  step that one seed lacks is left out.
  """

  steps: npt.NDArray[np.int64]  # [T], gradient steps, rising.
  values: npt.NDArray[np.float64]  # [S, T], NaN where not finite.
  replicates: tuple[Replicate, ...]  # Of each row.

  @property
  def num_seeds(self) -> int:
    """How many runs the curve is made of."""
    return len(self.replicates)

  @property
  def mean(self) -> npt.NDArray[np.float64]:
    """Float64 [T], over seeds; NaN where any seed is not finite."""
    return np.asarray(self.values.mean(axis=0))

  @property
  def last(self) -> float:
    """The mean at the last step, NaN if there is none."""
    return float(self.mean[-1]) if self.steps.size else float('nan')

  @property
  def last_step(self) -> int | None:
    """The last step, None if there is none."""
    return int(self.steps[-1]) if self.steps.size else None


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

  def curve(
    self,
    setting: Setting,
    method: str,
    quantity: str,
    replicates: Set[Replicate] | None = None,
  ) -> Curve:
    """Returns one of `METRICS`, or `RETURN`, without seeds that have none.

    It is of `replicates` alone if these are given.
    """
    series = {
      run.replicate: values
      for run in self.select(setting, method)
      if replicates is None or run.replicate in replicates
      if len(values := run.series(quantity))
    }
    if not series:
      return Curve(np.zeros(0, np.int64), np.zeros((0, 0)), ())
    steps, values = align(series.values())
    values = np.where(np.isfinite(values), values, np.nan)
    return Curve(steps, values, tuple(series))


def load(
  patterns: Sequence[str],
  num_processes: int = 1,
  quantities: Sequence[str] = METRICS,
  leave_out_unreadable: bool = False,
) -> Collection:
  """Returns the runs that glob patterns match; `**` matches any depth.

  Of metrics.csv the columns `quantities` are read, of so many runs at a time as
  there are processes. Damaged runs that are left out are named in the
  collection, as long as there are others.

  Raises:
    DataError: if a pattern matches nothing, nothing that matches is a run, a
      run cannot be read, or two runs are the same.
  """
  names = _match(patterns)
  folders = [name for name in names if is_run(name)]
  if not folders:
    raise errors.DataError(
      f'{", ".join(map(repr, patterns))} matches no run directory: {names[0]} '
      f'holds neither {run_directory.PROVENANCE} nor {run_directory.METRICS}. '
      "Name the folders of runs, such as 'runs/quickstart/*'."
    )
  parent = pathlib.Path(os.path.commonpath([*map(os.path.dirname, folders)]))
  paths = [pathlib.Path(folder) for folder in folders]
  tasks = [functools.partial(_read, p, parent, quantities) for p in paths]
  found = run_tasks(tasks, num_processes, 'reading', 'run')
  runs = [run for run in found if isinstance(run, Run)]
  damaged = {
    os.path.relpath(path, parent): error
    for path, error in zip(paths, found, strict=True)
    if isinstance(error, errors.DataError)
  }
  if damaged and not (runs and leave_out_unreadable):
    raise next(iter(damaged.values()))
  _refuse_duplicates(runs)
  order = words.ordered(run.method for run in runs)
  runs.sort(
    key=lambda run: (
      run.setting,
      order.index(run.method),
      *map(_natural, run.replicate),
    )
  )
  unreadable = tuple((name, str(error)) for name, error in damaged.items())
  return Collection(tuple(runs), parent, _outside(names, folders), unreadable)


def _match(patterns: Sequence[str]) -> list[str]:
  """Returns the real paths that patterns match, a folder before its own."""
  found: set[str] = set()
  for pattern in patterns:
    names = glob.glob(os.path.expanduser(pattern), recursive=True)
    if not names:
      raise errors.DataError(
        f'{pattern!r} matches nothing in {os.getcwd()}. Train first, or name '
        'the folders of existing runs.'
      )
    found.update(map(os.path.realpath, names))
  return sorted(found)


def is_run(folder: str) -> bool:
  """Returns whether a folder is a run directory."""
  marks = (run_directory.PROVENANCE, run_directory.METRICS)
  return any(os.path.isfile(os.path.join(folder, mark)) for mark in marks)


def _outside(
  names: Iterable[str], folders: Sequence[str]
) -> tuple[pathlib.Path, ...]:
  """Returns the names that are no run, in no run and above none."""
  inside = set(folders)
  above = {str(p) for folder in folders for p in pathlib.Path(folder).parents}
  found = []
  for name in names:
    if os.path.dirname(name) in inside:
      inside.add(name)
    elif name not in inside | above:
      found.append(pathlib.Path(name))
  return tuple(found)


def _read(
  folder: pathlib.Path, parent: pathlib.Path, quantities: Sequence[str]
) -> Run | errors.DataError:
  """Returns a run, or why it cannot be read."""
  try:
    provenance = records.read_provenance(folder)
    if provenance is None:
      raise errors.DataError(
        f'{folder} has no {run_directory.PROVENANCE}, so it does not say which '
        'method and game it is of. Leave it out of --runs, or train it again.'
      )
    recorded = {name: provenance.get(name) for name in run_tables.IDENTITY}
    who = {n: '' if v is None else str(v) for n, v in recorded.items()}
    metrics = run_tables.read_metrics(
      folder / run_directory.METRICS, quantities
    )
    scores = run_tables.read_evaluations(folder / run_directory.SCORES, who)
  except errors.DataError as error:
    return error
  return Run(
    folder=folder,
    name=os.path.relpath(folder, parent),
    setting=Setting(who['suite'], who['game'], who['dataset']),
    method=who['method'],
    logged_run=who['run'],
    seed=who['seed'],
    finished=records.read_finished(folder) is not None,
    provenance=provenance,
    metrics=metrics.set_index(_STEPS),
    evaluations=scores.set_index(_STEPS),
  )


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


def at_last_common_step(a: Curve, b: Curve) -> tuple[int, float, float] | None:
  """Returns the last step that both curves have, and their means there."""
  common, in_a, in_b = np.intersect1d(a.steps, b.steps, return_indices=True)
  if not common.size:
    return None
  return int(common[-1]), float(a.mean[in_a[-1]]), float(b.mean[in_b[-1]])


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
      if len(counts := sorted({*map(len, by_game)})) > 1:
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
    DataError: if there are none, or a run cannot be read.
  """
  patterns = [patterns] if isinstance(patterns, str) else patterns
  view = results.RunGlobs(patterns, cache_dir, CONTENTS)
  view.refresh()
  runs = load(view.patterns, quantities=quantities).runs
  names = [*Setting._fields, 'method', 'logged_run', 'seed', 'folder', _STEPS]
  keys = [(*r.setting, r.method, *r.replicate, str(r.folder)) for r in runs]
  scores, metrics = (
    pd.concat(tables, keys=keys, names=names).reset_index()
    for tables in ([r.evaluations for r in runs], [r.metrics for r in runs])
  )
  return RunTables(scores, metrics)
