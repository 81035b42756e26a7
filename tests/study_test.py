"""The study command, in this process, on runs of a second."""

import csv
import dataclasses

import numpy as np
from PIL import Image
import pytest

from batch_rl_dr3 import study
from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory
from batch_rl_dr3.studies import trained

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


def test_a_study_trains_tabulates_and_draws(command, tmp_path, monkeypatch):
  figure1 = trained.STUDIES['figure1']
  sarsa = dataclasses.replace(figure1, variants=figure1.variants[1:2])
  monkeypatch.setitem(trained.STUDIES, 'figure1', sarsa)
  command('figure1', tmp_path)
  run = tmp_path / 'breakout/sarsa/seed0'
  assert (run / run_directory.FINISHED).exists()
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
  assert capsys.readouterr().out.count('is finished') == 4
  # Other settings are other runs, and are refused there.
  with pytest.raises(errors.ConfigError):
    command(
      'figure1',
      tmp_path,
      gin_bindings=[*TINY, 'tf.train.AdamOptimizer.learning_rate=0.1'],
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(trained.STUDIES) - {'figure1'}))
def test_every_other_study_trains_and_draws(command, tmp_path, name):
  command(name, tmp_path)
  about = trained.STUDIES[name]
  table = rows(tmp_path / f'{name}.csv')
  assert {row['method'] for row in table} == set(about.methods)
  assert {row['quantity'] for row in table} == set(about.quantities)
  check_figure(tmp_path / f'{name}.png')
  if name == 'figure2':
    # It begins where the run with DR3 ended.
    source, started = (
      rows(tmp_path / f'breakout/{method}/seed0/metrics.csv')
      for method in ('dqn_cql_dr3', 'from_dr3_cql')
    )
    assert float(started[0]['mean_q']) == pytest.approx(
      float(source[-1]['mean_q']), rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['figure1', 'figure6'])  # DQN, QR-DQN.
def test_layers_are_set_back(command, tmp_path, name):
  # Runs that learn nothing end with what they began with.
  still = [*TINY, 'tf.train.AdamOptimizer.learning_rate=0.0']
  command(name, tmp_path, gin_bindings=still)
  command('figure_a2', tmp_path / 'a2', runs=[f'{tmp_path}/breakout/*/seed0'])
  table = rows(tmp_path / 'a2' / 'figure_a2.csv')
  num_methods = len(trained.STUDIES[name].methods)
  assert len(table) == num_methods * 3 * 2
  for row in table:
    changed = [float(row[n]) for n in ('q_change', 'actions_changed')]
    if row['kind'] == 'initial':
      assert changed == [0, 0]
      assert row['return'] == row['return_before']
    else:
      assert changed[0] > 0.01
  check_figure(tmp_path / 'a2' / 'figure_a2.png')


def test_every_study_has_a_command():
  assert set(study.TRAINED) == set(trained.STUDIES)


def test_games_and_their_data_come_in_pairs(command, tmp_path):
  with pytest.raises(errors.UsageError, match='as often'):
    command('figure1', tmp_path, game=['breakout', 'asterix'])
  with pytest.raises(errors.UsageError, match='--output_dir'):
    command('figure1', '')
  with pytest.raises(errors.UsageError, match='--runs'):
    command('figure_a2', tmp_path)
  with pytest.raises(errors.DataError, match='matches nothing'):
    command('figure1', tmp_path, draw_only=True)
