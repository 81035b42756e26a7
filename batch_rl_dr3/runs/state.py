"""How a run stands, by what its directory says: no engine is asked.

    attempt.json   how often it was tried, how often without progress, how the
                   last attempt ended, and whether the run is set aside
    train.log      what `train` printed, one attempt after another

Progress is a newer checkpoint or more scores. Nothing on disk says that a
process was killed: a run that was killed or stopped, that hangs, or that failed
of anything but divergence is stalled.
"""

from collections.abc import Iterable, Sequence
import contextlib
import csv
import dataclasses
import enum
import math
import os
import pathlib
import time

import numpy as np

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import (
  checkpoints,
  lease,
  mirror,
  records,
  run_directory,
  run_tables,
)

_Path = str | os.PathLike[str]

NAME = 'attempt.json'
LOG = 'train.log'
# What is read of a run before and after an attempt.
_MANIFESTS = f'{run_directory.CHECKPOINTS}/ckpt.*.json'
CONTENTS = mirror.Contents(
  'attempt',
  whole=(NAME, LOG, run_directory.FINISHED, _MANIFESTS),
  sizes=(run_directory.SCORES,),
)
# The beats of a run's workers. To a bucket nothing else is written until a
# checkpoint is.
BEATS = f'{lease.FOLDER}/beat-*.json'
# The files whose dates say that somebody works on a run.
_SIGNS_OF_LIFE = (
  *(n for n in run_directory.RUN_FILES if n != run_directory.CONFIG),
  *(LOG, BEATS),
)
# A run is stalled after so many of its row intervals without a change, and not
# before so many seconds: play between iterations writes no rows.
STALLED_INTERVALS = 10
STALLED_SECONDS = 120.0
# Rows that a rate is the median of, and bytes at the end of a file that hold
# at least so many, or its last line.
_RATE_ROWS = 5
_TAIL_BYTES = 4096
# Beginnings of the columns that are finite unless a run has diverged.
_FINITE = ('loss_', 'feature_', 'divergence_ratio', 'mean_q')


class State(enum.StrEnum):
  """The states of a run, those that ask for a look first."""

  DIVERGED = 'diverged'
  UNREADABLE = 'unreadable'
  SET_ASIDE = 'failed'  # A sweep does not try it again until `retry`.
  STALLED = 'stalled'
  RUNNING = 'running'
  STARTING = 'starting'
  WAITING = 'waiting'
  FINISHED = 'finished'


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of the attempts at a run."""

  attempts: int = 0
  # How many of the last ones, but for the newest, came to nothing.
  without_progress: int = 0
  # Of the run when the newest attempt began, when and where that was.
  progress: tuple[int, int] = (0, 0)
  began: str = ''
  host: str = ''
  # None if nobody lived to say so, or it goes on.
  exit_code: int | None = None
  error: str = ''  # The last line of its log, if it did not end well.
  is_set_aside: bool = False  # Not to be tried again until `retry`.


@dataclasses.dataclass(frozen=True)
class RunState:
  """How a run stands."""

  state: State
  steps: int = 0  # Gradient steps done, by metrics.csv.
  rate: float | None = None  # Of them a second, if it runs and is known.
  quiet_seconds: float = 0.0  # Since one of its files changed.
  error: str = ''  # Why it does not run.
  attempts: int = 0  # How often a sweep has begun it.


def read(folder: _Path, is_finished: bool) -> RunState:
  """Returns how a run stands by its files, now; DataError if one is damaged."""
  root = pathlib.Path(folder)
  if not root.is_dir():
    return RunState(State.WAITING)
  attempts = read_attempts(root)
  failed = records.read_failed(root) or {}
  rows = last_rows(root / run_directory.METRICS)
  rate, interval = pace(rows)
  quiet = quiet_seconds(root)
  # What is written after the end of the last attempt is somebody else's.
  is_over = attempts.exit_code is not None and (
    _newest(root, _SIGNS_OF_LIFE) <= _newest(root, (NAME,))
  )
  is_quiet = quiet > max(STALLED_SECONDS, STALLED_INTERVALS * interval)
  state = State.RUNNING if rows else State.STARTING
  if is_finished:
    state = State.FINISHED
  elif attempts.is_set_aside:
    state = State.SET_ASIDE
  elif failed.get('error') == 'DivergedError' or _is_not_finite(rows):
    state = State.DIVERGED
  elif failed or is_quiet or is_over:
    state = State.STALLED
  is_well = state in (State.RUNNING, State.STARTING, State.FINISHED)
  return RunState(
    state,
    int(rows[-1][run_tables.STEPS]) if rows else 0,
    rate if state == State.RUNNING else None,
    quiet,
    '' if is_well else attempts.error or failed.get('message', ''),
    attempts.attempts,
  )


def _is_not_finite(rows: Sequence[dict[str, str]]) -> bool:
  return any(
    cell and name.startswith(_FINITE) and not math.isfinite(float(cell))
    for name, cell in (rows[-1].items() if rows else ())
  )


def quiet_seconds(folder: pathlib.Path) -> float:
  """Returns the seconds since a file of a run changed; 0 of a future date."""
  return max(0.0, time.time() - _newest(folder, _SIGNS_OF_LIFE))


def _newest(folder: pathlib.Path, names: Iterable[str]) -> float:
  """Returns when one of some files was last written, in seconds since 1970."""
  dates = [0.0]
  for path in (path for name in names for path in folder.glob(name)):
    with contextlib.suppress(OSError):
      dates.append(path.stat().st_mtime)
  return max(dates)


def last_rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the last five whole rows of a CSV file, reading only its end."""
  if not path.exists():
    return []
  with open(path, 'rb') as file:
    header = file.readline()
    start = max(len(header), file.seek(0, os.SEEK_END) - _TAIL_BYTES)
    file.seek(start)
    lines = file.read().split(b'\n')[:-1]
  # The first line may have lost its beginning, if it is not the file's first.
  whole = lines if start == len(header) else lines[1:]
  rows = (header, *whole[-_RATE_ROWS:])
  return list(csv.DictReader(line.decode() for line in rows))


def pace(rows: Sequence[dict[str, str]]) -> tuple[float | None, float]:
  """Returns gradient steps per second, and seconds between rows of metrics.

  The rate is the median of the last rows'; without any, None and 0.
  """
  import pandas as pd

  cells = [row.get('gradient_steps_per_second') for row in rows]
  rates = np.array(pd.to_numeric(cells, errors='coerce'), float)
  rates = rates[np.isfinite(rates) & (rates > 0)]
  if not rates.size:
    return None, 0.0
  rate = float(np.median(rates))
  steps = [int(float(row[run_tables.STEPS])) for row in rows[-2:]]
  return rate, abs(steps[-1] - steps[0]) / rate


def read_attempts(folder: _Path) -> Record:
  """Returns what is recorded in a run directory; of a new run, nothing."""
  value = records.read(
    pathlib.Path(folder) / NAME,
    records.ATTEMPT,
    'Remove it; the run is then tried as if for the first time.',
  )
  if value is None:
    return Record()
  value['progress'] = tuple(value['progress'])
  names = [f.name for f in dataclasses.fields(Record)]
  return Record(**{name: value[name] for name in names if name in value})


def is_finished(folder: _Path, num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, and all is written."""
  finished = None
  # Written last, and whole: what cannot be read is none.
  with contextlib.suppress(errors.DataError):
    finished = records.read_finished(folder)
  return finished is not None and finished['num_iterations'] >= num_iterations


def progress(folder: _Path) -> tuple[int, int]:
  """Returns the newest checkpoint's gradient steps, and scores.csv's bytes."""
  root = pathlib.Path(folder)
  found = checkpoints.manifests(root / run_directory.CHECKPOINTS)
  steps = max((c.gradient_steps for c in found), default=0)
  with contextlib.suppress(OSError):
    return steps, (root / run_directory.SCORES).stat().st_size
  return steps, 0


def last_line(path: _Path) -> str:
  """Returns the last line of a log that is not empty; '' if there is none."""
  text = ''
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
    text = file.read().decode(errors='replace').replace('\r', '\n')
  lines = (line.strip() for line in reversed(text.split('\n')))
  return next(filter(None, lines), '')
