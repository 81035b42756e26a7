import gzip
import json
import os
import pathlib
import signal

import gin
import numpy as np
import pytest

from batch_rl_dr3 import collect
from batch_rl_dr3.config import cli, errors, gin_files
from batch_rl_dr3.games import collection
from batch_rl_dr3.replay.log import checkpoint_format, sources

pytestmark = pytest.mark.usefixtures('clear_gin')

MINATAR = 'collect/minatar_uniform.gin'
SMALL = [
  "create_minatar_lanes.game_name = 'breakout'",
  'collect.num_rows = 250',
  'collect.rows_per_file = 100',
]


def read(folder, name, suffix=0):
  with gzip.open(checkpoint_format.file_path(folder, name, suffix)) as file:
    return np.load(file)


def test_a_collection_is_whole_and_made_once(tmp_path, capsys):
  output_dir = tmp_path / 'made' / 'here'
  collect.collect_into(output_dir, [MINATAR], SMALL, seed=0)
  logs = output_dir / 'replay_logs'
  assert sources.FolderSource(logs).suffixes() == [0, 1, 2]
  summary = json.loads((output_dir / 'collection.json').read_text())
  assert summary['game']['name'] == 'breakout'
  assert summary['behaviour'] == 'UniformBehaviour'
  assert [f['num_rows'] for f in summary['files']] == [100, 100, 50]
  assert summary['num_episodes'] == sum(
    f['num_episodes'] for f in summary['files']
  )
  assert summary['versions']['ale-py'] == '0.12.1'
  assert 'UniformBehaviour' in summary['gin_operative_config']
  assert os.listdir(output_dir.parent) == ['here']
  # MinAtar's rewards are 0 or 1 and nothing is padded, so that the log's
  # rewards up to the last terminal are the returns.
  rewards = np.concatenate([read(logs, 'reward', n) for n in range(3)])
  terminals = np.concatenate([read(logs, 'terminal', n) for n in range(3)])
  last = np.flatnonzero(terminals)[-1]
  assert terminals.sum() == summary['num_episodes']
  assert rewards[: last + 1].sum() == pytest.approx(
    summary['return_mean'] * summary['num_episodes']
  )

  first = read(logs, 'observation')
  time = (output_dir / 'collection.json').stat().st_mtime_ns
  gin.clear_config()
  collect.collect_into(output_dir, [MINATAR], SMALL, seed=0)
  assert 'collected already' in capsys.readouterr().out
  assert (output_dir / 'collection.json').stat().st_mtime_ns == time

  gin.clear_config()
  with pytest.raises(errors.ConfigError, match='seed = 1'):
    collect.collect_into(output_dir, [MINATAR], SMALL, seed=1)
  gin.clear_config()
  collect.collect_into(output_dir, [MINATAR], SMALL, seed=1, overwrite=True)
  assert (read(logs, 'observation') != first).any()
  assert os.listdir(output_dir.parent) == ['here']
  gin.clear_config()
  collect.collect_into(output_dir, [MINATAR], SMALL, seed=0, overwrite=True)
  np.testing.assert_array_equal(read(logs, 'observation'), first)


def test_other_files_are_never_replaced(tmp_path):
  (tmp_path / 'mine').write_text('kept')
  with pytest.raises(errors.ConfigError, match='no collection'):
    collect.collect_into(tmp_path, [MINATAR], SMALL, seed=0, overwrite=True)
  assert os.listdir(tmp_path) == ['mine']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing_behind(tmp_path, number, monkeypatch):
  monkeypatch.setattr(cli, 'trusts_gin', lambda: True)  # Of Interrupted.

  class Interrupted(collection.UniformBehaviour):
    def step(self, reward, observation):
      os.kill(os.getpid(), number)
      return super().step(reward, observation)

  gin.external_configurable(Interrupted, f'Interrupted{number.name}')
  before = signal.getsignal(number)
  with pytest.raises(errors.PreemptedError, match='of 250 rows') as info:
    collect.collect_into(
      tmp_path / 'out',
      [MINATAR],
      [*SMALL, f'collect.behaviour = @Interrupted{number.name}'],
      seed=0,
    )
  assert info.value.exit_code == 75
  assert os.listdir(tmp_path) == []
  assert signal.getsignal(number) is before


def test_a_missing_binding_is_named(tmp_path):
  with pytest.raises(errors.ConfigError, match='game_name'):
    collect.collect_into(tmp_path / 'out', [MINATAR], [], seed=0)
  assert os.listdir(tmp_path) == []


def test_usage_errors_need_no_tensorflow(run_command):
  result = run_command('collect', f'--gin_files={MINATAR}')
  assert result.returncode == 64
  assert result.stderr.count('\n') == 1
  assert '--output_dir' in result.stderr


@pytest.mark.parametrize(
  'name',
  [
    path.name
    for path in sorted((gin_files.shipped_configs() / 'collect').iterdir())
  ],
)
def test_every_shipped_file_collects(tmp_path, name):
  game = (
    "create_minatar_lanes.game_name = 'asterix'"
    if name.startswith('minatar')
    else "atari_lib.create_atari_environment.game_name = 'Freeway'"
  )
  collect.collect_into(
    tmp_path / 'out',
    [str(pathlib.Path('collect') / name)],
    [
      game,
      'collect.num_rows = 40',
      'collect.rows_per_file = 20',
      'DQNAgent.min_replay_history = 25',
      'WrappedReplayBuffer.replay_capacity = 100',
    ],
    seed=0,
  )
  assert sources.FolderSource(tmp_path / 'out' / collect.LOGS).suffixes() == [
    0,
    1,
  ]
