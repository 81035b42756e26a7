"""Builds that are killed, race, or meet a full disk; and what verify finds."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import read, shards
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset
from batch_rl_dr3.runs import atomic

# Builds when told to, so that the time of a kill is the build's own; its
# shards are small and its writes slow.
_BUILD = """
import sys, time
from batch_rl_dr3.replay.store import shards, store
from batch_rl_dr3.replay.store.subset import Subset
shards.SHARD_ROWS = 37
codec, pause = sys.argv[3], float(sys.argv[4])
write = shards.HashedFile.write
def slow(self, content):
  time.sleep(pause)
  write(self, content)
shards.HashedFile.write = slow
print('ready', flush=True)
sys.stdin.readline()
print(store.open_store(sys.argv[1], sys.argv[2], Subset('uniform', 0.3),
                       (12, 10), 6, 4, codec=codec).data_hash)
"""


@pytest.fixture
def log(tmp_path, logs):
  logs.write_log(tmp_path / 'log', logs.make_transitions(450), 100)
  return tmp_path / 'log'


@pytest.fixture
def open_store(tmp_path, logs, monkeypatch):
  monkeypatch.setattr(shards, 'SHARD_ROWS', 37)

  def call(folder, cache='cache', codec='raw', subset=Subset('uniform', 0.3)):  # noqa: B008
    return replay_store.open_store(
      folder, tmp_path / cache, subset, logs.SHAPE, 6, 4, codec=codec
    )

  return call


@pytest.fixture
def start_build(log):
  """Starts a process that is about to build, and returns it."""
  running = []

  def start(cache, codec='raw', pause=0.0):
    process = subprocess.Popen(
      [sys.executable, '-c', _BUILD, str(log), str(cache), codec, str(pause)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    running.append(process)
    assert process.stdout.readline() == 'ready\n'
    return process

  yield start
  for process in running:
    process.kill()
    process.communicate()


def _parts(cache):
  return list(cache.glob('.*.building/*/part.json'))


def _folders(cache):
  return [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_a_build_killed_again_and_again_ends_the_same(
  log, open_store, start_build, tmp_path
):
  expected = open_store(log, 'uninterrupted')
  rng = random.Random(0)
  cache = tmp_path / 'cache'
  num_resumed = 0
  for _ in range(20):
    process = start_build(cache, pause=0.002)
    process.stdin.write('\n')
    process.stdin.flush()
    num_parts = rng.randrange(4)  # However fast the machine is.
    while len(_parts(cache)) < num_parts and process.poll() is None:
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = _parts(cache)
    num_resumed += 0 < len(parts) < len(expected.segments)
    if (cache / expected.folder.name).exists() or len(parts) >= 4:
      assert open_store(log).manifest == expected.manifest
      shutil.rmtree(cache)  # The next ones start over.
  assert num_resumed
  store = open_store(log)
  assert store.manifest == expected.manifest
  read.verify(store.folder, full=True)
  assert _folders(cache) == [store.folder]


def test_what_is_extracted_is_not_extracted_again(log, open_store, monkeypatch):
  monkeypatch.setattr(replay_store._Build, '_manifest', lambda _: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    open_store(log)
  monkeypatch.undo()
  monkeypatch.setattr(shards, 'SHARD_ROWS', 37)
  monkeypatch.setattr(shards, 'write_frames', None)
  open_store(log)


def test_a_damaged_part_is_extracted_again(log, open_store, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(replay_store._Build, '_manifest', lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      open_store(log)
  (part,) = log.parent.glob('cache/.*.building/1')
  (part / 'reward.npy').write_bytes(b'')
  store = open_store(log)
  read.verify(store.folder, full=True)


def test_processes_that_build_at_once_share_one_store(
  start_build, open_store, log, tmp_path
):
  cache = tmp_path / 'cache'
  processes = [start_build(cache, pause=0.001) for _ in range(2)]
  for process in processes:
    process.stdin.write('\n')
    process.stdin.flush()
  hashes = [process.communicate()[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  store = open_store(log)
  assert set(hashes) == {store.data_hash + '\n'}
  assert _folders(cache) == [store.folder]


_LYING_LOCKS = 'import fcntl; fcntl.flock = lambda *unused: None\n'


def test_locks_that_lie_do_no_harm(
  start_build, open_store, log, tmp_path, monkeypatch
):
  monkeypatch.setitem(globals(), '_BUILD', _LYING_LOCKS + _BUILD)
  cache = tmp_path / 'cache'
  processes = [start_build(cache, pause=0.003) for _ in range(3)]
  for process in processes:
    process.stdin.write('\n')
    process.stdin.flush()
  hashes = [process.communicate()[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0, 0]
  store = open_store(log)
  assert set(hashes) == {store.data_hash + '\n'}
  read.verify(store.folder, full=True)
  assert _folders(cache) == [store.folder]


def test_room_is_checked_before_anything_is_written(
  log, open_store, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    shutil, 'disk_usage', lambda _: SimpleNamespace(free=1000)
  )
  with pytest.raises(errors.WriteError) as caught:
    open_store(log, subset=Subset())
  assert '1,000 are available' in str(caught.value)
  num_rows = sum(s.num_rows for s in _opened(log, open_store, monkeypatch))
  assert f'needs {num_rows * (120 + 9):,} bytes' in str(caught.value)
  assert not _folders(tmp_path / 'cache')


def _opened(log, open_store, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=1 << 40))
    return open_store(log, 'other', subset=Subset()).segments


@pytest.mark.parametrize('codec', shards.CODECS)
def test_a_disk_that_fills_up_is_left_as_it_was(
  log, open_store, tmp_path, monkeypatch, codec
):
  write, written = shards.HashedFile.write, []

  def fill(self, content):
    written.append(len(content))
    if sum(written) > 20_000:
      raise OSError(28, 'No space left on device')
    write(self, content)

  monkeypatch.setattr(shards.HashedFile, 'write', fill)
  with pytest.raises(errors.WriteError, match='No space left'):
    open_store(log, codec=codec)
  assert not _folders(tmp_path / 'cache')


def test_a_disk_that_is_full_for_the_record_is_left_too(
  log, open_store, tmp_path, monkeypatch
):
  def full(path, _):
    raise atomic.FileError(path, OSError(28, 'No space left'))

  monkeypatch.setattr(atomic, 'write_json', full)
  with pytest.raises(errors.WriteError, match='No space left'):
    open_store(log)
  assert not _folders(tmp_path / 'cache')


@pytest.mark.parametrize('codec', shards.CODECS)
def test_every_flipped_bit_is_found(log, open_store, codec):
  store = open_store(log, codec=codec)
  manifest = read.verify(store.folder, full=True)
  assert manifest == store.manifest
  rng = random.Random(0)
  for path in sorted(store.folder.glob('*/*.[nz]*')):
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    read.verify(store.folder)  # It looks at sizes alone.
    with pytest.raises(errors.DataError, match=path.name):
      read.verify(store.folder, full=True)
    path.write_bytes(content[:-1])
    with pytest.raises(errors.DataError, match=path.name):
      read.verify(store.folder)
    path.unlink()
    with pytest.raises(errors.DataError, match=path.name):
      read.verify(store.folder)
    path.write_bytes(content)
  read.verify(store.folder, full=True)


def test_a_changed_manifest_is_found(log, open_store):
  store = open_store(log)
  path = store.folder / read.MANIFEST
  manifest = json.loads(path.read_text())
  manifest['files'][0]['num_rows'] -= 1
  path.write_text(json.dumps(manifest))
  with pytest.raises(errors.DataError, match='data_hash'):
    read.verify(store.folder)
  path.write_text(json.dumps({**store.manifest, 'format_version': 1}))
  with pytest.raises(errors.DataError, match='format is 1'):
    read.verify(store.folder)
