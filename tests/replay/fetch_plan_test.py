"""Estimates whose every number is known."""

import math

import pytest

from batch_rl_dr3.replay import inspection
from batch_rl_dr3.replay.log import rlu, sources
from batch_rl_dr3.replay.store.subset import Subset

GB = 10**9


@pytest.fixture
def source(tmp_path, logs):
  # 400 rows in files of 150, 150 and 100, frames of 120 bytes.
  transitions = [t._replace(terminal=0) for t in logs.make_transitions(397)]
  logs.write_log(tmp_path, transitions, 150)
  return sources.FolderSource(tmp_path)


def _sizes(source):
  return [source.num_bytes(suffix) for suffix in source.suffixes()]


def test_a_prefix(source):
  plan = inspection.estimate(source, Subset('prefix', 0.1), 4)
  assert (plan.num_files, plan.num_log_rows, plan.num_rows) == (3, 400, 40)
  assert plan.num_log_bytes == sum(_sizes(source))
  assert plan.num_download_bytes == sum(
    math.ceil(size / 10) for size in _sizes(source)
  )
  assert plan.num_spool_bytes == 0
  assert plan.frame_bytes == 120
  assert 0 < plan.seconds < 10


def test_the_first_files(source):
  plan = inspection.estimate(source, Subset('first', 0.5), 4)
  first, second, _ = _sizes(source)
  # 200 rows: all of the first file, 50 of the 150 of the second.
  assert (plan.num_files, plan.num_rows) == (2, 200)
  assert plan.num_download_bytes == first + math.ceil(second / 3)
  assert plan.num_spool_bytes == first


def test_a_uniform_subset_reads_everything(source):
  plan = inspection.estimate(source, Subset('uniform', 0.1), 4)
  assert plan.num_download_bytes == sum(_sizes(source))
  assert plan.num_spool_bytes == max(_sizes(source))
  # A row is kept unless none of the 5 transitions that need it is drawn.
  assert plan.num_rows == math.ceil((1 - 0.9**5) * 400)


def test_words(source):
  plan = inspection.estimate(source, Subset('prefix', 0.1), 4)
  held = inspection.describe(plan, max_resident_bytes=4800, free_bytes=GB)
  assert [line.split()[0] for line in held] == [
    'log',
    'taken',
    'download',
    'temporary',
    'disk',
    'memory',
    'time',
  ]
  text = '\n'.join(held)
  # 40 rows of 120 + 9 bytes; in memory of 120 and 9 + 8.
  assert 'disk       5.16 kB raw; 1 GB are free' in text
  assert 'memory     680 B of tables in training; frames held, 4.8 kB' in text
  read = inspection.describe(plan, max_resident_bytes=4799, free_bytes=GB)
  assert 'read from the disk as they are needed' in '\n'.join(read)


def test_rl_unplugged_is_read_whole_to_count_its_rows(monkeypatch):
  source = rlu.RluSource('memory://x/atari_episodes_ordered/Pong/run_1')
  monkeypatch.setattr(source, 'suffixes', lambda: [0, 1])
  monkeypatch.setattr(source, 'num_bytes', lambda suffix: 1000 + suffix)
  plan = inspection.estimate(source, Subset('prefix', 0.01), 4)
  assert plan.num_rows == 20_000
  assert plan.num_download_bytes == 1000 + 10 + 1001 + 11
  assert plan.seconds is None
  text = '\n'.join(inspection.describe(plan, GB, GB))
  assert 'not stated' in text
  assert 'not known before' in text
