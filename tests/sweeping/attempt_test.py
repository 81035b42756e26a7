import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import place, state
from batch_rl_dr3.sweeping import attempt


@pytest.fixture
def make_attempt(tmp_path, fake_train):
  """Makes an attempt at a run whose train behaves as it is told."""
  folder = tmp_path / 'minatar/breakout/all/dqn/seed0-00000000'

  def make(behaviour='', limit=3):
    (tmp_path / 'behaviour').write_text(f': {behaviour}\n' * bool(behaviour))
    return attempt.Attempt(
      str(folder), [*fake_train, f'--base_dir={folder}'], 1, limit
    )

  make.folder = folder
  return make


def test_a_run_is_executed_once(make_attempt):
  assert make_attempt().execute() == attempt.Outcome(attempt.DONE, 0)
  assert make_attempt().execute() == attempt.Outcome(attempt.DONE, 0)
  assert len((make_attempt.folder / 'workers').read_text().split()) == 1
  assert state.progress(make_attempt.folder)[0] == 3


@pytest.mark.parametrize('code', [64, 65, 70, 78])
def test_a_run_that_fails_by_its_own_fault_is_set_aside(make_attempt, code):
  outcome = make_attempt(f'exit {code}').execute()
  assert outcome == attempt.Outcome(
    attempt.SET_ASIDE, code, f'train: this run fails with {code}.'
  )
  # And not begun again before it is let to.
  log = (make_attempt.folder / state.LOG).read_text()
  assert make_attempt().execute() == outcome
  assert (make_attempt.folder / state.LOG).read_text() == log
  (make_attempt.folder / state.NAME).unlink()
  assert make_attempt().execute().kind == attempt.DONE


def test_what_is_counted_is_attempts_without_progress(make_attempt):
  for before in range(3):
    outcome = make_attempt('exit 75').execute()
    assert (outcome.kind, outcome.exit_code) == (attempt.AGAIN, 75)
    assert outcome.without_progress == before
  # One that is killed after a checkpoint begins the count anew, late as it is:
  # the attempt before it is known by then to have come to nothing.
  (make_attempt.folder / state.NAME).unlink()
  make_attempt('exit 75').execute()
  outcome = make_attempt('die_once 2').execute()
  assert (outcome.exit_code, outcome.without_progress) == (-signal.SIGKILL, 1)
  assert outcome.error == 'ended by SIGKILL'
  assert make_attempt('exit 75').execute().without_progress == 0
  for _ in range(2):
    make_attempt('exit 75').execute()
  outcome = make_attempt('exit 75').execute()
  assert (outcome.kind, outcome.exit_code) == (attempt.SET_ASIDE, 70)
  assert '3 attempts without progress; the last one: train: this run' in (
    outcome.error
  )


def test_a_run_that_another_process_works_on_is_left_alone(make_attempt):
  make_attempt.folder.mkdir(parents=True)
  with open(make_attempt.folder / '.lock', 'a') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert make_attempt().execute().kind == attempt.BUSY
  # It costs the run nothing.
  assert state.read_attempts(make_attempt.folder).attempts == 0
  assert make_attempt().execute().kind == attempt.DONE


def _wait_for(condition, seconds=20):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'it did not happen'
    time.sleep(0.01)


def test_a_run_that_is_stopped_saves_and_says_so(make_attempt):
  one = make_attempt('steps 2000')
  outcomes = []
  thread = threading.Thread(target=lambda: outcomes.append(one.execute()))
  thread.start()
  _wait_for(lambda: state.progress(make_attempt.folder)[0] > 1)
  one.stop()
  thread.join(20)
  assert outcomes[0].exit_code == 75
  assert 'stopped by SIGTERM' in outcomes[0].error


@pytest.fixture
def start_elsewhere(make_attempt, fake_train):
  """Starts an attempt at a long run in another process."""

  def start(call):
    folder = make_attempt.folder
    (folder.parents[4] / 'behaviour').write_text(': steps 2000\n')
    arguments = [*fake_train, f'--base_dir={folder}']
    code = (
      'import sys; from batch_rl_dr3.sweeping import attempt;'
      f'one = attempt.Attempt({str(folder)!r}, {arguments!r}, 1, 3);'
      f'sys.exit({call}.exit_code)'
    )
    process = subprocess.Popen([sys.executable, '-c', code])
    _wait_for(lambda: state.progress(folder)[0] > 1)
    return process

  return start


def test_a_task_hands_on_sigterm(make_attempt, start_elsewhere):
  process = start_elsewhere('attempt.in_foreground(one)')
  process.send_signal(signal.SIGTERM)
  assert process.wait(20) == 75
  record = state.read_attempts(make_attempt.folder)
  assert 'stopped by SIGTERM' in record.error


def test_a_run_ends_with_who_executes_it(make_attempt, start_elsewhere):
  parent = start_elsewhere('one.execute()')
  parent.kill()
  parent.wait()
  workers = make_attempt.folder / 'workers'

  def is_gone():
    try:
      with open(f'/proc/{int(workers.read_text())}/stat') as file:
        return file.read().rsplit(')', 1)[1].split()[0] == 'Z'
    except FileNotFoundError:
      return True

  _wait_for(is_gone)
  record = state.read_attempts(make_attempt.folder)
  assert (record.attempts, record.exit_code) == (1, None)


@pytest.mark.skipif(
  not hasattr(os, 'sched_getaffinity'), reason='the system pins nothing'
)
def test_a_run_is_pinned_to_its_cores(make_attempt):
  folder = make_attempt.folder
  code = 'import os; print(*sorted(os.sched_getaffinity(0)))'
  cores = sorted(os.sched_getaffinity(0))
  for pinned in ((), (cores[-1],)):
    attempt.Attempt(str(folder), ['-c', code], 1, 9, cores=pinned).execute()
    said = state.last_line(folder / state.LOG)
    assert said == ' '.join(map(str, pinned or cores))


def test_an_end_without_the_last_file_is_no_end(make_attempt):
  folder = make_attempt.folder
  outcome = attempt.Attempt(str(folder), ['-c', 'print(1)'], 1, 3).execute()
  assert (outcome.kind, outcome.exit_code) == (attempt.AGAIN, 1)
  assert outcome.error == 'train ended without a whole finished.json.'


def test_an_end_after_the_last_file_is_one_whatever_its_code(make_attempt):
  folder = make_attempt.folder
  code = (
    f'open({str(folder / "finished.json")!r}, "w").write('
    '\'{"num_iterations": 1}\'); import os; os.kill(os.getpid(), 15)'
  )
  outcome = attempt.Attempt(str(folder), ['-c', code], 1, 3).execute()
  assert outcome == attempt.Outcome(attempt.DONE, 0)
  assert state.read_attempts(folder).exit_code == 0


def _manifest(gradient_steps):
  entry = {'bytes': 1, 'sha256': '0' * 64}
  record = {
    'gradient_steps': gradient_steps,
    'name': '0',
    'files': {'tf_ckpt-0.index': entry},
  }
  return json.dumps(record).encode()


def test_a_damaged_record_is_named(tmp_path):
  (tmp_path / state.NAME).write_text('{"attempts": ')
  with pytest.raises(errors.DataError, match=r'cannot read .*attempt\.json'):
    state.read_attempts(tmp_path)


def test_a_torn_manifest_is_no_progress(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  for name, text in (
    ('ckpt.0.json', _manifest(5).decode()),
    ('ckpt.1.json', '{"gradient_steps": 9'),
  ):
    (tmp_path / 'checkpoints' / name).write_text(text)
  assert state.progress(tmp_path) == (5, 0)
  (tmp_path / 'scores.csv').write_text('12345678')
  assert state.progress(tmp_path) == (5, 8)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('', ''),
    ('one\ntwo\n\n', 'two'),
    # A progress bar writes over its line.
    ('50%\r60%\rtrain: broken\n', 'train: broken'),
    ('x' * 10_000 + '\nlast', 'last'),
  ],
)
def test_the_last_line_of_a_log(tmp_path, text, expected):
  (tmp_path / 'log').write_text(text)
  assert state.last_line(tmp_path / 'log') == expected
  assert state.last_line(tmp_path / 'none') == ''
  assert os.listdir(tmp_path) == ['log']


class Process:
  """A process whose run is in fsspec's memory: it does a list of things."""

  def __init__(self, remote, files, exit_code):
    self._remote = remote
    self._files = files
    self._exit_code = exit_code

  def poll(self):
    return self._exit_code

  def wait(self):
    for name, content in self._files.items():
      self._remote.write(name, content)
    return self._exit_code


@pytest.fixture
def execute_remotely(monkeypatch, request):
  """Makes an attempt at a run in a bucket, each on a machine of its own."""
  remote = place.Place(f'memory://{request.node.name}/run')

  def execute(exit_code, said='', **files):
    def start(self, log, ending):
      log.write(said.encode())
      named = {n.replace('__', '/') + '.json': c for n, c in files.items()}
      return Process(remote, named, exit_code)

    monkeypatch.setattr(attempt.Attempt, '_start', start)
    return attempt.Attempt(remote.name, [], 1, 2).execute()

  execute.remote = remote
  yield execute
  for name in remote.find():
    remote.remove(name)


def test_the_truth_about_a_run_in_a_bucket_is_there(execute_remotely):
  remote = execute_remotely.remote
  for before in range(2):
    outcome = execute_remotely(75, 'train: stopped\n')
    assert (outcome.kind, outcome.error) == (attempt.AGAIN, 'train: stopped')
    assert outcome.without_progress == before
  log = remote.read(state.LOG).decode()
  assert log.count('train: stopped') == log.count('--- attempt ') == 2
  outcome = execute_remotely(75)
  assert outcome.kind == attempt.SET_ASIDE
  assert json.loads(remote.read(state.NAME))['is_set_aside']
  assert remote.read(state.LOG).decode() == log


def test_a_run_in_a_bucket_gets_on_and_ends(execute_remotely):
  step = {'checkpoints__ckpt.0': _manifest(5)}
  for _ in range(4):  # More than may come to nothing.
    outcome = execute_remotely(-signal.SIGKILL, **step)
    step['checkpoints__ckpt.0'] = step['checkpoints__ckpt.0'].replace(
      b'5,', b'55,'
    )
    assert outcome.error == 'ended by SIGKILL'
  end = {'finished': b'{"num_iterations": 1}'}
  assert execute_remotely(0, **end) == attempt.Outcome(attempt.DONE, 0)
  assert execute_remotely(1) == attempt.Outcome(attempt.DONE, 0)


def test_a_bucket_that_is_away_is_waited_for(execute_remotely, monkeypatch):
  monkeypatch.setattr(attempt, '_AGAIN_SECONDS', 0.01)
  put = place.Place.put
  failures = [OSError(5, 'the network is away')] * 3

  def put_in_the_end(*arguments):
    if failures:
      raise failures.pop()
    put(*arguments)

  monkeypatch.setattr(place.Place, 'put', put_in_the_end)
  assert execute_remotely(75, 'train: x').kind == attempt.AGAIN
  monkeypatch.setattr(attempt, '_PATIENCE_SECONDS', 0.0)
  failures += [OSError(5, 'the network is away')] * 3
  with pytest.raises(errors.WriteError, match=r'attempt\.json: the network'):
    execute_remotely(75)


@pytest.mark.parametrize(
  ('num_slots', 'expected'),
  [
    # As many runs as cores, fewer, and more: a core each at least.
    (4, [[1], [3], [5], [7]]),
    (3, [[1, 7], [3], [5]]),
    (6, [[1], [3], [5], [7], [1], [3]]),
  ],
)
def test_the_cores_of_a_node_are_dealt_out_to_its_slots(num_slots, expected):
  assert [
    attempt.cores_of_slot(slot, num_slots, {7, 1, 5, 3})
    for slot in range(num_slots)
  ] == expected
