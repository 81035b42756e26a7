"""Small logs, written by the package and by Dopamine, for all replay tests."""

import collections
import gzip
import http.client
import http.server
import re
import socket
import threading
import time
import types
from typing import NamedTuple
import urllib.parse

import numpy as np
import pytest

SHAPE = (12, 10)
NUM_ACTIONS = 6
STACK_SIZE = 4


class Transition(NamedTuple):
  observation: np.ndarray
  action: int
  reward: float
  terminal: int


def make_transitions(num, seed=0, shape=SHAPE, episode_length=20):
  """Returns random transitions; episodes have random lengths, some of 1."""
  rng = np.random.default_rng(seed)
  return [
    Transition(
      rng.integers(0, 256, shape, dtype=np.uint8),
      int(rng.integers(NUM_ACTIONS)),
      float(rng.choice([-1.0, 0.0, 0.25, 1.0])),
      int(rng.random() < 1 / episode_length),
    )
    for _ in range(num)
  ]


def write_log(folder, transitions, rows_per_file=200, close=True, **kwargs):
  """Writes a log with the package's LogWriter."""
  from batch_rl_dr3.replay.log import log_writer

  shape = transitions[0].observation.shape
  writer = log_writer.LogWriter(
    folder, shape, STACK_SIZE, rows_per_file, **kwargs
  )
  for transition in transitions:
    writer.add(*transition)
  if close:
    writer.close()
  return writer


def dopamine_buffer(
  capacity, update_horizon=1, shape=SHAPE, gamma=0.9, save_to=None, cursor=0
):
  """Returns Dopamine's buffer; it saves itself whenever at `cursor`."""
  from batch_rl_dr3.config import dopamine_compat

  class Buffer(dopamine_compat.OutOfGraphReplayBuffer):
    num_saved = 0

    def _create_storage(self):
      super()._create_storage()
      for array in self._store.values():
        array[:] = 0

    def _add_transition(self, transition):
      super()._add_transition(transition)
      if save_to is not None and self.cursor() == cursor:
        self.save(str(save_to), type(self).num_saved)
        type(self).num_saved += 1

  return Buffer(
    shape,
    STACK_SIZE,
    capacity,
    batch_size=32,
    update_horizon=update_horizon,
    gamma=gamma,
    checkpoint_duration=10**6,
  )


def write_with_dopamine(
  folder, transitions, capacity=200, update_horizon=1, cursor=0, final=False
):
  """Writes a log with Dopamine's buffer, one file per time at `cursor`."""
  folder.mkdir(parents=True, exist_ok=True)
  shape = transitions[0].observation.shape
  buffer = dopamine_buffer(
    capacity, update_horizon, shape, save_to=folder, cursor=cursor
  )
  for transition in transitions:
    buffer.add(*transition)
  if final:
    buffer.save(str(folder), type(buffer).num_saved)
  return buffer


def load_with_dopamine(
  folder, suffix, update_horizon=1, shape=SHAPE, gamma=0.9
):
  """Returns Dopamine's buffer of a file's own capacity, loaded from it."""
  with gzip.open(folder / f'$store$_terminal_ckpt.{suffix}.gz') as stream:
    capacity = len(np.load(stream))
  buffer = dopamine_buffer(capacity, update_horizon, shape, gamma)
  buffer.load(str(folder), suffix)
  return buffer


def valid_with_dopamine(buffer, num_rows=None):
  """Returns the indices that Dopamine accepts, asked one by one."""
  num_rows = num_rows or buffer._replay_capacity
  return [i for i in range(num_rows) if buffer.is_valid_transition(i)]


def read_array(path):
  with gzip.open(path) as stream:
    return np.load(stream, allow_pickle=False)


def write_array(path, array):
  with gzip.open(path, 'wb', 1) as stream:
    np.save(stream, np.asarray(array))


@pytest.fixture(scope='session')
def logs():
  """The helpers above."""
  return types.SimpleNamespace(
    SHAPE=SHAPE,
    NUM_ACTIONS=NUM_ACTIONS,
    STACK_SIZE=STACK_SIZE,
    make_transitions=make_transitions,
    write_log=write_log,
    dopamine_buffer=dopamine_buffer,
    write_with_dopamine=write_with_dopamine,
    load_with_dopamine=load_with_dopamine,
    valid_with_dopamine=valid_with_dopamine,
    read_array=read_array,
    write_array=write_array,
  )


def _free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


@pytest.fixture(scope='session')
def cloud():
  """An emulator of Google Cloud Storage; upload(folder, prefix) fills it."""
  from gcp_storage_emulator import server

  port = _free_port()
  emulator = server.create_server('127.0.0.1', port, in_memory=True)
  emulator.start()
  endpoint = f'http://127.0.0.1:{port}'

  def request(method, path, body):
    connection = http.client.HTTPConnection('127.0.0.1', port)
    kind = 'application/json' if 'upload' not in path else 'text/plain'
    connection.request(method, path, body, {'Content-Type': kind})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status < 300, content
    connection.close()

  request('POST', '/storage/v1/b?project=test', '{"name": "logs"}')

  def upload(folder, prefix):
    for path in sorted(folder.iterdir()):
      name = urllib.parse.quote(f'{prefix}/{path.name}', safe='')
      request(
        'POST',
        f'/upload/storage/v1/b/logs/o?uploadType=media&name={name}',
        path.read_bytes(),
      )
    return f'gs://logs/{prefix}'

  yield types.SimpleNamespace(endpoint=endpoint, port=port, upload=upload)
  emulator.stop()


class FaultyProxy(http.server.ThreadingHTTPServer):
  """Stands before a server and spoils what its schedule says.

  `faults` maps a pattern of URLs to a list of what happens to the requests
  that match, one after another; after the last one all goes well. A fault is
  an HTTP status, 'timeout', 'close', 'short' (the connection breaks within
  the body), 'cut' (half of the body, as if it were all), or 'flip' (a bit).
  Every answer takes `delay` seconds, and its URL is added to `urls`.
  """

  daemon_threads = True

  def __init__(self, target_port):
    super().__init__(('127.0.0.1', 0), _ProxyHandler)
    self.target_port = target_port
    self.faults = {}
    self.delay = 0.0
    self.urls = []
    self.log = collections.Counter()
    self.lock = threading.Lock()
    self.endpoint = f'http://127.0.0.1:{self.server_address[1]}'

  def handle_error(self, request, client_address):
    """Clients hang up on purpose here."""

  def next_fault(self, url):
    with self.lock:
      for pattern, faults in self.faults.items():
        if faults and re.search(pattern, urllib.parse.unquote(url)):
          fault = faults.pop(0)
          self.log[fault] += 1
          return fault
    return None


class _ProxyHandler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    fault = self.server.next_fault(self.path)
    self.server.urls.append(urllib.parse.unquote(self.path))
    time.sleep(self.server.delay)
    if fault == 'timeout':
      time.sleep(0.6)
      fault = 'close'
    if fault == 'close':
      self.connection.shutdown(socket.SHUT_RDWR)
      return
    if isinstance(fault, int):
      self._answer(fault, {}, b'{"error": {"message": "by the schedule"}}')
      return
    connection = http.client.HTTPConnection(
      '127.0.0.1', self.server.target_port
    )
    headers = {k: v for k, v in self.headers.items() if k.lower() != 'host'}
    connection.request('GET', self.path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    kept = {'Content-Type', 'Content-Range'}
    headers = {k: v for k, v in answer.getheaders() if k in kept}
    if fault == 'flip':
      body = bytearray(body)
      body[len(body) // 2] ^= 16
    if fault == 'cut':  # A body that is whole by its headers, and shorter.
      body = body[: len(body) // 2]
    num_sent = len(body) // 2 if fault == 'short' else len(body)
    self._answer(answer.status, headers, bytes(body), num_sent)
    if fault == 'short':
      self.close_connection = True

  def _answer(self, status, headers, body, num_sent=None):
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body[:num_sent])

  def log_message(self, *args):
    pass


@pytest.fixture
def proxy(cloud):
  """A FaultyProxy before the emulator."""
  with FaultyProxy(cloud.port) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
