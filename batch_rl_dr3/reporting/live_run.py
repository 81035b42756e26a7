"""What one run is doing now, by what its files say."""

from collections.abc import Sequence
import csv
import dataclasses
import glob
import json
import os
import pathlib
import time
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import methods, run_reader
from batch_rl_dr3.runs import csv_file, run_directory

# A run is in one of these states. Nothing on disk says that a process was
# killed, so one that was, was stopped or hangs is 'stalled', and so is one
# that says that it failed of anything but divergence.
RUNNING, STARTING, FINISHED = 'running', 'starting', 'finished'
STALLED, DIVERGED, UNREADABLE = 'stalled', 'diverged', 'unreadable'
STATES = (RUNNING, STARTING, DIVERGED, UNREADABLE, STALLED, FINISHED)
# The quantities that are shown.
QUANTITIES = (
  run_reader.RETURN,
  run_reader.TD_LOSS,
  run_reader.DOT_PRODUCT,
  run_reader.EFFECTIVE_RANK,
)
# A run is stalled after so many of its row intervals without a change, and not
# before so many seconds: play between iterations writes no rows.
STALLED_INTERVALS = 10
STALLED_SECONDS = 120.0
# Rows that a rate is the median of.
_RATE_ROWS = 5
# Bytes at the end of metrics.csv that hold at least so many.
_TAIL_BYTES = 4096
# Points of a curve, beyond which it is thinned.
_MAX_POINTS = 60
_RATE = 'gradient_steps_per_second'
_FILES = (
  run_directory.PROVENANCE,
  run_directory.METRICS,
  run_directory.SCORES,
  run_directory.FAILED,
  run_directory.FINISHED,
)

# Size, time of change and inode of each of _FILES; None where there is none.
Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclasses.dataclass(frozen=True)
class Known:
  """A run as it was when its files had a stamp.

  Attributes:
    stamp: of its files.
    read_at: when it was read, in seconds of a clock that never goes back.
    changed: seconds since the epoch at which they last changed, by their own
      dates, but never later than when the change was seen: another machine's
      clock may be ahead.
    facts: what is shown of it, but for what passes with time.
    patience: seconds without a change after which it is stalled.
  """

  stamp: Stamp
  read_at: float
  changed: float
  facts: dict[str, Any]
  patience: float


def stamp_of(folder: str) -> Stamp:
  """Returns what differs from before when a file of a run has changed."""
  found: list[tuple[int, int, int] | None] = []
  for name in _FILES:
    try:
      status = os.stat(os.path.join(folder, name))
      found.append((status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError:
      found.append(None)
  return tuple(found)


def read(folder: str, stamp: Stamp) -> Known | None:
  """Reads a run; None if it has vanished meanwhile."""
  now = time.time()
  changed = max((entry[1] / 1e9 for entry in stamp if entry), default=now)
  patience = STALLED_SECONDS
  try:
    run = run_reader.load([glob.escape(folder)]).runs[0]
    rate, interval = pace(last_rows(run.folder / run_directory.METRICS))
    facts = _facts(run, rate)
    patience = max(patience, STALLED_INTERVALS * interval)
  except (OSError, ValueError, errors.DataError) as error:
    if not os.path.isdir(folder):
      return None
    facts = _unreadable(folder, ' '.join(str(error).split()))
  return Known(stamp, time.monotonic(), min(changed, now), facts, patience)


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

  The rate is the median of the last rows' and None if none is known; the
  seconds are 0 then.
  """
  rates = pd.to_numeric(
    pd.Series([row.get(_RATE) for row in rows], dtype=object),
    errors='coerce',
  ).dropna()
  rates = rates[np.isfinite(rates) & (rates > 0)]
  if rates.empty:
    return None, 0.0
  rate = float(rates.median())
  steps = [int(float(row[csv_file.STEPS])) for row in rows[-2:]]
  return rate, abs(steps[-1] - steps[0]) / rate


def _facts(run: run_reader.Run, rate: float | None) -> dict[str, Any]:
  series = {name: run.series(name) for name in QUANTITIES}
  last = [float(s.iloc[-1]) for s in series.values() if len(s)]
  done = run.num_gradient_steps
  total = _total_steps(run)
  failed = failure(run.folder)
  if run.finished and (total is None or done >= total):
    state = FINISHED
  elif failed['error'] == 'DivergedError' or not np.isfinite(last).all():
    state = DIVERGED
  elif failed['error']:
    state = STALLED
  else:
    state = RUNNING if len(run.metrics) else STARTING
  rate = rate if state == RUNNING else None
  left = (total - done) / rate if total is not None and rate else None
  return {
    'method': methods.display_name(run.method),
    'game': run.setting.game,
    'dataset': run.setting.dataset,
    'logged_run': run.logged_run,
    'seed': run.seed,
    'state': state,
    'error': '' if state == FINISHED else failed['message'],
    'steps': done,
    'total_steps': total,
    'steps_per_second': rate,
    'seconds_left': left,
    'quantities': {name: _curve(s) for name, s in series.items()},
  }


def failure(folder: pathlib.Path) -> dict[str, str]:
  """Returns the error that ended the last attempt; empty texts for none."""
  failed: dict[str, Any] = {}
  path = folder / run_directory.FAILED
  if path.exists():
    failed = json.loads(path.read_text())
  return {name: str(failed.get(name, '')) for name in ('error', 'message')}


def _unreadable(folder: str, error: str) -> dict[str, Any]:
  return {
    'method': os.path.basename(folder),
    **dict.fromkeys(('game', 'dataset', 'logged_run', 'seed'), ''),
    'state': UNREADABLE,
    'error': error,
    'steps': 0,
    **dict.fromkeys(('total_steps', 'steps_per_second', 'seconds_left')),
    'quantities': dict.fromkeys(QUANTITIES, _curve(pd.Series(dtype=float))),
  }


def _total_steps(run: run_reader.Run) -> int | None:
  """Returns how many gradient steps a run is to have, None if unknown."""
  total = run.provenance.get('total_gradient_steps')
  return total if isinstance(total, int) and total > 0 else None


def _curve(series: pd.Series) -> dict[str, Any]:
  """Returns the last value and at most `_MAX_POINTS` points of a curve.

  The first and the last point are always among them; null stands for a value
  that is not finite.
  """
  chosen = np.arange(len(series))
  if len(series) > _MAX_POINTS:
    chosen = np.linspace(0, len(series) - 1, _MAX_POINTS).round().astype(int)
  points = [
    (int(step), _plain(value))
    for step, value in zip(
      series.index[chosen], series.to_numpy(float)[chosen], strict=True
    )
  ]
  return {'last': points[-1][1] if points else None, 'points': points}


def _plain(value: float) -> float | None:
  return float(f'{value:.4g}') if np.isfinite(value) else None


def as_of_now(known: Known) -> dict[str, Any]:
  """Returns what is shown of a run at this moment."""
  quiet = max(0.0, time.time() - known.changed)
  facts = known.facts | {'seconds_since_change': round(quiet)}
  if facts['state'] in (RUNNING, STARTING) and quiet > known.patience:
    facts |= {'state': STALLED, 'steps_per_second': None, 'seconds_left': None}
  return facts
