import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import accelerator

FILE = pathlib.Path(accelerator.__file__)


def test_the_worst_difference_is_relative():
  assert accelerator.worst_difference(
    {'a': 2.2, 'b': 1.0}, {'a': 2.0, 'b': 1.0}
  ) == pytest.approx(0.1)


def test_operations_are_counted_by_name():
  hlo = '%a = f32[2]{0} fusion(%b), kind=kLoop\n%c = (s32[]) while(%d)\n'
  counted = accelerator.count_operations(hlo)
  assert (counted['fusion'], counted['while'], counted['dot']) == (1, 1, 0)


def test_arguments_that_are_alike_are_written_once(tmp_path):
  ones, zeros = np.ones(3, np.float32), np.zeros((2, 2), np.int64)
  accelerator._save_arguments(tmp_path, [ones, zeros, ones])
  recipe = json.loads((tmp_path / 'arguments.json').read_text())
  assert [entry.get('array') for entry in recipe] == ['0', None, '0']
  assert list(np.load(tmp_path / 'arguments.npz')) == ['0']


def test_a_rate_is_steps_a_second():
  calls = []
  found = accelerator.rate(calls.append, 7, seconds=0.01)
  assert set(calls) == {7}
  assert found['lowest'] <= found['steps_per_second'] <= found['highest']


@pytest.mark.slow
def test_exported_steps_equal_the_plain_ones_on_jax_alone(tmp_path):
  exported, table = tmp_path / 'exported', tmp_path / 'table.json'
  subprocess.run(
    [
      *(sys.executable, '-m', 'benchmarks.accelerator', 'export'),
      *(f'--output={exported}', '--platform=CPU', '--settings', 'rem_float32'),
    ],
    check=True,
    cwd=FILE.parent.parent,
  )
  alone = tmp_path / 'alone'
  alone.mkdir()
  (alone / FILE.name).write_text(FILE.read_text())
  subprocess.run(
    [
      *(sys.executable, FILE.name, 'run', str(exported)),
      *(f'--output={table}', '--seconds=0.1', '--steps_per_call', '1'),
    ],
    check=True,
    cwd=alone,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  (row,) = json.loads(table.read_text())
  assert row['method'] == 'rem_dr3'
  assert row['worst_loss_difference'] < 1e-5
  assert row['steps_per_second'] > 0
