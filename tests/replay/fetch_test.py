"""`data fetch` from an emulated cloud: killed, raced, and trained on."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from batch_rl_dr3.replay.store import read

FRAME_SHAPE = (40, 30)


@pytest.fixture(scope='module')
def url(cloud, logs, tmp_path_factory):
  folder = tmp_path_factory.mktemp('fetched') / 'replay_logs'
  transitions = logs.make_transitions(2400, shape=FRAME_SHAPE)
  logs.write_log(folder, transitions, rows_per_file=250)
  return cloud.upload(folder, 'dqn/Seaquest/1/replay_logs')


@pytest.fixture
def fetch(url, tmp_path):
  """Starts a fetch of 40% of each file into a cache."""
  running = []

  def start(endpoint, cache, *flags):
    process = subprocess.Popen(
      [
        sys.executable,
        '-m',
        'batch_rl_dr3.data',
        'fetch',
        f'--replay_dir={url}',
        f'--gin_bindings=FsspecSource.endpoint_url="{endpoint}"',
        '--rule=prefix',
        '--fraction=0.4',
        f'--cache_dir={cache}',
        *flags,
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'TMPDIR': str(tmp_path)},
    )
    running.append(process)
    return process

  yield start
  for process in running:
    process.kill()
    process.communicate()


def _finish(process):
  output, problems = process.communicate()
  assert process.returncode == 0, problems
  return output


def _stores(cache):
  return [path.parent for path in cache.glob('[!.]*/manifest.json')]


def _kill_and_finish(fetch, proxy, tmp_path, num_kills):
  """Kills a fetch again and again; returns how often it went on from parts."""
  _finish(fetch(proxy.endpoint, tmp_path / 'expected'))
  [expected] = _stores(tmp_path / 'expected')
  num_requests = len(proxy.urls)
  rng = random.Random(num_kills)
  cache = tmp_path / 'cache'
  num_resumed = 0
  for _ in range(num_kills):
    before = len(proxy.urls)
    moment = before + rng.uniform(1, num_requests)
    process = fetch(proxy.endpoint, cache)
    while len(proxy.urls) < moment and process.poll() is None:
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    num_parts = len(list(cache.glob('.*.building/*/part.json')))
    num_resumed += num_parts > 0
    for store in _stores(cache):  # It was faster.
      read.verify(store, full=True)
      store.rename(tmp_path / f'done{before}')
  _finish(fetch(proxy.endpoint, cache))
  [store] = _stores(cache)
  assert read.verify(store, full=True) == json.loads(
    (expected / 'manifest.json').read_text()
  )
  # Nothing is left of what was killed: no parts, and no temporary files.
  assert [path for path in cache.iterdir() if path.is_dir()] == [store]
  assert not list(tmp_path.glob('batch_rl_dr3_*'))
  return num_resumed


@pytest.mark.slow
def test_a_killed_fetch_goes_on(fetch, proxy, tmp_path):
  _kill_and_finish(fetch, proxy, tmp_path, num_kills=2)


@pytest.mark.slow
def test_a_fetch_killed_20_times_ends_the_same(fetch, proxy, tmp_path):
  assert _kill_and_finish(fetch, proxy, tmp_path, num_kills=20)


def test_sigterm_ends_a_fetch_with_75(fetch, proxy, tmp_path):
  proxy.delay = 0.2
  process = fetch(proxy.endpoint, tmp_path / 'cache')
  while not proxy.urls:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, problems = process.communicate()
  assert process.returncode == 75
  assert 'stopped by SIGTERM' in problems
  assert problems.count('\n') == 1


def test_damage_that_stays_ends_a_fetch_with_65(fetch, proxy, tmp_path):
  proxy.faults = {r'add_count_ckpt\.3\.gz.*alt=media': ['flip'] * 100}
  process = fetch(proxy.endpoint, tmp_path / 'cache')
  _, problems = process.communicate()
  assert process.returncode == 65
  assert 'add_count_ckpt.3.gz is damaged' in problems
  assert 'batch_rl_dr3_quarantine' in problems
  assert not _stores(tmp_path / 'cache')


def test_two_that_fetch_at_once_share_one_store(fetch, proxy, tmp_path):
  proxy.delay = 0.02
  cache = tmp_path / 'cache'
  processes = [fetch(proxy.endpoint, cache) for _ in range(2)]
  first, second = [_finish(process) for process in processes]
  assert first == second
  [store] = _stores(cache)
  read.verify(store, full=True)
  assert f'--replay_dir={store}' in first


@pytest.mark.slow
def test_two_runs_that_need_the_same_store_build_it_once(
  cloud, proxy, replay_dir, train_command, tmp_path
):
  url = cloud.upload(replay_dir / 'replay_logs', 'dqn/minatar/1/replay_logs')
  processes = [
    subprocess.Popen(
      train_command(
        tmp_path / name,
        f'FsspecSource.endpoint_url="{proxy.endpoint}"',
        replay_dir=url,
        flags=(f'--cache_dir={tmp_path / "cache"}',),
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for name in ('first', 'second')
  ]
  for process in processes:
    output, _ = process.communicate()
    assert process.returncode == 0, output
  assert len(_stores(tmp_path / 'cache')) == 1
  for name in ('first', 'second'):
    assert (tmp_path / name / 'finished.json').exists()
  scores = [
    (tmp_path / name / 'scores.csv').read_text() for name in ('first', 'second')
  ]
  assert scores[0] == scores[1]
  # One whole read of each file of frames, by ranges or not.
  reads = [
    url
    for url in proxy.urls
    if 'observation_ckpt.0' in url and 'alt=media' in url
  ]
  alone = len(set(reads))
  assert len(reads) <= 2 * alone + 2
