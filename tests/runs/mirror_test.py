import os
import pathlib

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import (
  mirror,
  place,
  results,
  run_directory,
  state,
)

CONTENTS = mirror.Contents(
  'test',
  whole=('finished.json', 'checkpoints/ckpt.*.json'),
  ends=('metrics.csv',),
  sizes=('checkpoints/tf_ckpt-*',),
)


@pytest.fixture
def remote(request):
  """A folder of fsspec's memory, of this test alone."""
  folder = place.Place(f'memory://{request.node.name}/RUNS')
  yield folder
  for name in folder.find():
    folder.remove(name)


@pytest.fixture
def runs(remote, tmp_path):
  remote.write('a/seed0/finished.json', b'{"num_iterations": 2}')
  remote.write('a/seed0/checkpoints/ckpt.1.json', b'{}')
  remote.write('a/seed0/checkpoints/tf_ckpt-1.index', b'x' * 1000)
  remote.write('a/seed0/events.out', b'x' * 50)
  remote.write('b/seed0/metrics.csv', b'step\n1\n')
  return mirror.Mirror(remote.name, tmp_path, CONTENTS)


def files(folder):
  return sorted(
    path.relative_to(folder).as_posix()
    for path in folder.rglob('*')
    if path.is_file()
  )


@pytest.fixture
def fetched(monkeypatch):
  """The names of what is fetched whole."""
  names = []
  fetch = place.Place.fetch

  def noted(self, name, target, entry):
    names.append(name)
    return fetch(self, name, target, entry)

  monkeypatch.setattr(place.Place, 'fetch', noted)
  return names


def test_a_mirror_holds_what_is_asked_for(runs):
  runs.refresh()
  assert files(runs.folder) == [
    'a/seed0/checkpoints/ckpt.1.json',
    'a/seed0/checkpoints/tf_ckpt-1.index',
    'a/seed0/finished.json',
    'b/seed0/metrics.csv',
  ]
  assert state.is_finished(runs.folder / 'a/seed0', 2)
  weights = runs.folder / 'a/seed0/checkpoints/tf_ckpt-1.index'
  assert weights.stat().st_size == 1000
  assert weights.read_bytes() == bytes(1000)
  # Whether or not the mirror holds anything of them.
  assert runs.num_bytes('a/seed0') == 21 + 2 + 1000 + 50


def test_only_what_has_changed_is_fetched_again(runs, remote, fetched):
  runs.refresh()
  assert len(fetched) == 3
  fetched.clear()
  runs.refresh()
  assert fetched == []
  remote.write('a/seed0/finished.json', b'{"num_iterations": 3}')
  remote.remove('b/seed0/metrics.csv')
  runs.refresh()
  assert fetched == ['a/seed0/finished.json']
  assert state.is_finished(runs.folder / 'a/seed0', 3)
  assert 'b/seed0/metrics.csv' not in files(runs.folder)


def test_folders_that_are_not_asked_for_are_left_alone(runs, fetched):
  runs.refresh(['b'])
  assert files(runs.folder) == ['b/seed0/metrics.csv']
  runs.refresh(['a'])
  assert len(files(runs.folder)) == 4
  runs.refresh(['none'])
  assert len(files(runs.folder)) == 4


def test_of_a_long_log_the_end_can_be_read(runs, remote, tmp_path):
  rows = [f'{step},{step / 7}\n' for step in range(5000)]
  text = ''.join(['gradient_steps,gradient_steps_per_second\n', *rows])
  (tmp_path / 'whole.csv').write_text(text)
  remote.write('b/seed0/metrics.csv', text.encode())
  runs.refresh()
  path = runs.folder / 'b/seed0/metrics.csv'
  expected = state.last_rows(tmp_path / 'whole.csv')
  assert state.last_rows(path) == expected
  assert expected[-1]['gradient_steps'] == '4999'
  assert path.stat().st_size == len(text)
  assert bytes(1000) in path.read_bytes()  # The middle stayed where it was.


@pytest.mark.parametrize('is_remote', [True, False])
def test_what_is_published_and_removed_is_so_for_everybody(
  runs, tmp_path, is_remote
):
  place = str(tmp_path / 'disk')
  if is_remote:
    place = runs.name
    runs.refresh()
  else:
    runs = mirror.Mirror(f'file://{place}', tmp_path, CONTENTS)
    assert runs.folder == tmp_path / 'disk'
    (tmp_path / 'disk/a/seed0').mkdir(parents=True)
  (runs.folder / 'a/seed0/attempt.json').write_text('{}')
  runs.upload('a/seed0/attempt.json')
  contents = mirror.Contents('other', whole=('attempt.json',))
  other = mirror.Mirror(place, tmp_path / 'elsewhere', contents)
  other.refresh()
  assert files(other.folder) == ['a/seed0/attempt.json']
  runs.remove('a/seed0/attempt.json')
  other.refresh()
  assert files(other.folder) == []


def test_globs_of_urls_become_globs_of_files(runs, tmp_path):
  patterns = [f'{runs.name}/*/seed0', str(tmp_path / '*'), f'{runs.name}/a']
  view = results.RunGlobs(patterns, tmp_path, CONTENTS)
  view.refresh()
  assert view.patterns == [
    f'{runs.folder}/*/seed0',
    patterns[1],
    (f'{runs.folder}/a/'),
  ]
  inside = str(runs.folder / 'a' / 'seed0')
  assert view.name_of(inside) == f'{runs.name}/a/seed0'
  assert view.name_of(str(tmp_path)) == str(tmp_path)
  assert os.path.isdir(inside)
  with pytest.raises(errors.UsageError, match='has to name a bucket'):
    results.RunGlobs(['gs://*/runs'], tmp_path, CONTENTS)


def test_a_bucket_that_falters_is_read_all_the_same(bucket, tmp_path):
  remote = place.Place('gs://bucket/faltering')
  text = b'gradient_steps\n' + b'1\n' * 50_000
  remote.write('a/finished.json', b'{"num_iterations": 2}')
  remote.write('a/metrics.csv', text)
  bucket.read_faults = ['cut', 'cut']
  runs = mirror.Mirror(remote.name, tmp_path, CONTENTS)
  runs.refresh()
  assert state.is_finished(runs.folder / 'a', 2)
  assert bucket.read_faults == []
  log = (runs.folder / 'a/metrics.csv').read_bytes()
  assert (len(log), log[:100], log[-100:]) == (
    len(text),
    text[:100],
    text[-100:],
  )


def test_what_always_arrives_damaged_is_named(bucket, tmp_path):
  remote = place.Place('gs://bucket/damaged')
  remote.write('a/finished.json', b'{"num_iterations": 2}')
  bucket.read_faults = ['cut'] * 20
  runs = mirror.Mirror(remote.name, tmp_path, CONTENTS)
  with pytest.raises(errors.DataError, match=r'finished\.json arrives damaged'):
    runs.refresh()
  assert files(runs.folder) == []


@pytest.mark.parametrize('place', ['mirror', 'home'])
def test_an_object_whose_name_leads_out_is_written_nowhere(
  remote, tmp_path, monkeypatch, place
):
  cache = tmp_path / 'cache'
  remote.write('a/finished.json', b'{"num_iterations": 2}')
  find = remote._filesystem.find

  def find_escaping(path, **kwargs):
    found = find(path, **kwargs)
    (name,) = (n for n in found if n.endswith('finished.json'))
    evil = f'{remote._root}/a/../../../../../../escaped/finished.json'
    return {evil: found[name]}

  def get_file(name, target):
    pathlib.Path(target).write_text('')

  monkeypatch.setattr(remote._filesystem, 'find', find_escaping)
  monkeypatch.setattr(remote._filesystem, 'get_file', get_file)
  read = mirror.Mirror(remote.name, cache, CONTENTS).refresh
  if place == 'home':
    read = run_directory.Home(remote.name, str(cache)).lock().__enter__
  with pytest.raises(errors.DataError, match='no plain name'):
    read()
  assert not list(tmp_path.rglob('escaped'))
  assert [p for p in tmp_path.rglob('*') if p.is_file()] == []
