"""RL Unplugged's files, written by TensorFlow, against the .gz of one play."""

import gzip
import json
import logging
import math
import pathlib
import shutil
import sys

import cv2
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay import conversion
from batch_rl_dr3.replay.log import (
  checkpoint_format,
  rlu,
  source_chain,
  sources,
)
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import store
from batch_rl_dr3.replay.store.subset import Subset

SHAPE = (12, 10)

# TFDS's version 1.1 has one field of rewards.
LAYOUTS = ['bucket', 'tfds_1.0', 'tfds_1.1', 'array_record']


def _episodes(transitions):
  """Splits transitions into lists that end with a terminal."""
  episodes = [[]]
  for transition in transitions:
    episodes[-1].append(transition)
    if transition.terminal:
      episodes.append([])
  return [episode for episode in episodes if episode]


def _example(steps, layout, checkpoint, number, is_terminal, **changes):
  """Returns the serialised episode; steps are (frame, action, reward)."""
  from tensorflow.core.example import example_pb2

  frames, actions, rewards = zip(*steps, strict=True)
  pngs = [cv2.imencode('.png', frame)[1].tobytes() for frame in frames]
  middle = len(steps) - 1
  if layout == 'bucket':
    values = {
      'checkpoint_idx': [checkpoint],
      'episode_idx': [number],
      'episode_return': [float(sum(rewards)) * 7],
      'clipped_episode_return': [float(sum(rewards))],
      'observations': pngs,
      'actions': actions,
      'unclipped_rewards': [7.0 * reward for reward in rewards],
      'clipped_rewards': [float(reward) for reward in rewards],
      'discounts': [1.0] * middle + [0.0 if is_terminal else 1.0],
    }
  else:
    values = {
      'checkpoint_id': [checkpoint],
      'episode_id': [number],
      'episode_return': [float(sum(rewards)) * 7],
      'clipped_episode_return': [float(sum(rewards))],
      'steps/observation': pngs,
      'steps/action': actions,
      'steps/reward': [7.0 * reward for reward in rewards],
      'steps/clipped_reward': [float(reward) for reward in rewards],
      'steps/discount': [1.0] * middle + [0.0 if is_terminal else 1.0],
      'steps/is_first': [1] + [0] * middle,
      'steps/is_last': [0] * middle + [1],
      'steps/is_terminal': [0] * middle + [int(is_terminal)],
    }
  if layout in ('tfds_1.1', 'array_record'):
    values['steps/reward'] = values.pop('steps/clipped_reward')
    values['episode_return'] = values.pop('clipped_episode_return')
  values.update(changes)
  example = example_pb2.Example()
  for name, found in values.items():
    feature = example.features.feature[name]
    if isinstance(found[0], bytes):
      feature.bytes_list.value.extend(found)
    elif isinstance(found[0], float):
      feature.float_list.value.extend(found)
    else:
      feature.int64_list.value.extend(found)
  return example.SerializeToString()


def _write_records(path, layout, records):
  if layout == 'array_record':
    module = pytest.importorskip('array_record.python.array_record_module')
    writer = module.ArrayRecordWriter(path, 'group_size:1')
    for record in records:
      writer.write(record)
    writer.close()
    return
  import tensorflow as tf

  options = 'GZIP' if layout == 'bucket' else ''
  with tf.io.TFRecordWriter(path, options) as writer:
    for record in records:
      writer.write(record)


def _write(folder, layout, checkpoint, records, num_checkpoints=2):
  """Writes one checkpoint; returns where the run is."""
  if layout == 'bucket':
    run = folder / 'atari_episodes_ordered' / 'Breakout' / 'run_1'
    path = f'{run}-{checkpoint:05d}-of-{num_checkpoints:05d}'
    groups = {path: records}
    run.parent.mkdir(parents=True, exist_ok=True)
  else:
    name = 'rlu_atari_checkpoints_ordered'
    run = folder / name / 'Breakout_run_1' / '1.1.0'
    run.mkdir(parents=True, exist_ok=True)
    kind = 'array_record' if layout == 'array_record' else 'tfrecord'
    start = f'{run}/{name}-checkpoint_{checkpoint:02d}.{kind}'
    groups = {
      f'{start}-00000-of-00002': records[:2],
      f'{start}-00001-of-00002': records[2:],
    }
    info = run / 'dataset_info.json'
    splits = json.loads(info.read_text())['splits'] if info.exists() else []
    lengths = [str(len(group)) for group in groups.values()]
    splits.append(
      {'name': f'checkpoint_{checkpoint:02d}', 'shardLengths': lengths}
    )
    info.write_text(json.dumps({'splits': splits}))
  for path, group in groups.items():
    _write_records(path, layout, group)
  return str(run)


def _with_last_observation(episode):
  # What the last step's action and reward are has no meaning.
  steps = [(t.observation, t.action, t.reward) for t in episode]
  return [*steps, (np.zeros_like(steps[0][0]), 0, 0.0)]


@pytest.fixture(scope='module')
def plays(logs):
  """Per checkpoint, transitions that end with a terminal."""
  plays = []
  for seed in (0, 1):
    play = logs.make_transitions(160, seed=seed)
    play[-1] = play[-1]._replace(terminal=1)
    plays.append(play)
  return plays


@pytest.fixture(scope='module', params=LAYOUTS)
def layout(request):
  return request.param


@pytest.fixture(scope='module')
def run(plays, layout, tmp_path_factory):
  folder = tmp_path_factory.mktemp('rlu')
  for checkpoint, play in enumerate(plays):
    records = [
      _example(_with_last_observation(e), layout, checkpoint, number, True)
      for number, e in enumerate(_episodes(play))
    ]
    location = _write(folder, layout, checkpoint, records)
  return location


def _rows(source, name, suffix, num_rows=None):
  return np.concatenate(list(source.rows(name, suffix, num_rows)))


def test_equals_the_log_of_the_same_play(run, plays, logs, tmp_path):
  source: Source = source_chain.open_source(run)
  assert isinstance(source, rlu.RluSource)
  assert source.suffixes() == [0, 1]
  for suffix, play in enumerate(plays):
    logs.write_log(tmp_path / str(suffix), play, rows_per_file=10_000)
    log = sources.FolderSource(tmp_path / str(suffix))
    for name in checkpoint_format.ELEMENTS:
      assert source.header(name, suffix) == log.header(name, 0)
      for num_rows in (None, 1, 30):
        np.testing.assert_array_equal(
          _rows(source, name, suffix, num_rows),
          _rows(log, name, 0, num_rows),
        )
    ours, theirs = source.segment(suffix), log.segment(0)
    assert ours.add_count == theirs.add_count
    assert ours.invalid_range == theirs.invalid_range


def test_read_from_the_cloud(cloud, run, layout, proxy):
  if layout == 'bucket':
    folder, end = pathlib.Path(run).parent, '/run_1'
  else:
    folder, end = pathlib.Path(run), ''
  names = (layout, *folder.parts[-3:])
  prefix = '/'.join(names)
  url = cloud.upload(folder, prefix) + end
  source = rlu.RluSource(url, endpoint_url=proxy.endpoint)
  source.suffixes()
  expected = rlu.RluSource(run)
  proxy.faults = {'alt=media': ['flip']}
  np.testing.assert_array_equal(
    _rows(source, 'action', 0), _rows(expected, 'action', 0)
  )
  proxy.faults = {'alt=media': ['flip']}
  np.testing.assert_array_equal(
    _rows(source, 'observation', 0), _rows(expected, 'observation', 0)
  )
  proxy.faults = {'alt=media': ['flip'] * 100}
  with pytest.raises(errors.DataError, match='damaged'):
    _rows(source, 'observation', 1)


def test_the_last_step_may_be_a_transition(plays, layout, logs, tmp_path):
  records = [
    _example(
      [(t.observation, t.action, t.reward) for t in e], layout, 0, n, True
    )
    for n, e in enumerate(_episodes(plays[0]))
  ]
  run = _write(tmp_path, layout, 0, records, 1)
  with pytest.raises(errors.DataError, match="last_step = 'transition'"):
    rlu.RluSource(run).header('action', 0)
  logs.write_log(tmp_path / 'log', plays[0], rows_per_file=10_000)
  log = sources.FolderSource(tmp_path / 'log')
  source = rlu.RluSource(run, last_step='transition')
  for name in checkpoint_format.ELEMENTS:
    np.testing.assert_array_equal(_rows(source, name, 0), _rows(log, name, 0))


def test_a_cut_episode_is_never_sampled_at_its_end(plays, layout, tmp_path):
  steps = [(t.observation, t.action, t.reward) for t in plays[0][:10]]
  records = [
    _example(
      [*steps[:-1], (*steps[-1][:2], 0.0)], layout, 0, number, number != 1
    )
    for number in range(3)
  ]
  source = rlu.RluSource(_write(tmp_path, layout, 0, records, 1))
  # 3 + 9 rows each. The last step of the second is only an observation: its
  # action must not be anybody's next action, so its row is not there.
  assert np.flatnonzero(_rows(source, 'terminal', 0)).tolist() == [11, 23, 35]
  assert source.segment(0).invalid_range == [35, 0, 1, 2, 3, 23]
  actions = [t.action for t in plays[0][:9]]
  assert _rows(source, 'action', 0)[15:24].tolist() == actions
  opened = store.open_store(
    source, tmp_path / 'cache', Subset('all'), SHAPE, 6, 4
  )
  returns = opened.returns_to_go(0.5)
  assert np.isfinite(returns[:12]).all()
  assert np.isnan(returns[12:24]).all()
  assert np.isfinite(returns[24:]).all()
  assert 22 in opened.valid_indices(1)
  assert 23 not in opened.valid_indices(1)
  # Two steps from row 22 lead past what is known; so do three from row 21.
  assert not {22, 23} & set(opened.valid_indices(2).tolist())
  assert not {21, 22, 23} & set(opened.valid_indices(3).tolist())
  whole = [e.is_whole for e in conversion.episodes(source, 4)]
  assert whole == [True, False, True]


def test_what_is_assumed_is_checked(plays, layout, tmp_path):
  steps = _with_last_observation(plays[0][:5])
  is_bucket = layout == 'bucket'
  actions = 'actions' if is_bucket else 'steps/action'
  frames = 'observations' if is_bucket else 'steps/observation'
  is_1_1 = layout in ('tfds_1.1', 'array_record')
  clipped = 'clipped_rewards' if is_bucket else 'steps/clipped_reward'
  rewards = 'steps/reward' if is_1_1 else clipped
  stated = 'episode_return' if is_1_1 else 'clipped_episode_return'
  wrong = {
    'sum up': [_example(steps, layout, 0, 0, True, **{stated: [9.0]})],
    'outside': [_example(steps, layout, 0, 0, True, **{clipped: [2.0] * 6})],
    'mixes': [_example(steps, layout, n, n, True) for n in range(3)],
    'order': [_example(steps, layout, 0, 3 - n, True) for n in range(3)],
    'differ in length': [_example(steps, layout, 0, 0, True, **{actions: [1]})],
    'no 8-bit grey': [
      _example(steps, layout, 0, 0, True, **{frames: [b'GIF'] * 6})
    ],
    'without': [b''],
    'no tf.train': [b'\xff\xff'],
    'no number': [
      _example(steps, layout, 0, 0, True, **{rewards: [math.nan] * 6})
    ],
    'is shuffled': [_example(steps, layout, 0, 0, True, o_t=[b''])],
  }
  if is_1_1:
    del wrong['outside']  # It has no field of clipped rewards.
  for number, (problem, records) in enumerate(wrong.items()):
    run = _write(tmp_path / str(number), layout, 0, records, 1)
    with pytest.raises(errors.DataError, match=problem):
      rlu.RluSource(run).header('action', 0)


def test_a_missing_part_is_named(run, layout, tmp_path):
  if layout == 'bucket':
    pytest.skip('one file per checkpoint')
  copy = tmp_path / 'rlu_atari_checkpoints_ordered' / 'x'
  shutil.copytree(run, copy)
  next(copy.glob('*checkpoint_01*00000-of*')).unlink()
  with pytest.raises(errors.DataError, match='lacks parts of checkpoint 1'):
    rlu.RluSource(str(copy)).suffixes()


def test_without_stated_lengths_nothing_is_trusted(run, layout, tmp_path):
  if layout == 'bucket':
    pytest.skip('gzip knows its end')
  copy = tmp_path / 'rlu_atari_checkpoints_ordered'
  shutil.copytree(run, copy)
  for wrong in (b'{"splits": [{"name": "x"}]}', b'[]', b'{', None):
    if wrong is None:
      (copy / 'dataset_info.json').unlink()
    else:
      (copy / 'dataset_info.json').write_bytes(wrong)
    with pytest.raises(errors.DataError, match=r'dataset_info\.json'):
      rlu.RluSource(str(copy)).header('action', 0)


def test_damaged_bytes_never_give_wrong_rows(run, layout, tmp_path):
  folder = pathlib.Path(run).parent if layout == 'bucket' else pathlib.Path(run)
  copy = tmp_path / 'atari_episodes_ordered'
  shutil.copytree(folder, copy)
  location = str(copy / 'run_1') if layout == 'bucket' else str(copy)
  path = sorted(copy.glob('*-00000-of-*'))[0]
  content = path.read_bytes()
  expected = _rows(rlu.RluSource(run), 'observation', 0)
  rng = np.random.default_rng(0)
  damages = [content[:n] for n in rng.integers(len(content), size=15)]
  damages += [content[:12], content[:5], b'', content + b'x']
  for position in rng.integers(len(content), size=40):
    flipped = bytearray(content)
    flipped[position] ^= 1 << (position % 8)
    damages.append(bytes(flipped))
  if layout == 'bucket':
    damages.append(gzip.compress(bytes(10**6)))
  num_refused = 0
  for damaged in damages:
    path.write_bytes(damaged)
    try:
      rows = _rows(rlu.RluSource(location), 'observation', 0)
      np.testing.assert_array_equal(rows, expected)
    except errors.DataError:
      num_refused += 1
  # Most of a small ArrayRecord file is padding.
  assert num_refused > (0.3 if layout == 'array_record' else 0.9) * len(damages)


def test_unknown_reading():
  with pytest.raises(errors.ConfigError, match='last_step'):
    rlu.RluSource('gs://x/run_1', last_step='both')


def test_unclipped_rewards_are_clipped(plays, tmp_path):
  steps = _with_last_observation(plays[0][:9])
  raw = [7.0 * reward for _, _, reward in steps]
  changes = {'steps/reward': raw, 'episode_return': [sum(raw)]}
  record = _example(steps, 'tfds_1.1', 0, 0, True, **changes)
  source = rlu.RluSource(_write(tmp_path, 'tfds_1.1', 0, [record], 1))
  expected = np.clip(raw[:-1], -1, 1)
  assert _rows(source, 'reward', 0)[3:].tolist() == expected.tolist()


def test_what_a_partial_download_lacks_is_named(run, layout, tmp_path, caplog):
  if layout == 'bucket':
    folder = tmp_path / 'atari_episodes_ordered'
    folder.mkdir()
    for suffix, name in ((0, '00000'), (3, '00001')):
      path = f'{run}-{name}-of-00002'
      shutil.copy(path, folder / f'run_1-{suffix:05d}-of-00005')
    source = rlu.RluSource(str(folder / 'run_1'))
    assert source.missing_suffixes() == [1, 2, 4]
    shutil.copy(path, folder / 'run_1-00004-of-00007')
    with pytest.raises(errors.DataError, match='others 7'):
      rlu.RluSource(str(folder / 'run_1')).suffixes()
    (folder / 'run_1-00004-of-00007').unlink()
    missing = '1-2, 4'
  else:
    folder = tmp_path / 'rlu_atari_checkpoints_ordered' / 'x'
    shutil.copytree(run, folder)
    for path in folder.glob('*checkpoint_01*'):
      path.unlink()
    source = rlu.RluSource(str(folder))
    assert source.missing_suffixes() == [1]
    missing = '1'
  with caplog.at_level(logging.WARNING):
    store.open_store(source, tmp_path / 'cache', Subset('all'), SHAPE, 6, 4)
  assert f'no files of suffix {missing};' in caplog.text


def test_which_runs_there_are_is_said(run, layout, tmp_path):
  if layout != 'bucket':
    pytest.skip('a folder is one run')
  folder = pathlib.Path(run).parent
  with pytest.raises(errors.DataError, match=f'holds run_1. Name .*{run}'):
    source_chain.make_source(str(folder)).suffixes()
  with pytest.raises(errors.DataError, match='holds run_1'):
    rlu.RluSource(str(folder / 'run_7')).suffixes()
  # It is known by its files, whatever the folder is called.
  shutil.copytree(folder, tmp_path / 'Breakout')
  source = source_chain.make_source(str(tmp_path / 'Breakout' / 'run_1'))
  assert source.suffixes() == [0, 1]


@pytest.mark.parametrize(
  'url',
  [
    'gs://rl_unplugged/atari/Pong',
    'gs://rl_unplugged/atari/Pong/run_1',
    'gs://rl_unplugged/atari_episodes/Pong/run_1',
    'gs://tfds-data/datasets/rlu_atari/Pong_run_1/1.1.0',
  ],
)
def test_shuffled_data_are_refused(url):
  with pytest.raises(errors.DataError, match=r'is shuffled.*_ordered'):
    source_chain.make_source(url).suffixes()


def test_a_path_and_its_url_are_one(run, layout, tmp_path):
  if layout == 'array_record':
    pytest.skip('as tfds_1.1')
  folder = pathlib.Path(run).parent
  shutil.copytree(folder, tmp_path / 'a b' / folder.name)
  copy = tmp_path / 'a b' / folder.name / pathlib.Path(run).name
  by_path = source_chain.make_source(str(copy))
  by_url = source_chain.make_source(copy.as_uri())
  assert '%20' in copy.as_uri()
  assert by_url.name == by_path.name == str(copy)
  assert by_url.fingerprint() == by_path.fingerprint()


def test_without_its_reader_array_record_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'array_record.python', None)
  folder = tmp_path / 'rlu_atari_checkpoints_ordered' / 'x'
  folder.mkdir(parents=True)
  name = 'rlu_atari_checkpoints_ordered-checkpoint_00.array_record'
  (folder / f'{name}-00000-of-00001').write_bytes(b'x')
  info = {'splits': [{'name': 'checkpoint_00', 'shardLengths': ['1']}]}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  source = source_chain.make_source(str(folder))
  assert source.suffixes() == [0]
  with pytest.raises(errors.ConfigError, match=r'ArrayRecord.*tfds convert'):
    source.header('action', 0)


def test_a_prefix_in_the_cloud_costs_little(cloud, tmp_path, proxy):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (8, 400, 400), np.uint8)
  steps = [(frame, 0, 0.0) for frame in frames]
  records = [_example(steps, 'bucket', 0, n, True) for n in range(20)]
  run = _write(tmp_path, 'bucket', 0, records, 1)
  url = cloud.upload(
    pathlib.Path(run).parent, 'cost/atari_episodes_ordered/Breakout'
  )
  source = rlu.RluSource(f'{url}/run_1', endpoint_url=proxy.endpoint)
  num_rows = source.header('action', 0).shape[0]
  size = source.num_bytes(0)
  assert size > 20 << 20
  before = source.count.total
  got = _rows(source, 'observation', 0, 20)
  assert source.count.total - before < size / 2
  assert num_rows == 20 * (3 + 7)
  np.testing.assert_array_equal(got[3:10], frames[:7])
  np.testing.assert_array_equal(got[13:20], frames[:7])
