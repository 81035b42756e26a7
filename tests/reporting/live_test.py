import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request

import pytest
from werkzeug import test as werkzeug_test

from batch_rl_dr3 import report
from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import live, live_runs


@pytest.fixture
def runs(tmp_path):
  return live_runs.LiveRuns([str(tmp_path / 'runs' / '*')])


@pytest.fixture
def client(runs):
  return werkzeug_test.Client(live.LivePage(runs))


def test_the_page_and_its_parts(client):
  for path, kind in (
    ('/', 'text/html'),
    ('/live.js', 'text/javascript'),
    ('/live.css', 'text/css'),
  ):
    response = client.get(path)
    assert (response.status_code, response.mimetype) == (200, kind)
    assert response.headers['X-Content-Type-Options'] == 'nosniff'
    assert "default-src 'none'" in response.headers['Content-Security-Policy']
    head = client.head(path)
    assert (head.status_code, head.data) == (200, b'')


def test_no_runs_are_a_sentence(client):
  answer = client.get('/runs.json').json
  assert answer['runs'] == []
  assert 'No run directory' in answer['message']


def test_what_a_run_says_stays_data(client, make_run):
  make_run('rem', game='</script><b>Pong</b>')
  response = client.get('/runs.json')
  assert response.mimetype == 'application/json'
  assert response.json['runs'][0]['game'] == '</script><b>Pong</b>'
  assert response.json['has_report'] is False


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE', 'OPTIONS'])
@pytest.mark.parametrize('path', ['/', '/runs.json', '/report/'])
def test_nothing_but_get_and_head(client, method, path):
  response = client.open(path, method=method)
  assert response.status_code == 405
  assert set(response.allow) == {'GET', 'HEAD'}


@pytest.mark.parametrize(
  ('host', 'status'),
  [
    ('localhost', 200),
    ('localhost:8765', 200),
    ('127.0.0.1:8765', 200),
    ('[::1]:8765', 200),
    ('attacker.example', 403),
    ('localhost.attacker.example', 403),
    ('localhost@attacker.example', 403),
    ('192.168.0.7:8765', 403),
    ('[', 403),
    ('', 403),
  ],
)
def test_only_local_names_are_answered(client, host, status):
  response = client.get('/runs.json', headers={'Host': host})
  assert response.status_code == status


def test_an_open_page_answers_to_any_name(runs):
  client = werkzeug_test.Client(live.LivePage(runs, local_only=False))
  headers = {'Host': 'trainer.example:8765'}
  assert client.get('/', headers=headers).status_code == 200


def test_the_last_report_is_served(client, make_run, tmp_path):
  make_run('rem')
  assert client.get('/report/').status_code == 404
  folder = tmp_path / 'runs' / 'report'
  (folder / 'tables').mkdir(parents=True)
  (folder / 'index.html').write_text('<style></style>the report')
  (folder / 'tables' / 'a.csv').write_text('x\n')
  response = client.get('/report/')
  assert (response.status_code, response.mimetype) == (200, 'text/html')
  assert b'the report' in response.data
  assert 'script-src' not in response.headers['Content-Security-Policy']
  assert client.get('/report/tables/a.csv').data == b'x\n'
  assert client.get('/report/tables/').status_code == 404


def test_the_report_may_be_elsewhere(runs, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'index.html').write_text('the report')
  page = live.LivePage(runs, str(tmp_path / 'out'))
  client = werkzeug_test.Client(page)
  assert client.get('/report/').data == b'the report'
  assert client.get('/runs.json').json['has_report'] is True


@pytest.mark.parametrize(
  'path',
  [
    '/report/../rem/provenance.json',
    '/report/%2e%2e/rem/provenance.json',
    '/report/..%2frem/provenance.json',
    '/report/..\\rem\\provenance.json',
    '/report//etc/passwd',
    '/report/%2fetc/passwd',
    '/live.py',
    '/../live.py',
  ],
)
def test_no_file_outside_is_served(client, make_run, tmp_path, path):
  make_run('rem')
  (tmp_path / 'runs' / 'report').mkdir()
  (tmp_path / 'runs' / 'report' / 'index.html').write_text('the report')
  response = client.get(path, follow_redirects=True)
  assert response.status_code == 404


def test_it_serves_until_it_is_left(runs):
  with live.serve(runs, '127.0.0.1', 0) as address:
    assert address.startswith('http://127.0.0.1:')
    with urllib.request.urlopen(address + 'runs.json') as response:
      assert json.load(response)['runs'] == []
    port = int(address.rsplit(':', 1)[1].strip('/'))
    with (
      pytest.raises(
        errors.UsageError, match=r'Address already in use\. Choose'
      ),
      live.serve(runs, '127.0.0.1', port),
    ):
      pass
  with live.serve(runs, '127.0.0.1', port) as again:
    assert again == address


@pytest.mark.parametrize('host', ['no.such.host.invalid', '203.0.113.1'])
def test_a_place_where_it_cannot_listen(runs, host):
  expected = rf'cannot listen on {host}, port 0: [\w ]+\. Choose another'
  with (
    pytest.raises(errors.UsageError, match=expected),
    live.serve(runs, host, 0),
  ):
    pass


def test_watching_writes_again_when_runs_change(
  make_run, runs, capsys, monkeypatch
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
    written.append(len(runs.stamps()))
    return f'index{len(written)}'

  live.watch(runs, write, 7.0, stop)
  assert written == [1, 1, 2]
  assert waited == [7.0] * 5
  assert capsys.readouterr().out.split('\n')[:-1] == [
    'report: index1',
    'report: index2',
    'report: index3',
  ]


def test_watching_waits_for_runs_that_cannot_be_read(
  make_run, runs, capsys, monkeypatch
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

  live.watch(runs, write, 1, stop)
  out, err = capsys.readouterr()
  assert (out, err) == ('report: index\n', 'waiting: rem is damaged.\n')


def test_flags_with_a_default():
  parser = report._OptionalNumber(30.0, float, 0.1, 100)
  assert [parser.parse(v) for v in ('true', 'false', '2')] == [30, None, 2]
  for wrong in ('0', '101', 'often', 'nan'):
    with pytest.raises(ValueError):
      parser.parse(wrong)


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
    address = process.stdout.readline().split()[2]
    assert process.stdout.readline() == (
      f'report: {tmp_path}/runs/report/index.html\n'
    )
    with urllib.request.urlopen(address + 'report/') as response:
      assert b'DR3 report' in response.read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert (process.returncode, out, err) == (0, '', '')
  assert sorted(os.listdir(tmp_path / 'runs')) == ['rem', 'report']
