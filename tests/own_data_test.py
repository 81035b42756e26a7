"""The commands of docs/own_data.md, as the page has them, made tiny."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest

PAGE = pathlib.Path(__file__).resolve().parent.parent / 'docs' / 'own_data.md'
BLOCKS = dict(
  re.findall(
    r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.M | re.S
  )
)
# What makes a command a matter of seconds, by what it binds already.
TINY = {
  'minatar/[a-z_]*dr3': [
    'FixedReplayRunner.num_iterations=2',
    'FixedReplayRunner.num_gradient_steps=10',
    'FixedReplayRunner.num_evaluation_agent_steps=50',
    'FixedReplayRunner.log_period=10',
    'FixedReplayRunner.effective_rank_period=10',
  ],
  'own/continuous': [
    'ContinuousRunner.num_iterations=2',
    'ContinuousRunner.num_gradient_steps=5',
    'ContinuousRunner.num_evaluation_episodes=1',
    'ContinuousRunner.log_period=5',
    'ContinuousRunner.effective_rank_period=5',
    'ContinuousRunner.batch_size=8',
  ],
  'num_cloning_steps': ['ContinuousRunner.num_cloning_steps=5'],
  'own/collect_discrete': ['collect.num_rows=300', 'collect.rows_per_file=300'],
  'collect_hopper': ['collect_control.num_rows=300'],
}


def run(title, code=0):
  command = shlex.split(BLOCKS[title].replace('\\\n', ''))
  for pattern, bindings in TINY.items():
    if re.search(pattern, BLOCKS[title]):
      command += [f'--gin_bindings={binding}' for binding in bindings]
  done = subprocess.run(
    [sys.executable, *command[1:]], capture_output=True, text=True, check=False
  )
  assert done.returncode == code, done.stderr
  return done


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty folder to work in, with caches of its own."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for title, text in BLOCKS.items():
    if title.endswith('.py'):
      pathlib.Path(title).write_text(text.replace('5000', '400'))
  return tmp_path


def test_nothing_on_the_page_is_left_untested():
  fences = re.findall('^```(.+)$', PAGE.read_text(), re.M)
  assert len(fences) == len(BLOCKS) == 10


@pytest.mark.slow
def test_cartpole_and_pendulum_from_nothing_to_a_report(folder):
  subprocess.run([sys.executable, 'make_data.py'], check=True)
  for title in ('train discrete', 'train continuous', 'train BRAC', 'report'):
    run(title)
  scores = pd.read_csv(folder / 'REPORT' / 'tables' / 'final_scores.csv')
  assert set(zip(scores['game'], scores['method'], strict=True)) == {
    ('CartPole-v1', 'cql_dr3'),
    ('Pendulum-v1', 'cql_dr3'),
    ('Pendulum-v1', 'brac_dr3'),
  }
  assert not [column for column in scores if 'normalised' in column]
  episodes = pd.read_csv(folder / 'RUNS/cartpole/cql_dr3/seed0/scores.csv')
  assert (episodes['return'] == episodes['length']).all()
  for other in ('rem', 'nope-v1'):  # Not the environment that was logged.
    BLOCKS['another'] = BLOCKS['train discrete'].replace('CartPole-v1', other)
    assert run('another', code=78).stderr.count('\n') <= 2
  del BLOCKS['another']


@pytest.mark.slow
def test_environments_are_played_and_logged(folder):
  for name in ('discrete', 'continuous'):
    run(f'collect {name}')
  run('collect an environment')
  run('train an environment')
  summary = json.loads((folder / 'DATA/corridor/collection.json').read_text())
  assert summary['game']['name'] == 'mine-Corridor-v0'
  provenance = folder / 'RUNS/corridor/dqn_dr3/seed0/provenance.json'
  recorded = json.loads(provenance.read_text())
  assert (recorded['suite'], recorded['game']) == (
    'gymnasium',
    'mine-Corridor-v0',
  )
