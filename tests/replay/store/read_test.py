"""Stores read as logs, and what is made of them."""

import itertools

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import conversion
from batch_rl_dr3.replay.log import checkpoint_format, source_chain, sources
from batch_rl_dr3.replay.store import read
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset


@pytest.fixture
def log(tmp_path, logs):
  logs.write_log(tmp_path / 'log', logs.make_transitions(450), 100)
  return tmp_path / 'log'


@pytest.fixture
def make_store(tmp_path, logs):
  def make(folder, rule='all', fraction=1.0, **kwargs):
    subset = Subset(rule, fraction)
    return replay_store.open_store(
      folder, tmp_path / 'cache', subset, logs.SHAPE, 6, 4, **kwargs
    )

  return make


def _all_rows(source, name, suffix):
  return np.concatenate(list(source.rows(name, suffix)))


@pytest.mark.parametrize('codec', ['raw', 'zstd'])
def test_a_whole_store_is_the_log(log, make_store, codec):
  store = make_store(log, codec=codec)
  source = source_chain.make_source(store.folder)
  assert isinstance(source, read.StoreSource)
  expected = sources.FolderSource(log)
  assert source.suffixes() == expected.suffixes()
  for suffix in source.suffixes():
    assert source.num_bytes(suffix) > 0
    for name in checkpoint_format.ELEMENTS:
      assert source.header(name, suffix) == expected.header(name, suffix)
      np.testing.assert_array_equal(
        _all_rows(source, name, suffix), _all_rows(expected, name, suffix)
      )
    ours, theirs = source.segment(suffix), expected.segment(suffix)
    assert ours.add_count == theirs.add_count
    assert ours.invalid_range == theirs.invalid_range


def test_a_store_goes_back_to_the_same_log(log, make_store, tmp_path, logs):
  source = read.StoreSource(make_store(log).folder)
  conversion.write_log(
    conversion.episodes(source, 4), tmp_path / 'back', 4, 100
  )
  names = sorted(path.name for path in log.glob('*.gz'))
  assert names == sorted(p.name for p in (tmp_path / 'back').glob('*.gz'))
  for name in names:
    np.testing.assert_array_equal(
      logs.read_array(log / name), logs.read_array(tmp_path / 'back' / name)
    )


def test_files_of_prefixes_stay_apart(log, make_store, tmp_path, logs):
  # 45 of 100 rows a file, 22 of the 51 of the last: no file goes on from the
  # one before, though the last looks like a rest.
  store = make_store(log, 'prefix', 0.45)
  source = read.StoreSource(store.folder)
  conversion.write_log(
    conversion.episodes(source, 4), tmp_path / 'new', 4, 1000
  )
  new = sources.FolderSource(tmp_path / 'new')
  old_suffixes = source.suffixes()
  assert len(new.suffixes()) == len(old_suffixes)
  for suffix, old in zip(new.suffixes(), old_suffixes, strict=True):
    num_rows = new.segment(suffix).num_rows
    for name in checkpoint_format.ELEMENTS:
      before = _all_rows(source, name, old)
      np.testing.assert_array_equal(
        _all_rows(new, name, suffix), before[:num_rows]
      )
      assert not before[num_rows:].any()  # Padding without its episode.
  segments = [new.segment(suffix) for suffix in new.suffixes()]
  assert not any(
    first.is_followed_by(second)
    for first, second in itertools.pairwise(segments)
  )
  # Dopamine samples from the new files what the store has, but for the first
  # full stack of each, which a full buffer leaves out.
  for suffix, segment in zip(new.suffixes(), store.segments, strict=True):
    buffer = logs.load_with_dopamine(tmp_path / 'new', suffix)
    ours = segment.valid_rows(
      store.terminals[segment.first_row :][: segment.num_rows], 4, 1
    )
    ours = ours - segment.first_row
    last = new.segment(suffix).num_rows - 1
    assert logs.valid_with_dopamine(buffer) == [
      row for row in ours.tolist() if 3 < row < last
    ]


def test_an_episode_does_not_reach_over_a_missing_file(log, logs):
  whole = list(conversion.episodes(sources.FolderSource(log), 4))
  for path in log.glob('*_ckpt.2.gz'):
    path.unlink()
  broken = list(conversion.episodes(sources.FolderSource(log), 4))
  num_broken = [not episode.is_whole for episode in broken]
  assert sum(num_broken[:-1]) == 1
  first = num_broken.index(True)
  assert not broken[first + 1].has_start
  known = {episode.observations.tobytes() for episode in whole}
  assert all(
    episode.observations.tobytes() in known
    for episode in broken
    if episode.is_whole and episode.has_start
  )


def test_transitions_drawn_at_random_have_no_episodes(log, make_store):
  store = make_store(log, 'uniform', 0.1)
  with pytest.raises(errors.DataError, match=f'drawn at random.*{log}'):
    read.StoreSource(store.folder)


def test_a_store_is_opened_wherever_its_log_is(log, make_store, tmp_path):
  made = make_store(log, 'prefix', 0.3)
  assert make_store(log.as_uri(), 'prefix', 0.3).folder == made.folder
  assert make_store(made.folder.as_uri(), 'prefix', 0.3).folder == made.folder
  log.rename(tmp_path / 'away')
  opened = make_store(made.folder, 'prefix', 0.3)
  assert opened.folder == made.folder
  assert opened.data_hash == made.data_hash
  with pytest.raises(errors.ConfigError, match='holds the subset'):
    make_store(made.folder, 'prefix', 0.45)
  with pytest.raises(errors.DataError, match='data of another game'):
    replay_store.open_store(
      made.folder, tmp_path, Subset('prefix', 0.3), (84, 84), 6, 4
    )
