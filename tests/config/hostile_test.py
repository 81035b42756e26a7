"""Sixty hostile gin files and names: none is executed, none is a traceback."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest

IMPORTS = (
  'evil',
  'evil.inside',
  'dopamine.discrete_domains.gym_lib',
  'dopamine.discrete_domains.run_experiment',
  'dopamine.jax.agents.dqn.dqn_agent',
  'tf_agents.environments.suite_gym',
  'tensorflow.python.platform.app',
  'batch_rl_dr3x',
  'os',
  'gin.tf.external_configurables',
)
REFERENCES = (
  '@evil.run()',
  '@os.system()',
  '@builtins.exec()',
  '@suite_gym.load()',
  '@tf_agents.environments.suite_gym.load()',
  '@suite_atari.load()',
  '@suite_pybullet.load()',
  '@SavedModelPyTFEagerPolicy()',
  '@x/gin.macro()',
  '@gin.singleton()',
)
NAMES = (
  'evil:Foo',
  'evil.inside:Foo',
  ' evil:Foo',
  'evil: Foo',
  '../evil:Foo',
  'x/../evil:Foo',
  'evil',
  '../evil',
  '__import__("evil")',
  'gs:evil',
)
GAMES = (
  'atari_lib.create_atari_environment.game_name',
  'create_minatar_lanes.game_name',
)
SHAPES = (
  'A.b = ' + '[' * 3000 + ']' * 3000,
  'A.b = ' + '{1:' * 500 + '1' + '}' * 500,
  'A.b = (1,',
  'A.b = "\x00"',
  '\x00',
  'A.b = %A\nA = %B\nB = %A',
  "include 'a.gin'",
  "include '/etc/passwd'",
  "include '../../../../etc/passwd'",
  'A.b = ' + '9' * 5000,
)
FILES = [
  *(f'import {module}' for module in IMPORTS),
  *(f'FixedReplayRunner.create_lanes = {name}' for name in REFERENCES),
  *SHAPES,
]


def all_cases():
  """Texts of gin, each with the game that it is about."""
  cases = [('minatar', text) for text in FILES]
  for name, (k, game) in itertools.product(NAMES, enumerate(GAMES)):
    cases.append((('atari', 'minatar')[k], f'{game} = {name!r}'))
    if len(cases) % 2:
      cases.append((('atari', 'minatar')[k], f'X = {name!r}\n{game} = %X'))
  return cases


CASES = all_cases()


@pytest.mark.slow
@pytest.mark.parametrize('command', ['train', 'evaluate'])
def test_nothing_is_executed_and_nothing_is_a_traceback(command, tmp_path):
  assert len(CASES) >= 60
  for place in ('evil.py', 'evil/__init__.py', 'evil/inside.py', 'ALE/evil.py'):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
  for number, (suite, text) in enumerate(CASES):
    folder = tmp_path / f'case{number}'
    folder.mkdir()
    arguments = ARGUMENTS[command](folder, suite, text)
    result = subprocess.run(
      [sys.executable, '-m', f'batch_rl_dr3.{command}', *arguments],
      cwd=tmp_path,
      env={
        **os.environ,
        'PYTHONPATH': str(pathlib.Path(__file__).parent.parent.parent),
      },
      capture_output=True,
      text=True,
      check=False,
    )
    assert 'Traceback' not in result.stderr, (text, result.stderr)
    assert result.returncode in (64, 65, 78), (text, result.stderr)
    assert not (tmp_path / 'executed').exists(), text


def train_arguments(folder, suite, text):
  (folder / 'a.gin').write_text(text)
  method = {'atari': 'atari/rem_1pct.gin', 'minatar': 'minatar/rem.gin'}[suite]
  return [
    f'--gin_files={method}',
    f'--gin_files={folder / "a.gin"}',
    '--replay_dir=/nowhere',
    f'--base_dir={folder / "run"}',
    f'--cache_dir={folder / "cache"}',
  ]


def evaluate_arguments(folder, suite, text):
  """Returns the flags to evaluate a run directory that somebody sent."""
  lanes = f'create_{suite}_lanes'
  (folder / 'config.gin').write_text(
    f'FixedReplayRunner.create_lanes = @{lanes}\n'
    'FixedReplayRunner.agent = @FixedReplayDQNAgent\n'
    f'{text}\n'
  )
  (folder / 'provenance.json').write_text(
    json.dumps(
      {
        **{'suite': suite, 'game': 'pong', 'method': 'dqn', 'dataset': '1pct'},
        **{'seed': 0, 'run': 1, 'rom_md5': None, 'total_gradient_steps': 10},
        'protocol': {
          'num_evaluation_agent_steps': 10,
          'epsilon_eval': 0.001,
          'max_agent_steps_per_episode': 100,
        },
      }
    )
  )
  checkpoints = folder / 'checkpoints'
  checkpoints.mkdir()
  (checkpoints / 'tf_ckpt-0.index').write_bytes(b'x')
  digest = '2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881'
  (checkpoints / 'ckpt.0.json').write_text(
    json.dumps(
      {
        'name': '0',
        'gradient_steps': 10,
        'files': {'tf_ckpt-0.index': {'bytes': 1, 'sha256': digest}},
      }
    )
  )
  return [f'--checkpoints={folder}', f'--cache_dir={folder / "cache"}']


ARGUMENTS = {'train': train_arguments, 'evaluate': evaluate_arguments}
