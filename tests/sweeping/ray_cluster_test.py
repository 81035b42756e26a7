"""A sweep on a real cluster of three nodes, while nodes and workers die."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import lease, place, run_directory, state
from batch_rl_dr3.sweeping import attempt, grid, queue

pytestmark = pytest.mark.slow

METHODS = ['dqn', 'dqn_dr3', 'rem', 'rem_dr3', 'cql', 'cql_dr3']
BINDINGS = [
  "create_minatar_lanes.game_name='{game}'",
  'create_minatar_lanes.num_lanes=2',
  'FixedReplayRunner.num_iterations=2',
  'FixedReplayRunner.num_gradient_steps=200',
  'FixedReplayRunner.num_evaluation_agent_steps=40',
  'FixedReplayRunner.log_period=100',
  'FixedReplayRunner.effective_rank_period=200',
  'FixedReplayRunner.num_threads=1',
  'OfflineAgent.target_update_period=70',
]
# Trains each of the command lines of its standard input, one after the other.
SEQUENTIALLY = """\
import json, sys
import batch_rl_dr3
from batch_rl_dr3.config import frameworks
frameworks.import_tensorflow()
import gin
import tensorflow as tf
from batch_rl_dr3 import train
for options in json.load(sys.stdin):
  gin.clear_config()
  with tf.Graph().as_default():
    train.train(**options)
"""


@pytest.fixture
def cluster(monkeypatch):
  """Three nodes with a slot each, and a head without any."""
  from ray import cluster_utils

  monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
  store = {'object_store_memory': 80 << 20}
  cluster = cluster_utils.Cluster(
    initialize_head=True,
    head_node_args={'num_cpus': 0, 'include_dashboard': False, **store},
  )
  cluster.slots = [cluster.add_node(num_cpus=1, **store) for _ in range(3)]
  yield cluster
  cluster.shutdown()


def children(pid):
  found = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for child in found.read_text().split()]


def raylet(node):
  return node.all_processes['raylet'][0].process.pid


def slots_of(node):
  """Returns the actors of a node."""
  return [
    pid
    for pid in children(raylet(node))
    if b'ray::Slot' in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
  ]


def is_alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return stat.rsplit(')', 1)[1].split()[0] != 'Z'


def wait_for(condition, seconds=900):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'it did not happen'
    time.sleep(0.05)


def execute(address, sweep, runs, program, stop=lambda: False):
  from batch_rl_dr3.sweeping import ray_cluster

  engine = ray_cluster.RayCluster(
    address, sweep.num_cpus, sweep.num_gpus, slots_per_node=2
  )
  runs_left = queue.Queue(sweep.runs(), 1e8, sweep.store_bytes)

  def attempt_at(run):
    limit = sweep.max_attempts_without_progress
    cache = str(runs / 'cache')
    return attempt.Attempt.of_run(run, str(runs), cache, program, limit)

  try:
    return queue.Executor(engine, runs_left, attempt_at, stop, 60).run()
  finally:
    engine.close()


def check_one_worker_at_a_time(folder):
  """Checks that each worker began after the last beat of the one before."""
  terms = lease.history(place.Place(folder / lease.FOLDER))
  assert [term.token for term in terms] == list(range(1, len(terms) + 1))
  assert len({term.worker for term in terms}) == len(terms)
  assert 1 <= len(terms) <= state.read_attempts(folder).attempts
  for before, after in itertools.pairwise(terms):
    beat = folder / lease.FOLDER / f'beat-{before.token:08}.json'
    assert json.loads(beat.read_text())['at'] <= after.acquired


class Killer(threading.Thread):
  """Kills one raylet, and two actors elsewhere, once runs have got on.

  Attributes:
    survivors: processes that went on although what began them was killed.
  """

  def __init__(self, cluster, runs):
    super().__init__(daemon=True)
    self._cluster = cluster
    self._runs = runs
    self.survivors = None

  def _num_begun(self):
    return len(list(self._runs.glob('*/*/*/*/*/checkpoints/ckpt.*.json')))

  def run(self):
    wait_for(lambda: self._num_begun() >= 3)
    first, second, third = self._cluster.slots
    pids = [raylet(first), *slots_of(second), *slots_of(third)]
    trains = [
      pid for slot in slots_of(first) + pids[1:] for pid in children(slot)
    ]
    for pid in pids:
      os.kill(pid, signal.SIGKILL)
    time.sleep(1.0)
    self.survivors = [pid for pid in trains if is_alive(pid)]


def test_nodes_and_workers_may_die(
  clear_gin, cluster, replay_dir, cache_dir, tmp_path
):
  sweep = grid.Sweep(
    suite='minatar',
    games=['breakout'],
    datasets=['all'],
    methods=METHODS,
    seeds=[0, 1],
    gin_files=['minatar/{method}.gin'],
    gin_bindings=BINDINGS,
    replay_dir=str(replay_dir),
    row_bytes=1000,
    log_rows=200,
    run_gigabytes=0.1,
  )
  runs = tmp_path / 'runs'
  killer = Killer(cluster, runs)
  killer.start()
  tally = execute(cluster.address, sweep, runs, ('-m', 'batch_rl_dr3.train'))
  killer.join(10)
  assert killer.survivors == []
  assert (tally.num_done, tally.set_aside) == (12, [])
  records = [state.read_attempts(runs / r.folder) for r in sweep.runs()]
  # One run was lost with the node, and one with each of the workers.
  assert sum(record.attempts for record in records) >= 12 + 3
  apart = tmp_path / 'apart'
  options = [
    {
      'base_dir': str(apart / run.folder),
      'replay_dir': run.replay_dir,
      'cache_dir': str(cache_dir),
      'gin_files': run.gin_files,
      'gin_bindings': run.gin_bindings,
      'seed': run.seed,
    }
    for run in sweep.runs()
  ]
  subprocess.run(
    [sys.executable, '-c', SEQUENTIALLY],
    input=json.dumps(options),
    text=True,
    check=True,
  )
  for run in sweep.runs():
    check_one_worker_at_a_time(runs / run.folder)
    for name in (run_directory.SCORES, run_directory.FINISHED):
      there = (runs / run.folder / name).read_bytes()
      assert there == (apart / run.folder / name).read_bytes(), run.folder


def test_a_stopped_sweep_saves_and_goes_on(make_sweep, fake_train, tmp_path):
  runs = tmp_path / 'runs'
  runs.mkdir()
  (runs / 'behaviour').write_text(
    # The second run diverges; the others take half a minute.
    ': steps 3000\nbreakout/all/rem/: exit 70\n'
  )
  sweep = make_sweep(run_gigabytes=0.1)

  def progress():
    folders = [runs / run.folder for run in sweep.runs()]
    return [state.progress(folder)[0] for folder in folders]

  with pytest.raises(errors.PreemptedError, match='runs left'):
    execute(
      None, sweep, runs, fake_train, stop=lambda: sorted(progress())[-2] > 20
    )
  stopped = [state.read_attempts(runs / run.folder) for run in sweep.runs()]
  # Two slots, of which one had the run that diverged.
  assert sorted(r.exit_code for r in stopped if r.attempts) == [70, 75, 75]
  workers = [
    int(pid)
    for path in runs.glob('*/*/*/*/*/workers')
    for pid in path.read_text().split()
  ]
  assert len(workers) == 2
  assert not any(is_alive(pid) for pid in workers)
  before = progress()
  (runs / 'behaviour').write_text(
    f': steps {max(before) + 3}\nbreakout/all/rem/: exit 70\n'
  )
  tally = execute(None, sweep, runs, fake_train)
  assert (tally.num_done, len(tally.set_aside)) == (5, 1)
  assert [a >= b for a, b in zip(progress(), before, strict=True)] == [True] * 6
