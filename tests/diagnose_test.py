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
from batch_rl_dr3.config import errors, own_code
from batch_rl_dr3.replay.store.subset import Subset


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


@pytest.mark.parametrize('held_out', [False, True])
def test_what_was_logged_after_drawn_transitions(
  replay_dir, cache_dir, data, held_out
):
  """By a loop over the log's rows, which the drawn store does not hold."""
  subset = Subset('uniform', 0.3, seed=4)
  subset = subset.held_out(20) if held_out else subset
  drawn = batch_rl_dr3.open_store(replay_dir, subset, cache_dir, stack_size=1)
  batch = drawn.sample(50, seed=2)
  returns = drawn.returns(batch.indices, gamma=0.9)
  rewards, terminals = data.store.rewards, data.store.terminals
  frames = data.store.frames(np.arange(data.store.num_rows))
  assert len(np.unique(frames, axis=0)) == len(frames)
  for state, found in zip(batch.states, returns, strict=True):
    (row,) = np.flatnonzero((frames == state[..., 0]).all(axis=(1, 2, 3)))
    following = np.flatnonzero(terminals[row:])
    if not len(following):
      assert np.isnan(found)
      continue
    rest = rewards[row : row + following[0] + 1]
    expected = sum(0.9**k * reward for k, reward in enumerate(rest))
    assert found == pytest.approx(expected, rel=1e-5)


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


@pytest.fixture
def diagnose(run_command, tmp_path):
  def diagnose(*arguments):
    page = f'--output_dir={tmp_path / "page"}'
    return run_command('diagnose', *arguments, page, '--num_transitions=50')

  return diagnose


def measures(tmp_path):
  with (tmp_path / 'page' / 'measures.csv').open() as file:
    return {row['measure']: row for row in csv.DictReader(file)}


def test_the_command_writes_what_the_functions_say(
  diagnose, run_dir, replay_dir, cache_dir, data, tmp_path
):
  done = diagnose(
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


def test_a_run_of_code_of_ones_own_on_drawn_transitions(
  diagnose, replay_dir, cache_dir, tiny_bindings, tmp_path
):
  import gin
  import tensorflow as tf

  code = tmp_path / 'my_penalty.py'
  code.write_text(
    'import gin\n'
    'from batch_rl_dr3.agents import penalties\n'
    '@gin.configurable\n'
    'class MyPenalty(penalties.FeatureDotPenalty):\n'
    "  name = 'mine'\n"
  )
  run = tmp_path / 'run'
  gin.clear_config()
  with tf.Graph().as_default():
    train.train(
      str(run),
      str(replay_dir),
      str(cache_dir),
      ['minatar/rem_dr3.gin'],
      [
        *tiny_bindings,
        "Subset.rule = 'uniform'",
        'Subset.fraction = 0.4',
        'FixedReplayREMAgent.penalties = [@MyPenalty()]',
      ],
      imports=own_code.find([str(code)]),
    )
  gin.clear_config()
  arguments = (
    *(f'--checkpoint={run}', f'--replay_dir={replay_dir}'),
    f'--cache_dir={cache_dir}',
  )
  done = diagnose(*arguments)
  assert done.returncode == 78
  assert 'my_penalty.py' in done.stderr
  done = diagnose(*arguments, f'--import={code}')
  assert done.returncode == 0, done.stderr
  error = measures(tmp_path)['q_error']
  assert float(error['learnt from']) > 0
  assert float(error['held out']) > 0


def test_a_network_of_ones_own_is_measured(
  diagnose, replay_dir, cache_dir, tmp_path
):
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
  done = diagnose(f'--network={path}:outputs', *arguments)
  assert done.returncode == 0, done.stderr
  assert float(measures(tmp_path)['feature_norm_squared']['logged']) >= 7
  assert not (tmp_path / 'page' / 'layers.csv').exists()
  done = diagnose(f'--network={path}:few', *arguments)
  assert done.returncode == 65
  assert 'the network has 2 actions, and action 5' in done.stderr
  done = diagnose(f'--network={path}:inputs', *arguments)
  assert done.returncode == 78
  assert 'has no function inputs' in done.stderr
  done = diagnose(f'--network={path}:outputs', '--checkpoint=x')
  assert done.returncode == 64


# Trains on FOLDER/log.npz, and writes FOLDER/model.pt and what torch says.
_D3RLPY = """
import sys
import d3rlpy, numpy as np, torch
torch.set_num_threads(1)
log = np.load(f'{sys.argv[1]}/log.npz')
algorithm = d3rlpy.algos.DiscreteCQLConfig(
  encoder_factory=d3rlpy.models.encoders.PixelEncoderFactory(
    filters=[[16, 3, 1]], feature_size=32
  ),
  learning_rate=0.001,
  batch_size=16,
  target_update_interval=100,
  observation_scaler=d3rlpy.preprocessing.PixelObservationScaler(),
).create(device='cpu:0')
algorithm.fit(
  d3rlpy.dataset.MDPDataset(
    *(log[name] for name in ('states', 'actions', 'rewards', 'terminals')),
    action_space=d3rlpy.ActionSpace.DISCRETE,
    action_size=6,
  ),
  n_steps=500,
  n_steps_per_epoch=500,
  show_progress=False,
  logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
)
algorithm.save_model(f'{sys.argv[1]}/model.pt')
q_function = algorithm.impl.q_function[0]
phi, phi_next = (
  q_function.encoder(torch.tensor(log[name] / 255, dtype=torch.float32))
  for name in ('sampled', 'next_sampled')
)
print((phi * phi_next).sum(dim=1).mean().item())
"""


@pytest.mark.slow
def test_a_network_that_d3rlpy_trained_has_the_dot_product_that_torch_says(
  diagnose, replay_dir, cache_dir, data, tmp_path
):
  """d3rlpy needs a newer gym than Dopamine, and so a Python of its own."""
  python = os.environ.get('D3RLPY_PYTHON', sys.executable)
  command = [python, '-c']
  if subprocess.run(
    [*command, 'import d3rlpy'], capture_output=True, check=False
  ).returncode:
    pytest.skip('needs D3RLPY_PYTHON, a Python that has d3rlpy')
  store, batch = data.store, data.sample(50)
  np.savez(
    tmp_path / 'log.npz',
    states=store.frames(np.arange(200)).transpose(0, 3, 1, 2),
    actions=store.actions[:, np.newaxis],
    rewards=store.rewards,
    terminals=store.terminals,
    sampled=batch.states[..., 0].transpose(0, 3, 1, 2),
    next_sampled=batch.next_states[..., 0].transpose(0, 3, 1, 2),
  )
  trained = subprocess.run(
    [*command, _D3RLPY, tmp_path], capture_output=True, text=True, check=True
  )
  done = diagnose(
    *(f'--checkpoint={tmp_path}/model.pt', '--num_actions=6'),
    *(f'--replay_dir={replay_dir}', f'--cache_dir={cache_dir}'),
    '--stack_size=1',
  )
  assert done.returncode == 0, done.stderr
  found = float(measures(tmp_path)['feature_dot_product']['logged'])
  assert found == pytest.approx(float(trained.stdout.split()[-1]), rel=1e-5)
  assert found > 0.01


def test_what_is_no_checkpoint_is_named(tmp_path):
  with pytest.raises(errors.DataError, match='is no run directory and no che'):
    batch_rl_dr3.load_policy(tmp_path)
  with pytest.raises(AttributeError, match='no attribute'):
    batch_rl_dr3.nothing  # noqa: B018
