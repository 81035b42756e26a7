"""Policies and data in Python, and `diagnose` of checkpoints."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

import batch_rl_dr3
from batch_rl_dr3 import train
from batch_rl_dr3.analysis import diagnosis
from batch_rl_dr3.config import errors


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory, replay_dir, cache_dir, tiny_bindings):
  import gin
  import tensorflow as tf

  gin.clear_config()
  base_dir = tmp_path_factory.mktemp('run')
  with tf.Graph().as_default():
    train.train(
      str(base_dir),
      str(replay_dir),
      str(cache_dir),
      ['minatar/rem_dr3.gin'],
      tiny_bindings,
      seed=3,
    )
  gin.clear_config()
  return base_dir


@pytest.fixture
def data(replay_dir, cache_dir):
  return batch_rl_dr3.open_store(replay_dir, cache_dir=cache_dir, stack_size=1)


def test_a_batch_is_that_of_training(data):
  import tensorflow as tf

  from batch_rl_dr3.replay import batches

  batch = data.batch(seed=3, step=7, batch_size=5)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    buffer = batches.FixedReplayBuffer(
      data.store, tf.constant(7, tf.int64), 3, 5, stack_size=1
    )
    expected = session.run(buffer.transition)
  np.testing.assert_array_equal(batch.states, expected['state'])
  np.testing.assert_array_equal(batch.actions, expected['action'])
  np.testing.assert_array_equal(batch.next_states, expected['next_state'])
  again = data.batch(seed=3, step=7, batch_size=5)
  np.testing.assert_array_equal(batch.indices, again.indices)
  assert (data.batch(3, 8, 5).indices != batch.indices).any()


def test_a_run_gives_its_own_measures_of_the_same_arrays(run_dir, data):
  policy = batch_rl_dr3.load_policy(run_dir)
  batch = data.sample(64, seed=1)
  q_values, phi = policy.outputs(batch.states)
  phi_next = policy.features(batch.next_states)
  found = batch_rl_dr3.measure_features(
    phi, phi_next, 0.99 * (1 - batch.terminals.astype(float))
  )
  assert found['feature_dot_product'] == pytest.approx(
    np.einsum('nd,nd->n', phi, phi_next).mean(), 1e-6
  )
  assert 'mean_q' not in found
  np.testing.assert_array_equal(policy.act(batch.states), q_values.argmax(1))
  # The layers alone, by NumPy, say the same.
  by_layers, features = policy.network.outputs(batch.states)
  np.testing.assert_allclose(by_layers, q_values, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(features, phi, rtol=1e-4, atol=1e-5)


def test_a_policy_is_played_as_its_run_was(run_dir):
  policy = batch_rl_dr3.load_policy(run_dir)
  episodes = batch_rl_dr3.evaluate_policy(policy, num_agent_steps=100, seed=5)
  assert episodes['length'].sum() >= 100
  again = batch_rl_dr3.evaluate_policy(policy, num_agent_steps=100, seed=5)
  assert episodes.equals(again)
  named = batch_rl_dr3.evaluate_policy(
    policy, 'breakout', num_agent_steps=100, epsilon=0.0
  )
  assert len(named)
  newest = sorted(run_dir.rglob('*.index'))[-1].with_suffix('')
  states = np.zeros((1, 10, 10, 4, 1), np.uint8)
  np.testing.assert_array_equal(
    batch_rl_dr3.load_policy(newest).q_values(states), policy.q_values(states)
  )


def diagnose(tmp_path, *arguments):
  return subprocess.run(
    [
      *(sys.executable, '-m', 'batch_rl_dr3.diagnose', *arguments),
      *(f'--output_dir={tmp_path / "page"}', '--num_transitions=50'),
    ],
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
    capture_output=True,
    text=True,
    check=False,
  )


def measures(tmp_path):
  with (tmp_path / 'page' / 'measures.csv').open() as file:
    return {row['measure']: row for row in csv.DictReader(file)}


def test_the_command_writes_what_the_functions_say(
  run_dir, replay_dir, cache_dir, data, tmp_path
):
  done = diagnose(
    tmp_path,
    f'--checkpoint={run_dir}',
    f'--replay_dir={replay_dir}',
    f'--cache_dir={cache_dir}',
  )
  assert done.returncode == 0, done.stderr
  from batch_rl_dr3.training import policies

  policy = batch_rl_dr3.load_policy(run_dir)
  expected = diagnosis.diagnose(
    policies.transitions_of(policy, data, data.sample(50))
  ).measures
  found = measures(tmp_path)
  for name, value in expected.items():
    assert float(found[name]['learnt from']) == pytest.approx(value, 1e-5), name
  page = (tmp_path / 'page' / 'index.html').read_text()
  assert 'feature_dot_product' in page
  assert 'fully_connected' in page


def test_a_network_of_ones_own_is_measured(replay_dir, cache_dir, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'import numpy as np\n'
    'def outputs(states):\n'
    '  phi = states.reshape(len(states), -1)[:, :7].astype(float) + 1\n'
    '  return phi[:, :6], phi\n'
    'def few(states):\n'
    '  return outputs(states)[0][:, :2], outputs(states)[1]\n'
  )
  arguments = (
    *(f'--replay_dir={replay_dir}', f'--cache_dir={cache_dir}'),
    '--stack_size=1',
  )
  done = diagnose(tmp_path, f'--network={path}:outputs', *arguments)
  assert done.returncode == 0, done.stderr
  assert float(measures(tmp_path)['feature_norm_squared']['logged']) >= 7
  assert not (tmp_path / 'page' / 'layers.csv').exists()
  done = diagnose(tmp_path, f'--network={path}:few', *arguments)
  assert done.returncode == 65
  assert 'the network has 2 actions, and action 5' in done.stderr
  done = diagnose(tmp_path, f'--network={path}:inputs', *arguments)
  assert done.returncode == 78
  assert 'has no function inputs' in done.stderr
  done = diagnose(tmp_path, f'--network={path}:outputs', '--checkpoint=x')
  assert done.returncode == 64


def test_what_is_no_checkpoint_is_named(tmp_path):
  with pytest.raises(errors.DataError, match='is no run directory and no che'):
    batch_rl_dr3.load_policy(tmp_path)
  with pytest.raises(AttributeError, match='no attribute'):
    batch_rl_dr3.nothing  # noqa: B018
