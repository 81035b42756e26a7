"""Runs in a bucket, before an emulator and a proxy that spoils answers."""

import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, checkpoints, lease, run_directory


@pytest.fixture
def open_home(bucket, tmp_path, request):
  """Opens the home of the test's run, as on so many machines."""

  def open_home(machine='one'):
    url = f'gs://bucket/{request.node.name}/seed0'
    return run_directory.Home(url, str(tmp_path / machine))

  return open_home


def write(place, **texts):
  for name, text in texts.items():
    path = place.folder / f'{name}.csv'
    atomic.write_text(path, text, place.check)
  place.publish()


def test_what_is_published_is_there_on_the_next_machine(open_home, bucket):
  first = open_home('one')
  assert first.is_elsewhere
  with first.lock():
    (first.folder / 'checkpoints').mkdir()
    write(first, a='1', b='2')
    (first.folder / '.hidden.tmp').write_text('')
    bucket.uploaded.clear()
    write(first, b='3')  # Of what is there already nothing goes up again.
    assert [n for n in bucket.uploaded if 'lease' not in n] == [
      f'{first.place._root.partition("/")[2]}/b.csv'
    ]
    (first.folder / 'a.csv').unlink()
    first.publish()
  assert not first.folder.exists()
  second = open_home('two')
  with second.lock():
    assert {p.name for p in second.folder.rglob('*')} == {'b.csv'}
    assert (second.folder / 'b.csv').read_text() == '3'
    second.check()


def test_one_works_the_other_leaves_and_the_fenced_publishes_nothing(
  open_home, monkeypatch
):
  first, second = open_home('one'), open_home('two')
  with first.lock():
    write(first, scores='of the first')
    with pytest.raises(lease.BusyError), second.lock():
      raise AssertionError
    first._lease._ended.set()  # It stands still.
    first._lease._thread.join()
    monkeypatch.setattr(lease, 'EXPIRY_SECONDS', 0.3)
    monkeypatch.setattr(lease, '_machine', lambda: 'another')
    with second.lock():
      assert (second.folder / 'scores.csv').read_text() == 'of the first'
      write(second, scores='of the second')
      with pytest.raises(lease.FencedError):
        first.check()
      (first.folder / 'scores.csv').write_text('late')
      with pytest.raises(lease.FencedError):
        first.publish()
  third = open_home('three')
  with third.lock():
    assert (third.folder / 'scores.csv').read_text() == 'of the second'


@pytest.mark.slow
def test_an_answer_that_is_lost_costs_nothing(open_home, bucket):
  """The request is sent again, and the object that it made is there."""
  place = open_home()
  bucket.faults = ['lost', 503]
  with place.lock():
    bucket.faults = [503, 'lost']
    write(place, a='1')
  assert place._lease.token == 1
  with open_home('two').lock():
    pass


def test_a_checkpoint_is_published_before_what_vouches_for_it(
  open_home, bucket, monkeypatch
):
  def save(prefix):
    for end in ('index', 'data-00000-of-00001'):
      with open(f'{prefix}.{end}', 'w') as file:
        file.write(prefix[-1] * 100)

  place = open_home('one')
  with place.lock():
    folder = place.folder / 'checkpoints'
    kept = checkpoints.Checkpoints(folder, 1, check=place.check)
    kept.save(save, '0', 10)
    place.publish()
    kept.save(save, '1', 20)
    put = place.place._filesystem.put_file
    names = []

    def put_until_the_manifest(path, target):
      names.append(target.rpartition('/')[2])
      if 'ckpt.1.json' in target:
        raise ConnectionError('the network is away')
      put(path, target)

    monkeypatch.setattr(
      place.place._filesystem, 'put_file', put_until_the_manifest
    )
    with pytest.raises(errors.WriteError, match=r'gs://.*ckpt\.1\.json.*away'):
      place.publish()
    assert names == [
      *('tf_ckpt-1.data-00000-of-00001', 'tf_ckpt-1.index', 'ckpt.1.json')
    ]
  second = open_home('two')
  with second.lock():
    kept = checkpoints.Checkpoints(second.folder / 'checkpoints', 1)
    assert kept.latest().name == '0'  # Its files are still there.


def test_a_bucket_that_is_not_there_is_named(bucket, tmp_path):
  place = run_directory.Home('gs://nowhere/run', str(tmp_path))
  with (
    pytest.raises(errors.WriteError, match='gs://nowhere/run/lease'),
    place.lock(),
  ):
    raise AssertionError
  with pytest.raises(errors.ConfigError, match='nosuch://x'):
    run_directory.Home('nosuch://x', str(tmp_path))


@pytest.mark.slow
def test_a_run_goes_on_from_its_bucket_on_another_machine(
  bucket, tmp_path, session, clear_gin, replay_dir, tiny_bindings
):
  """Faults included, it ends like a run on a disk that nothing disturbed."""
  import gin
  import numpy as np
  import tensorflow as tf

  from batch_rl_dr3 import train

  def train_to(base_dir, machine, num_iterations):
    gin.clear_config()
    with tf.Graph().as_default():
      train.train(
        base_dir=str(base_dir),
        replay_dir=str(replay_dir),
        cache_dir=str(tmp_path / machine),
        gin_files=['minatar/rem_dr3.gin'],
        gin_bindings=[
          *tiny_bindings,
          f'FixedReplayRunner.num_iterations={num_iterations}',
          'FixedReplayRunner.num_threads=1',
        ],
      )

  train_to(tmp_path / 'local', 'one', 2)
  bucket.faults = [None, None, 503, None, 'lost', None, None, 503, 'lost']
  train_to('gs://bucket/whole', 'two', 1)
  assert bucket.faults == []
  train_to('gs://bucket/whole', 'three', 2)
  place = run_directory.Home('gs://bucket/whole', str(tmp_path / 'four'))
  with place.lock():
    for name in (run_directory.SCORES, run_directory.FINISHED):
      expected = (tmp_path / 'local' / name).read_bytes()
      assert (place.folder / name).read_bytes() == expected, name
    local, remote = (
      tf.compat.v1.train.NewCheckpointReader(
        str(folder / 'checkpoints' / 'tf_ckpt-1')
      )
      for folder in (tmp_path / 'local', place.folder)
    )
    for name in local.get_variable_to_shape_map():
      np.testing.assert_array_equal(
        local.get_tensor(name), remote.get_tensor(name), err_msg=name
      )
