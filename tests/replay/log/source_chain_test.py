import logging
import shutil
import socket
import time

import gin
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import rlu, source_chain, sources
from batch_rl_dr3.runs import place, retry


@pytest.fixture
def log(tmp_path, logs):
  folder = tmp_path / 'Breakout' / '5' / 'replay_logs'
  logs.write_log(folder, logs.make_transitions(450))
  return folder


@pytest.fixture
def cloud_source(cloud, log, proxy):
  url = cloud.upload(log, 'chain/replay_logs')
  return sources.FsspecSource(
    url,
    endpoint_url=proxy.endpoint,
    retry=retry.Retry(attempts=2, sleep=lambda seconds: None),
  )


def test_the_first_that_answers_wins(log, tmp_path, cloud_source):
  source = source_chain.open_source([tmp_path / 'absent', log, cloud_source])
  assert source.name == str(log)
  assert source_chain.open_source(log).name == str(log)
  assert source_chain.open_source(cloud_source) is cloud_source


@pytest.mark.parametrize('status', [401, 403, 404])
def test_who_refuses_is_named_and_the_next_is_asked(
  log, proxy, cloud_source, status, caplog
):
  proxy.faults = {'.*': [status] * 100}
  with caplog.at_level(logging.WARNING):
    source = source_chain.open_source([cloud_source, str(log)])
  assert source.name == str(log)
  assert 'gs://logs/chain' in caplog.text
  assert 'is refused' in caplog.text


def test_a_listing_without_the_objects_is_a_refusal(log, proxy, cloud_source):
  proxy.faults = {'alt=media': [403] * 100}
  assert source_chain.open_source([cloud_source, log]).name == str(log)


def test_if_all_refuse_all_are_named_with_the_mend(
  proxy, cloud_source, tmp_path
):
  proxy.faults = {'.*': [403] * 100}
  with pytest.raises(errors.DataError) as caught:
    source_chain.open_source([cloud_source, tmp_path / 'absent'])
  message = str(caught.value)
  assert 'gs://logs/chain' in message
  assert 'absent is not a folder' in message
  assert 'gcloud storage cp' in message
  assert caught.value.exit_code == 65


def test_damaged_data_are_not_passed_over(log, logs, tmp_path):
  (log / 'add_count_ckpt.0.gz').write_bytes(b'damaged')
  logs.write_log(tmp_path / 'other', logs.make_transitions(450))
  with pytest.raises(errors.DataError, match=r'add_count_ckpt\.0\.gz'):
    source_chain.open_source([log, tmp_path / 'other'])


def test_default_locations(clear_gin):
  assert source_chain.default_locations('MsPacman', 3) == [
    'gs://atari-replay-datasets/dqn/MsPacman/3/replay_logs',
    'gs://rl_unplugged/atari_episodes_ordered/MsPacman/run_3',
  ]
  with pytest.raises(errors.ConfigError, match='numbered 1 to 5'):
    source_chain.default_locations('MsPacman', 6)


def test_the_order_is_gin_and_missing_files_are_named(
  log, tmp_path, clear_gin, caplog
):
  template = f'{tmp_path}/{{game}}/{{run}}'
  gin.bind_parameter('default_locations.templates', (template,))
  with caplog.at_level(logging.WARNING):
    source = source_chain.open_run('Breakout', 5)
  assert source.suffixes() == [0, 1, 2]
  assert 'Breakout/5: suffix 3 is missing and should be there' in caplog.text
  assert 'Breakout/5: suffix 50 is known to be absent' in caplog.text


def test_expected_suffixes():
  assert source_chain.expected_suffixes('Pong', 1) == list(range(51))
  absent = [('Breakout', 5)] + [
    (game, 1)
    for game in (
      'Carnival',
      'Centipede',
      'IceHockey',
      'StarGunner',
      'VideoPinball',
      'YarsRevenge',
    )
  ]
  for game, run in absent:
    assert source_chain.expected_suffixes(game, run) == list(range(50))
  assert 50 in source_chain.expected_suffixes('IceHockey', 2)


def test_a_path_and_its_url_are_one_source(log, tmp_path):
  copy = shutil.copytree(log, tmp_path / 'a b%20')
  by_path = source_chain.make_source(copy)
  for url in (copy.as_uri(), f'file://localhost{copy.as_uri()[7:]}'):
    by_url = source_chain.make_source(url)
    assert by_url.name == by_path.name == str(copy)
    assert by_url.fingerprint() == by_path.fingerprint()


def test_out_of_reach_is_known_in_seconds(log, monkeypatch, caplog):
  monkeypatch.setattr(source_chain, '_ANSWER_SECONDS', 0.2)
  with socket.socket() as silent, socket.socket() as closed:
    silent.bind(('127.0.0.1', 0))
    silent.listen()
    closed.bind(('127.0.0.1', 0))
    for server in (silent, closed):
      endpoint = f'http://127.0.0.1:{server.getsockname()[1]}'
      source = sources.FsspecSource('gs://a/b', endpoint_url=endpoint)
      start = time.monotonic()
      with caplog.at_level(logging.WARNING):
        assert source_chain.open_source([source, log]).name == str(log)
      assert time.monotonic() - start < 5
      assert f'gs://a/b is out of reach: {endpoint}' in caplog.text


def test_an_error_is_an_answer(log, proxy, cloud_source):
  # The proxy knows no HEAD and says so.
  assert source_chain.open_source([cloud_source, log]) is cloud_source


def test_games_are_known_by_name():
  assert source_chain.rom_path('MsPacman').stem == 'ms_pacman'
  assert source_chain.num_actions('Pong') == 6
  for name, meant in (('Pogn', 'Pong'), ('mspacman', 'MsPacman')):
    with pytest.raises(errors.UsageError, match=f'Is {meant} meant'):
      source_chain.rom_path(name)


def test_credentials_of_gcloud_are_used(tmp_path, monkeypatch):
  tokens = []

  def open_google(token, **options):
    tokens.append(token)

  monkeypatch.setattr(place, '_google', open_google)
  for name in ('GOOGLE_APPLICATION_CREDENTIALS', 'STORAGE_EMULATOR_HOST'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('CLOUDSDK_CONFIG', str(tmp_path))
  sources.FsspecSource('gs://a/b')
  (tmp_path / 'application_default_credentials.json').write_text('{}')
  sources.FsspecSource('gs://a/b')
  rlu.RluSource('gs://rl_unplugged/atari_episodes_ordered/Pong/run_1')
  monkeypatch.setenv('CLOUDSDK_CONFIG', str(tmp_path / 'absent'))
  monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', '/key.json')
  sources.FsspecSource('gs://a/b')
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:1')
  sources.FsspecSource('gs://a/b')
  expected = ['anon', 'google_default', 'google_default', 'google_default']
  assert tokens == [*expected, 'anon']
