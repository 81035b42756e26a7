"""The recipes of docs/extending.md, as the page has them."""

import argparse
import hashlib
import json
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from batch_rl_dr3 import collect, select, train
from batch_rl_dr3.config import errors, own_code
from batch_rl_dr3.evaluation import targets
from batch_rl_dr3.runs import run_directory, run_tables

PAGE = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'extending.md'
BLOCKS = dict(
  re.findall(
    r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.M | re.S
  )
)
# What makes a run a matter of a second.
TINY = (
  'FixedReplayRunner.num_iterations=2',
  'FixedReplayRunner.num_gradient_steps=10',
  'FixedReplayRunner.num_evaluation_agent_steps=20',
  'FixedReplayRunner.max_agent_steps_per_episode=50',
  'FixedReplayRunner.log_period=10',
  'FixedReplayRunner.effective_rank_period=10',
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """An empty folder to work in, with the page's files as they are asked for."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def write(*titles):
  for title in titles:
    pathlib.Path(title).write_text(BLOCKS[title])


def words(title):
  """Returns a command of the page, as a shell would."""
  return shlex.split(BLOCKS[title].replace('\\\n', ''))


def arguments(title, program):
  """Returns the flags of a command of the page, which are all known."""
  command = words(title)
  assert command[:3] == ['python', '-m', f'batch_rl_dr3.{program}']
  parser = argparse.ArgumentParser(exit_on_error=False)
  for flag in ('import', 'gin_files', 'gin_bindings'):
    parser.add_argument(f'--{flag}', action='append', default=[])
  for flag in ('replay_dir', 'base_dir', 'output_dir'):
    parser.add_argument(f'--{flag}')
  return parser.parse_args(command[3:])


@pytest.fixture
def train_here(session, clear_gin, tmp_path_factory):
  """Runs a command of the page in this process, made tiny."""

  def train_here(title, *bindings):
    import gin
    import tensorflow as tf

    flags = arguments(title, 'train')
    gin.clear_config()
    with tf.Graph().as_default():
      train.train(
        flags.base_dir,
        flags.replay_dir,
        str(tmp_path_factory.getbasetemp() / 'extending_cache'),
        flags.gin_files,
        [*flags.gin_bindings, *TINY, *bindings],
        imports=own_code.find(getattr(flags, 'import')),
      )
    return pathlib.Path(flags.base_dir)

  return train_here


def metrics(run):
  rows = run_tables.read_rows(run / run_directory.METRICS)
  assert [row['gradient_steps'] for row in rows] == ['0', '10', '20']
  return rows


def copy_log(replay_dir, name):
  shutil.copytree(replay_dir, f'DATA/{name}/1')


def test_the_page_has_the_blocks_that_are_tested():
  assert set(BLOCKS) == {
    'my_penalties.py',
    'my_penalty.gin',
    'train a penalty',
    'evaluate a penalty',
    'my_agents.py',
    'my_agent.gin',
    'train an agent',
    'my_games.py',
    'collect a game',
    'train a game',
    'my_figure.py',
    'my_data.py',
    'train on data',
  }
  # Nothing on the page is left untested for want of a title.
  fences = re.findall('^```(.+)$', PAGE.read_text(), re.M)
  assert len(fences) == len(BLOCKS)


def test_a_penalty_of_ones_own(
  train_here, replay_dir, folder, monkeypatch, capsys
):
  copy_log(replay_dir, 'breakout')
  write('my_penalties.py', 'my_penalty.gin')
  run = train_here('train a penalty')
  # mean(1, 4, 9, 16) = 7.5
  module = sys.modules['my_penalties']
  import tensorflow as tf

  from batch_rl_dr3.agents import penalties

  fields = dict.fromkeys(penalties.UpdateBatch._fields)
  batch = penalties.UpdateBatch(
    **{**fields, 'q_values': tf.constant([[1.0, -2.0], [3.0, 4.0]])}
  )
  with tf.compat.v1.Session() as session:
    assert session.run(module.ValuePenalty()(batch)) == 7.5
  for row in metrics(run):
    assert float(row['loss_total']) == pytest.approx(
      float(row['loss_bellman'])
      + 0.03 * float(row['loss_feature_dot_product'])
      + 0.001 * float(row['loss_q_squared']),
      rel=1e-5,
    )
  assert float(row['loss_q_squared']) > 0
  sha256 = hashlib.sha256(BLOCKS['my_penalties.py'].encode()).hexdigest()
  provenance = json.loads((run / run_directory.PROVENANCE).read_text())
  assert provenance['imports'] == {'my_penalties.py': sha256}

  scores = (run / run_directory.SCORES).read_text()
  (run / run_directory.SCORES).unlink()
  command = [sys.executable, *words('evaluate a penalty')[1:]]
  without = [word for word in command if not word.startswith('--import')]
  refused = subprocess.run(without, capture_output=True, text=True, check=False)
  assert refused.returncode == errors.ConfigError.exit_code
  assert refused.stderr.count('\n') == 1
  assert '--import=my_penalties.py' in refused.stderr
  subprocess.run(command, capture_output=True, check=True)
  assert (run / run_directory.SCORES).read_text() == scores

  changed = BLOCKS['my_penalties.py'] + '\n'
  pathlib.Path('my_penalties.py').write_text(changed)
  # The page's own command: its file is the first difference that is named.
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
  refused = subprocess.run(
    [sys.executable, *words('train a penalty')[1:]],
    capture_output=True,
    text=True,
    check=False,
  )
  assert refused.returncode == errors.ConfigError.exit_code
  assert 'holds another run: --import=my_penalties.py is' in refused.stderr
  with pytest.raises(errors.ConfigError, match='made with another my_penalti'):
    targets.of_run(run, imports=own_code.find(['my_penalties.py']))

  pathlib.Path('my_penalties.py').write_text('raise SystemExit("executed")')
  select.select(['RUNS/**'])
  assert 'dqn_small_q' in capsys.readouterr().out


def test_an_agent_of_ones_own(train_here, replay_dir):
  copy_log(replay_dir, 'breakout')
  write('my_agents.py', 'my_agent.gin')
  run = train_here('train an agent')
  assert float(metrics(run)[-1]['loss_bellman']) > 0
  config = (run / run_directory.CONFIG).read_text()
  assert 'ExpectileAgent.tau = 0.9' in config
  assert run_tables.read_rows(run / run_directory.SCORES)


def test_a_game_of_ones_own(train_here):
  write('my_games.py')
  flags = arguments('collect a game', 'collect')
  collect.collect_into(
    flags.output_dir,
    flags.gin_files,
    [*flags.gin_bindings, 'collect.num_rows=300', 'collect.rows_per_file=300'],
    seed=0,
    imports=own_code.find(getattr(flags, 'import')),
  )
  summary = json.loads(
    pathlib.Path(flags.output_dir, collect.SUMMARY).read_text()
  )
  assert summary['game']['name'] == 'corridor'
  assert list(summary['imports']) == ['my_games.py']
  # An episode ends at the right end alone, which is worth 1.
  assert summary['return_mean'] == 1.0
  run = train_here('train a game')
  metrics(run)
  provenance = json.loads((run / run_directory.PROVENANCE).read_text())
  assert provenance['suite'] == 'mine'
  assert provenance['protocol']['corridor_version'] == 1
  (first, *_) = run_tables.read_rows(run / run_directory.SCORES)
  assert first['game'] == 'corridor'


def test_a_lane_of_the_game(session):
  write('my_games.py')
  own_code.load(own_code.find(['my_games.py']))
  lanes = sys.modules['my_games'].create_corridor_lanes(num_lanes=3)
  which = np.array([0, 2])
  assert lanes.reset(which).shape == (2, 10, 10, 1)
  for _ in range(8):
    step = lanes.step(which, np.array([1, 0]))
    assert not step.terminals.any()
  step = lanes.step(which, np.array([1, 0]))
  np.testing.assert_array_equal(step.rewards, [1, 0])
  np.testing.assert_array_equal(step.game_over, [True, False])
  np.testing.assert_array_equal(
    np.argmax(step.observations[:, 0, :, 0], 1), [9, 0]
  )


def test_data_of_ones_own_and_a_figure(train_here):
  rng = np.random.default_rng(0)
  np.savez(
    'my_data.npz',
    observations=rng.integers(0, 2, (200, 10, 10, 4), dtype=np.uint8),
    actions=rng.integers(0, 6, 200),
    rewards=rng.integers(0, 2, 200).astype(np.float32),
    terminals=np.arange(200) % 15 == 14,
  )
  write('my_data.py', 'my_figure.py')
  runpy.run_path('my_data.py')
  run = train_here('train on data')
  metrics(run)
  provenance = json.loads((run / run_directory.PROVENANCE).read_text())
  assert provenance['run'] == 1
  assert provenance['imports'] == {}

  import matplotlib.pyplot as plt

  runpy.run_path('my_figure.py')
  (curve,) = plt.gcf().axes[0].lines
  rows = run_tables.read_rows(run / run_directory.METRICS)
  np.testing.assert_allclose(
    curve.get_ydata(), [float(row['feature_dot_product']) for row in rows]
  )
  assert curve.get_label() == 'dqn_dr3 (mean)'
  plt.close('all')
  assert pathlib.Path('my_figure.png').stat().st_size > 1000
