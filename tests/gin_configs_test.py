"""Every shipped gin file: it parses, says what its name says, and builds."""

import pathlib
import re

import ale_py
import gin
import numpy as np
import pytest

from batch_rl_dr3.agents import bellman
from batch_rl_dr3.config import cli, gin_files
from batch_rl_dr3.games import (
  atari,  # noqa: F401
  collection,  # noqa: F401
  gymnasium_lanes,  # noqa: F401
  minatar,  # noqa: F401
)
from batch_rl_dr3.sweeping import grid  # noqa: F401
from batch_rl_dr3.training import discrete as runner

CONFIGS = gin_files.shipped_configs()
METHODS = ('dqn', 'rem', 'cql', 'dqn_dr3', 'rem_dr3', 'cql_dr3')
DATASETS = {
  '1pct': ('prefix', 0.01, 104),
  '5pct': ('prefix', 0.05, 200),
  'first10pct': ('first', 0.1, 200),
}
AGENTS = {
  'dqn': bellman.FixedReplayDQNAgent,
  'rem': bellman.FixedReplayREMAgent,
  'cql': bellman.FixedReplayQRCQLAgent,
  'dqn_cql': bellman.FixedReplayDQNAgent,
  'c51_cql': bellman.FixedReplayCategoricalAgent,
  'bc': bellman.FixedReplayBCAgent,
}
# Beside the paper's; those with DR3 are bindings of those without.
MORE_METHODS = ('dqn_cql', 'dqn_cql_dr3', 'c51_cql', 'c51_cql_dr3', 'bc')
ALPHA = {'1pct': 4.0, '5pct': 1.0, 'first10pct': 1.0}
DR3_COEFFICIENT = {'dqn': 0.1, 'rem': 0.001, 'cql': 0.03}


def all_files():
  """Returns all but those of continuous control (see tests/control/)."""
  files = (str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob('*.gin'))
  others = ('d4rl', 'cog', 'own/continuous')
  return sorted(name for name in files if not name.startswith(others))


def parse(name, *bindings):
  cli.load_gin([name], bindings)


def test_all_experiments_of_the_paper_are_there():
  expected = {f'atari/{m}_{d}.gin' for m in METHODS for d in DATASETS}
  assert expected <= set(all_files())


@pytest.mark.parametrize('name', all_files())
def test_a_file_parses_and_has_a_header(clear_gin, name):
  parse(name)
  text = (CONFIGS / name).read_text()
  assert text.startswith('# ')
  # What can be run says how, and how long it takes.
  if len(pathlib.PurePath(name).parts) == 2 and 'protocol' not in name:
    for part in ('Command:', 'Expected:', 'Time:'):
      assert part in text, f'{name} lacks {part}'


@pytest.mark.parametrize('dataset', DATASETS)
@pytest.mark.parametrize('method', METHODS)
def test_an_experiment_binds_what_its_name_says(clear_gin, method, dataset):
  parse(f'atari/{method}_{dataset}.gin')

  def bound(name):
    return gin.query_parameter(name)

  rule, fraction, num_iterations = DATASETS[dataset]
  assert bound('Subset.rule') == rule
  assert bound('Subset.fraction') == fraction
  assert bound('FixedReplayRunner.num_iterations') == num_iterations
  assert bound('FixedReplayRunner.dataset') == dataset
  assert bound('FixedReplayRunner.method') == method
  assert bound('FixedReplayRunner.num_gradient_steps') == 62_500
  assert bound('FixedReplayRunner.num_evaluation_agent_steps') == 125_000
  assert bound('tf.train.AdamOptimizer.learning_rate') == 5e-5
  assert bound('FixedReplayBuffer.batch_size') == 32
  base = method.removesuffix('_dr3')
  if base == 'cql':
    assert bound('ConservativePenalty.coefficient') == ALPHA[dataset]
  if method.endswith('_dr3'):
    assert bound('FeatureDotPenalty.coefficient') == DR3_COEFFICIENT[base]


def test_own_data_change_a_method_of_minatar(clear_gin):
  cli.load_gin(['minatar/cql_dr3.gin', 'own/discrete.gin'], [])
  network = gin.query_parameter('OfflineAgent.network')
  assert network.selector.endswith('MLPNetwork')
  assert gin.query_parameter('FixedReplayRunner.method') == 'cql_dr3'


@pytest.mark.parametrize('name', ['atari/cql_dr3_1pct.gin', 'minatar/rem.gin'])
def test_a_sweep_reads_what_gin_binds(clear_gin, name):
  parse(name)
  found = gin_files.read_bindings([name])
  assert len(found) > 20
  for parameter, value in found.items():
    bound = gin.query_parameter(parameter)
    if '@' in repr(value):  # References, which gin has resolved.
      bound, value = repr(bound), repr(value)
    assert bound == value


def test_the_17_games_are_games_of_the_emulator(clear_gin):
  parse('sweeps/dr3_atari17.gin')
  games = gin.query_parameter('Sweep.games')
  assert len(set(games)) == 17
  for game in games:
    rom = re.sub('(?<!^)(?=[A-Z])', '_', game).lower()
    assert rom in ale_py.roms.get_all_rom_ids()


@pytest.fixture(scope='module')
def freeway_dir(tmp_path_factory):
  from batch_rl_dr3.replay.log import log_writer

  folder = tmp_path_factory.mktemp('freeway')
  writer = log_writer.LogWriter(folder, (84, 84), 4, 60)
  for row in range(57):
    writer.add(np.zeros((84, 84), np.uint8), row % 3, 0.0, row == 40)
  writer.close()
  return folder


def _bound(suite, method, base):
  """Returns the file of another method, and what makes this one of it."""
  bindings = [f'FixedReplayRunner.method={method!r}']
  if base == 'bc':
    bindings.append('FixedReplayRunner.agent=@FixedReplayBCAgent')
    return f'{suite}/dqn{"_1pct" if suite == "atari" else ""}.gin', bindings
  names = ['@ConservativePenalty()', '@FeatureDotPenalty()']
  if method == base:
    del names[1]
  bindings.append(f'{AGENTS[base].__name__}.penalties=[{", ".join(names)}]')
  file = 'minatar/dqn.gin' if suite == 'minatar' else f'atari/{base}_1pct.gin'
  return file, bindings


@pytest.mark.parametrize(
  'name',
  [f'atari/{m}_1pct.gin' for m in (*METHODS, *MORE_METHODS)]
  + [f'minatar/{m}.gin' for m in (*METHODS, *MORE_METHODS[:2], 'bc')],
)
def test_a_method_builds_its_agent(
  session, clear_gin, tmp_path, freeway_dir, replay_dir, cache_dir, name
):
  """A class with **kwargs takes any binding until it is built."""
  suite = name.split('/')[0]
  bindings = {
    'atari': [
      "atari_lib.create_atari_environment.game_name='Freeway'",
      'create_atari_lanes.num_lanes=1',
      "Subset.rule='all'",
      'Subset.fraction=1.0',
    ],
    'minatar': ["create_minatar_lanes.game_name='breakout'"],
  }[suite]
  method = pathlib.PurePath(name).stem.removesuffix('_1pct')
  base = method.removesuffix('_dr3')
  file, further = name, ()
  if not (CONFIGS / name).exists():
    file, further = _bound(suite, method, base)
  parse(
    file,
    *bindings,
    *further,
    'FixedReplayRunner.subset=@Subset()',
    "FixedReplayRunner.dataset='all'",
  )
  run = runner.FixedReplayRunner(
    base_dir=str(tmp_path / 'run'),
    replay_dir=str(freeway_dir if suite == 'atari' else replay_dir),
    cache_dir=str(cache_dir),
  )
  agent = run._agent
  assert isinstance(agent, AGENTS[base])
  expected_penalties = (['conservative'] if 'cql' in base else []) + (
    ['feature_dot_product'] if method.endswith('_dr3') else []
  )
  assert [p.name for p in agent.penalties] == expected_penalties
  assert agent.gamma == 0.99
  num_atoms = {'rem': 200, 'cql': 200, 'c51_cql': 51}
  assert agent.num_atoms == num_atoms.get(base, 1)
