import subprocess
import sys


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'batch_rl_dr3.data', *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def test_info_prints_a_line_a_file(replay_dir):
  result = run('info', f'--replay_dir={replay_dir}', '--stack_size=1')
  assert (result.returncode, result.stderr) == (0, '')
  head, first, second, total = result.stdout.splitlines()
  assert head.split()[:3] == ['file', 'rows', 'sampleable']
  assert first.split()[:2] == ['0', '100']
  assert second.split()[:2] == ['1', '100']
  # 13 episodes of 15 steps; the first, and the one across the files, are not
  # counted.
  assert total.split()[:2] == ['all', '200']
  assert total.split()[3:5] == ['11', '15.0']


def test_doctor_ends_with_65_where_there_are_faults(replay_dir):
  result = run(
    'doctor', f'--replay_dir={replay_dir}', '--stack_size=1', '--num_actions=2'
  )
  assert result.returncode == 65
  assert 'FAULT  file 0: action 5 in a game of 2 actions' in result.stdout
  assert result.stderr.count('\n') == 1


def test_a_missing_or_unknown_word_is_a_usage_error():
  for arguments in ((), ('cure',), ('info', 'more'), ('info',)):
    result = run(*arguments)
    assert result.returncode == 64, arguments
    assert result.stderr.startswith('data: ')


def test_convert_writes_files_of_another_length(replay_dir, tmp_path):
  arguments = (
    'convert',
    f'--replay_dir={replay_dir}',
    f'--output_dir={tmp_path}',
    '--stack_size=1',
    '--rows_per_file=80',
  )
  result = run(*arguments)
  assert (result.returncode, result.stderr) == (0, '')
  assert '14 episodes' in result.stdout
  assert len(list((tmp_path / 'replay_logs').glob('add_count*'))) == 3
  again = run(*arguments)
  assert again.returncode == 73
  assert again.stderr.count('\n') == 1


def test_convert_wants_one_target(replay_dir):
  result = run('convert', f'--replay_dir={replay_dir}')
  assert result.returncode == 64
  result = run('convert', f'--replay_dir={replay_dir}', '--minari_id=a/b-v0')
  assert result.returncode == 64
  assert '--num_actions' in result.stderr
