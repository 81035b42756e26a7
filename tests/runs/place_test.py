"""Tests for folders here or in a bucket, and for names in them."""

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


@pytest.mark.parametrize('kind', ['disk', 'url', 'memory', 'bucket'])
def test_a_folder_is_the_same_here_and_in_a_bucket(kind, tmp_path, request):
  location = {
    'disk': tmp_path / 'run',
    'url': f'file://{tmp_path}/run',
    'memory': f'memory://{tmp_path}/run',
    'bucket': f'gs://bucket/{tmp_path.name}/run',
  }[kind]
  if kind == 'bucket':
    request.getfixturevalue('bucket')
  (tmp_path / 'run').mkdir()
  run = place.Place(location)
  assert (run.path is None) == (kind in ('memory', 'bucket'))
  folder = run.folder('lease')
  assert folder.name == f'{run.name}/lease'
  assert folder.names() == []
  assert folder.read('a') is None
  assert folder.create('a', b'first')
  assert not folder.create('a', b'second')
  assert folder.create('a', b'first')  # The answer was lost, and it asks again.
  folder.write('b', b'old')
  folder.write('b', b'new')
  assert folder.read('a') == b'first'
  assert folder.read('b') == b'new'
  assert sorted(folder.names()) == ['a', 'b']
  listed = run.find()
  assert {name: entry.size for name, entry in listed.items()} == {
    'lease/a': 5,
    'lease/b': 3,
  }
  assert run.read_part('lease/a', 1, 3) == b'ir'
  assert run.read_part('lease/a', 1, 30) is None
  target = tmp_path / 'copy'
  assert run.fetch('lease/a', target, listed['lease/a']) == listed['lease/a']
  assert target.read_bytes() == b'first'
  folder.remove('a')
  folder.remove('a')
  with pytest.raises(FileNotFoundError):
    run.fetch('lease/a', tmp_path / 'gone', listed['lease/a'])
  folder.put(target, 'c')
  assert sorted(folder.names()) == ['b', 'c']
  assert run.find('lease').keys() == {'lease/b', 'lease/c'}
  folder.remove('b')
  folder.remove('c')
