import functools
import json
import shutil
import socket
import time

import pytest


@pytest.fixture
def run(run_command):
  return functools.partial(run_command, 'data')


def test_info_prints_a_line_a_file(run, replay_dir):
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


def test_a_url_is_read_like_a_folder(run, replay_dir):
  by_url = run(
    'info', f'--replay_dir=file://{replay_dir}/replay_logs', '--stack_size=1'
  )
  by_path = run('info', f'--replay_dir={replay_dir}', '--stack_size=1')
  assert by_url.returncode == 0, by_url.stderr
  assert by_url.stdout == by_path.stdout


def test_doctor_ends_with_65_where_there_are_faults(run, replay_dir):
  result = run(
    'doctor', f'--replay_dir={replay_dir}', '--stack_size=1', '--num_actions=2'
  )
  assert result.returncode == 65
  assert 'FAULT  file 0: action 5 in a game of 2 actions' in result.stdout
  assert result.stderr.count('\n') == 1


def test_a_missing_or_unknown_word_is_a_usage_error(run):
  for arguments in ((), ('cure',), ('info', 'more'), ('info',)):
    result = run(*arguments)
    assert result.returncode == 64, arguments
    assert result.stderr.startswith('data: ')


def test_convert_writes_files_of_another_length(run, replay_dir, tmp_path):
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


def test_convert_reads_a_minari_data_set_by_its_folder_or_its_id(
  run, replay_dir, tmp_path, monkeypatch
):
  pytest.importorskip('minari')
  monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
  play = (f'--replay_dir={replay_dir}', '--stack_size=1', '--num_actions=6')
  assert run('convert', *play, '--minari_id=test/play-v0').returncode == 0
  written = tmp_path / 'minari' / 'test' / 'play-v0'
  for name in ('test/play-v0', str(written)):
    shutil.rmtree(tmp_path / 'log', ignore_errors=True)
    result = run(
      *('convert', f'--minari={name}', '--stack_size=1'),
      f'--output_dir={tmp_path / "log"}',
    )
    assert (result.returncode, result.stderr) == (0, ''), result.stderr
    assert '14 episodes' in result.stdout
  (
    tmp_path / 'minari' / 'test' / 'play-v0' / 'data' / 'main_data.hdf5'
  ).write_bytes(b'no HDF5')
  broken = run(
    'convert', '--minari=test/play-v0', f'--output_dir={tmp_path / "c"}'
  )
  assert broken.returncode == 65
  assert broken.stderr.count('\n') == 1
  assert (
    run('convert', '--minari=test/play-v0', '--minari_id=c').returncode == 64
  )


def test_convert_wants_one_target(run, replay_dir):
  result = run('convert', f'--replay_dir={replay_dir}')
  assert result.returncode == 64
  result = run('convert', f'--replay_dir={replay_dir}', '--minari_id=a/b-v0')
  assert result.returncode == 64
  assert '--num_actions' in result.stderr


def test_verify_finds_a_flipped_bit(run, replay_dir, tmp_path):
  from batch_rl_dr3.replay.store import store, subset

  store.open_store(
    replay_dir, tmp_path, subset.Subset('all'), (10, 10, 4), 6, 1
  )
  [folder] = [p for p in tmp_path.iterdir() if (p / 'manifest.json').exists()]
  assert run('verify', f'--store={folder}').returncode == 0
  largest = max(
    (p for p in folder.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[-1] ^= 1
  largest.write_bytes(bytes(content))
  damaged = run('verify', f'--store={folder}')
  assert damaged.returncode == 65
  assert damaged.stderr.count('\n') == 1


@pytest.mark.parametrize('where', ['', 'replay_logs'])
def test_what_was_collected_says_its_stack_size(
  run, replay_dir, tmp_path, where
):
  folder = tmp_path / 'play'
  shutil.copytree(replay_dir, folder)
  explicit = run('info', f'--replay_dir={folder}', '--stack_size=1')
  stacked = run('info', f'--replay_dir={folder}')
  assert stacked.stdout != explicit.stdout
  game = {'game': {'stack_size': 1, 'num_actions': 2}}
  (folder / 'collection.json').write_text(json.dumps(game))
  noted = run('info', f'--replay_dir={folder / where}')
  assert (noted.returncode, noted.stdout) == (0, explicit.stdout)
  doctor = run('doctor', f'--replay_dir={folder / where}')
  assert 'action 5 in a game of 2 actions' in doctor.stdout
  for damage in ('{', '[]', '{"game": {"stack_size": "1"}}', '[' * 10**5):
    (folder / 'collection.json').write_text(damage)
    result = run('info', f'--replay_dir={folder / where}')
    assert result.returncode == 65
    assert 'collection.json' in result.stderr
    assert result.stderr.count('\n') == 1


def test_no_game_is_a_usage_error(run):
  start = time.monotonic()
  for name in ('Pogn', 'pong'):
    result = run('plan', f'--game={name}')
    assert result.returncode == 64
    assert 'Is Pong meant?' in result.stderr
  assert time.monotonic() - start < 30


def test_a_plan_gives_up_soon_where_nothing_answers(run):
  with socket.socket() as silent:  # It takes connections and says nothing.
    silent.bind(('127.0.0.1', 0))
    silent.listen()
    endpoint = f'http://127.0.0.1:{silent.getsockname()[1]}'
    start = time.monotonic()
    result = run(
      'plan',
      '--game=Pong',
      f'--gin_bindings=FsspecSource.endpoint_url="{endpoint}"',
      f'--gin_bindings=RluSource.endpoint_url="{endpoint}"',
    )
    assert time.monotonic() - start < 30
  assert result.returncode == 65
  lines = result.stderr.splitlines()
  for line, name in zip(
    lines, ('gs://atari-replay-datasets', 'gs://rl_unplugged'), strict=False
  ):
    assert name in line
    assert 'out of reach' in line
  assert 'no source gives the data' in lines[-1]
