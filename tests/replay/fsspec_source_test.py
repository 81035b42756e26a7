"""Logs read over the network: from an emulator, through a faulty proxy."""

import asyncio
import shutil
import types

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, sources
from batch_rl_dr3.runs import place, retry

OBSERVATION = r'store\$_observation_ckpt\.1\.gz.*alt=media'


@pytest.fixture(scope='module')
def log(tmp_path_factory, logs):
  folder = tmp_path_factory.mktemp('log') / 'replay_logs'
  transitions = logs.make_transitions(1250, shape=(40, 30))
  logs.write_log(folder, transitions, rows_per_file=600)
  return folder


@pytest.fixture(scope='module')
def url(cloud, log):
  return cloud.upload(log, 'dqn/Breakout/1/replay_logs')


@pytest.fixture(autouse=True)
def fast_gcsfs(monkeypatch):
  """gcsfs's own delays, seconds each, take none; its retries stay."""
  import gcsfs.retry

  async def sleep(seconds):
    await asyncio.sleep(0)

  monkeypatch.setattr(
    gcsfs.retry, 'asyncio', types.SimpleNamespace(sleep=sleep)
  )


@pytest.fixture
def delays():
  return []


@pytest.fixture
def make_source(proxy, url, delays, tmp_path, monkeypatch):
  monkeypatch.setattr(place, '_FIRST_CHUNK_BYTES', 20_000)

  def make(url=url, endpoint_url=proxy.endpoint, **kwargs):
    return sources.FsspecSource(
      url,
      endpoint_url=endpoint_url,
      timeout=0.3,
      spool_dir=str(tmp_path),
      retry=retry.Retry(attempts=4, sleep=delays.append),
      **kwargs,
    )

  return make


def _rows(source, name, suffix, num_rows=None):
  return np.concatenate(list(source.rows(name, suffix, num_rows)))


def _assert_equal(source, log):
  expected = sources.FolderSource(log)
  assert source.suffixes() == expected.suffixes() == [0, 1, 2]
  for suffix in source.suffixes():
    for name in checkpoint_format.ELEMENTS:
      assert source.header(name, suffix) == expected.header(name, suffix)
      for num_rows in (None, 7):
        np.testing.assert_array_equal(
          _rows(source, name, suffix, num_rows),
          _rows(expected, name, suffix, num_rows),
        )
    for name in checkpoint_format.ATTRIBUTES:
      np.testing.assert_array_equal(
        source.attribute(name, suffix), expected.attribute(name, suffix)
      )


def test_equals_the_folder(make_source, cloud, log, tmp_path, delays):
  source = make_source(endpoint_url=cloud.endpoint)
  _assert_equal(source, log)
  assert not delays
  assert not list(tmp_path.glob('batch_rl_dr3_*'))  # Nothing is left behind.


def test_parent_of_replay_logs(make_source, url, log):
  source = make_source(url.removesuffix('/replay_logs'))
  assert source.suffixes() == [0, 1, 2]
  assert source.name == url
  _assert_equal(source, log)


@pytest.mark.parametrize('scheme', ['file', 'memory'])
def test_other_storages(scheme, log):
  import fsspec

  url = f'file://{log}'
  if scheme == 'memory':
    url = 'memory://logs/replay_logs'
    filesystem = fsspec.filesystem('memory')
    filesystem.put(str(log), '/logs/replay_logs', recursive=True)
  _assert_equal(sources.FsspecSource(url), log)


def test_an_index_page_of_a_web_server(log):
  import functools
  import http.server
  import threading

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=str(log.parent))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_address[1]}'
    # This server ignores ranges: it sends everything every time.
    _assert_equal(sources.FsspecSource(f'{address}/replay_logs'), log)
    with pytest.raises(retry.RefusedError, match='absent is refused'):
      sources.FsspecSource(f'{address}/absent').suffixes()
    server.shutdown()


@pytest.mark.parametrize(
  'faults',
  [
    [429],
    [503] * 7,  # One more than gcsfs tries.
    [500, 502, 504, 408],
    ['timeout'] * 2,
    ['close'] * 3,
    ['short', 'short'],
    ['cut', 503, 'cut'],
    ['flip'],
    ['short', 'flip', 429, 'close'],
  ],
)
@pytest.mark.parametrize('num_rows', [None, 500])
def test_faults_that_pass(make_source, proxy, log, faults, num_rows):
  source = make_source()
  source.header('observation', 1)
  if num_rows is not None:  # No checksum can vouch for the bits of a prefix.
    faults = [fault for fault in faults if fault != 'flip']
  proxy.faults = {OBSERVATION: list(faults)}
  expected = _rows(sources.FolderSource(log), 'observation', 1, num_rows)
  np.testing.assert_array_equal(
    _rows(source, 'observation', 1, num_rows), expected
  )
  assert sum(proxy.log.values()) == len(faults)


def test_delays_grow_and_have_jitter(make_source, proxy, delays):
  source = make_source()
  source.suffixes()
  proxy.faults = {OBSERVATION: [503] * 18}
  source.header('observation', 1)
  assert len(delays) == 3
  assert all(
    low <= delay <= 2 * low
    for low, delay in zip((0.5, 1, 2), delays, strict=True)
  )


@pytest.mark.parametrize('fault', [429, 503, 'close', 'short'])
def test_faults_that_stay_are_named(make_source, proxy, delays, fault):
  source = make_source()
  source.header('observation', 1)
  proxy.faults = {OBSERVATION: [fault] * 1000}
  with pytest.raises(
    errors.DataError, match=r'observation_ckpt\.1\.gz could not.* 4 attempts'
  ):
    _rows(source, 'observation', 1)
  assert len(delays) == 3


@pytest.mark.parametrize('status', [401, 403, 404])
def test_refusals_are_named_at_once(make_source, proxy, delays, status):
  proxy.faults = {'/o': [status] * 1000}
  with pytest.raises(retry.RefusedError, match=r'gs://logs/dqn.* is refused'):
    make_source().suffixes()
  proxy.faults = {}
  source = make_source()
  source.suffixes()
  proxy.faults = {OBSERVATION: [status] * 1000}
  with pytest.raises(
    retry.RefusedError, match=r'observation_ckpt\.1\.gz is refused'
  ):
    source.header('observation', 1)
  assert not delays


@pytest.mark.parametrize('name', ['action', 'reward', 'terminal'])
def test_a_damaged_object_is_fetched_once_more(make_source, proxy, log, name):
  source = make_source()
  source.header(name, 0)
  pattern = rf'{name}_ckpt\.0\.gz.*alt=media'
  proxy.faults = {pattern: ['flip']}
  expected = _rows(sources.FolderSource(log), name, 0)
  np.testing.assert_array_equal(_rows(source, name, 0), expected)
  proxy.faults = {pattern: ['flip'] * 1000}
  with pytest.raises(
    errors.DataError, match=rf'{name}_ckpt\.0\.gz is damaged.*checksum'
  ):
    _rows(source, name, 0)


def test_what_is_damaged_is_kept(make_source, proxy, log, tmp_path):
  source = make_source()
  source.header('action', 0)
  proxy.faults = {r'action_ckpt\.0\.gz.*alt=media': ['flip'] * 1000}
  with pytest.raises(errors.DataError, match=r'twice\. What came is kept in'):
    _rows(source, 'action', 0)
  [kept] = (tmp_path / 'batch_rl_dr3_quarantine').iterdir()
  assert kept.name.endswith('action_ckpt.0.gz')
  sound = (log / '$store$_action_ckpt.0.gz').read_bytes()
  differences = np.frombuffer(kept.read_bytes(), np.uint8) ^ np.frombuffer(
    sound, np.uint8
  )
  assert np.bitwise_count(differences).sum() == 1


def test_a_damaged_prefix_is_read_once_more(
  make_source, proxy, log, tmp_path, logs
):
  from batch_rl_dr3.replay.store import store
  from batch_rl_dr3.replay.store.subset import Subset

  def build(source, cache):
    return store.open_store(
      source, tmp_path / cache, Subset('prefix', 0.5), (40, 30), 6, 4
    )

  expected = build(log, 'expected')
  source = make_source()
  source.header('observation', 1)
  # Half of a range, which leaves a hole in the stream of gzip.
  proxy.faults = {OBSERVATION: ['cut']}
  source._files.storage._retry = lambda name, read: read()
  assert build(source, 'mended').data_hash == expected.data_hash
  assert proxy.log['cut'] == 1


def test_damage_that_keeps_the_checksum_of_gzip_is_found(
  make_source, cloud, log, tmp_path, monkeypatch
):
  # Another file in its place: whole by itself, but not what was listed.
  source = make_source(endpoint_url=cloud.endpoint)
  source.suffixes()
  name = checkpoint_format.file_name('action', 0)
  other = checkpoint_format.file_name('action', 1)
  monkeypatch.setitem(
    source._infos,
    name,
    {**source._infos[other], 'crc32c': source._infos[name]['crc32c']},
  )
  with pytest.raises(errors.DataError, match='checksum that the'):
    _rows(source, 'action', 0)


def test_a_prefix_reads_a_part(make_source, proxy, tmp_path, logs, cloud):
  logs.write_log(
    tmp_path / 'long', logs.make_transitions(3000, shape=(40, 30)), 3000
  )
  url = cloud.upload(tmp_path / 'long', 'long/replay_logs')
  source = make_source(url)
  source.header('observation', 0)
  read = []
  cat_file = source._files.storage._filesystem.cat_file

  def counted(path, start, end):
    read.append(end - start)
    return cat_file(path, start=start, end=end)

  source._files.storage._filesystem.cat_file = counted
  _rows(source, 'observation', 0, 30)
  size = (tmp_path / 'long' / '$store$_observation_ckpt.0.gz').stat().st_size
  assert sum(read) < 0.05 * size


def test_a_missing_file_is_named(make_source, cloud, log, tmp_path):
  shutil.copytree(log, tmp_path / 'copy')
  (tmp_path / 'copy' / 'add_count_ckpt.1.gz').unlink()
  url = cloud.upload(tmp_path / 'copy', 'incomplete')
  with pytest.raises(errors.DataError, match=r'lacks add_count_ckpt\.1\.gz'):
    make_source(url).suffixes()


def test_no_room_for_the_temporary_file(make_source, tmp_path):
  source = make_source()
  source._files.spool_dir = str(tmp_path / 'absent')
  with pytest.raises(errors.WriteError, match='absent'):
    source.attribute('add_count', 0)


def test_an_unknown_scheme():
  with pytest.raises(errors.DataError, match='nothing://'):
    sources.FsspecSource('nothing://bucket/folder')
