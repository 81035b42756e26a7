"""What trackers are told of a run, resumed or not; none is needed."""

import json
import sys
import time
import types
from unittest import mock

import gin
import pytest

from batch_rl_dr3 import train
from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory, run_identity, run_tables
from batch_rl_dr3.training import trackers

NAME = 'breakout all rem seed0'
SETTINGS = {'method': 'rem', 'game': 'breakout', 'seed': 0}


class FakeTrackio(types.ModuleType):
  """Keeps what it is told; fails from a step on."""

  def __init__(self, fails_at=10**9):
    super().__init__('trackio')
    self.started, self.rows, self.finished = [], [], 0
    self.fails_at = fails_at

  def init(self, **arguments):
    self.started.append(arguments)

  def log(self, values, step):
    if step >= self.fails_at:
      raise RuntimeError('the network is down')
    self.rows.append((step, values))

  def finish(self):
    self.finished += 1


@pytest.fixture
def trackio(monkeypatch):
  module = FakeTrackio()
  monkeypatch.setitem(sys.modules, 'trackio', module)
  return module


def open_tracking(folder, *kinds):
  return trackers.Tracking(
    kinds or (trackers.TrackioTracker(),), folder, NAME, SETTINGS
  )


def test_a_resumed_run_repeats_no_row(trackio, tmp_path):
  first = open_tracking(tmp_path)
  for steps in (0, 10, 20):
    first.log({'Losses/total': float(steps)}, steps, False)
  first.log({'Eval/return': 1.0}, 10, True)
  first.close()
  # From the checkpoint at 10 on, killed at once, and from there again.
  for end in (10, 30):
    again = open_tracking(tmp_path)
    for steps in range(10, end + 1, 10):
      again.log({'Losses/total': float(steps)}, steps, False)
    again.log({'Eval/return': 1.0}, 10, True)
    again.close()
  assert trackio.rows == [
    (0, {'Losses/total': 0.0}),
    (10, {'Losses/total': 10.0}),
    (20, {'Losses/total': 20.0}),
    (10, {'Eval/return': 1.0}),
    (30, {'Losses/total': 30.0}),
  ]
  assert trackio.finished == 3
  names = {arguments['name'] for arguments in trackio.started}
  assert len(names) == 1
  assert names.pop().startswith(NAME)
  assert trackio.started[0]['config'] == SETTINGS
  # A run that is started over is another one.
  (tmp_path / run_directory.TRACKED).unlink()
  open_tracking(tmp_path)
  assert trackio.started[-1]['name'] != trackio.started[0]['name']


def test_a_tracker_that_fails_is_left_out(trackio, tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(
    trackers.logging, 'warning', lambda *a: said.append(a[0] % a[1:])
  )
  trackio.fails_at = 10
  tracking = open_tracking(tmp_path)
  for steps in (0, 10, 20):
    tracking.log({'x': 1.0}, steps, False)
  assert trackio.rows == [(0, {'x': 1.0})]
  (line,) = said
  assert line == (
    'TrackioTracker failed at gradient step 10 and is left out: the network '
    'is down'
  )


def test_what_is_missing_or_cannot_start_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'trackio', None)
  with pytest.raises(errors.ConfigError, match='needs trackio: pip install'):
    open_tracking(tmp_path)
  broken = types.ModuleType('trackio')
  monkeypatch.setitem(sys.modules, 'trackio', broken)
  with pytest.raises(errors.ConfigError, match='TrackioTracker cannot be star'):
    open_tracking(tmp_path)
  with pytest.raises(errors.ConfigError, match='two of one kind'):
    open_tracking(
      tmp_path, trackers.TrackioTracker(), trackers.TrackioTracker('b')
    )
  assert errors.ConfigError.exit_code == 78
  (tmp_path / run_directory.TRACKED).write_text('{"TrackioTracker": {}}')
  with pytest.raises(errors.DataError, match=r'TrackioTracker\.id is missing'):
    open_tracking(tmp_path)


def test_trackers_are_no_part_of_what_a_run_is():
  for name in ('FixedReplayRunner.trackers', 'WandbTracker.project'):
    assert not run_identity.is_identity(name)


def test_settings_are_plain_values():
  found = trackers.settings_of(
    {'method': 'dqn', 'data': {'a': 1}, 'protocol': {'epsilon_eval': 0.001}},
    "A.penalties = [@B()]\nB.coefficient = 0.03\nA.name = 'x'\n",
  )
  assert found == {
    'method': 'dqn',
    'epsilon_eval': 0.001,
    'A.penalties': '[@B()]',
    'B.coefficient': 0.03,
    'A.name': 'x',
  }


def test_wandb_is_told_by_gradient_steps_and_goes_on(tmp_path, monkeypatch):
  module = mock.MagicMock()
  module.init.side_effect = lambda **arguments: mock.MagicMock(**arguments)
  monkeypatch.setitem(sys.modules, 'wandb', module)
  for steps in (10, 20):
    tracker = trackers.WandbTracker(project='mine')
    tracking = open_tracking(tmp_path, tracker)
    tracking.log({'Losses/total': 2.5}, 10, False)
    tracking.log({'Losses/total': 3.5}, steps, False)
    run = tracker._run
    tracking.close()
    run.define_metric.assert_called_with('*', step_metric='gradient_steps')
    # Step 10 was told by the first, and is not told again.
    (row,) = [call.args[0] for call in run.log.call_args_list]
    assert row['gradient_steps'] == steps
    run.finish.assert_called_once_with()
  first, second = (call.kwargs for call in module.init.call_args_list)
  assert first['id'] == second['id']
  assert (first['project'], first['config']) == ('mine', SETTINGS)
  assert (first['resume'], first['mode']) == ('allow', None)


def test_wandb_offline_is_told(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  from wandb.proto import wandb_internal_pb2
  from wandb.sdk.internal import datastore

  monkeypatch.setenv('WANDB_DIR', str(tmp_path))
  tracker = trackers.WandbTracker(mode='offline')
  tracking = open_tracking(tmp_path, tracker)
  tracking.log({'Losses/total': 2.5}, 10, False)
  tracking.close()
  run_id = json.loads((tmp_path / run_directory.TRACKED).read_text())[
    'WandbTracker'
  ]['id']
  (path,) = (tmp_path / 'wandb').glob(f'offline-run-*/run-{run_id}.wandb')
  deadline = time.monotonic() + 60
  while not path.stat().st_size:  # Its own process writes it.
    assert time.monotonic() < deadline
    time.sleep(0.1)
  store = datastore.DataStore()
  store.open_for_scan(path)
  rows = []
  while (content := store.scan_data()) is not None:
    record = wandb_internal_pb2.Record()
    record.ParseFromString(content)
    items = record.history.item
    rows.append({i.key or i.nested_key[0]: i.value_json for i in items})
  (row,) = [row for row in rows if 'Losses/total' in row]
  assert (row['Losses/total'], row['gradient_steps']) == ('2.5', '10')


def test_mlflow_is_told(tmp_path):
  mlflow = pytest.importorskip('mlflow')
  uri = f'sqlite:///{tmp_path}/mlflow.db'
  for steps in (10, 20):
    tracking = open_tracking(tmp_path, trackers.MlflowTracker('dr3', uri))
    tracking.log({'Losses/total': 2.5}, 10, False)
    tracking.log({'Losses/total': 3.5}, steps, False)
    tracking.close()
  client = mlflow.MlflowClient(uri)
  experiment = client.get_experiment_by_name('dr3')
  (run,) = client.search_runs([experiment.experiment_id])
  history = client.get_metric_history(run.info.run_id, 'Losses/total')
  assert [(m.step, m.value) for m in history] == [(10, 2.5), (20, 3.5)]
  assert run.data.params['method'] == 'rem'
  assert run.info.run_name == NAME


def test_a_run_tells_metrics_and_scores(
  clear_gin, replay_dir, cache_dir, tiny_bindings, tmp_path, trackio
):
  import tensorflow as tf

  def train_it(*bindings):
    gin.clear_config()
    told = 'FixedReplayRunner.trackers=[@TrackioTracker()]'
    with tf.Graph().as_default():
      train.train(
        str(tmp_path),
        str(replay_dir),
        str(cache_dir),
        ['minatar/rem_dr3.gin'],
        [*tiny_bindings, told, *bindings],
        seed=3,
      )

  train_it()
  rows = run_tables.read_rows(tmp_path / run_directory.METRICS)
  told = [(s, v) for s, v in trackio.rows if 'Losses/total' in v]
  assert [steps for steps, _ in told] == [
    int(row['gradient_steps']) for row in rows
  ]
  for (_, values), row in zip(told, rows, strict=True):
    assert values['Losses/total'] == float(row['loss_total'])
    assert values['Features/feature_dot_product'] == float(
      row['feature_dot_product']
    )
  scored = [s for s, v in trackio.rows if 'Eval/return' in v]
  assert scored == [30, 60]
  settings = trackio.started[0]['config']
  assert settings['method'] == 'rem_dr3'
  assert settings['FixedReplayREMAgent.num_heads'] == 5
  # A longer run is the same run, and without trackers it is, too.
  before = len(trackio.rows)
  train_it('FixedReplayRunner.num_iterations=3')
  assert all(steps > 60 for steps, _ in trackio.rows[before:])
  assert {a['name'] for a in trackio.started} == {trackio.started[0]['name']}
  train_it(
    'FixedReplayRunner.num_iterations=4', 'FixedReplayRunner.trackers=[]'
  )
  assert len(trackio.started) == 2
