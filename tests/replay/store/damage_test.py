"""Bits that flip in a store: none goes unnoticed, and each names its file."""

import json
import random
import shutil

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import read, shards
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset

GAMMA = 0.9


@pytest.fixture(scope='module')
def stores(tmp_path_factory, logs):
  """Opens stores of one log by name: raw and zstd, whole and drawn."""
  folder = tmp_path_factory.mktemp('damage')
  logs.write_log(folder / 'log', logs.make_transitions(320), 100)
  subsets = {
    'raw': Subset(),
    'zstd': Subset(),
    'drawn': Subset('uniform', 0.3),
  }

  def opened(name, max_resident_bytes=0):
    store = replay_store.open_store(
      folder / 'log',
      folder / 'cache',
      subsets[name],
      logs.SHAPE,
      logs.NUM_ACTIONS,
      logs.STACK_SIZE,
      codec='zstd' if name == 'zstd' else 'raw',
      max_resident_bytes=max_resident_bytes,
    )
    store.hold_frames()
    return store

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'SHARD_ROWS', 37)
    for name in subsets:
      opened(name)
    yield opened


def _use(store):
  """Reads all that training can read."""
  store.gather(store.valid_indices(), 1, GAMMA)
  store.frames(np.arange(store.num_rows))
  store.source_rows()


def _flip(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


def _count_silent(stores, num_flips, rng):
  """Returns how many flips no error named, each in a file drawn anew."""
  silent = []
  for number in range(num_flips):
    name = ('raw', 'zstd', 'drawn')[number % 3]
    folder = stores(name).folder
    path = rng.choice(sorted(p for p in folder.rglob('*') if p.is_file()))
    content = path.read_bytes()
    _flip(path, rng)
    try:
      # As it is read when needed, and held in memory.
      _use(stores(name, (1 << 30) * (number % 2)))
      silent.append(path)
    except errors.DataError as error:
      if path.name not in str(error) or error.exit_code != 65:
        silent.append(path)
    path.write_bytes(content)
  return len(silent)


def test_no_flip_is_silent(stores):
  assert _count_silent(stores, 60, random.Random(0)) == 0
  for name in ('raw', 'zstd', 'drawn'):
    _use(stores(name))  # It was the flip.


@pytest.mark.slow
def test_no_flip_of_a_thousand_is_silent(stores):
  assert _count_silent(stores, 1000, random.Random(1)) == 0


@pytest.mark.parametrize('max_resident_bytes', [0, 1 << 30])
@pytest.mark.parametrize('name', ['raw', 'zstd', 'drawn'])
def test_a_flip_in_each_file_is_found(stores, name, max_resident_bytes):
  rng = random.Random(2)
  folder = stores(name).folder
  kinds = {p.name for p in folder.rglob('*') if p.is_file()}
  assert {'manifest.json', 'part.json', 'reward.npy'} < kinds
  for kind in sorted(kinds):
    path = rng.choice(sorted(folder.rglob(kind)))
    content = path.read_bytes()
    _flip(path, rng)
    with pytest.raises(errors.DataError, match=kind):
      _use(stores(name, max_resident_bytes))
    path.write_bytes(content)


def test_a_frame_is_checked_when_it_is_touched(stores):
  store = stores('raw')
  path = store.folder / '1' / 'observation-0001.npy'
  content = bytearray(path.read_bytes())
  content[-1] ^= 1  # The shard's last frame.
  path.write_bytes(content)
  store = stores('raw')
  first = store.segments[1].first_row + 37
  store.frames(range(first, first + 36))
  with pytest.raises(errors.DataError, match=r'observation-0001.*frame 36'):
    store.frames([first + 36])
  content[-1] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('source', '/elsewhere'),
    ('stack_size', 2),
    ('unused_suffixes', [7]),
    ('arrays', {}),
    ('codec', 'zstd'),
    ('num_rows', 3),
  ],
)
def test_verify_covers_every_key_of_the_manifest(stores, key, value):
  path = stores('raw').folder / read.MANIFEST
  text = path.read_text()
  manifest = {**json.loads(text), key: value}
  path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + '\n')
  try:
    with pytest.raises(errors.DataError, match=r'manifest\.json'):
      read.verify(path.parent)
    del manifest[key]
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + '\n')
    with pytest.raises(errors.DataError, match=r'manifest\.json'):
      read.verify(path.parent)
  finally:
    path.write_text(text)


def _rewrite(folder, change):
  """Changes a manifest so that its checksums are right."""
  path = folder / read.MANIFEST
  manifest = json.loads(path.read_text())
  change(manifest)
  manifest['data_hash'] = read.data_hash(manifest['files'], manifest['parts'])
  path.write_text(read.manifest_text(manifest))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda m: m['files'][0].update(add_count=0), 'add_count'),
    (lambda m: m['files'][0].update(add_count=3), 'add_count'),
    (lambda m: m['files'][0].update(add_count=10**18), 'add_count'),
    (lambda m: m['files'][1].update(first_row=0), 'row 100 is in no file'),
    (lambda m: m.update(num_rows=7), 'rows'),
    (
      lambda m: m['parts'][0]['files'].update(
        {'../../victim': m['parts'][0]['files']['reward.npy']}
      ),
      'victim',
    ),
  ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
  stores, tmp_path, change, message
):
  shutil.copytree(stores('raw').folder, tmp_path / 'store')
  _rewrite(tmp_path / 'store', change)
  with pytest.raises(errors.DataError, match=message):
    read.ReplayStore(tmp_path / 'store', 4)


@pytest.mark.parametrize('add_count', [0, 3, 10**18])
def test_an_add_count_that_contradicts_the_rows_is_damage(
  tmp_path, logs, add_count
):
  logs.write_with_dopamine(tmp_path / 'log', logs.make_transitions(440))
  logs.write_array(tmp_path / 'log' / 'add_count_ckpt.1.gz', add_count)
  with pytest.raises(errors.DataError, match=r'add_count_ckpt\.1 is damaged'):
    replay_store.open_store(
      tmp_path / 'log', tmp_path, Subset(), logs.SHAPE, logs.NUM_ACTIONS, 4
    )
