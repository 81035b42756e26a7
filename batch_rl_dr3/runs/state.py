"""How a run stands, by what its directory says: no engine is asked.

    attempt.json   how often it was tried, how often without progress, how the
                   last attempt ended, and whether the run is set aside
    train.log      what `train` printed, one attempt after another

Progress is a newer checkpoint or more scores. Nothing on disk says that a
process was killed: a run that was killed or stopped, that hangs, or that failed
of anything but divergence is stalled.
"""

from collections.abc import Iterable, Sequence
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

NAME = 'attempt.json'
LOG = 'train.log'
# What is read of a run before and after an attempt.
CONTENTS = mirror.Contents(
  'attempt',
  whole=(
    NAME,
    LOG,
    run_directory.FINISHED,
    f'{run_directory.CHECKPOINTS}/ckpt.*.json',
  ),
  sizes=(run_directory.SCORES,),
)
# The beats of a run's workers. To a bucket nothing else is written until a
# checkpoint is.
BEATS = f'{lease.FOLDER}/beat-*.json'
# The files whose dates say that somebody works on a run.
_SIGNS_OF_LIFE = (
  run_directory.PROVENANCE,
  run_directory.METRICS,
  run_directory.SCORES,
  run_directory.FAILED,
  run_directory.FINISHED,
  LOG,
  BEATS,
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


def read(folder: str | os.PathLike[str], is_finished: bool) -> RunState:
  """Returns how a run stands by its files, now; DataError if one is damaged."""
  root = pathlib.Path(folder)
  if not root.is_dir():
    return RunState(State.WAITING)
  attempts = read_attempts(root)
  failed = records.read_failed(root) or {}
  rows = last_rows(root / run_directory.METRICS)
  rate, interval = pace(rows)
  quiet = quiet_seconds(root)
  state = State.RUNNING if rows else State.STARTING
  if is_finished:
    state = State.FINISHED
  elif attempts.is_set_aside:
    state = State.SET_ASIDE
  elif failed.get('error') == 'DivergedError' or _is_not_finite(rows):
    state = State.DIVERGED
  elif (
    failed
    or quiet > max(STALLED_SECONDS, STALLED_INTERVALS * interval)
    or _is_over(root, attempts)
  ):
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


def _is_over(folder: pathlib.Path, attempts: Record) -> bool:
  # What is written after the end of the last attempt is somebody else's.
  return attempts.exit_code is not None and _newest(
    folder, _SIGNS_OF_LIFE
  ) <= _newest(folder, (NAME,))


def quiet_seconds(folder: pathlib.Path) -> float:
  """Returns the seconds since a file of a run changed; 0 of a future date."""
  return max(0.0, time.time() - _newest(folder, _SIGNS_OF_LIFE))


def _newest(folder: pathlib.Path, names: Iterable[str]) -> float:
  """Returns when one of some files was last written, in seconds since 1970."""
  dates = [0.0]
  for path in (path for name in names for path in folder.glob(name)):
    try:
      dates.append(path.stat().st_mtime)
    except OSError:
      continue
  return max(dates)


def last_rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the last five whole rows of a CSV file, reading only its end."""
  if not path.exists():
    return []
  with open(path, 'rb') as file:
    header = file.readline()
    end = file.seek(0, os.SEEK_END)
    start = max(len(header), end - _TAIL_BYTES)
    file.seek(start)
    lines = file.read().split(b'\n')[:-1]
  # The first line may have lost its beginning, if it is not the file's first.
  whole = lines if start == len(header) else lines[1:]
  text = [line.decode() for line in (header, *whole[-_RATE_ROWS:])]
  return list(csv.DictReader(text))


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


def read_attempts(folder: str | os.PathLike[str]) -> Record:
  """Returns what is recorded in a run directory; of a new run, nothing."""
  value = records.read(
    pathlib.Path(folder) / NAME,
    records.ATTEMPT,
    'Remove it; the run is then tried as if for the first time.',
  )
  if value is None:
    return Record()
  known = {f.name for f in dataclasses.fields(Record)}
  fields = {name: v for name, v in value.items() if name in known}
  return Record(**{**fields, 'progress': tuple(value['progress'])})


def is_finished(folder: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, and all is written."""
  try:
    return records.is_finished(folder, num_iterations)
  except errors.DataError:
    return False  # Written last, and whole: what cannot be read is none.


def progress(folder: str | os.PathLike[str]) -> tuple[int, int]:
  """Returns the newest checkpoint's gradient steps, and scores.csv's bytes."""
  root = pathlib.Path(folder)
  found = checkpoints.manifests(root / run_directory.CHECKPOINTS)
  steps = max((m.gradient_steps for m in found), default=0)
  try:
    return steps, (root / run_directory.SCORES).stat().st_size
  except OSError:
    return steps, 0


def last_line(path: str | os.PathLike[str]) -> str:
  """Returns the last line of a log that is not empty; '' if there is none."""
  try:
    with open(path, 'rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - _TAIL_BYTES))
      text = file.read().decode(errors='replace')
  except OSError:
    return ''
  lines = [line.strip() for line in text.replace('\r', '\n').split('\n')]
  return next((line for line in reversed(lines) if line), '')
