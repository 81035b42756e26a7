"""How runs stand now, and a report that follows them."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import glob
from http import server
import os
import pathlib
import sys
import threading
import time
from typing import Any

import numpy as np

from batch_rl_dr3.config import errors, signals
from batch_rl_dr3.reporting import run_reader, tables, words
from batch_rl_dr3.runs import run_directory, state

_FILES = (
  *(run_directory.PROVENANCE, run_directory.METRICS, run_directory.SCORES),
  *(run_directory.FAILED, run_directory.FINISHED),
)


def progress(run: run_reader.Run) -> tables.Row:
  """Returns how a run stands by its files, now: a row of the page's table.

  `rate` is in gradient steps a second, and `seconds_left` until the last one,
  of a run that is running; `quiet_seconds` are since one of its files changed.
  """
  done = run.num_gradient_steps
  total = run.provenance.get('total_gradient_steps')
  total = total if isinstance(total, int) and total > 0 else None
  is_finished = run.finished and (total is None or done >= total)
  found = state.read(run.folder, is_finished)
  left = max(0, total - done) / found.rate if total and found.rate else None
  return {
    **{'name': run.name, 'method': words.display_name(run.method)},
    **{'game': run.setting.label, 'seed': run.seed},
    **{'state': found.state, 'error': found.error or None},
    **{'steps': done, 'total_steps': total, 'rate': found.rate},
    **{'seconds_left': left, 'quiet_seconds': found.quiet_seconds},
  }


def progress_table(collection: run_reader.Collection) -> tables.Table:
  """Returns a row a run, those that ask for a look first."""
  rows = [progress(run) for run in collection.runs]
  unknown: tables.Row = dict.fromkeys(('method', 'game', 'seed'), '')
  unknown |= {'state': state.State.UNREADABLE, 'steps': 0, 'quiet_seconds': 0.0}
  rows += [unknown | {'name': n, 'error': e} for n, e in collection.unreadable]
  order = list(state.State)
  rows.sort(key=lambda row: (order.index(row['state']), row['name']))
  return tables.build('progress', rows)


def _signature(patterns: Sequence[str]) -> dict[str, Any]:
  """Returns what differs when a report would: files, and how long unchanged.

  A run goes from running to stalled without a change of its files. So the
  number of times that its silence has doubled counts, from the least patience.
  """
  found: dict[str, Any] = {}
  for pattern in patterns:
    for name in glob.glob(os.path.expanduser(pattern), recursive=True):
      folder = pathlib.Path(name)
      if run_reader.is_run(name):
        quiet = state.quiet_seconds(folder)
        doublings = int(np.log2(max(1.0, 2 * quiet / state.STALLED_SECONDS)))
        files: list[Any] = []
        for file in _FILES:
          with contextlib.suppress(FileNotFoundError):
            status = os.stat(folder / file)
            files.append((file, status.st_size, status.st_mtime_ns))
        found[name] = files, doublings
  return found


def watch(
  patterns: Sequence[str],
  write: Callable[[], os.PathLike[str]],
  seconds: float,
  stop: threading.Event,
) -> None:
  """Writes a report, and again whenever a run has changed, until stopped.

  Runs that cannot be reported, or are not there yet, are waited for: what is
  wrong is said once. There are so many `seconds` between two looks at the runs,
  or more, so that at most half of the time is spent on reports.
  """
  seen: object = None
  said = ''
  while not stop.is_set():
    start = time.monotonic()
    # Taken before they are read: what changes meanwhile is seen next time.
    now = _signature(patterns)
    if now != seen:
      seen = now
      try:
        print(f'report: {write()}', flush=True)
        said = ''
      except errors.DataError as error:
        if str(error) != said:
          said = str(error)
          print(f'waiting: {said}', file=sys.stderr, flush=True)
    # A thousand runs take a minute to report on, and change all the time.
    stop.wait(max(seconds, time.monotonic() - start))


class _QuietHandler(server.SimpleHTTPRequestHandler):
  """Does not log each request, and has nothing kept by a browser."""

  def log_message(self, *_: Any) -> None:
    pass

  def end_headers(self) -> None:
    self.send_header('Cache-Control', 'no-store')
    super().end_headers()


@contextlib.contextmanager
def serve(folder: str | os.PathLike[str], port: int) -> Iterator[str]:
  """Serves a folder to this machine alone, and yields its address.

  Port 0 takes a free one; UsageError if it cannot listen there.
  """
  handler = functools.partial(_QuietHandler, directory=os.fspath(folder))
  try:
    listener = server.ThreadingHTTPServer(('127.0.0.1', port), handler)
  except OSError as error:
    raise errors.UsageError(
      f'cannot listen on port {port}: {error.strerror}. Choose another by '
      '--serve=PORT.'
    ) from error
  with listener:
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
      yield f'http://127.0.0.1:{listener.server_port}/'
    finally:
      listener.shutdown()
      thread.join()


def follow(
  patterns: Sequence[str],
  write: Callable[[], os.PathLike[str]],
  seconds: float | None,
  port: int | None,
) -> None:
  """Keeps a report up to date, serves its folder, or both, until stopped.

  Without `seconds` between looks at the runs it is written once; without a
  `port` its folder is not served, once it is there.
  """
  stop = threading.Event()
  with contextlib.ExitStack() as stack:
    stack.enter_context(signals.handling(lambda _: stop.set()))
    is_served = port is None

    def write_and_serve() -> os.PathLike[str]:
      nonlocal is_served
      index = write()
      if not is_served:
        folder = os.path.dirname(index)
        address = stack.enter_context(serve(folder, port or 0))
        print(f'serving: {address} (Ctrl-C ends it)', flush=True)
        is_served = True
      return index

    if seconds is None:
      print(f'report: {write_and_serve()}', flush=True)
    else:
      watch(patterns, write_and_serve, seconds, stop)
    stop.wait()
