import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from batch_rl_dr3 import report
from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import page, run_reader, tables, watch
from batch_rl_dr3.runs import run_directory

_CHROMIUM = shutil.which('chromium')


@pytest.fixture
def patterns(tmp_path):
  return [str(tmp_path / 'runs' / '*')]


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


def _only(patterns):
  (run,) = run_reader.load(patterns).runs
  return watch.progress(run)


def _age(folder, seconds):
  then = time.time() - seconds
  for path in folder.iterdir():
    os.utime(path, (then, then))


def test_a_running_run(make_run, patterns):
  make_run(
    'rem_dr3', metrics=_rows(4), finished=False, total_gradient_steps=1000
  )
  found = _only(patterns)
  assert (found['method'], found['game']) == ('REM + DR3', 'breakout, 10pct')
  assert (found['state'], found['error']) == ('running', None)
  assert (found['steps'], found['total_steps'], found['rate']) == (
    300,
    1000,
    50.0,
  )
  assert found['seconds_left'] == 14.0  # 700 steps at 50/s.
  assert found['quiet_seconds'] <= 5


def test_the_rate_is_the_median_of_the_last_rows(make_run, patterns):
  metrics = _rows(9)
  for i, rate in enumerate((10, 70, 'nan', 60, 1000), 4):
    metrics[i]['gradient_steps_per_second'] = rate
  make_run('rem', metrics=metrics, finished=False)
  found = _only(patterns)
  assert found['rate'] == 65  # Of 10, 60, 70 and 1000.
  assert (found['total_steps'], found['seconds_left']) == (None, None)


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
def test_states(make_run, patterns, metrics, age, finished, state):
  _age(make_run('rem', metrics=metrics, finished=finished), age)
  found = _only(patterns)
  assert found['state'] == state
  assert abs(found['quiet_seconds'] - age) <= 5
  if state != 'running':
    assert found['rate'] is None


@pytest.mark.parametrize(
  ('error', 'state'), [('DivergedError', 'diverged'), ('WriteError', 'stalled')]
)
def test_a_run_that_says_why_it_failed(make_run, patterns, error, state):
  folder = make_run('rem', metrics=_rows(3), finished=False)
  assert _only(patterns)['state'] == 'running'
  (folder / run_directory.FAILED).write_text(
    json.dumps({'error': error, 'exit_code': 70, 'message': 'Too much.'})
  )
  found = _only(patterns)
  assert (found['state'], found['error']) == (state, 'Too much.')
  assert found['rate'] is None
  (folder / run_directory.FAILED).unlink()  # The next attempt begins.
  assert (_only(patterns)['state'], _only(patterns)['error']) == (
    'running',
    None,
  )


def test_a_finished_run_that_is_to_go_on_is_not_finished(make_run, patterns):
  make_run('rem', metrics=_rows(3), total_gradient_steps=400)
  assert _only(patterns)['state'] == 'running'


def test_a_torn_row_is_not_there_yet(make_run, patterns):
  folder = make_run('rem', metrics=_rows(2), finished=False)
  with open(folder / run_directory.METRICS, 'a') as file:
    file.write('0,900,1')
  assert (_only(patterns)['steps'], _only(patterns)['state']) == (
    100,
    'running',
  )


def test_a_clock_that_is_ahead_is_not_negative(make_run, patterns):
  _age(make_run('rem', metrics=_rows(2), finished=False), -10_000)
  assert _only(patterns)['quiet_seconds'] == 0


def test_what_asks_for_a_look_comes_first(make_run, patterns):
  make_run('dqn', metrics=_rows(2))
  make_run('rem', metrics=_rows(2), finished=False)
  make_run('cql', metrics=_rows(2, loss_bellman='inf'), finished=False)
  _age(make_run('rem_dr3', metrics=_rows(2), finished=False), 1000)
  make_run('cql_dr3', finished=False)
  damaged = make_run('dqn', name='damaged', finished=False)
  (damaged / run_directory.PROVENANCE).write_text('{')
  collection = run_reader.load(patterns, leave_out_unreadable=True)
  found = watch.progress_table(collection).frame
  assert list(found['state']) == [
    *('diverged', 'unreadable', 'stalled', 'running', 'starting', 'finished')
  ]
  assert str(damaged) in found['error'][1]


def test_a_damaged_run_is_an_error_unless_it_may_be_left_out(
  make_run, patterns
):
  damaged = make_run('rem', finished=False)
  (damaged / run_directory.PROVENANCE).write_text('{')
  for leave_out in (False, True):  # There is no other run.
    with pytest.raises(errors.DataError, match='provenance'):
      run_reader.load(patterns, leave_out_unreadable=leave_out)


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.4, '0 s'),
    (119, '119 s'),
    (120, '2 min'),
    (7200, '2.0 h'),
    (None, tables.MISSING),
  ],
)
def test_durations(seconds, text):
  assert tables.duration(seconds) == text


def test_a_silence_that_doubles_is_a_change(make_run, patterns):
  folder = make_run('rem', metrics=_rows(2), finished=False)
  found = []
  for age in (0, 50, 70, 110, 130, 250):
    _age(folder, age)
    found.append(watch._signature(patterns)[str(folder)][1])
  # At two minutes, the least patience, and at four.
  assert found == [0, 0, 0, 0, 1, 2]


def test_watching_writes_again_when_runs_change(
  make_run, patterns, capsys, monkeypatch
):
  """Each wait plays what happens to the runs meanwhile."""
  stop = threading.Event()
  folder = make_run('rem', finished=False)
  happens = iter(
    [
      lambda: None,
      lambda: (folder / 'metrics.csv').write_text('gradient_steps\n1\n'),
      lambda: None,
      lambda: make_run('cql'),
      stop.set,
    ]
  )
  waited = []

  def wait(seconds):
    waited.append(seconds)
    next(happens)()

  monkeypatch.setattr(stop, 'wait', wait)
  written = []

  def write():
    written.append(len(watch._signature(patterns)))
    return f'index{len(written)}'

  watch.watch(patterns, write, 7.0, stop)
  assert written == [1, 1, 2]
  assert waited == [7.0] * 5
  assert capsys.readouterr().out.split('\n')[:-1] == [
    'report: index1',
    'report: index2',
    'report: index3',
  ]


def test_watching_waits_for_runs_that_cannot_be_read(
  make_run, patterns, capsys, monkeypatch
):
  stop = threading.Event()
  folder = make_run('rem')
  happens = iter(
    [
      lambda: (folder / 'metrics.csv').write_text('a'),
      lambda: (folder / 'metrics.csv').write_text('ab'),
      stop.set,
    ]
  )
  monkeypatch.setattr(stop, 'wait', lambda _: next(happens)())
  fails = iter([True, True, False])

  def write():
    if next(fails):
      raise errors.DataError('rem is damaged.')
    return 'index'

  watch.watch(patterns, write, 1, stop)
  out, err = capsys.readouterr()
  assert (out, err) == ('report: index\n', 'waiting: rem is damaged.\n')


def test_flags_with_a_default():
  parser = report._OptionalNumber(30.0, float, 0.1, 100)
  assert [parser.parse(v) for v in ('true', 'false', '2')] == [30, None, 2]
  for wrong in ('0', '101', 'often', 'nan'):
    with pytest.raises(ValueError):
      parser.parse(wrong)


def test_it_serves_a_folder_until_it_is_left(tmp_path):
  (tmp_path / 'index.html').write_text('the report')
  with watch.serve(tmp_path, 0) as address:
    assert address.startswith('http://127.0.0.1:')
    with urllib.request.urlopen(address) as response:
      assert response.read() == b'the report'
      assert response.headers['Cache-Control'] == 'no-store'
    port = int(address.rsplit(':', 1)[1].strip('/'))
    with (
      pytest.raises(
        errors.UsageError, match=r'Address already in use\. Choose'
      ),
      watch.serve(tmp_path, port),
    ):
      pass


def test_the_command_serves_watches_and_stops(make_run, tmp_path):
  make_run('rem', returns={1: [1]}, finished=False)
  command = [sys.executable, '-m', 'batch_rl_dr3.report']
  command += ['--runs=runs/*', '--serve=0', '--watch=0.1']
  process = subprocess.Popen(
    command,
    cwd=tmp_path,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  try:
    address = process.stdout.readline().split()[1]
    assert process.stdout.readline() == (
      f'report: {tmp_path}/runs/report/index.html\n'
    )
    with urllib.request.urlopen(address) as response:
      assert b'DR3 report' in response.read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert (process.returncode, out, err) == (0, '', '')
  assert sorted(os.listdir(tmp_path / 'runs')) == ['rem', 'report']


def test_a_followed_report_is_never_away(make_run, patterns, tmp_path):
  make_run('rem', returns={1: [1]}, finished=False)
  options = page.Options(refresh_seconds=5.0)
  folder = page.write_report(patterns, str(tmp_path / 'out'), options).parent
  before = folder.stat().st_ino
  assert (folder / 'figures' / 'minatar_breakout_10pct.png').exists()
  shutil.rmtree(tmp_path / 'runs')
  make_run('rem', returns={1: [1]}, finished=False, game='asterix')
  page.write_report(patterns, str(tmp_path / 'out'), options)
  assert folder.stat().st_ino == before
  assert (folder / 'figures' / 'minatar_asterix_10pct.png').exists()
  assert not (folder / 'figures' / 'minatar_breakout_10pct.png').exists()


@pytest.mark.skipif(
  _CHROMIUM is None, reason='needs chromium: apt-get install chromium'
)
def test_a_browser_shows_new_rows_by_itself(
  make_run, patterns, tmp_path, monkeypatch
):
  make_run('rem', metrics=_rows(2), finished=False, game='<i>Pong')
  options = page.Options(refresh_seconds=1.0)
  write = functools.partial(
    page.write_report, patterns, str(tmp_path / 'out'), options
  )
  write()
  pages = []
  get = watch._QuietHandler.do_GET

  def do_get(handler):
    if handler.path == '/':
      pages.append(handler.path)
      if len(pages) == 2:  # The page was loaded, and loads itself again.
        make_run('cql_dr3', metrics=_rows(5), finished=False)
        write()
    get(handler)

  monkeypatch.setattr(watch._QuietHandler, 'do_GET', do_get)
  command = [
    _CHROMIUM,
    *('--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run'),
    *('--disable-dev-shm-usage', '--disable-background-networking'),
    *(f'--user-data-dir={tmp_path / "browser"}', '--enable-logging=stderr'),
  ]
  log = tmp_path / 'log'
  with watch.serve(tmp_path / 'out', 0) as address, log.open('w') as file:
    browser = subprocess.Popen(
      [*command, '--remote-debugging-port=0', address], stderr=file
    )
    try:
      end = time.monotonic() + 60
      while len(pages) < 3 and time.monotonic() < end:
        time.sleep(0.1)
    finally:
      browser.terminate()
      browser.wait()
    assert len(pages) >= 3
    shown = subprocess.run(
      [*command, '--dump-dom', address],
      capture_output=True,
      text=True,
      timeout=60,
      check=True,
    )
  assert 'How the runs stand' in shown.stdout
  assert 'CQL + DR3' in shown.stdout
  # What a run says is text.
  assert '<i>' not in shown.stdout
  assert 'CONSOLE' not in log.read_text() + shown.stderr
