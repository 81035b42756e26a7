import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.sweeping import run_queue


@pytest.fixture
def runs(make_sweep):
  """dqn, rem and rem_dr3 on breakout's store, then the same on freeway's."""
  return make_sweep().runs()


def queue(runs, run_bytes=1.0, store_bytes=10.0):
  return run_queue.Queue(runs, run_bytes, lambda run: store_bytes)


def test_a_node_takes_runs_whose_store_it_holds(runs):
  left, right = (run_queue.Node(name, 100.0) for name in 'ab')
  nodes = [left, right]
  waiting = queue(runs)
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
  node = run_queue.Node('a', 13.0)
  waiting = queue(runs)
  assert [waiting.take(node, [node], 0.0) for _ in range(4)] == [
    *runs[:3],
    None,
  ]
  node.running.clear()
  assert waiting.take(node, [node], 0.0) is runs[3]


def test_runs_that_fit_no_node_are_refused_with_numbers(runs):
  nodes = [run_queue.Node('a', 11.0e9), run_queue.Node('b', 10.0e9)]
  queue(runs, 1e9, 10e9).check_memory(nodes)
  with pytest.raises(errors.ConfigError, match=r'needs 11\.5 GB .* has 11\.0'):
    queue(runs, 1.5e9, 10e9).check_memory(nodes)


def test_delays_double_up_to_five_minutes(runs):
  waiting = queue([])
  node = run_queue.Node('a', 100.0)
  assert [
    waiting.put_back(runs[0], 0.0, without) for without in (0, 1, 2, 7, 8, 50)
  ] == [2.0, 4.0, 8.0, 256.0, 300.0, 300.0]
  waiting.put_back(runs[0], 100.0, 1)
  assert waiting.take(node, [node], 103.9) is None
  assert waiting.take(node, [node], 104.0) is runs[0]


def test_a_node_that_lost_runs_is_left_alone_for_a_while(runs):
  node = run_queue.Node('a', 100.0)
  waiting = queue(runs)
  node.lose(0.0)
  node.lose(0.5)  # The same death.
  assert node.num_lost == 1
  assert waiting.take(node, [node], 14.9) is None
  assert waiting.take(node, [node], 15.0) is runs[0]


def test_a_node_that_loses_all_that_it_is_given_is_given_no_more(runs):
  node = run_queue.Node('a', 100.0)
  for now in (0.0, 15.0, 30.0, 45.0):
    node.lose(now)
  assert not node.is_broken
  node.lose(60.0)
  assert node.is_broken
  assert queue(runs).take(node, [node], 1e9) is None
