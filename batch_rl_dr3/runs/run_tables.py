"""The two tables of a run directory, read: its metrics and its evaluations."""

from collections.abc import Iterable
import pathlib

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import csv_file, run_directory

STEPS = csv_file.STEPS
RETURN = 'return'
# What a row of scores.csv says about its run, and provenance.json says too.
IDENTITY = ('suite', 'game', 'method', 'dataset', 'run', 'seed')


def read_metrics(path: pathlib.Path, columns: Iterable[str]) -> pd.DataFrame:
  """Returns a row per gradient step: the step and those columns it has.

  Raises:
    DataError: if the file is damaged.
  """
  metrics = csv_file.read(path, columns)
  # A resumed run logs a step again; the later row is the one that counts.
  metrics = metrics.drop_duplicates(STEPS, keep='last').sort_values(STEPS)
  return metrics.reset_index(drop=True)


def read_evaluations(
  path: pathlib.Path, identity: dict[str, str]
) -> pd.DataFrame:
  """Returns a row per evaluation: its gradient step and what it came to.

  Args:
    path: scores.csv.
    identity: what provenance.json says of the run, by the names of `IDENTITY`.

  Returns:
    `gradient_steps`; `return`, the mean over its episodes; `episodes` and
    `truncated`, how many there are and how many of them were cut short;
    `lowest`, the lowest return of an episode.

  Raises:
    DataError: if the file is damaged, or holds rows of another run.
  """
  episodes = csv_file.read(
    path,
    (RETURN, 'episode', run_directory.EPISODES),
    ('truncated', *IDENTITY),
  )
  if RETURN not in episodes:
    episodes[RETURN] = np.nan
  wrong = np.flatnonzero(~np.isfinite(episodes[RETURN].to_numpy()))
  if wrong.size:
    raise errors.DataError(
      f'{path}, line {wrong[0] + 2}: an episode without a return. Remove the '
      'line, or evaluate the run again.'
    )
  _refuse_strangers(path, episodes, identity)
  _refuse_repeated_episodes(path, episodes)
  weights = np.ones(len(episodes))
  if run_directory.EPISODES in episodes:
    weights = episodes[run_directory.EPISODES].to_numpy()
  # pandas' own grouping costs more than the rest of reading a small file.
  steps, rows = np.unique(episodes[STEPS].to_numpy(), return_inverse=True)
  counts = np.bincount(rows, weights, len(steps))
  returns = weights * episodes[RETURN].to_numpy()
  cut_short = np.bincount(rows, _cut_short(episodes), len(steps))
  lowest = np.full(len(steps), np.inf)
  np.minimum.at(lowest, rows, episodes[RETURN].to_numpy())
  return pd.DataFrame(
    {
      STEPS: steps,
      RETURN: np.bincount(rows, returns, len(steps)) / counts,
      'episodes': counts.astype(np.int64),
      'truncated': cut_short.astype(np.int64),
      'lowest': lowest,
    }
  )


def _cut_short(episodes: pd.DataFrame) -> npt.NDArray[np.float64]:
  """Returns how many episodes of each row were cut short: float64 [rows]."""
  if 'truncated' not in episodes:
    return np.zeros(len(episodes))
  column = episodes['truncated'].cat
  words = {'true': '1', 'false': '0'}
  numbers = pd.to_numeric(
    [words.get(word.lower(), word) for word in column.categories],
    errors='coerce',
  )
  # The last is what an empty cell's code, -1, stands for.
  return np.nan_to_num(np.append(numbers, 0.0))[column.codes]


def _refuse_strangers(
  path: pathlib.Path, episodes: pd.DataFrame, identity: dict[str, str]
) -> None:
  """Raises if a row is of another run than provenance.json says."""
  for name in IDENTITY:
    if name not in episodes:
      continue
    column = episodes[name]
    for value in column.cat.categories:
      if value != identity[name]:
        line = int(np.argmax(column == value)) + 2
        raise errors.DataError(
          f'{path}, line {line}: {name} is {value!r}, but provenance.json '
          f'says {identity[name]!r}. Give every run a folder of its own.'
        )


def _refuse_repeated_episodes(
  path: pathlib.Path, episodes: pd.DataFrame
) -> None:
  if 'episode' not in episodes:
    return
  repeated = episodes.duplicated([STEPS, 'episode'])
  if repeated.any():
    first = int(np.argmax(repeated))
    row = episodes.iloc[first]
    raise errors.DataError(
      f'{path}, line {first + 2}: episode {row["episode"]:.0f} of gradient '
      f'step {row[STEPS]:,.0f} is there twice. Remove one evaluation of it.'
    )
