"""Every gin file of d4rl/: it parses, has a header, and says what it says."""

import re

import gin
import pytest

from batch_rl_dr3.config import cli, frameworks, gin_files
from batch_rl_dr3.control import (
  brac_agent,
  collection,  # noqa: F401
  cql_agent,
  networks,
  tasks,
)
from batch_rl_dr3.sweeping import grid
from batch_rl_dr3.training import control as runner  # noqa: F401

FOLDER = gin_files.shipped_configs() / 'd4rl'
FILES = sorted(p.name for p in FOLDER.glob('*.gin'))
EXPERIMENTS = [
  name for name in FILES if name.startswith(('cql', 'brac', 'collect'))
]
FAMILIES = {'antmaze', 'kitchen', 'full-replay', 'mujoco'}


def test_all_experiments_are_there():
  expected = {
    f'{method}_dr3_{family}.gin'
    for method, families in (
      ('cql', FAMILIES - {'mujoco'}),
      ('brac', {'mujoco'}),
    )
    for family in families
  }
  assert {n for n in EXPERIMENTS if 'collect' not in n} == expected


@pytest.mark.parametrize(
  'name', [n for n in EXPERIMENTS if re.search('full-replay|mujoco', n)]
)
def test_a_method_takes_data_of_ones_own(name):
  cli.load_gin([f'd4rl/{name}', 'own/continuous.gin'], [])
  assert gin.query_parameter('ContinuousRunner.dataset') == 'own'
  assert gin.query_parameter('ControlData.fraction') == 1.0
  method = name.removesuffix('.gin').rpartition('_')[0]
  assert gin.query_parameter('ContinuousRunner.method') == method


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_binds_what_its_name_says(name):
  cli.load_gin([f'd4rl/{name}'], [])
  text = (FOLDER / name).read_text()
  for part in ('Command:', 'Expected:', 'Time:', name):
    assert part in text
  bound = gin.query_parameter
  if name.startswith('collect'):
    assert bound('collect_control.game') in name
    return
  method, _, family = name.removesuffix('.gin').rpartition('_')
  assert bound('ContinuousRunner.method') == method
  # The command says what is left open, with a game of the family.
  game = re.search(r"ContinuousRunner\.game='([a-z0-9-]+)'", text)[1]
  assert game in {g for g, layout in tasks.TASKS if layout != tasks.COG}
  assert game.startswith(family) or game == 'hopper'
  for parameter in ('game', 'dataset'):
    is_open = f'ContinuousRunner.{parameter}=' in text
    if is_open:
      with pytest.raises(ValueError):
        bound(f'ContinuousRunner.{parameter}')
    else:
      assert bound(f'ContinuousRunner.{parameter}')
  agent = 'DR3BracAgent' if 'brac' in method else 'DR3CqlSacAgent'
  assert len(bound(f'{agent}.penalties')) == 1
  expected = 1.0 if family == 'kitchen' else 0.001
  assert bound('FeatureDotPenalty.coefficient') == expected
  # The header says what trains without DR3.
  assert f'{agent}.penalties=[]' in text
  base = re.search(r"ContinuousRunner\.method='(\w+)'", text)[1]
  assert f'{base}_dr3' == method
  if family == 'antmaze':
    assert bound('ControlData.reward_scale') == 4.0
    assert bound('ControlData.reward_shift') == -0.5
    assert bound('DR3CqlSacAgent.cql_tau') == 5.0


@pytest.mark.parametrize(
  ('name', 'bindings', 'create'),
  [
    ('cql_dr3_antmaze.gin', [], cql_agent.create_cql_agent),
    (
      'cql_dr3_full-replay.gin',
      ['DR3CqlSacAgent.penalties=[]'],
      cql_agent.create_cql_agent,
    ),
    ('brac_dr3_mujoco.gin', [], brac_agent.create_brac_agent),
  ],
)
def test_an_experiment_builds_its_agent(name, bindings, create):
  cli.load_gin([f'd4rl/{name}'], bindings)
  agent = create(spaces=networks.Spaces(5, 2), seed=0)
  assert len(agent.penalties) == (not bindings)


def test_dispatch_follows_includes():
  for name in EXPERIMENTS:
    assert frameworks.is_continuous(cli.gin_text([f'd4rl/{name}'], []))
  for name in ('atari/cql_dr3_1pct.gin', 'collect/freeway_scripted.gin'):
    assert not frameworks.is_continuous(cli.gin_text([name], []))
  text = cli.gin_text(['minatar/rem.gin'], ['ContinuousRunner.game = "hopper"'])
  assert frameworks.is_continuous(text)


@pytest.mark.parametrize('method', ['cog', 'cog_dr3'])
@pytest.mark.parametrize('size', [[], ['cog/small.gin']])
def test_cogs_files_build_their_agents(method, size):
  cli.load_gin([f'cog/{method}.gin', *size], [])
  text = (FOLDER.parent / f'cog/{method}.gin').read_text()
  for part in ('Command:', 'Expected:', 'Time:', f'{method}.gin'):
    assert part in text
  assert gin.query_parameter('ContinuousRunner.method') == method
  agent = cql_agent.create_cog_agent(
    spaces=networks.Spaces((48, 48, 3), 8), seed=0
  )
  assert [p.coefficient for p in agent.penalties] == (
    [0.001] if method == 'cog_dr3' else []
  )
  num_weights = agent.critics[0].count_params()
  assert (num_weights == 3_029_985) == (not size)


def test_the_drawers_play_is_collected():
  cli.load_gin(['cog/collect_drawer.gin'], ['collect_scripted.noise = 0.2'])
  game = gin.query_parameter('collect_control.game')
  assert tasks.find(game, tasks.COG).suite == 'cog'


def test_the_sweeps_bind_games_data_and_methods():
  for name, number in (('cog_figure3', 48), ('cog_smoke', 12)):
    gin.clear_config()
    cli.load_gin([f'sweeps/{name}.gin'], [])
    runs = grid.Sweep().runs()
    assert len(runs) == number
    for run in runs:
      share = {'5pct': 0.05, '25pct': 0.25}[run.dataset]
      assert run.bound['ImageData.fraction'] == share
      assert run.bound['ImageData.fraction_seed'] == run.seed
      tasks.find(run.bound['ContinuousRunner.game'], tasks.COG)
