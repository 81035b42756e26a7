"""Whole runs: resumption bit for bit, SIGTERM, divergence, refusals."""

import json

import h5py
import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3 import cli, errors, run_directory
from batch_rl_dr3.continuous import runner

BINDINGS = (
  'ContinuousRunner.num_iterations=2',
  'ContinuousRunner.num_gradient_steps=100',
  'ContinuousRunner.num_evaluation_episodes=2',
  'ContinuousRunner.num_lanes=2',
  'ContinuousRunner.log_period=50',
  'ContinuousRunner.effective_rank_period=100',
  'ContinuousRunner.effective_rank_num_states=20',
  'ContinuousRunner.num_metric_batches=1',
  'ContinuousRunner.batch_size=8',
  'create_brac_agent.critic_layers=(8,)',
  'create_brac_agent.actor_layers=(8,)',
  'create_cql_agent.critic_layers=(8,)',
  'create_cql_agent.actor_layers=(8,)',
  'DR3BracAgent.num_warm_start_steps=60',
  'DR3CqlSacAgent.num_cql_samples=2',
  'DR3CqlSacAgent.num_bc_steps=60',
)
METHODS = {
  'brac': (
    'brac_dr3_hopper-medium',
    'ContinuousRunner.num_cloning_steps=5',
  ),
  'cql': (
    'cql_dr3_hopper-full-replay',
    'DR3CqlSacAgent.use_lagrange_cql_alpha=True',
  ),
}


@pytest.fixture(scope='module')
def hopper(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'hopper_medium-v2.hdf5'
  rng = np.random.default_rng(0)
  with h5py.File(path, 'w') as file:
    file.create_dataset('observations', data=rng.normal(size=(400, 11)))
    file.create_dataset('actions', data=rng.uniform(-1, 1, (400, 3)))
    file.create_dataset('rewards', data=rng.normal(size=400))
    ends = np.arange(400) % 50 == 49
    file.create_dataset('terminals', data=ends)
    file.create_dataset('timeouts', data=np.zeros(400, bool))
  return str(path)


def make(method, data, base_dir, *bindings):
  name, own = METHODS[method]
  cli.gin.clear_config()
  cli.load_gin([f'd4rl/{name}.gin'], [*BINDINGS, own, *bindings])
  with cli.gin_errors():
    return runner.ContinuousRunner(str(base_dir), data, str(base_dir / 'cache'))


def last_weights(base_dir):
  reader = tf.train.load_checkpoint(
    str(base_dir / run_directory.CHECKPOINTS / 'tf_ckpt-1')
  )
  names = [n for n in reader.get_variable_to_shape_map() if '_OBJECT' not in n]
  return {name: reader.get_tensor(name) for name in names}


def rows(base_dir, name):
  found = run_directory.read_csv(base_dir / name)
  for row in found:
    row.pop('gradient_steps_per_second', None)
  return found


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_a_stopped_run_ends_as_one_that_was_not(method, hopper, tmp_path):
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  make(method, hopper, whole).run()
  first = make(method, hopper, stopped)
  train = first._learner.train

  def train_and_stop(num_steps):
    loss = train(num_steps)
    if first._learner.num_gradient_steps == 150:
      first._stop_request.signal_name = 'SIGTERM'
    return loss

  first._learner.train = train_and_stop
  with pytest.raises(errors.PreemptedError, match='gradient step 150') as error:
    first.run()
  assert error.value.exit_code == 75
  make(method, hopper, stopped).run()
  for name in (run_directory.METRICS, run_directory.SCORES):
    assert rows(whole, name) == rows(stopped, name)
  expected, found = last_weights(whole), last_weights(stopped)
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)
  assert len(rows(whole, run_directory.SCORES)) == 4
  finished = json.loads((whole / run_directory.FINISHED).read_text())
  assert finished['gradient_steps'] == 200
  provenance = json.loads((whole / run_directory.PROVENANCE).read_text())
  assert provenance['suite'] == 'd4rl'
  assert provenance['protocol']['environment'] == 'Hopper-v4'
  with pytest.raises(errors.ConfigError, match='another run'):
    make(method, hopper, whole, 'FeatureDotPenalty.coefficient=0.5')


@pytest.mark.slow
def test_a_run_that_diverges_says_so(hopper, tmp_path):
  run = make(
    'brac', hopper, tmp_path, 'create_brac_agent.critic_learning_rate=1e30'
  )
  with pytest.raises(errors.DivergedError, match='not finite') as error:
    run.run()
  assert error.value.exit_code == 70


def test_a_base_without_a_behaviour_policy_clones_none(hopper, tmp_path):
  with pytest.raises(errors.ConfigError, match='no behaviour policy'):
    make('cql', hopper, tmp_path, 'ContinuousRunner.num_cloning_steps=5')


def test_periods_must_fit(hopper, tmp_path):
  with pytest.raises(errors.ConfigError, match='multiple'):
    make('cql', hopper, tmp_path, 'ContinuousRunner.log_period=30')
