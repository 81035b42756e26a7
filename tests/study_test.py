"""The study command, in this process, on runs of a second."""

import csv
import dataclasses
import os

import numpy as np
from PIL import Image
import pytest

from batch_rl_dr3 import study
from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import words
from batch_rl_dr3.runs import run_directory

TINY = (
  'create_minatar_lanes.num_lanes=2',
  'FixedReplayRunner.num_iterations=2',
  'FixedReplayRunner.num_gradient_steps=6',
  'FixedReplayRunner.num_evaluation_agent_steps=20',
  'FixedReplayRunner.max_agent_steps_per_episode=20',
  'FixedReplayRunner.log_period=3',
  'FixedReplayRunner.effective_rank_period=3',
  'FixedReplayRunner.effective_rank_num_states=64',
  'FixedReplayREMAgent.num_heads=3',
  'FixedReplayQRCQLAgent.num_quantiles=3',
)
# What is drawn of each study.
METHODS = {
  'figure1': ('regression', 'sarsa', 'td', 'q_learning'),
  'figure2': ('from_dr3_dqn', 'from_dr3_cql'),
  'figure5': (
    *('dqn', 'dqn_dr3', 'dqn_rank', 'rem', 'rem_dr3', 'rem_rank'),
    *('cql', 'cql_dr3', 'cql_rank'),
  ),
  'figure6': ('cql', 'cql_dr3', 'cql_label_noise'),
  'table_a1': (
    *('cql', 'cql_dr3', 'cql_dr3_stop_gradient', 'cql_dr3_same_action'),
  ),
  'adaptive': (
    *('dqn', 'dqn_dr3', 'dqn_c0.001_dr3', 'dqn_c0.01_dr3'),
    *('dqn_adaptive', 'dqn_adaptive_c0'),
  ),
}


@pytest.fixture
def command(clear_gin, replay_dir, cache_dir, monkeypatch):
  """Runs a study with the flags it is given."""
  from absl import flags

  if 'output_dir' not in flags.FLAGS:
    study.define_flags()

  def command(name, output_dir, **given):
    values = {
      'output_dir': str(output_dir),
      'game': ['breakout'],
      'dataset': 'all',
      'num_seeds': 1,
      'replay_dir': [str(replay_dir)],
      'gin_bindings': list(TINY),
      'cache_dir': str(cache_dir),
      **given,
    }
    flags.FLAGS.unparse_flags()
    flags.FLAGS(['study'])
    for flag, value in values.items():
      monkeypatch.setattr(flags.FLAGS[flag], 'value', value)
    study.COMMANDS[name]()

  return command


def rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def check_figure(path):
  pixels = np.asarray(Image.open(path).convert('RGB'))
  assert min(pixels.shape[:2]) > 300
  assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.fixture
def only_sarsa(monkeypatch):
  load = study.load_sweep
  monkeypatch.setattr(
    study,
    'load_sweep',
    lambda name: dataclasses.replace(load(name), methods=('sarsa',)),
  )


def test_a_study_trains_tabulates_and_draws(command, tmp_path, only_sarsa):
  command('figure1', tmp_path)
  (run,) = tmp_path.glob('minatar/breakout/all/sarsa/seed0-*')
  assert (run / run_directory.FINISHED).exists()
  assert (tmp_path / 'report' / 'index.html').exists()
  table = rows(tmp_path / 'figure1.csv')
  assert [row['quantity'] for row in table] == ['feature_dot_product', 'mean_q']
  # The table has what the run says of its last step.
  last = rows(run / 'metrics.csv')[-1]
  row = table[0]
  assert (row['first_step'], row['last_step']) == ('0', '12')
  assert float(row['last']) == pytest.approx(float(last['feature_dot_product']))
  check_figure(tmp_path / 'figure1.png')
  before = (tmp_path / 'figure1.png').read_bytes()
  command('figure1', tmp_path, draw_only=True)
  assert (tmp_path / 'figure1.png').read_bytes() == before


def test_data_that_are_not_there_are_collected(
  command, tmp_path, replay_dir, only_sarsa, monkeypatch
):
  def collect_into(output_dir, gin_files, gin_bindings, seed):
    assert gin_files == ['collect/minatar_study.gin']
    assert gin_bindings == ["create_minatar_lanes.game_name='breakout'"]
    os.makedirs(os.path.dirname(output_dir))
    os.symlink(replay_dir, output_dir)

  monkeypatch.setattr(study.collect, 'collect_into', collect_into)
  monkeypatch.chdir(tmp_path)
  command('figure1', tmp_path / 'out', replay_dir=[])
  assert (tmp_path / 'runs/minatar/data/breakout/1').is_symlink()
  assert len(rows(tmp_path / 'out/figure1.csv')) == 2


def test_what_is_kept_is_drawn_without_being_trained(
  command, tmp_path, monkeypatch
):
  command(
    'figure1',
    tmp_path,
    game=[],
    replay_dir=[],
    dataset=None,
    num_seeds=None,
    gin_bindings=[],
    draw_only=True,
  )
  table = rows(tmp_path / 'figure1.csv')
  assert len(table) == 5 * 4 * 2
  assert {row['num_seeds'] for row in table} == {'3'}
  assert 'Four backups' in (tmp_path / 'report/index.html').read_text()


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again(command, tmp_path, capsys):
  command('figure1', tmp_path)
  assert [
    (row['method'], row['quantity']) for row in rows(tmp_path / 'figure1.csv')
  ] == [
    (method, quantity)
    for method in ('regression', 'sarsa', 'td', 'q_learning')
    for quantity in ('feature_dot_product', 'mean_q')
  ]
  capsys.readouterr()
  command('figure1', tmp_path)
  # Nothing is even begun.
  assert ' of 4: ' not in capsys.readouterr().out
  # Other settings are other runs, beside them, and the figure is of those.
  before = rows(tmp_path / 'figure1.csv')
  command(
    'figure1',
    tmp_path,
    gin_bindings=[*TINY, 'tf.train.AdamOptimizer.learning_rate=0.1'],
  )
  assert len(list(tmp_path.glob('minatar/breakout/all/*/seed0-*'))) == 8
  after = rows(tmp_path / 'figure1.csv')
  assert [row['num_seeds'] for row in after] == ['1'] * len(before)
  assert after != before


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(study.TRAINED) - {'figure1'}))
def test_every_other_study_trains_and_draws(command, tmp_path, name):
  command(name, tmp_path)
  table = rows(tmp_path / f'{name}.csv')
  drawn = set(METHODS[name])
  assert {row['method'] for row in table} == drawn
  assert {row['quantity'] for row in table} == set(
    words.entries(name, 'quantities')
  )
  check_figure(tmp_path / f'{name}.png')
  if name == 'figure2':
    # It begins where the run with DR3 ended.
    source, started = (
      rows(next(tmp_path.glob(f'minatar/breakout/all/{method}/*/metrics.csv')))
      for method in ('dqn_cql_dr3', 'from_dr3_cql')
    )
    assert float(started[0]['mean_q']) == pytest.approx(
      float(source[-1]['mean_q']), rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['figure1', 'figure6'])  # DQN, QR-DQN.
def test_layers_are_set_back(command, tmp_path, name):
  # In float32 the rate is 0: runs that learn nothing end as they began.
  still = [*TINY, 'tf.train.AdamOptimizer.learning_rate=1e-60']
  command(name, tmp_path, gin_bindings=still)
  command('figure_a2', tmp_path / 'a2', runs=[f'{tmp_path}/minatar/**'])
  table = rows(tmp_path / 'a2' / 'figure_a2.csv')
  assert len(table) == len(METHODS[name]) * 3 * 2
  for row in table:
    changed = [float(row[n]) for n in ('q_change', 'actions_changed')]
    if row['kind'] == 'initial':
      assert changed == [0, 0]
      assert row['return'] == row['return_before']
    else:
      assert changed[0] > 0.01
  check_figure(tmp_path / 'a2' / 'figure_a2.png')


def test_every_study_has_a_command():
  assert set(study.TRAINED) == set(METHODS)


def test_games_and_their_data_come_in_pairs(command, tmp_path):
  with pytest.raises(errors.UsageError, match='as often'):
    command('figure1', tmp_path, game=['breakout', 'asterix'])
  with pytest.raises(errors.UsageError, match='--output_dir'):
    command('figure1', '')
  with pytest.raises(errors.UsageError, match='--runs'):
    command('figure_a2', tmp_path)
  with pytest.raises(errors.DataError, match='matches nothing'):
    command('figure1', tmp_path, draw_only=True)
