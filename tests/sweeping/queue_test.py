"""The loop that executes a sweep, on a cluster that does as it is told."""

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.sweeping import attempt, queue

DONE = attempt.Outcome(attempt.DONE, 0)
LOST = attempt.Outcome(attempt.LOST, 75, 'its node has died')


class ScriptedCluster:
  """Ends one job at a wait, with the next outcome of its run's script."""

  def __init__(self, scripts, num_slots=2, num_nodes=1):
    self._scripts = {key: list(script) for key, script in scripts.items()}
    self._capacity = (num_slots, 1e9)
    self.alive = [f'node{k}' for k in range(num_nodes)]
    self.running = {}
    self.started = []
    self.stopped = False
    self.most_at_a_time = 0

  def nodes(self):
    return dict.fromkeys(self.alive, self._capacity)

  def start(self, node, job):
    assert job.key not in self.running, 'a run has two workers'
    self.running[job.key] = node
    self.started.append(job.key)
    self.most_at_a_time = max(self.most_at_a_time, len(self.running))

  def wait(self, seconds):
    del seconds
    if not self.running:
      return []
    key = next(iter(self.running))
    del self.running[key]
    script = self._scripts.get(key)
    outcome = script.pop(0) if script else DONE
    if self.stopped:
      outcome = attempt.Outcome(attempt.AGAIN, 75)
    return [(key, outcome)]

  def stop(self):
    self.stopped = True


@pytest.fixture
def runs(make_sweep):
  return make_sweep().runs()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  """A clock on which every look is a minute later."""
  now = [0.0]

  def monotonic():
    now[0] += 60.0
    return now[0]

  monkeypatch.setattr(queue.time, 'monotonic', monotonic)


def execute(cluster, runs, stop=lambda: False):
  runs_left = queue.Queue(runs, 1.0, lambda run: 1.0)

  def attempt_at(run):
    return attempt.Attempt.of_run(run, 'RUNS', 'CACHE', ('-m', 'train'), 5)

  return queue.Executor(cluster, runs_left, attempt_at, stop, 1e6).run()


def test_all_runs_are_executed_as_many_at_a_time_as_there_are_slots(runs):
  cluster = ScriptedCluster({}, num_slots=2)
  tally = execute(cluster, runs)
  assert tally == queue.Tally(num_done=6)
  assert sorted(cluster.started) == [0, 1, 2, 3, 4, 5]
  assert cluster.most_at_a_time == 2


def test_what_was_lost_or_preempted_is_executed_again(runs):
  preempted = attempt.Outcome(attempt.AGAIN, 75, 'stopped', 2)
  busy = attempt.Outcome(attempt.BUSY, 75, 'in use')
  cluster = ScriptedCluster({0: [LOST, preempted, DONE], 3: [busy, DONE]})
  tally = execute(cluster, runs)
  # That another process works on a run is no attempt.
  assert tally == queue.Tally(num_done=6, num_again=2)
  assert cluster.started.count(0) == 3
  assert cluster.started.count(3) == 2


def test_what_fails_by_its_own_fault_is_not(runs, capsys):
  diverged = attempt.Outcome(attempt.SET_ASIDE, 70, 'train: the loss is nan')
  cluster = ScriptedCluster({1: [diverged]})
  tally = execute(cluster, runs)
  assert tally.num_done == 5
  assert tally.set_aside == [runs[1].folder]
  assert cluster.started.count(1) == 1
  assert (
    f'{runs[1].folder}: set aside, exit code 70: train: the loss is nan'
    in capsys.readouterr().out
  )


def test_a_request_to_stop_has_runs_save_and_can_go_on(runs):
  cluster = ScriptedCluster({})
  with pytest.raises(errors.PreemptedError, match='stopped with 3 runs left'):
    # Three have ended when it comes, and one runs.
    execute(cluster, runs, stop=lambda: len(cluster.started) >= 4)
  assert cluster.stopped
  assert not cluster.running


def test_a_cluster_without_room_is_an_error(runs):
  with pytest.raises(errors.ConfigError, match='no node that could execute'):
    execute(ScriptedCluster({}, num_slots=0), runs)


def test_nodes_that_lose_all_that_they_are_given_end_the_sweep(runs):
  scripts = {run.index: [LOST] * 9 for run in runs}
  with pytest.raises(errors.ConfigError, match=r'its node has died\. Is this'):
    execute(ScriptedCluster(scripts, num_slots=1), runs)


def test_nodes_may_come_and_go(runs):
  cluster = ScriptedCluster({}, num_slots=1, num_nodes=2)
  wait = cluster.wait

  def wait_and_change(seconds):
    cluster.alive = ['node1', f'node{len(cluster.started)}']
    return wait(seconds)

  cluster.wait = wait_and_change
  assert execute(cluster, runs).num_done == 6


def test_the_job_of_a_run_is_its_command(runs):
  job = attempt.Attempt.of_run(
    runs[4], '/RUNS', '/CACHE', ('-m', 'batch_rl_dr3.train'), 5
  )
  assert job.key == 4
  assert job.folder == f'/RUNS/{runs[4].folder}'
  assert job.arguments[:3] == (
    '-m',
    'batch_rl_dr3.train',
    '--gin_files=minatar/rem.gin',
  )
  assert f'--base_dir={job.folder}' in job.arguments


# The policy.


def make_queue(runs, run_bytes=1.0, store_bytes=10.0):
  return queue.Queue(runs, run_bytes, lambda run: store_bytes)


def test_a_node_takes_runs_whose_store_it_holds(runs):
  left, right = (queue.Node(name, 100.0) for name in 'ab')
  nodes = [left, right]
  waiting = make_queue(runs)
  # a takes the first. Its store is there now, so b begins with the other.
  assert waiting.take(left, nodes, 0.0) is runs[0]
  assert waiting.take(right, nodes, 0.0) is runs[3]
  assert waiting.take(right, nodes, 0.0) is runs[4]
  assert waiting.take(left, nodes, 0.0) is runs[1]
  assert waiting.take(left, nodes, 0.0) is runs[2]
  # Only a preference: better another store than nothing to do.
  assert waiting.take(left, nodes, 0.0) is runs[5]
  assert waiting.take(left, nodes, 0.0) is None
  assert len(waiting) == 0


def test_a_store_counts_once_a_node(runs):
  # Three runs of one store need 3 x 1 + 10, a fourth of another 11 more.
  node = queue.Node('a', 13.0)
  waiting = make_queue(runs)
  assert [waiting.take(node, [node], 0.0) for _ in range(4)] == [
    *runs[:3],
    None,
  ]
  node.running.clear()
  assert waiting.take(node, [node], 0.0) is runs[3]


def test_runs_that_fit_no_node_are_refused_with_numbers(runs):
  nodes = [queue.Node('a', 11.0e9), queue.Node('b', 10.0e9)]
  make_queue(runs, 1e9, 10e9).check_memory(nodes)
  with pytest.raises(errors.ConfigError, match=r'needs 11\.5 GB .* has 11\.0'):
    make_queue(runs, 1.5e9, 10e9).check_memory(nodes)


def test_delays_double_up_to_five_minutes(runs):
  waiting = make_queue([])
  node = queue.Node('a', 100.0)
  assert [
    waiting.put_back(
      runs[0], 0.0, attempt.Outcome(attempt.AGAIN, 75, '', without)
    )
    for without in (0, 1, 2, 7, 8, 50)
  ] == [2.0, 4.0, 8.0, 256.0, 300.0, 300.0]
  waiting.put_back(runs[0], 100.0, attempt.Outcome(attempt.AGAIN, 75, '', 1))
  assert waiting.take(node, [node], 103.9) is None
  assert waiting.take(node, [node], 104.0) is runs[0]


def test_a_node_that_lost_runs_is_left_alone_for_a_while(runs):
  node = queue.Node('a', 100.0)
  waiting = make_queue(runs)
  node.lose(0.0)
  node.lose(0.5)  # The same death.
  assert node.num_lost == 1
  assert waiting.take(node, [node], 14.9) is None
  assert waiting.take(node, [node], 15.0) is runs[0]


def test_a_node_that_loses_all_that_it_is_given_is_given_no_more(runs):
  node = queue.Node('a', 100.0)
  for now in (0.0, 15.0, 30.0, 45.0):
    node.lose(now)
  assert not node.is_broken
  node.lose(60.0)
  assert node.is_broken
  assert make_queue(runs).take(node, [node], 1e9) is None


def test_what_starts_from_a_run_waits_for_it(make_sweep):
  runs = make_sweep(
    games=['breakout'],
    methods=['later', 'dqn'],
    derived={'later': ['dqn']},
    starts_from={'later': 'dqn'},
  ).runs()
  node = queue.Node('a', 100.0)
  waiting = make_queue(runs)
  assert waiting.take(node, [node], 0.0) is runs[1]
  assert waiting.take(node, [node], 0.0) is None
  # Preempted, it is still to be done.
  node.running.clear()
  waiting.put_back(runs[1], 0.0, LOST)
  assert waiting.take(node, [node], 1.0) is None
  assert waiting.take(node, [node], 2.0) is runs[1]
  node.running.clear()
  assert waiting.take(node, [node], 2.0) is runs[0]
