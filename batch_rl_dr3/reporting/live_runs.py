"""The runs that globs match, as they are now, read again where they changed."""

from collections.abc import Sequence
import glob
import json
import os
import threading
import time
from typing import Any

from batch_rl_dr3.reporting import live_run
from batch_rl_dr3.runs import run_directory

# Seconds of reading after which an answer is given with what is known.
_READING_SECONDS = 2.0
# Seconds for which an answer is good.
_FRESH_SECONDS = 1.0


class LiveRuns:
  """The runs that globs match; only what has changed is read again."""

  def __init__(self, patterns: Sequence[str]):
    """Reads nothing yet.

    Args:
      patterns: globs of run directories. They may match nothing for now.
    """
    self._patterns = tuple(patterns)
    self._known: dict[str, live_run.Known] = {}
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

  def stamps(self) -> dict[str, live_run.Stamp]:
    """Returns what differs from before when any run has changed."""
    return {folder: live_run.stamp_of(folder) for folder in self.folders()}

  def snapshot(self) -> dict[str, Any]:
    """Returns what every run is doing, ready for JSON.

    Any number of callers may ask; the files are looked at once a second.

    Returns:
      `runs`, a list of facts in reading order; `parent`, the folder that
      holds them all; `message`, a sentence where there are none or not all
      have been read yet; `refresh_seconds`, when to ask again.
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
    self._known = {f: k for f, k in self._known.items() if f in stamps}
    unread = self._read_changed(stamps)
    runs = [
      live_run.as_of_now(entry) | {'name': os.path.relpath(folder, parent)}
      for folder, entry in self._known.items()
    ]
    runs.sort(
      key=lambda run: (live_run.STATES.index(run['state']), run['name'])
    )
    return {
      'runs': runs,
      'parent': parent,
      'message': self._message(len(runs), unread),
      # A thousand runs take a browser longer to draw than ten.
      'refresh_seconds': 2.0 if unread else max(2.0, len(runs) / 50),
    }

  def _read_changed(self, stamps: dict[str, live_run.Stamp]) -> int:
    """Reads what has changed, those first that were not read for longest.

    Returns:
      How many runs there was no time for and nothing is known of yet.
    """
    start = time.monotonic()
    known = self._known
    changed = [
      folder
      for folder, stamp in stamps.items()
      if folder not in known or known[folder].stamp != stamp
    ]
    changed.sort(key=lambda f: known[f].read_at if f in known else 0.0)
    for folder in changed:
      if time.monotonic() - start > _READING_SECONDS:
        break
      read = live_run.read(folder, stamps[folder])
      if read is not None:
        known[folder] = read
      else:
        known.pop(folder, None)
        stamps.pop(folder)
    return len(stamps.keys() - known.keys())

  def _message(self, num_runs: int, unread: int) -> str:
    if unread:
      return f'Reading the runs: {num_runs} of {num_runs + unread} so far.'
    return '' if num_runs else self._nothing()

  def _nothing(self) -> str:
    listed = ', '.join(self._patterns)
    return (
      f'No run directory matches {listed} in {os.getcwd()} yet. A run appears '
      'here as soon as its training starts.'
    )


def to_json(snapshot: dict[str, Any]) -> str:
  """Returns a snapshot as compact JSON."""
  return json.dumps(snapshot, separators=(',', ':'), allow_nan=False)
