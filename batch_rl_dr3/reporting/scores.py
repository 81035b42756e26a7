"""Run directories, read: who each run is, its metrics and its scores.

A run directory is one when it holds `provenance.json` or `metrics.csv`. CSV
files are read by column name; columns that nobody here needs are ignored, and
so is a last row that a kill has torn.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import glob
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batch_rl_dr3 import errors, run_directory
from batch_rl_dr3.reporting import csv_file, methods

# The quantities of metrics.csv that the report uses.
TD_LOSS = 'loss_bellman'
DOT_PRODUCT = 'feature_dot_product'
NORM_SQUARED = 'feature_norm_squared'
EFFECTIVE_RANK = 'effective_rank'
MEAN_Q = 'mean_q'
METRICS = (TD_LOSS, DOT_PRODUCT, NORM_SQUARED, EFFECTIVE_RANK, MEAN_Q)
# Of scores.csv: the mean over the episodes of one evaluation.
RETURN = 'return'

_STEPS = csv_file.STEPS


class Setting(NamedTuple):
  """What methods have to share to be compared with each other."""

  suite: str
  game: str
  dataset: str

  @property
  def label(self) -> str:
    """The setting as the reader sees it, such as 'Breakout, 1pct'."""
    return ', '.join(part for part in (self.game, self.dataset) if part)

  @property
  def slug(self) -> str:
    """The setting as part of a file name."""
    parts = '_'.join(part for part in self if part)
    return re.sub(r'[^A-Za-z0-9.-]+', '_', parts).strip('_.').lower()


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One run directory.

  Attributes:
    folder: where it is.
    name: the folder, short but still unique in the collection.
    setting: suite, game and data set.
    method: such as 'rem_dr3'.
    logged_run: which logged run the data is from, such as '1'; may be ''.
    seed: of training, as text.
    finished: whether training and evaluation came to their end.
    provenance: the whole of provenance.json.
    metrics: one row per log step: `gradient_steps` and those of `METRICS`
      that were logged. NaN is 'not measured', infinity 'not finite'.
    scores: one row per episode: `gradient_steps`, `return`, `truncated`.
  """

  folder: pathlib.Path
  name: str
  setting: Setting
  method: str
  logged_run: str
  seed: str
  finished: bool
  provenance: dict[str, Any]
  metrics: pd.DataFrame
  scores: pd.DataFrame

  @property
  def replicate(self) -> tuple[str, str]:
    """What tells apart the runs of one method: logged run and seed."""
    return self.logged_run, self.seed

  @property
  def num_gradient_steps(self) -> int:
    """The last gradient step of which the run has a record."""
    steps = [*self.metrics[_STEPS], *self.scores[_STEPS]]
    return max(steps, default=0)

  @functools.cached_property
  def evaluations(self) -> pd.DataFrame:
    """One row per evaluation: mean `return`, `episodes`, `truncated`."""
    return self.scores.groupby(_STEPS).agg(
      **{
        RETURN: (RETURN, 'mean'),
        'episodes': (RETURN, 'size'),
        'truncated': ('truncated', 'sum'),
      }
    )

  def series(self, quantity: str) -> pd.Series:
    """Returns a quantity over gradient steps, only where it was measured."""
    if quantity == RETURN:
      return self.evaluations[RETURN]
    if quantity not in self.metrics:
      return pd.Series(dtype=float)
    return self.metrics.set_index(_STEPS)[quantity].dropna()


@dataclasses.dataclass(frozen=True)
class Collection:
  """The runs of one report.

  Attributes:
    runs: in the order in which a reader expects them.
    parent: the folder that holds them all.
    skipped: what the patterns matched that is no run directory.
  """

  runs: tuple[Run, ...]
  parent: pathlib.Path
  skipped: tuple[pathlib.Path, ...]

  @property
  def settings(self) -> list[Setting]:
    """Each setting once, sorted."""
    return sorted({run.setting for run in self.runs})

  def methods(self, setting: Setting) -> list[str]:
    """Returns the methods that were run in a setting."""
    return methods.ordered(r.method for r in self.runs if r.setting == setting)

  def select(self, setting: Setting, method: str) -> list[Run]:
    """Returns the runs of a method in a setting, one per seed."""
    return [
      run
      for run in self.runs
      if run.setting == setting and run.method == method
    ]


def load(patterns: Sequence[str]) -> Collection:
  """Returns the runs that glob patterns match.

  Args:
    patterns: such as 'runs/quickstart/*'; `**` matches any depth.

  Raises:
    DataError: if a pattern matches nothing, nothing that matches is a run, a
      run cannot be read, or two runs are the same.
  """
  matches = _match(patterns)
  folders = [path for path in matches if _is_run(path)]
  skipped = tuple(path for path in matches if path not in folders)
  if not folders:
    raise errors.DataError(
      f'{_quoted(patterns)} matches no run directory: {skipped[0]} holds '
      f'neither {run_directory.PROVENANCE} nor {run_directory.METRICS}. Name '
      "the folders of runs, such as 'runs/quickstart/*'."
    )
  parent = pathlib.Path(
    os.path.commonpath([os.path.abspath(path.parent) for path in folders])
  )
  runs = [_read_run(path, parent) for path in folders]
  _refuse_duplicates(runs)
  return Collection(tuple(_sorted(runs)), parent, skipped)


def _match(patterns: Sequence[str]) -> list[pathlib.Path]:
  found: dict[str, pathlib.Path] = {}
  for pattern in patterns:
    names = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not names:
      raise errors.DataError(
        f'{pattern!r} matches nothing in {os.getcwd()}. Train first, or name '
        'the folders of existing runs.'
      )
    for name in names:
      found.setdefault(os.path.realpath(name), pathlib.Path(name))
  return list(found.values())


def _quoted(patterns: Sequence[str]) -> str:
  return ', '.join(repr(pattern) for pattern in patterns)


def _is_run(path: pathlib.Path) -> bool:
  names = (run_directory.PROVENANCE, run_directory.METRICS)
  return any((path / name).is_file() for name in names)


def _read_run(folder: pathlib.Path, parent: pathlib.Path) -> Run:
  provenance = _read_provenance(folder / run_directory.PROVENANCE)

  def text(key: str) -> str:
    value = provenance.get(key)
    return '' if value is None else str(value)

  path = folder / run_directory.METRICS
  metrics = csv_file.numbers(path, csv_file.read(path), METRICS)
  return Run(
    folder=folder,
    name=os.path.relpath(os.path.abspath(folder), parent),
    setting=Setting(text('suite'), text('game'), text('dataset')),
    method=text('method'),
    logged_run=text('run'),
    seed=text('seed'),
    finished=(folder / run_directory.FINISHED).is_file(),
    provenance=provenance,
    # A resumed run logs a step again; the later row is the one that counts.
    metrics=metrics.drop_duplicates(_STEPS, keep='last').sort_values(_STEPS),
    scores=_read_scores(folder / run_directory.SCORES),
  )


def _read_provenance(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise errors.DataError(
      f'{path.parent} has no {path.name}, so it does not say which method and '
      'game it is of. Leave it out of --runs, or train it again.'
    ) from error
  except (OSError, ValueError) as error:
    raise errors.DataError(f'cannot read {path}: {error}') from error
  for key in ('method', 'game'):
    if not isinstance(value, dict) or not value.get(key):
      raise errors.DataError(f'{path} does not name the {key} of the run.')
  return dict(value)


def _read_scores(path: pathlib.Path) -> pd.DataFrame:
  rows = csv_file.read(path)
  scores = csv_file.numbers(path, rows, (RETURN,))
  if rows and (RETURN not in scores or not np.isfinite(scores[RETURN]).all()):
    raise errors.DataError(f'{path} has an episode without a return.')
  scores[RETURN] = scores.get(RETURN, pd.Series(dtype=float))
  scores['truncated'] = [
    (row.get('truncated') or '').lower() in ('1', 'true') for row in rows
  ]
  return scores


def _refuse_duplicates(runs: Iterable[Run]) -> None:
  seen: dict[tuple[Any, ...], Run] = {}
  for run in runs:
    key = (run.setting, run.method, run.replicate)
    other = seen.setdefault(key, run)
    if other is not run:
      raise errors.DataError(
        f'{other.folder} and {run.folder} are the same run: '
        f'{run.setting.label}, {run.method}, seed {run.seed}. Leave one of '
        'them out of --runs.'
      )


def _natural(text: str) -> list[tuple[int, str]]:
  """Returns a key that puts seed 2 before seed 10."""
  parts = re.split(r'(\d+)', text)
  return [(int(p), '') if p.isdigit() else (-1, p) for p in parts]


def _sorted(runs: Sequence[Run]) -> list[Run]:
  order = methods.ordered(run.method for run in runs)
  return sorted(
    runs,
    key=lambda run: (
      run.setting,
      order.index(run.method),
      _natural(run.logged_run),
      _natural(run.seed),
    ),
  )
