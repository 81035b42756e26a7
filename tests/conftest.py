"""Fixtures that more than one folder of tests uses."""

import os
import pathlib
import subprocess
import sys

import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)

# isort: split
import gin
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# They take longest and so come first: at the end no core is to wait for them.
_LONG = ('train_test.py', 'continuous_test.py', 'evaluate_test.py')


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def session():
  """A session on a graph of its own, as TF1 code expects it."""
  import tensorflow as tf

  from batch_rl_dr3 import dopamine_compat  # noqa: F401

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    yield session


@pytest.fixture
def clear_gin():
  """Gin without bindings, before and after."""
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture(scope='session')
def replay_dir(tmp_path_factory):
  """200 random rows of MinAtar Breakout's shape, as DIR/1/replay_logs."""
  from batch_rl_dr3.replay import log_writer

  folder = tmp_path_factory.mktemp('breakout') / '1'
  writer = log_writer.LogWriter(folder / 'replay_logs', (10, 10, 4), 1, 100)
  rng = np.random.default_rng(0)
  for row in range(200):
    writer.add(
      rng.integers(0, 2, (10, 10, 4), dtype=np.uint8),
      int(rng.integers(6)),
      float(rng.integers(0, 2)),
      row % 15 == 14,
    )
  writer.close()
  return folder


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def tiny_bindings():
  """What makes minatar/rem_dr3.gin a run of a second."""
  return (
    "create_minatar_lanes.game_name='breakout'",
    'create_minatar_lanes.num_lanes=2',
    'FixedReplayRunner.num_iterations=2',
    'FixedReplayRunner.num_gradient_steps=30',
    'FixedReplayRunner.num_evaluation_agent_steps=40',
    'FixedReplayRunner.log_period=10',
    'FixedReplayRunner.effective_rank_period=10',
    'FixedReplayREMAgent.num_heads=5',
    'OfflineAgent.target_update_period=7',
  )


@pytest.fixture
def train_command(replay_dir, cache_dir, tiny_bindings):
  """Makes the command line of a tiny REM+DR3 run."""

  def make(base_dir, *bindings, replay_dir=replay_dir, flags=()):
    return [
      sys.executable,
      '-um',
      'batch_rl_dr3.train',
      '--gin_files=minatar/rem_dr3.gin',
      *(f'--gin_bindings={binding}' for binding in (*tiny_bindings, *bindings)),
      f'--replay_dir={replay_dir}',
      f'--base_dir={base_dir}',
      f'--cache_dir={cache_dir}',
      *flags,
    ]

  return make


@pytest.fixture
def run():
  """Runs a command and returns what it printed and its exit code."""

  def run(command):
    return subprocess.run(
      command,
      capture_output=True,
      text=True,
      check=False,
      cwd=ROOT,
      env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )

  return run
