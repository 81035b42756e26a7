import copy
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, lease, place, run_directory, run_tables


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.05)
  monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 0.5)
  monkeypatch.setattr(lease, '_POLL_SECONDS', 0.01)


@pytest.fixture
def storage(tmp_path):
  return place.Place(str(tmp_path / lease.FOLDER))


@pytest.fixture
def make(storage):
  made = []

  def make():
    made.append(lease.Lease(storage, 'RUN'))
    return made[-1]

  yield make
  for one in made:
    one.release()


def lock(folder, is_gone=False):
  home = run_directory.Home(str(folder), '')
  if is_gone:
    folder.rmdir()
  return home.lock()


def pause(held):
  """Stops the heartbeat, as when the machine stands still."""
  held._ended.set()
  held._thread.join()


def elsewhere(monkeypatch):
  """From now on, terms before are of another machine."""
  monkeypatch.setattr(lease, '_machine', lambda: 'another')


def test_one_works_and_the_other_leaves_with_75(make, storage):
  first, second = make(), make()
  first.acquire()
  with pytest.raises(lease.BusyError, match=r'RUN is in use: .*works on it'):
    second.acquire()
  assert lease.BusyError.exit_code == 75
  first.check()
  first.release()
  second.acquire()
  assert (first.token, second.token) == (1, 2)
  assert [t.released for t in lease.history(storage)] == [True, False]


def test_a_beat_that_stands_still_is_taken_for_death(
  make, storage, monkeypatch
):
  first, second = make(), make()
  first.acquire()
  elsewhere(monkeypatch)
  pause(first)
  began = time.monotonic()
  second.acquire()
  assert time.monotonic() - began >= 0.5
  with pytest.raises(lease.FencedError, match=r'taken over by .* while') as e:
    first.check()
  assert e.value.exit_code == 75
  assert first.is_lost
  second.check()
  first.release()  # Says nothing: the term was lost.
  assert [t.released for t in lease.history(storage)] == [False, False]


def test_clocks_are_never_compared(make, storage, monkeypatch):
  first, second = make(), make()
  monkeypatch.setattr(lease, '_now', lambda: '1970-01-01T00:00:00')
  first.acquire()
  for name in storage.names():
    os.utime(storage.path / name, (0, 0))
  with pytest.raises(lease.BusyError):
    second.acquire()


def test_a_dead_process_of_this_machine_is_not_waited_for(
  make, storage, monkeypatch
):
  monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 1000.0)
  script = (
    'import os, sys; from batch_rl_dr3.runs import place, lease;'
    'lease.Lease(place.Place(sys.argv[1]), "RUN").acquire();'
    'os._exit(9)'
  )
  folder = str(storage.path)
  subprocess.run([sys.executable, '-c', script, folder], check=False)
  second = make()
  second.acquire()
  assert second.token == 2


def test_another_process_of_the_same_number_is_not_the_worker(
  make, storage, monkeypatch
):
  monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 1000.0)
  first = make()
  first.acquire()
  pause(first)
  (term,) = lease.history(storage)
  term = dataclasses.replace(term, process_start='1')
  storage.write('term-00000001.json', json.dumps(vars(term)).encode())
  second = make()
  second.acquire()
  assert second.token == 2


def test_a_term_torn_by_a_kill_expires(make, storage):
  storage.create('term-00000001.json', b'')
  second = make()
  second.acquire()
  assert second.token == 2


def test_of_many_only_one_takes_over(storage, make, monkeypatch):
  workers = [make() for _ in range(12)]
  monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 1000.0)
  storage.create('term-00000001.json', b'')
  storage.write('beat-00000001.json', b'{"released": true}')
  got = []
  barrier = threading.Barrier(len(workers))

  def work(worker):
    barrier.wait()
    try:
      worker.acquire()
      got.append(worker)
    except lease.BusyError:
      pass

  threads = [threading.Thread(target=work, args=(w,)) for w in workers]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(got) == 1
  assert got[0].token == 2


def test_who_lost_the_race_does_not_release_the_winner(make, storage):
  """It listed the terms before there were any, so it takes the same number."""
  winner, loser = make(), make()
  winner.acquire()
  listings = [storage.names(), []]
  loser._terms = copy.copy(storage)
  loser._terms.names = listings.pop
  with pytest.raises(lease.BusyError):
    loser.acquire()
  loser.release()
  assert [t.released for t in lease.history(storage)] == [False]


def test_a_record_that_was_removed_is_a_lease_that_is_lost(make, storage):
  held = make()
  held.acquire()
  pause(held)
  (storage.path / 'term-00000001.json').unlink()
  with pytest.raises(lease.FencedError):
    held.check()


def test_a_fenced_worker_publishes_nothing(tmp_path, monkeypatch):
  scores = tmp_path / run_directory.SCORES
  with lock(tmp_path) as held:
    log = run_tables.CsvLog(scores, ('a',), held.check)
    log.replace([{'a': 1}])
    elsewhere(monkeypatch)
    pause(held)
    with lock(tmp_path):
      with pytest.raises(lease.FencedError):
        log.replace([{'a': 1}, {'a': 2}])
      with pytest.raises(lease.FencedError):
        log.append({'a': 2})
  assert scores.read_text().splitlines() == ['a', '1']
  assert {p.name for p in tmp_path.iterdir()} == {'scores.csv', 'lease'}


def test_a_worker_that_stood_still_before_its_rename_publishes_nothing(
  tmp_path, monkeypatch
):
  """Between the check and the rename, everything may happen elsewhere."""
  scores = tmp_path / run_directory.SCORES
  other = []

  def check_then_stand_still():
    if not other:
      held.check()
      pause(held)
      elsewhere(monkeypatch)
      other.append(lock(tmp_path))
      other[0].__enter__()
      atomic.write_text(scores, 'of the other\n')
    else:
      held.check()

  with lock(tmp_path) as held:
    with pytest.raises(lease.FencedError):
      atomic.write_text(scores, 'late\n', check_then_stand_still)
    other[0].__exit__(None, None, None)
  assert scores.read_text() == 'of the other\n'


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'lease').write_text('')
  with (
    pytest.raises(errors.WriteError, match='lease'),
    lock(tmp_path),
  ):
    raise AssertionError


def test_one_process_at_a_time_writes_to_a_run_directory(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'HEARTBEAT_SECONDS', 0.05)
  with lock(tmp_path):
    with (
      pytest.raises(run_directory.BusyError, match='in use') as raised,
      lock(tmp_path),
    ):
      raise AssertionError
    assert raised.value.exit_code == 75
  with lock(tmp_path):
    pass
  with (
    pytest.raises(errors.WriteError, match='none'),
    lock(tmp_path / 'none', is_gone=True),
  ):
    raise AssertionError


def test_what_a_worker_left_half_written_is_removed(tmp_path):
  (tmp_path / 'checkpoints' / '.writing.3.ab').mkdir(parents=True)
  for name in ('.scores.csv.ab.tmp', '.attempt.json.ab.tmp'):
    (tmp_path / name).write_text('')
  with lock(tmp_path):
    left = {path.name for path in tmp_path.rglob('.*')}
  assert left == {'.attempt.json.ab.tmp'}  # Somebody else's.


@pytest.mark.parametrize(
  'content', [b"'x'", b'0', b'"x"', b'[1]', b'null', b'{"token": 7}', b'\xff']
)
def test_a_damaged_record_is_a_term_of_nobody(make, storage, content):
  """Also one whose token contradicts its name, which once looped for ever."""
  storage.create('term-00000001.json', content)
  storage.write('beat-00000001.json', content)
  storage.create('term-foo.json', b'{}')
  storage.create('term-.json', b'{}')
  second = make()
  second.acquire()
  assert second.token == 2
  second.check()


def test_a_record_of_the_wrong_types_is_of_nobody(make, storage, monkeypatch):
  first = make()
  first.acquire()
  pause(first)
  (term,) = lease.history(storage)
  damaged = {**vars(term), 'machine': 3, 'pid': 'x', 'released': 'yes'}
  storage.write('term-00000001.json', json.dumps(damaged).encode())
  assert [t.worker for t in lease.history(storage)] == ['unknown']
  second = make()
  second.acquire()
  assert second.token == 2
