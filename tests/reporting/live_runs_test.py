import itertools
import json
import os
import shutil
import time

import pytest

from batch_rl_dr3.reporting import live_runs, run_reader
from batch_rl_dr3.runs import run_directory


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  """Every question looks at the files again."""
  monkeypatch.setattr(live_runs, '_FRESH_SECONDS', 0.0)


@pytest.fixture
def runs(tmp_path):
  return live_runs.LiveRuns([str(tmp_path / 'runs' / '*')])


def _rows(num_rows, rate=50, **cells):
  return [
    {
      'gradient_steps': 100 * i,
      'loss_bellman': 1 + i,
      'gradient_steps_per_second': rate if i else '',
    }
    | cells
    for i in range(num_rows)
  ]


def _only(runs):
  (run,) = runs.snapshot()['runs']
  return run


def _age(folder, seconds):
  then = time.time() - seconds
  for path in folder.iterdir():
    os.utime(path, (then, then))


def test_a_running_run(make_run, runs):
  make_run(
    'rem_dr3',
    metrics=_rows(4),
    returns={100: [1, 2], 200: [5]},
    finished=False,
    total_gradient_steps=1000,
  )
  run = _only(runs)
  assert run['seconds_since_change'] <= 5
  assert run | {'seconds_since_change': 0} == {
    'name': 'rem_dr3',
    'method': 'REM + DR3',
    'game': 'breakout',
    'dataset': '10pct',
    'logged_run': '1',
    'seed': '0',
    'state': 'running',
    'error': '',
    'steps': 300,
    'total_steps': 1000,
    'steps_per_second': 50.0,
    'seconds_left': 14.0,  # 700 steps at 50/s.
    'seconds_since_change': 0,
    'quantities': {
      'return': {'last': 5.0, 'points': [(100, 1.5), (200, 5.0)]},
      'loss_bellman': {
        'last': 4.0,
        'points': [(0, 1.0), (100, 2.0), (200, 3.0), (300, 4.0)],
      },
      'feature_dot_product': {'last': None, 'points': []},
      'effective_rank': {'last': None, 'points': []},
    },
  }


def test_the_rate_is_the_median_of_the_last_rows(make_run, runs):
  metrics = _rows(9)
  for i, rate in enumerate((10, 70, 'nan', 60, 1000), 4):
    metrics[i]['gradient_steps_per_second'] = rate
  make_run('rem', metrics=metrics, finished=False)
  run = _only(runs)
  assert run['steps_per_second'] == 65  # Of 10, 60, 70 and 1000.
  assert (run['total_steps'], run['seconds_left']) == (None, None)


@pytest.mark.parametrize(
  ('metrics', 'age', 'finished', 'state'),
  [
    (None, 0, False, 'starting'),
    (None, 130, False, 'stalled'),
    (_rows(3), 110, False, 'running'),
    (_rows(3), 130, False, 'stalled'),
    # Rows are 100 steps or 50 seconds apart: ten of them are 500 seconds.
    (_rows(3, rate=2), 490, False, 'running'),
    (_rows(3, rate=2), 510, False, 'stalled'),
    (_rows(3, loss_bellman='nan'), 0, False, 'diverged'),
    (_rows(3), 10_000, True, 'finished'),
  ],
)
def test_states(make_run, runs, metrics, age, finished, state):
  folder = make_run('rem', metrics=metrics, finished=finished)
  _age(folder, age)
  run = _only(runs)
  assert run['state'] == state
  assert abs(run['seconds_since_change'] - age) <= 5
  if state != 'running':
    assert run['steps_per_second'] is None


@pytest.mark.parametrize(
  ('error', 'state'), [('DivergedError', 'diverged'), ('WriteError', 'stalled')]
)
def test_a_run_that_says_why_it_failed(make_run, runs, error, state):
  folder = make_run('rem', metrics=_rows(3), finished=False)
  assert _only(runs)['state'] == 'running'
  (folder / run_directory.FAILED).write_text(
    json.dumps({'error': error, 'exit_code': 70, 'message': 'Too much.'})
  )
  run = _only(runs)
  assert (run['state'], run['error']) == (state, 'Too much.')
  assert run['steps_per_second'] is None
  (folder / run_directory.FAILED).unlink()  # The next attempt begins.
  assert (_only(runs)['state'], _only(runs)['error']) == ('running', '')


def test_a_finished_run_that_is_to_go_on_is_not_finished(make_run, runs):
  make_run('rem', metrics=_rows(3), total_gradient_steps=400)
  assert _only(runs)['state'] == 'running'


def test_a_value_that_is_not_finite_is_null(make_run, runs):
  metrics = _rows(3)
  metrics[1]['loss_bellman'] = 'inf'
  make_run('rem', metrics=metrics, finished=False)
  run = _only(runs)
  assert run['state'] == 'running'
  points = run['quantities']['loss_bellman']['points']
  assert points == [(0, 1.0), (100, None), (200, 3.0)]
  json.loads(live_runs.to_json(runs.snapshot()))


def test_long_curves_are_thinned_to_their_ends(make_run, runs):
  metrics = _rows(1000)
  for row in metrics[-5:]:
    row['gradient_steps_per_second'] = 80
  make_run('rem', metrics=metrics, finished=False)
  run = _only(runs)
  assert run['steps_per_second'] == 80
  points = run['quantities']['loss_bellman']['points']
  assert len(points) == 60
  assert (points[0], points[-1]) == ((0, 1.0), (99_900, 1000.0))


def test_only_what_has_changed_is_read_again(make_run, runs, monkeypatch):
  read = []
  load = run_reader.load

  def counting(patterns):
    read.append(os.path.basename(patterns[0]))
    return load(patterns)

  monkeypatch.setattr(run_reader, 'load', counting)
  folder = make_run('rem', metrics=_rows(2), finished=False)
  make_run('cql', metrics=_rows(2), finished=False)
  runs.snapshot()
  assert sorted(read) == ['cql', 'rem']
  read.clear()
  runs.snapshot()
  assert read == []
  with open(folder / run_directory.METRICS, 'a') as file:
    file.write('0,900,1,1\n')
  snapshot = runs.snapshot()
  assert read == ['rem']
  assert [run['steps'] for run in snapshot['runs']] == [100, 900]


def test_what_takes_long_to_read_comes_bit_by_bit(make_run, runs, monkeypatch):
  monkeypatch.setattr(live_runs, '_READING_SECONDS', -1.0)
  make_run('rem')
  make_run('cql')
  assert runs.snapshot()['message'] == 'Reading the runs: 0 of 2 so far.'
  ticks = itertools.count(1e9)
  monkeypatch.setattr(time, 'monotonic', lambda: next(ticks))
  monkeypatch.setattr(live_runs, '_READING_SECONDS', 1.0)
  snapshot = runs.snapshot()
  assert len(snapshot['runs']) == 1
  assert snapshot['message'] == 'Reading the runs: 1 of 2 so far.'
  snapshot = runs.snapshot()
  assert len(snapshot['runs']) == 2
  assert snapshot['message'] == ''


def test_many_who_ask_at_once_share_one_look(make_run, runs, monkeypatch):
  monkeypatch.setattr(live_runs, '_FRESH_SECONDS', 60.0)
  make_run('rem')
  first = runs.snapshot()
  make_run('cql')
  assert runs.snapshot() is first


def test_a_torn_row_is_not_there_yet(make_run, runs):
  folder = make_run('rem', metrics=_rows(2), finished=False)
  with open(folder / run_directory.METRICS, 'a') as file:
    file.write('0,900,1')
  assert _only(runs)['steps'] == 100
  assert _only(runs)['state'] == 'running'


def test_a_damaged_run_says_what_is_wrong_and_can_recover(make_run, runs):
  folder = make_run('rem', metrics=_rows(2), finished=False)
  path = folder / run_directory.PROVENANCE
  whole = path.read_text()
  path.write_text(whole[:10])
  run = _only(runs)
  assert (run['state'], run['name']) == ('unreadable', 'rem')
  assert str(path) in run['error']
  path.write_text(whole)
  assert _only(runs)['state'] == 'running'


def test_runs_come_and_go(make_run, runs, tmp_path):
  message = runs.snapshot()['message']
  assert message.startswith(f'No run directory matches {tmp_path}/runs/*')
  assert runs.snapshot()['runs'] == []
  folder = make_run('rem', metrics=_rows(2), finished=False)
  snapshot = runs.snapshot()
  assert (snapshot['message'], snapshot['parent']) == ('', str(folder.parent))
  shutil.rmtree(folder)
  assert runs.snapshot()['runs'] == []


def test_a_run_that_vanishes_while_it_is_read(make_run, runs, monkeypatch):
  folder = make_run('rem', metrics=_rows(2), finished=False)
  load = run_reader.load

  def vanish(patterns):
    shutil.rmtree(folder)
    return load(patterns)

  monkeypatch.setattr(run_reader, 'load', vanish)
  assert runs.snapshot()['runs'] == []


def test_a_clock_that_is_ahead_does_not_keep_a_run_running(
  make_run, runs, monkeypatch
):
  folder = make_run('rem', metrics=_rows(2), finished=False)
  _age(folder, -10_000)
  assert _only(runs)['state'] == 'running'
  now = time.time()
  monkeypatch.setattr(time, 'time', lambda: now + 300)
  run = _only(runs)
  assert run['state'] == 'stalled'
  assert abs(run['seconds_since_change'] - 300) <= 5


def test_what_needs_attention_comes_first(make_run, runs):
  make_run('dqn', metrics=_rows(2))
  make_run('rem', metrics=_rows(2), finished=False)
  make_run('cql', metrics=_rows(2, loss_bellman='inf'), finished=False)
  _age(make_run('rem_dr3', metrics=_rows(2), finished=False), 1000)
  make_run('cql_dr3', finished=False)
  states = [run['state'] for run in runs.snapshot()['runs']]
  assert states == ['running', 'starting', 'diverged', 'stalled', 'finished']


def test_looking_writes_nothing(make_run, runs, tmp_path):
  make_run('rem', metrics=_rows(2), returns={100: [1]})
  before = sorted(tmp_path.rglob('*'))
  runs.snapshot()
  assert sorted(tmp_path.rglob('*')) == before
