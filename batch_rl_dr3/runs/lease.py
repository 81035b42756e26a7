"""One worker at a time on a run, on any disk or bucket, without clocks.

The right to work on a run is a numbered term. It begins with a file
`term-<number>.json`, created only if absent, and lasts while the worker keeps
changing `beat-<number>.json`. Whoever wants the run watches that beat: when it
changes to 'released', the run is free; when it stands still for
`EXPIRY_SECONDS` of the watcher's own time, the worker is taken for dead. No
clocks are compared. A worker of this machine is looked at by its process.

A worker wrongly taken for dead (a paused machine, a lost network) must not
write any more: the number is a fencing token, and `check`, called before
everything that is published, raises once there is a higher one. To close the
gap between a check and its rename, whoever takes over first removes the run's
temporary files, so that the rename fails.

Files of terms are never removed: they are the log of who worked when.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import secrets
import socket
import threading
import time
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, place

FOLDER = 'lease'
# How often a worker shows that it lives, and for how long its beat may stand
# still before it is taken for dead. A raylet's workers run on for some 43 s.
HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0
_POLL_SECONDS = 0.25
_TERM = re.compile(r'term-(\d{8,18})\.json')


class BusyError(errors.PreemptedError):
  """Another worker is at work on the run; this one has nothing to do."""


class FencedError(errors.PreemptedError):
  """Another worker has taken over the run; this one may not write any more."""


@dataclasses.dataclass(frozen=True)
class Term:
  """The time of one worker on a run, known by its number, `token`."""

  token: int
  worker: str = 'unknown'  # Host, process and a random part.
  acquired: str = ''  # By that worker's clock; for people to read.
  machine: str = ''  # Boot and process namespace; '' where not known.
  pid: int = 0
  process_start: str = ''  # In the host's ticks.
  released: bool = False  # By the worker itself.


class Lease:
  """The right of this process to work on a run, whose terms are in a place."""

  def __init__(self, terms: place.Place, name: str):
    self._terms = terms
    self._name = name
    mark = secrets.token_hex(4)
    self._worker = f'{socket.gethostname()}:{os.getpid()}:{mark}'
    self._num_beats = 0
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None
    self.token = 0
    self.is_lost = False

  def acquire(self) -> None:
    """Begins a term, or raises BusyError if another worker is at work.

    It returns at once where the run is free, or its worker was a process here
    that is dead; it takes up to `HEARTBEAT_SECONDS` to see that one lives, and
    `EXPIRY_SECONDS` where a dead one was of another machine.
    """
    while not self.token:
      tokens = _tokens(self._terms)
      if tokens:
        term = _read_term(self._terms, tokens[-1])
        if not self._is_over(term):
          raise BusyError(
            f'{self._name} is in use: {term.worker} works on it. Wait for it, '
            'or end it.'
          )
      self.token = 1 + max(tokens, default=0)
      if not self._terms.create(_term(self.token), self._record()):
        self.token = 0  # Somebody was faster, who now lives.
    self._beat()
    self._thread = threading.Thread(target=self._keep_beating, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises FencedError if another worker took over, or the term is gone."""
    successor = self._terms.read(_term(self.token + 1))
    if successor is None and self._terms.read(_term(self.token)) is not None:
      return
    self.is_lost = True
    worker = _parse_term(self.token + 1, successor).worker
    raise FencedError(
      f'{self._name} was taken over by {worker} while this process (term '
      f'{self.token}) stood still; it leaves, and writes nothing more.'
    )

  def release(self) -> None:
    """Ends the term, if one began, so that the next worker need not wait."""
    self._ended.set()
    if self._thread is not None:
      self._thread.join()
    if self.token and not self.is_lost:
      with contextlib.suppress(OSError):  # Then it expires.
        self._beat(released=True)

  def _keep_beating(self) -> None:
    while not self._ended.wait(HEARTBEAT_SECONDS):
      with contextlib.suppress(OSError):  # What is published next will tell.
        try:
          self.check()
        except FencedError:
          return
        self._beat()

  def _beat(self, released: bool = False) -> None:
    self._num_beats += 1
    beat = {'beat': self._num_beats, 'released': released, 'at': _now()}
    self._terms.write(_beat(self.token), json.dumps(beat).encode())

  def _record(self) -> bytes:
    pid = os.getpid()
    term = Term(
      self.token, self._worker, _now(), _machine(), pid, _process_start(pid)
    )
    return json.dumps(dataclasses.asdict(term)).encode()

  def _is_over(self, term: Term) -> bool:
    if term.released or _is_dead(term):
      return True
    seen = self._terms.read(_beat(term.token))
    deadline = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < deadline:
      time.sleep(_POLL_SECONDS)
      beat = self._terms.read(_beat(term.token))
      if beat != seen:
        return _is_released(beat)
      if _is_dead(term):
        return True
    return True


@contextlib.contextmanager
def held(terms: place.Place, name: str) -> Iterator[Lease]:
  """Yields a lease that is released at the end; see `Lease.acquire`."""
  lease = Lease(terms, name)
  try:
    with atomic.file_errors(f'{name}/{FOLDER}'):
      lease.acquire()
    yield lease
  finally:
    lease.release()


def history(terms: place.Place) -> list[Term]:
  """Returns the terms of a run, in order: who worked on it."""
  return [_read_term(terms, token) for token in _tokens(terms)]


def _tokens(terms: place.Place) -> list[int]:
  """Returns the numbers of the terms, rising; other files are ignored."""
  matches = map(_TERM.fullmatch, terms.names())
  return sorted(int(match[1]) for match in matches if match)


def _read_term(terms: place.Place, token: int) -> Term:
  term = _parse_term(token, terms.read(_term(token)))
  released = _is_released(terms.read(_beat(token)))
  return dataclasses.replace(term, released=released)


def _parse_term(token: int, content: bytes | None) -> Term:
  """Returns a term; of a damaged or torn record, only that there was one."""
  said = _parse(content)
  kinds = {f.name: type(f.default) for f in dataclasses.fields(Term)}
  del kinds['token']
  is_right = said.get('token') == token and all(
    type(said.get(name)) is kind for name, kind in kinds.items()
  )
  return Term(token, **{n: said[n] for n in kinds} if is_right else {})


def _is_released(beat: bytes | None) -> bool:
  return _parse(beat).get('released') is True


def _parse(content: bytes | None) -> dict[str, Any]:
  """Returns the object that a file holds; an empty one of a damaged file."""
  with contextlib.suppress(ValueError, RecursionError):
    value = json.loads(content or b'')
    if isinstance(value, dict):
      return value
  return {}


def _term(token: int) -> str:
  return f'term-{token:08}.json'


def _beat(token: int) -> str:
  return f'beat-{token:08}.json'


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')


def _machine() -> str:
  """Returns what two processes share that can see each other; '' if unknown."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def _process_start(pid: int) -> str:
  """Returns when a process began; '' if it has ended."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''
  # What stands before the last parenthesis is its name, which may hold any.
  fields: list[Any] = stat.rpartition(')')[2].split()
  return '' if fields[0] in 'ZX' else str(fields[19])


def _is_dead(term: Term) -> bool:
  """Returns whether a worker was a process of this machine that has ended."""
  return (
    term.machine != ''
    and term.machine == _machine()
    and _process_start(term.pid) != term.process_start
  )
