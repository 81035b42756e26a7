"""Whole runs, in this process and as commands."""

import csv
import gzip
import json
import pickle
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from batch_rl_dr3 import select, train
from batch_rl_dr3.agents import accelerator
from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import run_reader, selection, watch
from batch_rl_dr3.runs import run_directory, run_tables


@pytest.fixture
def train_here(session, clear_gin, replay_dir, cache_dir, tiny_bindings):
  """Trains a tiny REM+DR3 run in this process."""

  def train_here(base_dir, *bindings, **kwargs):
    train.train(
      **{
        'base_dir': str(base_dir),
        'replay_dir': str(replay_dir),
        'cache_dir': str(cache_dir),
        'gin_files': ['minatar/rem_dr3.gin'],
        'gin_bindings': [
          *tiny_bindings,
          'FeatureDotPenalty.coefficient = 0.001',
          *bindings,
        ],
        **kwargs,
      }
    )

  return train_here


def read(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_a_run_leaves_everything_a_run_directory_holds(train_here, tmp_path):
  train_here(tmp_path, seed=3)
  metrics = read(tmp_path / run_directory.METRICS)
  assert [int(row['gradient_steps']) for row in metrics] == [
    *(0, 10, 20, 30, 40, 50, 60)
  ]
  for row in metrics:
    for name, value in row.items():
      if name != 'gradient_steps_per_second':
        assert np.isfinite(float(value)), name
    total = float(row['loss_bellman']) + 0.001 * float(
      row['loss_feature_dot_product']
    )
    assert float(row['loss_total']) == pytest.approx(total, rel=1e-5)
  scores = read(tmp_path / run_directory.SCORES)
  assert tuple(scores[0]) == (
    *run_tables.SCORE_COLUMNS,
    run_tables.NUM_EPISODES,
  )
  for iteration in (0, 1):
    rows = [r for r in scores if r['iteration'] == str(iteration)]
    assert sum(int(r['length']) for r in rows) >= 40
    assert [int(r['episode']) for r in rows] == list(range(len(rows)))
    assert {r['gradient_steps'] for r in rows} == {str(30 * (iteration + 1))}
  first = scores[0]
  assert (first['method'], first['game'], first['seed'], first['run']) == (
    'rem_dr3',
    'breakout',
    '3',
    '1',
  )
  provenance = json.loads((tmp_path / run_directory.PROVENANCE).read_text())
  assert provenance['protocol']['epsilon_eval'] == 0.001
  assert provenance['total_gradient_steps'] == 60
  assert len(provenance['data_hash']) == 64
  config = (tmp_path / run_directory.CONFIG).read_text()
  assert 'FeatureDotPenalty.coefficient = 0.001' in config
  assert (tmp_path / run_directory.FINISHED).exists()
  assert list(tmp_path.glob('events.out.tfevents.*'))
  assert {p.name for p in (tmp_path / 'checkpoints').glob('*.json')} == {
    'ckpt.0.json',
    'ckpt.1.json',
  }


@pytest.mark.parametrize(
  ('gin_files', 'bindings'),
  [
    (
      ['minatar/dqn.gin'],
      [
        "FixedReplayRunner.method = 'bc'",
        'FixedReplayRunner.agent = @FixedReplayBCAgent',
      ],
    ),
    (
      ['minatar/dqn.gin'],
      [
        'OfflineAgent.update_horizon = 3',
        'FixedReplayBuffer.batch_size = 8',
        "FixedReplayRunner.method = 'c51_cql_dr3'",
        'FixedReplayRunner.agent = @FixedReplayCategoricalAgent',
        (
          'FixedReplayCategoricalAgent.penalties = '
          '[@ConservativePenalty(), @FeatureDotPenalty()]'
        ),
        'FixedReplayCategoricalAgent.double_q = True',
        "FixedReplayCategoricalAgent.loss = 'hl_gauss'",
        'FixedReplayCategoricalAgent.num_atoms = 11',
        # With Rainbow's support, -10 to 10, logits mean other actions.
        'categorical_support.v_min = -30.0',
        'categorical_support.v_max = 5.0',
        'OfflineAgent.network = @ImpalaNetwork',
        'ImpalaNetwork.layer_norm = True',
      ],
    ),
  ],
  ids=['bc', 'categorical'],
)
def test_agents_beside_the_papers_train_and_are_played_again(
  run_command, train_here, run, tmp_path, gin_files, bindings
):
  train_here(tmp_path, *bindings, gin_files=gin_files)
  metrics = read(tmp_path / run_directory.METRICS)
  assert [int(row['gradient_steps']) for row in metrics] == [
    *(0, 10, 20, 30, 40, 50, 60)
  ]
  assert float(metrics[-1]['loss_bellman']) < float(metrics[0]['loss_bellman'])
  scores = read(tmp_path / run_directory.SCORES)
  assert {row['iteration'] for row in scores} == {'0', '1'}
  # Another process knows the agent from config.gin, its support included.
  (tmp_path / run_directory.SCORES).unlink()
  result = run_command('evaluate', f'--checkpoints={tmp_path}')
  assert result.returncode == 0, result.stderr
  assert read(tmp_path / run_directory.SCORES) == scores


def test_a_store_is_trained_on_without_its_log(
  train_here, replay_dir, tmp_path
):
  from batch_rl_dr3.replay.store import store, subset

  log = tmp_path / 'breakout' / '1'
  shutil.copytree(replay_dir, log)
  made = store.open_store(
    log, tmp_path / 'cache', subset.Subset('all'), (10, 10, 4), 6, 1
  )
  shutil.rmtree(log)
  train_here(tmp_path / 'run', replay_dir=str(made.folder))
  record = json.loads((tmp_path / 'run' / 'provenance.json').read_text())
  assert record['data_hash'] == made.data_hash
  assert record['run'] == 1
  assert (tmp_path / 'run' / 'finished.json').exists()


def test_a_run_of_the_data_set_is_asked_for_by_its_game(train_here, tmp_path):
  with pytest.raises(errors.ConfigError, match='has no runs of minatar'):
    train_here(tmp_path, replay_dir=3)


def test_what_a_run_leaves_can_be_ranked_and_shown(
  train_here, tmp_path, capsys
):
  train_here(tmp_path / 'run')
  capsys.readouterr()
  select.select([str(tmp_path / 'run')])
  lines = capsys.readouterr().out.split('\n\n')[0].splitlines()
  ranked = [line.split()[:3] for line in lines[1:]]
  assert [rule for _, rule, _ in ranked] == [
    rule.name for rule in selection.RULES
  ]
  assert {checkpoint for _, _, checkpoint in ranked} <= {'0', '1'}
  (run,) = run_reader.load([str(tmp_path / 'run')]).runs
  shown = watch.progress(run)
  assert tuple(shown[n] for n in ('state', 'steps', 'total_steps')) == (
    'finished',
    60,
    60,
  )


def test_a_resumed_run_keeps_the_arithmetic_that_it_began_with(
  train_here, tmp_path, monkeypatch
):
  import gin
  import tensorflow as tf

  processors = {name: tmp_path / name for name in ('fast', 'slow')}
  processors['fast'].write_text('flags : avx512_bf16')
  processors['slow'].write_text('flags : avx2')

  def train_on(processor, name, dtype, num_iterations=2):
    monkeypatch.setattr(accelerator, 'CPU_INFO', processors[processor])
    gin.clear_config()
    with tf.Graph().as_default():
      train_here(
        tmp_path / name,
        f'OfflineAgent.compute_dtype = {dtype!r}',
        f'FixedReplayRunner.num_iterations = {num_iterations}',
      )
    record = json.loads((tmp_path / name / 'provenance.json').read_text())
    return record['compute_dtype']

  assert train_on('fast', 'moved', 'auto', num_iterations=1) == 'bfloat16'
  assert train_on('slow', 'moved', 'auto') == 'bfloat16'
  assert train_on('slow', 'bound', 'bfloat16') == 'bfloat16'
  expected, actual = (final_weights(tmp_path / n) for n in ('bound', 'moved'))
  for name in expected:
    np.testing.assert_array_equal(expected[name], actual[name], err_msg=name)
  # It is the run of what 'auto' came to, and of no other.
  assert train_on('slow', 'moved', 'bfloat16') == 'bfloat16'
  with pytest.raises(errors.ConfigError, match="compute_dtype is 'bfloat16'"):
    train_on('fast', 'moved', 'float32')
  assert train_on('slow', 'new', 'auto', num_iterations=1) == 'float32'


def test_evaluation_can_be_left_out(train_here, tmp_path):
  train_here(tmp_path, 'FixedReplayRunner.num_evaluation_agent_steps=0')
  assert not (tmp_path / run_directory.SCORES).exists()
  assert (tmp_path / run_directory.FINISHED).exists()


def test_a_loss_that_is_not_finite_ends_the_run(train_here, tmp_path):
  with pytest.raises(errors.DivergedError) as raised:
    train_here(tmp_path, 'tf.train.AdamOptimizer.learning_rate=1e30')
  message = str(raised.value)
  assert 'loss_bellman' in message
  assert 'loss_feature_dot_product' in message
  assert 'none was written yet' in message
  assert not (tmp_path / run_directory.FINISHED).exists()
  failed = json.loads((tmp_path / run_directory.FAILED).read_text())
  assert (failed['error'], failed['exit_code']) == ('DivergedError', 70)
  assert failed['message'] == message
  last = read(tmp_path / run_directory.METRICS)[-1]
  assert int(last['gradient_steps']) == failed['gradient_steps'] > 0
  assert not np.isfinite(float(last['loss_total']))
  (run,) = run_reader.load([str(tmp_path)]).runs
  shown = watch.progress(run)
  assert (shown['state'], shown['error']) == ('diverged', message)


def test_a_directory_of_another_run_is_refused_unless_overwritten(
  train_here, tmp_path
):
  train_here(tmp_path, 'FixedReplayRunner.num_evaluation_agent_steps=0')
  import gin
  import tensorflow as tf

  def again(**kwargs):
    gin.clear_config()
    with tf.Graph().as_default():
      train_here(
        tmp_path,
        'FixedReplayRunner.num_evaluation_agent_steps=0',
        'FeatureDotPenalty.coefficient=0.5',
        **kwargs,
      )

  with pytest.raises(errors.ConfigError, match=r'coefficient is 0\.001 there'):
    again()
  again(overwrite=True)
  config = (tmp_path / run_directory.CONFIG).read_text()
  assert 'FeatureDotPenalty.coefficient = 0.5' in config
  assert len(read(tmp_path / run_directory.METRICS)) == 7


@pytest.mark.parametrize(
  ('bindings', 'kwargs', 'error', 'named'),
  [
    (['NoSuchClass.x=1'], {}, errors.ConfigError, 'NoSuchClass'),
    (['FixedReplayRunner.typo=1'], {}, errors.ConfigError, 'typo'),
    (['FixedReplayREMAgent.typo=1'], {}, errors.ConfigError, 'typo'),
    (['FeatureDotPenalty.coefficient=-1'], {}, errors.ConfigError, '>= 0'),
    (["FixedReplayREMAgent.backup='x'"], {}, errors.ConfigError, 'backup'),
    ([], {'gin_files': ['no.gin']}, errors.ConfigError, 'no.gin'),
    (
      [],
      {'gin_files': ['minatar/protocol.gin']},
      errors.ConfigError,
      'method',
    ),
    (['FixedReplayRunner.log_period=3'], {}, errors.ConfigError, 'multiple'),
    (
      ["create_minatar_lanes.game_name='pong'"],
      {},
      errors.ConfigError,
      'pong',
    ),
    ([], {'replay_dir': '/nowhere/1'}, errors.DataError, '/nowhere/1'),
    # Seaquest has 10 channels, the log 4.
    (
      ["create_minatar_lanes.game_name='seaquest'"],
      {},
      errors.DataError,
      'another game',
    ),
  ],
)
def test_bad_input_is_named(
  train_here, tmp_path, bindings, kwargs, error, named
):
  base_dir = tmp_path / 'run'
  with pytest.raises(error, match=named):
    train_here(base_dir, *bindings, **kwargs)
  assert not (base_dir / run_directory.CONFIG).exists()
  assert not (base_dir / run_directory.METRICS).exists()


@pytest.mark.parametrize(
  ('binding', 'wanted'),
  [
    ("FixedReplayRunner.num_gradient_steps = 'many'", 'a whole number >= 1'),
    ('FixedReplayRunner.num_gradient_steps = -5', 'a whole number >= 1'),
    ('FixedReplayRunner.num_gradient_steps = 1e3', 'a whole number >= 1'),
    ('FixedReplayRunner.async_evaluation = 1', 'True or False'),
    ('tf.train.AdamOptimizer.learning_rate = -1', 'a number > 0'),
    ('FixedReplayREMAgent.gamma = 1.5', 'a number in [0, 1]'),
    ("FeatureDotPenalty.coefficient = float('nan')", 'no gin'),
    ('FeatureDotPenalty.coefficient = -1e-9', 'a number >= 0'),
    ('FeatureDotPenalty.coefficient = 1e999', 'a number >= 0'),
    ('Subset.fraction = 0', 'a number in (0, 1]'),
    ('create_minatar_lanes.num_lanes = 0', 'a whole number >= 1'),
  ],
)
def test_a_number_out_of_range_leaves_base_dir_untouched(
  train_here, tmp_path, binding, wanted
):
  base_dir = tmp_path / 'run'
  with pytest.raises(errors.ConfigError) as raised:
    train_here(base_dir, binding)
  message = errors.one_line(raised.value)
  assert wanted in message
  if wanted != 'no gin':
    name = binding.partition(' =')[0].replace('tf.train.', '')
    assert f'{name} is ' in message
  assert not base_dir.exists()


def empty(folder):
  for path in folder.iterdir():
    path.unlink()


def lose_a_file(folder):
  (folder / '$store$_action_ckpt.1.gz').unlink()


def truncate(folder):
  path = folder / '$store$_observation_ckpt.1.gz'
  path.write_bytes(path.read_bytes()[:-20])


def corrupt(folder):
  path = folder / '$store$_reward_ckpt.0.gz'
  content = bytearray(path.read_bytes())
  content[-6] ^= 1  # in gzip's checksum
  path.write_bytes(bytes(content))


def put_a_pickle(folder):
  with gzip.open(folder / '$store$_terminal_ckpt.0.gz', 'wb') as file:
    pickle.dump([0] * 100, file)


@pytest.mark.parametrize(
  ('damage', 'named'),
  [
    (empty, 'replay_logs'),
    (lose_a_file, r'action_ckpt\.1\.gz'),
    (truncate, r'observation_ckpt\.1\.gz'),
    (corrupt, r'reward_ckpt\.0\.gz'),
    (put_a_pickle, r'terminal_ckpt\.0\.gz'),
  ],
)
def test_damaged_data_is_named(train_here, replay_dir, tmp_path, damage, named):
  damaged = tmp_path / 'data' / '1'
  shutil.copytree(replay_dir, damaged)
  damage(damaged / 'replay_logs')
  with pytest.raises(errors.DataError, match=named):
    train_here(tmp_path / 'run', replay_dir=str(damaged))
  assert not (tmp_path / 'run' / run_directory.METRICS).exists()


def test_an_unwritable_base_dir_is_named(train_here, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.WriteError, match='file/run'):
    train_here(tmp_path / 'file' / 'run')


def start_and_wait(command, base_dir, gradient_steps):
  """Starts a command and returns once it has logged so many steps."""
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline and process.poll() is None:
    rows = run_tables.read_rows(base_dir / run_directory.METRICS)
    if rows and int(rows[-1]['gradient_steps']) >= gradient_steps:
      return process
    time.sleep(0.002)
  out, err = process.communicate()
  raise AssertionError(f'ended before step {gradient_steps}: {out}{err}')


def final_weights(base_dir):
  import tensorflow as tf

  reader = tf.compat.v1.train.NewCheckpointReader(
    str(base_dir / 'checkpoints' / 'tf_ckpt-1')
  )
  return {
    name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
  }


def test_killed_anywhere_a_run_ends_bit_for_bit_the_same(
  train_command, run, tmp_path
):
  """SIGTERM, then SIGKILL, then a rerun, against an undisturbed run."""
  straight, disturbed = tmp_path / 'straight', tmp_path / 'disturbed'
  steps = ('FixedReplayRunner.num_gradient_steps=600',)
  result = run(train_command(straight, *steps))
  assert result.returncode == 0, result.stderr

  # How often is saved is no part of what a run is.
  often = 'FixedReplayRunner.checkpoint_every_minutes=0.05'
  command = train_command(disturbed, *steps, often)
  rng = random.Random(time.time_ns())
  process = start_and_wait(command, disturbed, rng.randrange(50, 400))
  process.send_signal(signal.SIGTERM)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == errors.PreemptedError.exit_code, stderr
  assert 'the same command goes on from there' in stderr
  assert 'Traceback' not in stderr

  process = start_and_wait(command, disturbed, rng.randrange(610, 1100))
  process.kill()
  process.communicate()
  assert not (disturbed / run_directory.FINISHED).exists()

  result = run(command)
  assert result.returncode == 0, result.stderr
  expected, actual = final_weights(straight), final_weights(disturbed)
  assert expected.keys() == actual.keys()
  assert expected['gradient_steps'] == 1200
  for name in expected:
    np.testing.assert_array_equal(expected[name], actual[name], err_msg=name)
  assert read(straight / 'scores.csv') == read(disturbed / 'scores.csv')
  for a, b in zip(
    read(straight / 'metrics.csv'), read(disturbed / 'metrics.csv'), strict=True
  ):
    a.pop('gradient_steps_per_second'), b.pop('gradient_steps_per_second')
    assert a == b

  result = run(command)
  assert result.returncode == 0
  assert 'is finished: 2 iterations, 1,200 gradient steps' in result.stdout


@pytest.mark.slow
def test_errors_of_the_command_are_one_line_and_a_code(
  train_command, run, tmp_path
):
  missing = run(train_command(tmp_path / 'run', replay_dir='/nowhere'))
  assert missing.returncode == 65
  announcement, message = missing.stderr.split('\n', maxsplit=1)
  assert announcement == 'Starting TensorFlow...'
  assert message.startswith('train: ')
  assert message.count('\n') == 1
  unknown = run([*train_command(tmp_path / 'run'), '--no_such_flag'])
  assert unknown.returncode == 64
  assert unknown.stderr.count('\n') == 1
  debug = run(
    train_command(tmp_path / 'r', replay_dir='/nowhere', flags=['--debug'])
  )
  assert debug.returncode == 65
  assert 'Traceback' in debug.stderr


def test_help_reads_like_documentation(train_command, run):
  result = run([*train_command('x')[:3], '--help'])
  assert result.returncode == 0
  for expected in (
    '--base_dir',
    '--gin_files',
    '--gin_bindings',
    '--replay_dir',
    '--seed',
    '--[no]debug',
    'Exit codes',
  ):
    assert expected in result.stdout
