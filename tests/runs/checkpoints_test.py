import hashlib
import json
import pathlib

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import checkpoints


def writer(content):
  def write(prefix):
    pathlib.Path(f'{prefix}.index').write_text(content)
    pathlib.Path(f'{prefix}.data-00000-of-00001').write_text(content * 2)

  return write


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_has_no_checkpoint(tmp_path):
  assert checkpoints.Checkpoints(tmp_path / 'new').latest() is None


def test_the_newest_is_the_one_with_most_gradient_steps(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '9', 900)
  kept.save(writer('b'), '10', 1000)
  kept.save(writer('c'), '10_950', 950)
  latest = kept.latest()
  assert (latest.name, latest.gradient_steps) == ('10', 1000)
  assert pathlib.Path(f'{latest.prefix}.index').read_text() == 'b'


def test_the_last_four_and_every_nth_are_kept(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path, keep_last=4, keep_every=5)
  for iteration in range(12):
    kept.save(writer('a'), str(iteration), iteration)
  assert [n for n in names(tmp_path) if n.startswith('ckpt')] == sorted(
    f'ckpt.{i}.json' for i in (0, 5, 8, 9, 10, 11)
  )
  assert len(names(tmp_path)) == 6 * 3


@pytest.mark.parametrize('damage', ['truncate', 'flip', 'delete'])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '0', 10)
  kept.save(writer('b'), '1', 20)
  path = tmp_path / 'tf_ckpt-1.index'
  if damage == 'truncate':
    path.write_text('')
  elif damage == 'flip':
    path.write_text('c')
  else:
    path.unlink()
  assert kept.latest().name == '0'
  assert (tmp_path / 'ckpt.1.json.damaged').exists()


def test_a_torn_manifest_is_set_aside(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '0', 10)
  (tmp_path / 'ckpt.1.json').write_text('{"name": "1", "grad')
  assert kept.latest().name == '0'


def test_a_run_is_never_started_over_silently(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '0', 10)
  (tmp_path / 'tf_ckpt-0.index').unlink()
  for _ in range(2):  # the second time there is no manifest any more
    with pytest.raises(errors.DataError, match='every checkpoint'):
      kept.latest()


def test_files_without_a_manifest_do_not_exist(tmp_path):
  writer('a')(str(tmp_path / 'tf_ckpt-3'))
  assert checkpoints.Checkpoints(tmp_path).latest() is None


def test_what_a_kill_left_half_written_is_removed(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '2', 20)
  before = names(tmp_path)
  (tmp_path / '.writing.3').mkdir()
  (tmp_path / '.writing.3' / 'tf_ckpt-3.index').write_text('a')
  (tmp_path / '.ckpt.3.json.ab.tmp').write_text('{')
  writer('b')(str(tmp_path / 'tf_ckpt-2_25'))  # Its manifest never came.
  # Another worker may be at it until the run is this one's.
  assert names(tmp_path) != before
  assert checkpoints.Checkpoints(tmp_path).latest().name == '2'
  assert names(tmp_path) == before


def test_of_those_within_an_iteration_the_newest_two_are_kept(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path, keep_last=1)
  kept.save(writer('a'), '0', 10)
  for steps in range(11, 16):
    kept.save(writer('a'), f'1_{steps}', steps)
  assert [n for n in names(tmp_path) if n.startswith('ckpt')] == [
    *('ckpt.0.json', 'ckpt.1_14.json', 'ckpt.1_15.json')
  ]
  (tmp_path / 'tf_ckpt-1_15.index').write_text('')
  assert kept.latest().name == '1_14'
  kept.save(writer('a'), '1', 20)  # Now they are of no use.
  assert [n for n in names(tmp_path) if n.endswith('json')] == ['ckpt.1.json']


def test_a_failing_disk_keeps_what_was_there(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '0', 10)

  def fail(prefix):
    writer('b')(prefix)
    raise OSError(28, 'No space left on device')

  with pytest.raises(errors.WriteError, match='No space left'):
    kept.save(fail, '1', 20)
  assert kept.latest().name == '0'
  assert len(names(tmp_path)) == 3


def test_a_protected_checkpoint_outlives_the_next_ones(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path, keep_last=1)
  kept.save(writer('a'), '0', 0)
  kept.protected.add('0')
  for iteration in range(1, 4):
    kept.save(writer('a'), str(iteration), iteration)
  assert list(kept.of_iterations()) == [0, 3]
  kept.protected.discard('0')
  kept.save(writer('a'), '4', 4)
  assert list(kept.of_iterations()) == [4]


def test_listing_leaves_a_folder_as_it_is(tmp_path):
  kept = checkpoints.Checkpoints(tmp_path)
  for iteration in (2, 10):
    kept.save(writer('a'), str(iteration), 100 * iteration)
  kept.save(writer('a'), '11_1150', 1150)
  (tmp_path / 'ckpt.12.json').write_text('{"name": "12"')
  (tmp_path / '.writing.13').mkdir()
  before = names(tmp_path)
  found = checkpoints.of_iterations(tmp_path)
  assert [(i, c.gradient_steps) for i, c in found.items()] == [
    (2, 200),
    (10, 1000),
  ]
  checkpoints.check_whole(found[2])
  pathlib.Path(f'{found[2].prefix}.index').write_text('b')
  with pytest.raises(
    errors.DataError, match=r'tf_ckpt-2\.index does not match'
  ):
    checkpoints.check_whole(found[2])
  assert names(tmp_path) == before


def damage_manifest(folder, name, change):
  """Rewrites the manifest of a checkpoint; returns what it said."""
  path = folder / f'ckpt.{name}.json'
  record = json.loads(path.read_text())
  path.write_text(json.dumps(change(record)))
  return record


def test_pruning_removes_nothing_outside_the_folder(tmp_path):
  folder = tmp_path / 'run' / 'checkpoints'
  victims = [tmp_path / 'victim', tmp_path / 'tree']
  victims[0].write_text('precious')
  (victims[1] / 'precious').mkdir(parents=True)
  kept = checkpoints.Checkpoints(folder, keep_last=1)
  kept.save(writer('a'), '0', 10)
  entry = {
    'bytes': 8,
    'sha256': hashlib.sha256(b'precious').hexdigest(),
  }
  files = {'../../victim': entry, str(victims[1]): entry}
  damage_manifest(
    folder, '0', lambda record: {**record, 'files': record['files'] | files}
  )
  for iteration in range(1, 4):
    kept.save(writer('a'), str(iteration), 10 * iteration)
  assert victims[0].read_text() == 'precious'
  assert (victims[1] / 'precious').exists()
  assert kept.latest().name == '3'


@pytest.mark.parametrize(
  'change',
  [
    lambda record: {**record, 'files': list(record['files'])},
    lambda record: {**record, 'files': dict.fromkeys(record['files'])},
    lambda record: {**record, 'files': {}},
    lambda record: {**record, 'gradient_steps': '20'},
    lambda record: {**record, 'gradient_steps': None},
    lambda record: {**record, 'name': '../0'},
    lambda record: {**record, 'name': '7'},
    lambda record: {'nane': '1', **{k: record[k] for k in ('files',)}},
    lambda record: [record],
    lambda record: None,
    lambda record: {
      **record,
      'files': {n: {**e, 'bytes': True} for n, e in record['files'].items()},
    },
    lambda record: {
      **record,
      'files': {f'sub/{n}': e for n, e in record['files'].items()},
    },
  ],
)
def test_a_damaged_manifest_costs_only_its_checkpoint(tmp_path, change):
  kept = checkpoints.Checkpoints(tmp_path)
  kept.save(writer('a'), '0', 10)
  kept.save(writer('b'), '1', 20)
  damage_manifest(tmp_path, '1', change)
  assert list(checkpoints.of_iterations(tmp_path)) == [0]
  with pytest.raises(errors.DataError, match=r'ckpt\.1\.json') as raised:
    checkpoints.check_whole(
      checkpoints.Checkpoint('1', 20, str(tmp_path / 'tf_ckpt-1'))
    )
  assert 'Remove it; the checkpoint before it is then used' in str(raised.value)
  assert kept.latest().name == '0'
  assert (tmp_path / 'ckpt.1.json.damaged').exists()
