"""What importing the package and its door to Dopamine does."""

import os
import subprocess
import sys

import pytest


def run_python(code, **environment):
  env = {k: v for k, v in os.environ.items() if k != 'TF_USE_LEGACY_KERAS'}
  return subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=False,
    env={**env, **environment},
  )


def test_importing_the_package_selects_legacy_keras_and_no_tensorflow():
  result = run_python(
    'import batch_rl_dr3, os, sys;'
    'print(os.environ["TF_USE_LEGACY_KERAS"], "tensorflow" in sys.modules)'
  )
  assert result.stdout == '1 False\n'


def test_tensorflow_imported_first_is_an_error_that_says_what_to_do():
  first = 'import sys, types; sys.modules["tensorflow"] = types.ModuleType("t")'
  result = run_python(f'{first}; import batch_rl_dr3')
  assert 'Import batch_rl_dr3 before tensorflow' in result.stderr
  result = run_python(f'{first}; import batch_rl_dr3', TF_USE_LEGACY_KERAS='1')
  assert result.returncode == 0


@pytest.mark.parametrize(
  'command',
  [
    *('train', 'evaluate', 'collect', 'data', 'report', 'select', 'sweep'),
    *('study', 'benchmark'),
  ],
)
def test_help_needs_nothing_that_takes_a_second_to_import(command):
  result = run_python(
    'import sys, runpy;'
    'slow = ("tensorflow", "pandas", "matplotlib", "scipy", "jax");'
    'sys.modules.update(dict.fromkeys(slow));'
    f'sys.argv = ["{command}", "--help"];'
    f'runpy.run_module("batch_rl_dr3.{command}", run_name="__main__")',
    TF_USE_LEGACY_KERAS='1',
  )
  assert result.returncode == 0, result.stderr
  assert f'python -m batch_rl_dr3.{command}' in result.stdout
  assert '--[no]debug' in result.stdout


@pytest.mark.slow
def test_another_version_of_dopamine_is_refused():
  result = run_python(
    'import importlib.metadata as m, batch_rl_dr3;'
    'm.version = lambda name: "4.0.0";'
    'from batch_rl_dr3.config import dopamine_compat'
  )
  assert 'dopamine-rl 4.0.0 is installed' in result.stderr


def test_dopamine_runs_in_graph_mode_with_its_optimisers_in_gin(clear_gin):
  from batch_rl_dr3.config import dopamine_compat  # noqa: F401

  # isort: split
  import gin
  import tensorflow as tf

  assert not tf.executing_eagerly()
  optimizer = gin.get_configurable('tf.train.AdamOptimizer')(0.1)
  assert isinstance(optimizer, tf.compat.v1.train.AdamOptimizer)
