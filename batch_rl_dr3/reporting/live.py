"""A page that shows runs while they train, and a report that follows them.

The server reads and never writes. It answers GET and HEAD only, and where it
listens on this machine alone it refuses names of other hosts, so that no web
page elsewhere can read it by pointing a name of its own here (DNS rebinding).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import ipaddress
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any
from urllib import parse
from wsgiref.types import StartResponse, WSGIEnvironment

import werkzeug
from werkzeug import exceptions, routing, serving, utils

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import live_runs

_PACKAGE = pathlib.Path(__file__).parent
_INDEX = 'index.html'
_PAGES = {'/': 'live.html', '/live.js': 'live.js', '/live.css': 'live.css'}
_HEADERS = {
  'Cache-Control': 'no-store',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
}
_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'"
)
# The report holds its styles and pictures in itself, and runs nothing.
_REPORT_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class LivePage:
  """A WSGI application: the page, its data, and the last report."""

  def __init__(
    self,
    runs: live_runs.LiveRuns,
    report_dir: str | None = None,
    local_only: bool = True,
  ):
    """Opens nothing yet.

    Args:
      runs: what the page shows.
      report_dir: the report's folder; None for `report` beside the runs.
      local_only: whether to answer only to names of this machine.
    """
    self._runs = runs
    self._report_dir = report_dir
    self._local_only = local_only
    self._urls = routing.Map(
      [
        *(
          routing.Rule(path, endpoint=path, methods=['GET']) for path in _PAGES
        ),
        routing.Rule('/runs.json', endpoint='runs', methods=['GET']),
        routing.Rule('/report/', endpoint='report', methods=['GET']),
        routing.Rule('/report/<path:name>', endpoint='report', methods=['GET']),
      ]
    )

  def __call__(
    self, environ: WSGIEnvironment, start_response: StartResponse
  ) -> Iterable[bytes]:
    """Answers a request, as PEP 3333 says."""
    request = werkzeug.Request(environ)
    try:
      self._check_host(request)
      endpoint, values = self._urls.bind_to_environ(request).match()
      response = self._answer(request, endpoint, **values)
    except exceptions.HTTPException as error:
      response = werkzeug.Response.force_type(
        error.get_response(environ), environ
      )
    response.headers.update(_HEADERS)
    response.headers.setdefault('Content-Security-Policy', _POLICY)
    return response(environ, start_response)

  def _check_host(self, request: werkzeug.Request) -> None:
    try:
      host = parse.urlsplit(f'//{request.headers.get("Host", "")}').hostname
    except ValueError:
      host = None
    if self._local_only and not _is_local(host or ''):
      raise exceptions.Forbidden('Open this page by the name localhost.')

  def _answer(
    self, request: werkzeug.Request, endpoint: str, name: str = _INDEX
  ) -> werkzeug.Response:
    if endpoint in _PAGES:
      return utils.send_from_directory(
        _PACKAGE, _PAGES[endpoint], request.environ
      )
    snapshot = self._runs.snapshot()
    report = self._report(snapshot)
    if endpoint == 'runs':
      return werkzeug.Response(
        live_runs.to_json(snapshot | {'has_report': report is not None}),
        mimetype='application/json',
      )
    if report is None:
      raise exceptions.NotFound(
        'There is no report yet: python -m batch_rl_dr3.report writes it.'
      )
    response = utils.send_from_directory(report, name, request.environ)
    response.headers['Content-Security-Policy'] = _REPORT_POLICY
    return response

  def _report(self, snapshot: dict[str, Any]) -> pathlib.Path | None:
    """Returns the report's folder, None while there is no report."""
    if self._report_dir is not None:
      folder = pathlib.Path(self._report_dir).expanduser().resolve()
    elif snapshot['runs']:
      folder = pathlib.Path(snapshot['parent']) / 'report'
    else:
      return None
    return folder if (folder / _INDEX).is_file() else None


def _is_local(host: str) -> bool:
  if host == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


class _QuietHandler(serving.WSGIRequestHandler):
  """Does not log each request."""

  def log_request(self, code: int | str = '-', size: int | str = '-') -> None:
    """Logs nothing."""


@contextlib.contextmanager
def serve(
  runs: live_runs.LiveRuns,
  host: str,
  port: int,
  report_dir: str | None = None,
) -> Iterator[str]:
  """Serves the live page in a thread, and yields its address.

  Args:
    runs: what it shows.
    host: the name or address to listen on.
    port: the port; 0 takes a free one.
    report_dir: the report's folder; None for `report` beside the runs.

  Raises:
    UsageError: if it cannot listen there.
  """
  try:
    family = serving.select_address_family(host, port)
    listener = socket.create_server((host, port), family=family)
  except OSError as error:
    # Python adds the address to the reason.
    reason = str(error.strerror or error).partition(' (while ')[0]
    raise errors.UsageError(
      f'cannot listen on {host}, port {port}: {reason}. Choose another by '
      '--serve=PORT and --host.'
    ) from error
  with listener:
    page = LivePage(runs, report_dir, local_only=_is_local(host))
    server = serving.make_server(
      host,
      port,
      page,
      threaded=True,
      request_handler=_QuietHandler,
      fd=listener.fileno(),
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      shown = f'[{host}]' if ':' in host else host
      yield f'http://{shown}:{server.port}/'
    finally:
      server.shutdown()
      thread.join()
      server.server_close()


@contextlib.contextmanager
def stop_request() -> Iterator[threading.Event]:
  """Yields an event that the first Ctrl-C or SIGTERM sets.

  The second one does what it always does.
  """
  event = threading.Event()
  before: dict[int, object] = {}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)  # type: ignore[arg-type]

  def stop(*_: object) -> None:
    restore()
    event.set()

  for number in (signal.SIGINT, signal.SIGTERM):
    before[number] = signal.signal(number, stop)
  try:
    yield event
  finally:
    restore()


def watch(
  runs: live_runs.LiveRuns,
  write: Callable[[], os.PathLike[str]],
  seconds: float,
  stop: threading.Event,
) -> None:
  """Writes a report, and again whenever a run has changed, until stopped.

  Runs that cannot be reported, or are not there yet, are waited for: what is
  wrong is said once.

  Args:
    runs: what is watched.
    write: writes the report and returns its page.
    seconds: between two looks at the runs, or longer, so that at most half
      of the time is spent on reports.
    stop: set to end.

  Raises:
    UsageError: if the report's folder holds anything else.
    WriteError: if it cannot be written.
  """
  seen: object = None
  said = ''
  while not stop.is_set():
    start = time.monotonic()
    # Taken before they are read: what changes meanwhile is seen next time.
    now = runs.stamps()
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


def run(
  patterns: Sequence[str],
  report_dir: str | None,
  port: int | None,
  host: str,
  watch_seconds: float | None,
  write: Callable[[], os.PathLike[str]],
) -> None:
  """Serves the live page, keeps the report up to date, or both, until stopped.

  Args:
    patterns: globs of run directories.
    report_dir: the report's folder; None for `report` beside the runs.
    port: of the live page; None serves none.
    host: where the page listens.
    watch_seconds: between looks at the runs; None writes no report.
    write: writes the report and returns its page.

  Raises:
    UsageError: if the page cannot be served there.
    WriteError: if the report cannot be written.
  """
  runs = live_runs.LiveRuns(patterns)
  with stop_request() as stop, contextlib.ExitStack() as stack:
    if port is not None:
      address = stack.enter_context(serve(runs, host, port, report_dir))
      if not _is_local(host):
        print(
          f'warning: --host={host} shows these runs to everybody who can reach '
          'this machine; there is no password.',
          file=sys.stderr,
        )
      print(f'live page: {address} (Ctrl-C ends it)', flush=True)
    if watch_seconds is not None:
      watch(runs, write, watch_seconds, stop)
    stop.wait()
