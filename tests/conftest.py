"""Fixtures that more than one folder of tests uses."""

import http.client
import http.server
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import urllib.parse

import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)

# isort: split
import gin
import numpy as np
import pytest

from batch_rl_dr3.runs import lease

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# They take longest and so come first: at the end no core is to wait for them.
_LONG = ('train_test.py', 'continuous_test.py', 'evaluate_test.py')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def session():
  """A session on a graph of its own, as TF1 code expects it."""
  import tensorflow as tf

  from batch_rl_dr3.config import dopamine_compat  # noqa: F401

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    yield session


@pytest.fixture
def clear_gin():
  """Gin without bindings, before and after."""
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture(scope='session')
def replay_dir(tmp_path_factory):
  """200 random rows of MinAtar Breakout's shape, as DIR/1/replay_logs."""
  from batch_rl_dr3.replay.log import log_writer

  folder = tmp_path_factory.mktemp('breakout') / '1'
  writer = log_writer.LogWriter(folder / 'replay_logs', (10, 10, 4), 1, 100)
  rng = np.random.default_rng(0)
  for row in range(200):
    writer.add(
      rng.integers(0, 2, (10, 10, 4), dtype=np.uint8),
      int(rng.integers(6)),
      float(rng.integers(0, 2)),
      row % 15 == 14,
    )
  writer.close()
  return folder


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def tiny_bindings():
  """What makes minatar/rem_dr3.gin a run of a second."""
  return (
    "create_minatar_lanes.game_name='breakout'",
    'create_minatar_lanes.num_lanes=2',
    'FixedReplayRunner.num_iterations=2',
    'FixedReplayRunner.num_gradient_steps=30',
    'FixedReplayRunner.num_evaluation_agent_steps=40',
    'FixedReplayRunner.log_period=10',
    'FixedReplayRunner.effective_rank_period=10',
    'FixedReplayREMAgent.num_heads=5',
    'OfflineAgent.target_update_period=7',
  )


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory, replay_dir, cache_dir, tiny_bindings):
  """The run directory of a tiny REM + DR3 run, one a test module."""
  import tensorflow as tf

  from batch_rl_dr3 import train

  gin.clear_config()
  base_dir = tmp_path_factory.mktemp('run')
  with tf.Graph().as_default():
    train.train(
      str(base_dir),
      str(replay_dir),
      str(cache_dir),
      ['minatar/rem_dr3.gin'],
      tiny_bindings,
      seed=3,
    )
  gin.clear_config()
  return base_dir


@pytest.fixture
def train_command(replay_dir, cache_dir, tiny_bindings):
  """Makes the command line of a tiny REM+DR3 run."""

  def make(base_dir, *bindings, replay_dir=replay_dir, flags=()):
    return [
      sys.executable,
      '-um',
      'batch_rl_dr3.train',
      '--gin_files=minatar/rem_dr3.gin',
      *(f'--gin_bindings={binding}' for binding in (*tiny_bindings, *bindings)),
      f'--replay_dir={replay_dir}',
      f'--base_dir={base_dir}',
      f'--cache_dir={cache_dir}',
      *flags,
    ]

  return make


def _run(program, cwd):
  return subprocess.run(
    program,
    capture_output=True,
    text=True,
    check=False,
    cwd=cwd,
    env={**os.environ, 'OMP_NUM_THREADS': '1'},
  )


@pytest.fixture
def run():
  """Runs a program and returns what it printed and its exit code."""
  return lambda program: _run(program, ROOT)


@pytest.fixture(scope='session')
def run_command():
  """Does the same for a command of the package."""

  def run_command(name, *flags, cwd=None):
    return _run([sys.executable, '-m', f'batch_rl_dr3.{name}', *flags], cwd)

  return run_command


class BucketProxy(http.server.ThreadingHTTPServer):
  """Stands before the emulator, which knows no conditions and no faults.

  It answers 412 where an object is there already. `faults` are what befalls
  the next requests that change things, `read_faults` those that read content:
  503 answers without passing on; 'lost' passes on and closes before the
  answer, as when a network breaks; 'cut' answers with half of the content.
  """

  daemon_threads = True

  def __init__(self, target_port):
    super().__init__(('127.0.0.1', 0), _BucketHandler)
    self.target_port = target_port
    self.faults = []
    self.read_faults = []
    self.uploaded = []
    self.lock = threading.Lock()

  def handle_error(self, request, client_address):
    pass


class _BucketHandler(http.server.BaseHTTPRequestHandler):
  def _pass_on(self):
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    with self.server.lock:  # Conditions hold for one request at a time.
      fault = None
      faults = []
      if self.command != 'GET':
        faults = self.server.faults
      elif 'alt=media' in self.path:
        faults = self.server.read_faults
      if faults:
        fault = faults.pop(0)
      if fault == 503:
        status, answer = 503, b'{}'
      elif 'ifGenerationMatch=0' in self.path and self._exists(body):
        status, answer = 412, b'{}'
      else:
        status, answer = self._ask(self.command, self.path, body)
        name = re.search(rb'"name": "([^"]+)"', body)
        if name:
          self.server.uploaded.append(name[1].decode())
    if fault == 'cut':
      answer = answer[: len(answer) // 2]
    if fault == 'lost':
      self.connection.shutdown(socket.SHUT_RDWR)
      return
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  do_GET = do_POST = do_PUT = do_DELETE = _pass_on

  def _exists(self, body):
    name = re.search(rb'"name": "([^"]+)"', body)[1].decode()
    bucket = re.search('/b/([^/]+)/', self.path)[1]
    quoted = urllib.parse.quote(name, safe='')
    return self._ask('GET', f'/storage/v1/b/{bucket}/o/{quoted}', b'')[0] == 200

  def _ask(self, method, path, body):
    connection = http.client.HTTPConnection(
      '127.0.0.1', self.server.target_port
    )
    kept = {
      k: v
      for k, v in self.headers.items()
      if k.lower().startswith(('content-', 'range'))
    }
    connection.request(method, path, body, kept)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content

  def log_message(self, *args):
    pass


@pytest.fixture(scope='session')
def emulator():
  """The port of an emulator of Google Cloud Storage with a bucket `bucket`."""
  from gcp_storage_emulator import server

  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  emulator = server.create_server('127.0.0.1', port, in_memory=True)
  emulator.start()
  connection = http.client.HTTPConnection('127.0.0.1', port)
  connection.request(
    'POST',
    '/storage/v1/b?project=test',
    '{"name": "bucket"}',
    {'Content-Type': 'application/json'},
  )
  assert connection.getresponse().status == 200
  yield port
  emulator.stop()


@pytest.fixture
def bucket(emulator, monkeypatch):
  """gs://bucket, behind a proxy that spoils answers; leases end quickly."""
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.2)
  monkeypatch.setattr(lease, '_POLL_SECONDS', 0.05)
  with BucketProxy(emulator) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host = f'http://127.0.0.1:{server.server_address[1]}'
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', host)
    yield server
    server.shutdown()
