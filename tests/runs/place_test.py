"""Tests for names that come from a file or a bucket."""

import aiohttp
from aiohttp import client_reqrep
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import place, retry


@pytest.mark.parametrize('name', ['a', 'a.b/c d', 'tf_ckpt-0.index', '…'])
def test_plain_names_pass(tmp_path, name):
  assert place.path_below(tmp_path, name, 'm.json', 'files') == tmp_path / name


@pytest.mark.parametrize(
  'name',
  [
    '',
    '.',
    '..',
    '../victim',
    'a/../../victim',
    'a/..',
    'a//b',
    'a/',
    './a',
    '/etc/passwd',
    'a\\b',
    '..\\victim',
    'a\0b',
    'a\nb',
    '\udce9',
    None,
    3,
    ['a'],
  ],
)
def test_any_other_is_damage_that_names_file_and_field(tmp_path, name):
  with pytest.raises(errors.DataError, match=r'm\.json: files names'):
    place.path_below(tmp_path, name, 'm.json', 'files')


def test_a_link_out_of_the_folder_is_refused(tmp_path):
  root = tmp_path / 'root'
  root.mkdir()
  (root / 'out').symlink_to(tmp_path)
  (root / 'in').symlink_to(root)
  with pytest.raises(errors.DataError, match='a link out of'):
    place.path_below(root, 'out/x', 'm.json', 'files')
  assert place.path_below(root, 'in/x', 'm.json', 'files') == root / 'in/x'


def test_the_folder_itself_may_be_a_link(tmp_path):
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'root').symlink_to(tmp_path / 'disk')
  path = place.path_below(tmp_path / 'root', 'x', 'm.json', 'files')
  assert path == tmp_path / 'root/x'


def _no_connection():
  key = client_reqrep.ConnectionKey(
    'nowhere.example', 443, True, True, None, None, None
  )
  return aiohttp.ClientConnectorError(key, OSError('no such host'))


@pytest.mark.parametrize(
  ('error', 'most', 'attempts'),
  [
    (_no_connection(), 5, 2),
    (_no_connection(), 1, 1),
    (aiohttp.ServerDisconnectedError(), 5, 5),
  ],
)
def test_a_host_that_is_not_there_is_left_sooner(error, most, attempts):
  calls = []

  def read():
    calls.append(0)
    raise error

  again = retry.Retry(attempts=most, sleep=lambda seconds: None)
  with pytest.raises(retry.RefusedError, match=f'in {attempts} attempts'):
    again('a log', read)
  assert len(calls) == attempts
