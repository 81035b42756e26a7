"""Shards of either codec, in memory or read when needed: the same frames."""

import itertools
import resource

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import shards
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset

GAMMA = 0.9
WAYS = list(itertools.product(shards.CODECS, (1 << 30, 0)))


@pytest.fixture(params=[0, 77])
def log(request, tmp_path, logs):
  folder = tmp_path / 'log'
  logs.write_with_dopamine(
    folder, logs.make_transitions(640), cursor=request.param
  )
  return folder


@pytest.fixture
def open_store(tmp_path, logs, monkeypatch):
  """Shards of 37 frames: many edges, and none is an edge of chunks of 16."""
  monkeypatch.setattr(shards, 'SHARD_ROWS', 37)

  def call(folder, codec=None, max_resident_bytes=0, subset=Subset()):  # noqa: B008
    store = replay_store.open_store(
      folder,
      tmp_path / 'cache',
      subset,
      logs.SHAPE,
      logs.NUM_ACTIONS,
      logs.STACK_SIZE,
      codec=codec,
      max_resident_bytes=max_resident_bytes,
    )
    store.hold_frames()
    return store

  return call


@pytest.mark.parametrize('update_horizon', [1, 3])
@pytest.mark.parametrize(('codec', 'max_resident_bytes'), WAYS)
def test_stacks_across_shards_equal_dopamine(
  log, logs, open_store, codec, max_resident_bytes, update_horizon
):
  store = open_store(log, codec, max_resident_bytes)
  assert store.manifest['codec'] == codec
  assert len(list(store.folder.glob('1/observation*.[nz]*'))) >= 5
  for segment in store.segments:
    buffer = logs.load_with_dopamine(
      log, segment.suffix, update_horizon, gamma=GAMMA
    )
    rows = store.valid_indices(update_horizon)
    rows = rows[np.isin(rows - segment.first_row, range(segment.num_rows))]
    expected = buffer.sample_transition_batch(
      len(rows), rows - segment.first_row
    )
    batch = store.gather(rows, update_horizon, GAMMA)
    for ours, theirs in zip(batch[:-1], expected[:-1], strict=True):
      assert ours.dtype == theirs.dtype
      np.testing.assert_array_equal(ours, theirs)


def test_all_ways_have_the_same_frames_and_hash(log, open_store):
  first, *others = [open_store(log, *way) for way in WAYS]
  rows = np.random.default_rng(0).integers(0, first.num_rows, 50)
  for store in others:
    assert store.data_hash == first.data_hash
    np.testing.assert_array_equal(store.frames(rows), first.frames(rows))


@pytest.mark.parametrize('codec', shards.CODECS)
def test_frames_of_other_kinds(tmp_path, codec, monkeypatch):
  """Floats, stacks of 1, and a last chunk of one frame."""
  monkeypatch.setattr(shards, 'SHARD_ROWS', 16)
  array = np.random.default_rng(0).random((33, 3, 2)).astype(np.float32)
  records, _ = shards.write_frames(
    tmp_path,
    codec,
    array.shape,
    array.dtype,
    [array[start : start + 7] for start in range(0, 33, 7)],
  )
  rows = np.array([[[32], [0], [15]], [[1], [16], [31]]])
  frames = shards.Frames(
    codec, [(tmp_path, 33, records)], 16, (3, 2), array.dtype
  )
  for is_held in (False, True):
    if is_held:
      assert frames.hold().shape == (33, 6)
    np.testing.assert_array_equal(
      frames.stacks(rows)[..., 0], array.reshape(33, 6)[rows[..., 0]]
    )


def test_zstd_shards_check_themselves(log, open_store):
  store = open_store(log, 'zstd')
  path = store.folder / '1' / 'observation-0002.zst'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(errors.DataError, match=r'observation-0002\.zst'):
    open_store(log, 'zstd').frames(range(store.num_rows))
  with pytest.raises(errors.DataError, match=r'observation-0002\.zst'):
    open_store(log, 'zstd', 1 << 30)


def test_resident_frames_are_not_read_again(log, open_store):
  store = open_store(log, 'raw', 1 << 30)
  expected = store.frames(range(50))
  for path in store.folder.glob('*/observation*'):
    path.unlink()
  np.testing.assert_array_equal(store.frames(range(50)), expected)


def test_frames_that_do_not_fit_are_not_held(log, open_store):
  num_bytes = open_store(log).num_frame_bytes
  assert open_store(log, None, num_bytes).fits_memory
  store = open_store(log, None, num_bytes - 1)
  assert not store.fits_memory
  for path in store.folder.glob('*/observation*'):
    path.write_bytes(b'')
  with pytest.raises(errors.DataError, match='cut short'):
    store.frames(range(50))


def test_an_unknown_codec_is_refused(log, open_store):
  with pytest.raises(errors.ConfigError, match='raw, zstd'):
    open_store(log, 'lz4')


def test_the_limit_of_open_files_is_raised(log, open_store):
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits[1]))
    open_store(log)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
