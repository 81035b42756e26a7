"""What was read of run directories, kept for the next report.

A run's CSV files are known by their size, time of change and inode, and are
read again only if one of these has changed. Each run has one file of its own:
NumPy arrays one after the other, the first of them the JSON text that says
what the others are. Nothing is pickled. The folder may be deleted at any time.
"""

from collections.abc import Sequence
import hashlib
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.runs import run_directory

_VERSION = 1
# A file that changed less than this many nanoseconds ago can change again
# without its time of change showing it.
_SETTLED = 2_000_000_000

Stamp = list[list[int] | None]


class Tables(NamedTuple):
  """What is kept of a run: its metrics and its evaluations."""

  metrics: pd.DataFrame
  evaluations: pd.DataFrame


def stamp(paths: Sequence[pathlib.Path]) -> Stamp:
  """Returns what changes when a file does; None for one that is not there."""
  found: Stamp = []
  for path in paths:
    try:
      status = path.stat()
    except FileNotFoundError:
      found.append(None)
    else:
      found.append([status.st_size, status.st_mtime_ns, status.st_ino])
  return found


def is_settled(found: Stamp) -> bool:
  """Returns whether a later change of these files would show in the stamp.

  It would not if one was changed just now, or is dated in the future.
  """
  latest = max((entry[1] for entry in found if entry), default=0)
  return latest < time.time_ns() - _SETTLED


class RunCache:
  """A folder with one file per run."""

  def __init__(self, folder: str | os.PathLike[str]):
    """Names the folder, which is made when something is put there."""
    self._folder = pathlib.Path(folder).expanduser()

  def get(self, run: pathlib.Path, found: Stamp) -> Tables | None:
    """Returns what was put for a run whose files had this very stamp.

    None if nothing was, if the files have changed since, or if the file of
    the cache is damaged.
    """
    try:
      with open(self._path(run), 'rb') as file:
        header = json.loads(_load(file).tobytes())
        if header['version'] != _VERSION or header['stamp'] != found:
          return None
        return Tables(*(_load_table(file, c) for c in header['columns']))
    except (OSError, EOFError, ValueError, KeyError, TypeError):
      return None

  def put(self, run: pathlib.Path, found: Stamp, tables: Tables) -> None:
    """Keeps what was read of a run, whole or not at all.

    Raises:
      WriteError: if the folder cannot be written.
    """
    if not is_settled(found):
      return
    header = {
      'version': _VERSION,
      'stamp': found,
      'columns': [
        {n: str(t) for n, t in table.dtypes.items()} for table in tables
      ],
    }
    run_directory.make_directory(self._folder)
    path = self._path(run)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
      with open(temporary, 'wb') as file:
        np.save(file, np.frombuffer(json.dumps(header).encode(), np.uint8))
        for table in tables:
          # float64 holds every count below 2^53.
          np.save(file, table.to_numpy(np.float64))
      os.replace(temporary, path)
    except OSError as error:
      temporary.unlink(missing_ok=True)
      raise run_directory.WriteError(path, error) from error

  def _path(self, run: pathlib.Path) -> pathlib.Path:
    name = hashlib.sha256(os.path.realpath(run).encode()).hexdigest()[:32]
    return self._folder / f'{name}.npy'


def _load(file: Any) -> npt.NDArray[Any]:
  return np.asarray(np.load(file, allow_pickle=False))


def _load_table(file: Any, columns: dict[str, str]) -> pd.DataFrame:
  return pd.DataFrame(_load(file), columns=list(columns)).astype(columns)
