"""What the runs that globs match are doing now, by what their files say."""

from collections.abc import Sequence
import csv
import dataclasses
import glob
import json
import os
import pathlib
import threading
import time
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3 import errors, run_directory
from batch_rl_dr3.reporting import csv_file, methods, scores

# A run is in one of these states. Nothing on disk says that a process has
# died, so one that has, was stopped or hangs is 'stalled'.
RUNNING, STARTING, FINISHED = 'running', 'starting', 'finished'
STALLED, DIVERGED, UNREADABLE = 'stalled', 'diverged', 'unreadable'
STATES = (RUNNING, STARTING, DIVERGED, UNREADABLE, STALLED, FINISHED)
# The quantities that are shown, and their headings.
QUANTITIES = {
  scores.RETURN: 'Return',
  scores.TD_LOSS: 'TD loss',
  scores.DOT_PRODUCT: 'Feature dot product',
  scores.EFFECTIVE_RANK: 'Effective rank',
}
# A run is stalled after so many of its row intervals without a change, and not
# before so many seconds: play between iterations writes no rows.
_STALLED_INTERVALS = 10
_STALLED_SECONDS = 120.0
# Rows that a rate is the median of.
_RATE_ROWS = 5
# Bytes at the end of metrics.csv that hold at least so many.
_TAIL_BYTES = 4096
# Points of a curve, beyond which it is thinned.
_MAX_POINTS = 60
# Seconds for which an answer is good.
_FRESH_SECONDS = 1.0
_RATE = 'gradient_steps_per_second'
_FILES = (
  run_directory.PROVENANCE,
  run_directory.METRICS,
  run_directory.SCORES,
  run_directory.FINISHED,
)

# Size, time of change and inode of each of _FILES; None where there is none.
_Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclasses.dataclass(frozen=True)
class _Known:
  """A run as it was when its files had a stamp.

  Attributes:
    stamp: of its files.
    changed: seconds since the epoch at which they last changed, by their own
      dates, but never later than when the change was seen: another machine's
      clock may be ahead.
    facts: what is shown of it, but for what passes with time.
    patience: seconds without a change after which it is stalled.
  """

  stamp: _Stamp
  changed: float
  facts: dict[str, Any]
  patience: float


class LiveRuns:
  """The runs that globs match; only what has changed is read again."""

  def __init__(self, patterns: Sequence[str]):
    """Reads nothing yet.

    Args:
      patterns: globs of run directories. They may match nothing for now.
    """
    self._patterns = tuple(patterns)
    self._known: dict[str, _Known] = {}
    self._lock = threading.Lock()
    self._answer: tuple[float, dict[str, Any]] | None = None

  def folders(self) -> list[str]:
    """Returns the run directories that are there, linked ones once."""
    marks = (run_directory.PROVENANCE, run_directory.METRICS)
    found: dict[str, str] = {}
    for pattern in self._patterns:
      for name in glob.glob(os.path.expanduser(pattern), recursive=True):
        if any(os.path.isfile(os.path.join(name, mark)) for mark in marks):
          found.setdefault(os.path.realpath(name), os.path.abspath(name))
    return sorted(found.values())

  def stamps(self) -> dict[str, _Stamp]:
    """Returns what differs from before when any run has changed."""
    return {folder: _stamp(folder) for folder in self.folders()}

  def snapshot(self) -> dict[str, Any]:
    """Returns what every run is doing, ready for JSON.

    Any number of callers may ask; the files are looked at once a second.

    Returns:
      `runs`, a list of facts in reading order; `parent`, the folder that
      holds them all; `message`, a sentence where there are none;
      `refresh_seconds`, when to ask again.
    """
    with self._lock:
      now = time.monotonic()
      if self._answer is None or now - self._answer[0] >= _FRESH_SECONDS:
        self._answer = (time.monotonic(), self._look())
      return self._answer[1]

  def _look(self) -> dict[str, Any]:
    stamps = self.stamps()
    parent = (
      os.path.commonpath([os.path.dirname(folder) for folder in stamps])
      if stamps
      else os.getcwd()
    )
    known = {}
    for folder, stamp in stamps.items():
      before = self._known.get(folder)
      if before is not None and before.stamp == stamp:
        known[folder] = before
      elif (read := _read(folder, stamp)) is not None:
        known[folder] = read
    self._known = known
    runs = [
      _as_of_now(entry) | {'name': os.path.relpath(folder, parent)}
      for folder, entry in known.items()
    ]
    runs.sort(key=lambda run: (STATES.index(run['state']), run['name']))
    return {
      'runs': runs,
      'parent': parent,
      'message': '' if runs else self._nothing(),
      # A thousand runs take a browser longer to draw than ten.
      'refresh_seconds': max(2.0, len(runs) / 50),
    }

  def _nothing(self) -> str:
    listed = ', '.join(self._patterns)
    return (
      f'No run directory matches {listed} in {os.getcwd()} yet. A run appears '
      'here as soon as its training starts.'
    )


def _stamp(folder: str) -> _Stamp:
  found: list[tuple[int, int, int] | None] = []
  for name in _FILES:
    try:
      status = os.stat(os.path.join(folder, name))
      found.append((status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError:
      found.append(None)
  return tuple(found)


def _read(folder: str, stamp: _Stamp) -> _Known | None:
  """Reads a run; None if it has vanished meanwhile."""
  now = time.time()
  changed = max((entry[1] / 1e9 for entry in stamp if entry), default=now)
  patience = _STALLED_SECONDS
  try:
    run = scores.load([glob.escape(folder)]).runs[0]
    rate, interval = _pace(_last_rows(run.folder / run_directory.METRICS))
    facts = _facts(run, rate)
    patience = max(patience, _STALLED_INTERVALS * interval)
  except (OSError, ValueError, errors.DataError) as error:
    if not os.path.isdir(folder):
      return None
    facts = _unreadable(folder, ' '.join(str(error).split()))
  return _Known(stamp, min(changed, now), facts, patience)


def _last_rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the last whole rows of a CSV file, without reading the rest."""
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


def _pace(rows: Sequence[dict[str, str]]) -> tuple[float | None, float]:
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


def _facts(run: scores.Run, rate: float | None) -> dict[str, Any]:
  series = {name: run.series(name) for name in QUANTITIES}
  last = [float(s.iloc[-1]) for s in series.values() if len(s)]
  done = run.num_gradient_steps
  total = _total_steps(run)
  if run.finished and (total is None or done >= total):
    state = FINISHED
  elif not np.isfinite(last).all():
    state = DIVERGED
  else:
    state = RUNNING if len(run.metrics) else STARTING
  going = state == RUNNING and total is not None and rate is not None
  return {
    'method': methods.display_name(run.method),
    'game': run.setting.game,
    'dataset': run.setting.dataset,
    'logged_run': run.logged_run,
    'seed': run.seed,
    'state': state,
    'error': '',
    'steps': done,
    'total_steps': total,
    'steps_per_second': rate if state == RUNNING else None,
    'seconds_left': (total - done) / rate if going and total and rate else None,
    'quantities': {name: _curve(s) for name, s in series.items()},
  }


def _unreadable(folder: str, error: str) -> dict[str, Any]:
  nothing = _curve(pd.Series(dtype=float))
  return {
    'method': os.path.basename(folder),
    'game': '',
    'dataset': '',
    'logged_run': '',
    'seed': '',
    'state': UNREADABLE,
    'error': error,
    'steps': 0,
    'total_steps': None,
    'steps_per_second': None,
    'seconds_left': None,
    'quantities': dict.fromkeys(QUANTITIES, nothing),
  }


def _total_steps(run: scores.Run) -> int | None:
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


def _as_of_now(known: _Known) -> dict[str, Any]:
  quiet = max(0.0, time.time() - known.changed)
  facts = known.facts | {'seconds_since_change': round(quiet)}
  if facts['state'] in (RUNNING, STARTING) and quiet > known.patience:
    facts |= {'state': STALLED, 'steps_per_second': None, 'seconds_left': None}
  return facts


def to_json(snapshot: dict[str, Any]) -> str:
  """Returns a snapshot as compact JSON."""
  return json.dumps(snapshot, separators=(',', ':'), allow_nan=False)
