"""Runs in a bucket, before an emulator that has been taught conditions.

The emulator ignores ifGenerationMatch, and knows no faults: a proxy before it
answers 412 where an object is there already, and spoils what it is told to.
"""

import http.client
import http.server
import re
import socket
import threading
import urllib.parse

import pytest

from batch_rl_dr3 import errors, lease, run_directory
from batch_rl_dr3.training import checkpoints, home, remote_home


class Proxy(http.server.ThreadingHTTPServer):
  """Passes on requests; `faults` are what befalls the next that change things.

  503 answers without passing on; 'lost' passes on and closes before the
  answer, as when a network breaks.
  """

  daemon_threads = True

  def __init__(self, target_port):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.target_port = target_port
    self.faults = []
    self.uploaded = []
    self.lock = threading.Lock()

  def handle_error(self, request, client_address):
    pass


class _Handler(http.server.BaseHTTPRequestHandler):
  def _pass_on(self):
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    with self.server.lock:  # Conditions hold for one request at a time.
      fault = None
      if self.command != 'GET' and self.server.faults:
        fault = self.server.faults.pop(0)
      if fault == 503:
        status, answer = 503, b'{}'
      elif 'ifGenerationMatch=0' in self.path and self._exists(body):
        status, answer = 412, b'{}'
      else:
        status, answer = self._ask(self.command, self.path, body)
        name = re.search(rb'"name": "([^"]+)"', body)
        if name:
          self.server.uploaded.append(name[1].decode())
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
      k: v for k, v in self.headers.items() if k.lower().startswith('content-')
    }
    connection.request(method, path, body, kept)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content

  def log_message(self, *args):
    pass


@pytest.fixture(scope='module')
def emulator():
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
def proxy(emulator, monkeypatch):
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.2)
  monkeypatch.setattr(lease, '_POLL_SECONDS', 0.05)
  with Proxy(emulator) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host = f'http://127.0.0.1:{server.server_address[1]}'
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', host)
    yield server
    server.shutdown()


@pytest.fixture
def open_home(proxy, tmp_path, request):
  """Opens the home of the test's run, as on so many machines."""

  def open_home(machine='one'):
    url = f'gs://bucket/{request.node.name}/seed0'
    return home.open_home(url, str(tmp_path / machine))

  return open_home


def write(place, **texts):
  for name, text in texts.items():
    path = place.folder / f'{name}.csv'
    run_directory.write_atomically(path, text, place.check)
  place.publish()


def test_what_is_published_is_there_on_the_next_machine(open_home, proxy):
  first = open_home('one')
  assert isinstance(first, remote_home.RemoteHome)
  with first.lock():
    (first.folder / 'checkpoints').mkdir()
    write(first, a='1', b='2')
    (first.folder / '.hidden.tmp').write_text('')
    proxy.uploaded.clear()
    write(first, b='3')  # Of what is there already nothing goes up again.
    assert [n for n in proxy.uploaded if 'lease' not in n] == [
      f'{first._remote._root.partition("/")[2]}/b.csv'
    ]
    (first.folder / 'a.csv').unlink()
    first.publish()
  assert not first.folder.exists()
  second = open_home('two')
  with second.lock():
    assert {p.name for p in second.folder.rglob('*')} == {'b.csv'}
    assert (second.folder / 'b.csv').read_text() == '3'
    second.check()


def test_one_works_the_other_leaves_and_the_fenced_publishes_nothing(
  open_home, monkeypatch
):
  first, second = open_home('one'), open_home('two')
  with first.lock():
    write(first, scores='of the first')
    with pytest.raises(lease.BusyError), second.lock():
      raise AssertionError
    first._lease._ended.set()  # It stands still.
    first._lease._thread.join()
    monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 0.3)
    monkeypatch.setattr(lease, '_machine', lambda: 'another')
    with second.lock():
      assert (second.folder / 'scores.csv').read_text() == 'of the first'
      write(second, scores='of the second')
      with pytest.raises(lease.FencedError):
        first.check()
      (first.folder / 'scores.csv').write_text('late')
      with pytest.raises(lease.FencedError):
        first.publish()
  third = open_home('three')
  with third.lock():
    assert (third.folder / 'scores.csv').read_text() == 'of the second'


@pytest.mark.slow
def test_an_answer_that_is_lost_costs_nothing(open_home, proxy):
  """The request is sent again, and the object that it made is there."""
  place = open_home()
  proxy.faults = ['lost', 503]
  with place.lock():
    proxy.faults = [503, 'lost']
    write(place, a='1')
  assert place._lease.token == 1
  with open_home('two').lock():
    pass


def test_a_checkpoint_is_published_before_what_vouches_for_it(
  open_home, proxy, monkeypatch
):
  def save(prefix):
    for end in ('index', 'data-00000-of-00001'):
      with open(f'{prefix}.{end}', 'w') as file:
        file.write(prefix[-1] * 100)

  place = open_home('one')
  with place.lock():
    folder = place.folder / 'checkpoints'
    kept = checkpoints.Checkpoints(folder, 1, check=place.check)
    kept.save(save, '0', 10)
    place.publish()
    kept.save(save, '1', 20)
    put = place._remote._filesystem.put_file
    names = []

    def put_until_the_manifest(path, target):
      names.append(target.rpartition('/')[2])
      if 'ckpt.1.json' in target:
        raise ConnectionError('the network is away')
      put(path, target)

    monkeypatch.setattr(
      place._remote._filesystem, 'put_file', put_until_the_manifest
    )
    with pytest.raises(errors.WriteError, match=r'gs://.*ckpt\.1\.json.*away'):
      place.publish()
    assert names == [
      *('tf_ckpt-1.data-00000-of-00001', 'tf_ckpt-1.index', 'ckpt.1.json')
    ]
  second = open_home('two')
  with second.lock():
    kept = checkpoints.Checkpoints(second.folder / 'checkpoints', 1)
    assert kept.latest().name == '0'  # Its files are still there.


def test_a_bucket_that_is_not_there_is_named(proxy, tmp_path):
  place = home.open_home('gs://nowhere/run', str(tmp_path))
  with (
    pytest.raises(errors.WriteError, match='gs://nowhere/run/lease'),
    place.lock(),
  ):
    raise AssertionError
  with pytest.raises(errors.ConfigError, match='nosuch://x'):
    home.open_home('nosuch://x', str(tmp_path))


@pytest.mark.slow
def test_a_run_goes_on_from_its_bucket_on_another_machine(
  proxy, tmp_path, session, clear_gin, replay_dir, tiny_bindings
):
  """Faults included, it ends like a run on a disk that nothing disturbed."""
  import gin
  import numpy as np
  import tensorflow as tf

  from batch_rl_dr3 import train

  def train_to(base_dir, machine, num_iterations):
    gin.clear_config()
    with tf.Graph().as_default():
      train.train(
        base_dir=str(base_dir),
        replay_dir=str(replay_dir),
        cache_dir=str(tmp_path / machine),
        gin_files=['minatar/rem_dr3.gin'],
        gin_bindings=[
          *tiny_bindings,
          f'FixedReplayRunner.num_iterations={num_iterations}',
          'FixedReplayRunner.num_threads=1',
        ],
      )

  train_to(tmp_path / 'local', 'one', 2)
  proxy.faults = [None, None, 503, None, 'lost', None, None, 503, 'lost']
  train_to('gs://bucket/whole', 'two', 1)
  assert proxy.faults == []
  train_to('gs://bucket/whole', 'three', 2)
  place = home.open_home('gs://bucket/whole', str(tmp_path / 'four'))
  with place.lock():
    for name in (run_directory.SCORES, run_directory.FINISHED):
      expected = (tmp_path / 'local' / name).read_bytes()
      assert (place.folder / name).read_bytes() == expected, name
    local, remote = (
      tf.compat.v1.train.NewCheckpointReader(
        str(folder / 'checkpoints' / 'tf_ckpt-1')
      )
      for folder in (tmp_path / 'local', place.folder)
    )
    for name in local.get_variable_to_shape_map():
      np.testing.assert_array_equal(
        local.get_tensor(name), remote.get_tensor(name), err_msg=name
      )
