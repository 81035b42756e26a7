"""Runs as pandas frames, and as what rliable takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader
from batch_rl_dr3.runs import mirror

# What says which run a row is of.
_KEYS = ('suite', 'game', 'dataset', 'method', 'logged_run', 'seed', 'folder')


class RunTables(NamedTuple):
  """The tables of several runs, each row with its run's keys.

  Attributes:
    scores: one row an evaluation: gradient_steps, the mean `return` of its
      `episodes`.
    metrics: one row a log step: gradient_steps and the quantities.
  """

  scores: pd.DataFrame
  metrics: pd.DataFrame

  def score_matrices(
    self, num_last: int | None = 5
  ) -> dict[str, npt.NDArray[np.float64]]:
    """Returns what rliable takes: float64 [runs, games] by method.

    Args:
      num_last: of this many last evaluations a run's score is the mean; None
        takes all of them, its average over training.

    Raises:
      DataError: if a method has not the same number of runs on every game.
    """
    matrices = {}
    for method, rows in self.scores.groupby('method'):
      runs = rows.sort_values('gradient_steps').groupby(
        ['game', 'dataset', 'logged_run', 'seed']
      )['return']
      scores = runs.apply(
        lambda returns: returns.iloc[-(num_last or len(returns)) :].mean()
      )
      by_game = [part.to_numpy() for _, part in scores.groupby('game')]
      counts = sorted({len(part) for part in by_game})
      if len(counts) > 1:
        raise errors.DataError(
          f'{method} has {counts} runs a game; rliable needs as many on each.'
        )
      matrices[str(method)] = np.stack(by_game, axis=1)
    return matrices


def read_runs(
  patterns: str | Sequence[str],
  quantities: Sequence[str] = run_reader.METRICS,
  cache_dir: str = '',
) -> RunTables:
  """Returns the scores and metrics of the runs that glob patterns match.

  Args:
    patterns: one or several, as `report --runs` takes them; a kept study is
      read like the folders of its runs.
    quantities: columns of metrics.csv.
    cache_dir: where what is read of runs in a bucket is kept.

  Raises:
    DataError: see `run_reader.load`.
  """
  patterns = [patterns] if isinstance(patterns, str) else patterns
  view = mirror.RunGlobs(patterns, cache_dir, run_reader.CONTENTS)
  view.refresh()
  runs = run_reader.load(view.patterns, quantities=quantities).runs

  def labelled(run: run_reader.Run, table: pd.DataFrame) -> pd.DataFrame:
    values = (*run.setting, run.method, run.logged_run, run.seed, run.folder)
    keys = pd.DataFrame(
      dict(zip(_KEYS, map(str, values), strict=True)), index=table.index
    )
    return pd.concat([keys, table], axis=1)

  return RunTables(
    pd.concat(
      [labelled(run, run.evaluations.reset_index()) for run in runs],
      ignore_index=True,
    ),
    pd.concat([labelled(run, run.metrics) for run in runs], ignore_index=True),
  )
