"""How a command ends, whatever happens to it."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from batch_rl_dr3.config import errors

# A command whose body is in the environment.
COMMAND = """\
import os, sys
from batch_rl_dr3.config import cli, errors
cli.run(lambda: exec(os.environ['BODY']), 'usage')
"""


def start(body, **kwargs):
  return subprocess.Popen(
    [sys.executable, '-c', COMMAND],
    env={**os.environ, 'BODY': textwrap.dedent(body)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_75_one_line_and_cleans_up(number):
  process = start("""
    import time
    try:
      print('works', flush=True)
      time.sleep(30)
    finally:
      print('cleaned')
  """)
  assert process.stdout.readline() == 'works\n'
  process.send_signal(number)
  output, message = process.communicate(timeout=120)
  assert (process.returncode, output) == (75, 'cleaned\n')
  assert message == (
    f'-c: stopped by {number.name}; rerun the same command to resume.\n'
  )


@pytest.mark.parametrize('command', ['report', 'select', 'data', 'sweep'])
@pytest.mark.parametrize('seconds', [0.08, 0.4])
def test_a_signal_while_modules_are_imported_is_75(command, seconds, tmp_path):
  flag = {'data': '--replay_dir', 'sweep': '--runs'}.get(command, '--runs')
  process = subprocess.Popen(
    # The interpreter's own start, before any module of ours, is Python's.
    [sys.executable, '-X', 'importtime', '-m', f'batch_rl_dr3.{command}']
    + ['info'] * (command == 'data')
    + ['status'] * (command == 'sweep')
    + [f'{flag}={tmp_path}'],
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )
  lines = []
  for line in process.stderr:
    lines.append(line)
    if 'batch_rl_dr3.config.signals' in line:
      break
  time.sleep(seconds)
  process.send_signal(signal.SIGINT)
  rest = [
    line for line in process.stderr if not line.startswith('import time:')
  ]
  assert 'Traceback' not in ''.join(rest)
  if process.wait(20) == 75:
    assert rest[-1].endswith(
      'stopped by SIGINT; rerun the same command to resume.\n'
    )
    assert len(rest) == 1
  else:  # It was faster, and there was nothing to be found.
    assert process.returncode in (64, 65)


def test_a_signal_while_python_takes_itself_down_changes_nothing(tmp_path):
  # Objects that are still there are deleted when Python's handlers are gone.
  (tmp_path / 'sitecustomize.py').write_text(
    textwrap.dedent("""
    import os, signal, sys
    class Late:
      def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)
    sys.late = Late()
    """)
  )
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'batch_rl_dr3.report'),
      *(f'--runs={tmp_path}/none', f'--output_dir={tmp_path}/out'),
    ],
    env={**os.environ, 'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert process.returncode in (64, 65), process.stderr
  assert 'stopped' not in process.stderr


def test_a_closed_pipe_ends_quietly():
  process = start("""
    for line in range(10**6):
      print(line)
  """)
  assert process.stdout.readline() == '0\n'
  process.stdout.close()
  assert process.stderr.read() == ''
  assert process.wait(20) == 73


def test_help_into_a_closed_pipe_ends_quietly():
  read, write = os.pipe()
  os.close(read)
  process = subprocess.run(
    [sys.executable, '-m', 'batch_rl_dr3.train', '--help'],
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(write)
  assert (process.returncode, process.stderr) == (73, '')


def test_a_full_disk_is_73_and_says_so():
  process = start(f"raise OSError({errno.ENOSPC}, 'x', 'runs/a')")
  _, message = process.communicate(timeout=120)
  assert process.returncode == 73
  assert message == '-c: No space left on device (runs/a).\n'


def test_an_error_of_gin_can_be_sent_to_another_process():
  class Made(errors.ConfigError):
    pass

  error = errors.picklable(Made("x\n  In call to configurable 'y'"))
  assert type(error) is errors.ConfigError
  assert str(error) == 'x'


def test_a_disk_that_is_full_at_a_checkpoint_is_told_without_the_graph():
  import tensorflow as tf

  from batch_rl_dr3.config import frameworks

  trace = 'x; No space left on device\n\t [[node save/SaveV2]]' * 50
  full = tf.errors.ResourceExhaustedError(None, None, trace)
  assert frameworks.disk_error(full).strerror == 'No space left on device'
  other = tf.errors.UnknownError(None, None, 'x: I/O error\n[[node]]')
  assert frameworks.disk_error(other).strerror == 'x: I/O error'


def test_too_little_address_space_is_said_before_tensorflow_starts():
  """It ended in a segmentation fault of TensorFlow's."""
  code = """
    import resource
    from batch_rl_dr3.config import cli, frameworks
    resource.setrlimit(resource.RLIMIT_AS, (5 << 29, resource.RLIM_INFINITY))
    cli.run(lambda: frameworks.import_tensorflow(announce=True), '')
  """
  result = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 78
  assert result.stderr.count('\n') == 1
  assert '2.5 GiB of address space' in result.stderr
  assert 'ulimit -v unlimited' in result.stderr
