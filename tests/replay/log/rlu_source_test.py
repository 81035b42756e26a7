"""RL Unplugged's files, written by TensorFlow, against the .gz of one play."""

import gzip
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import (
  checkpoint_format,
  rlu_source,
  source_chain,
  sources,
)
from batch_rl_dr3.replay.log.source import Source

LAYOUTS = ['bucket', 'tfds']


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


def _write(folder, layout, checkpoint, records, num_checkpoints=2):
  """Writes one checkpoint; returns where the run is."""
  import tensorflow as tf

  if layout == 'bucket':
    run = folder / 'atari_episodes_ordered' / 'Breakout' / 'run_1'
    path = f'{run}-{checkpoint:05d}-of-{num_checkpoints:05d}'
    groups = {path: records}
    run.parent.mkdir(parents=True, exist_ok=True)
  else:
    name = 'rlu_atari_checkpoints_ordered'
    run = folder / name / 'Breakout_run_1' / '1.1.0'
    run.mkdir(parents=True, exist_ok=True)
    start = f'{run}/{name}-checkpoint_{checkpoint:02d}.tfrecord'
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
    with tf.io.TFRecordWriter(path, 'GZIP' if layout == 'bucket' else '') as w:
      for record in group:
        w.write(record)
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
  header = source.header(name, suffix)
  blocks = source.rows(name, suffix, header.dtype, header.shape[1:], num_rows)
  return np.concatenate(list(blocks))


def test_equals_the_log_of_the_same_play(run, plays, logs, tmp_path):
  source: Source = source_chain.open_source(run)
  assert isinstance(source, rlu_source.RluSource)
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
    for name in checkpoint_format.ATTRIBUTES:
      np.testing.assert_array_equal(
        source.attribute(name, suffix), log.attribute(name, 0)
      )


def test_read_from_the_cloud(cloud, run, layout, proxy):
  if layout == 'bucket':
    folder, end = pathlib.Path(run).parent, '/run_1'
  else:
    folder, end = pathlib.Path(run), ''
  prefix = f'{folder.parent.parent.name}/{folder.parent.name}/{folder.name}'
  url = cloud.upload(folder, prefix) + end
  source = rlu_source.RluSource(url, endpoint_url=proxy.endpoint)
  source.suffixes()
  expected = rlu_source.RluSource(run)
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
    rlu_source.RluSource(run).header('action', 0)
  logs.write_log(tmp_path / 'log', plays[0], rows_per_file=10_000)
  log = sources.FolderSource(tmp_path / 'log')
  source = rlu_source.RluSource(run, last_step='transition')
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
  source = rlu_source.RluSource(_write(tmp_path, layout, 0, records, 1))
  # 3 + 9 rows, 3 + 10 rows of which the last is cut, 3 + 9 rows.
  assert np.flatnonzero(_rows(source, 'terminal', 0)).tolist() == [11, 24, 36]
  assert source.attribute('invalid_range', 0).tolist() == [36, 0, 1, 2, 3, 24]


def test_what_is_assumed_is_checked(plays, layout, tmp_path):
  steps = _with_last_observation(plays[0][:5])
  clipped = 'steps/clipped_reward' if layout == 'tfds' else 'clipped_rewards'
  actions = 'steps/action' if layout == 'tfds' else 'actions'
  frames = 'steps/observation' if layout == 'tfds' else 'observations'
  wrong = {
    'sum up': [
      _example(steps, layout, 0, 0, True, clipped_episode_return=[9.0])
    ],
    'outside': [_example(steps, layout, 0, 0, True, **{clipped: [2.0] * 6})],
    'mixes': [_example(steps, layout, n, n, True) for n in range(3)],
    'order': [_example(steps, layout, 0, 3 - n, True) for n in range(3)],
    'differ in length': [_example(steps, layout, 0, 0, True, **{actions: [1]})],
    'no 8-bit grey': [
      _example(steps, layout, 0, 0, True, **{frames: [b'GIF'] * 6})
    ],
    'without': [b''],
    'no tf.train': [b'\xff\xff'],
  }
  for number, (problem, records) in enumerate(wrong.items()):
    run = _write(tmp_path / str(number), layout, 0, records, 1)
    with pytest.raises(errors.DataError, match=problem):
      rlu_source.RluSource(run).header('action', 0)


def test_a_missing_part_is_named(run, layout, tmp_path):
  if layout == 'bucket':
    pytest.skip('one file per checkpoint')
  copy = tmp_path / 'rlu_atari_checkpoints_ordered' / 'x'
  shutil.copytree(run, copy)
  next(pathlib.Path(copy).glob('*checkpoint_01*00000-of*')).unlink()
  with pytest.raises(errors.DataError, match='lacks parts of checkpoint 1'):
    rlu_source.RluSource(str(copy)).suffixes()


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
      rlu_source.RluSource(str(copy)).header('action', 0)


def test_damaged_bytes_never_give_wrong_rows(run, layout, tmp_path):
  folder = pathlib.Path(run).parent if layout == 'bucket' else pathlib.Path(run)
  copy = tmp_path / 'atari_episodes_ordered'
  shutil.copytree(folder, copy)
  location = str(copy / 'run_1') if layout == 'bucket' else str(copy)
  path = sorted(copy.glob('*-00000-of-*'))[0]
  content = path.read_bytes()
  expected = _rows(rlu_source.RluSource(run), 'observation', 0)
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
      rows = _rows(rlu_source.RluSource(location), 'observation', 0)
      np.testing.assert_array_equal(rows, expected)
    except errors.DataError:
      num_refused += 1
  assert num_refused > 0.9 * len(damages)


def test_unknown_reading():
  with pytest.raises(errors.ConfigError, match='last_step'):
    rlu_source.RluSource('gs://x/run_1', last_step='both')
