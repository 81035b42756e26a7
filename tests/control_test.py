"""Runs the tests of continuous control, which need a process of their own.

They need TensorFlow's v2 behaviour; the other tests need it off.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent / 'control'


def run_tests(mark):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'pytest', '-n', '0', '-m', mark, str(FOLDER)),
    ],
    env={
      **os.environ,
      'BATCH_RL_DR3_CONTINUOUS_TESTS': '1',
      'OMP_NUM_THREADS': '1',
    },
    cwd=FOLDER.parent.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_continuous_control():
  run_tests('not slow')


@pytest.mark.slow
def test_continuous_control_slow():
  run_tests('slow')
