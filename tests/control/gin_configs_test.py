"""Every gin file of d4rl/: it parses, has a header, and says what it says."""

import gin
import pytest

from batch_rl_dr3.config import cli, frameworks, gin_files
from batch_rl_dr3.control import (
  agent_setups,
  collection,  # noqa: F401
  tasks,
)
from batch_rl_dr3.training import control as runner  # noqa: F401

FOLDER = gin_files.shipped_configs() / 'd4rl'
FILES = sorted(p.name for p in FOLDER.glob('*.gin'))
EXPERIMENTS = [
  name for name in FILES if name.startswith(('cql', 'brac', 'collect'))
]


def test_all_experiments_are_there():
  suffixes = ('', '_dr3')
  table2 = [g for g in tasks.GAMES if '-' in g]
  assert len(table2) == 7
  expected = {f'cql{s}_{game}.gin' for game in table2 for s in suffixes}
  for game in ('halfcheetah', 'hopper', 'walker2d'):
    for s in suffixes:
      expected.add(f'cql{s}_{game}-full-replay.gin')
      for data in (
        'random',
        'medium',
        'medium-replay',
        'medium-expert',
        'expert',
      ):
        expected.add(f'brac{s}_{game}-{data}.gin')
  assert {n for n in EXPERIMENTS if 'collect' not in n} == expected


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
  method, _, rest = name.removesuffix('.gin').rpartition('_')
  assert bound('ContinuousRunner.method') == method
  assert rest.startswith(bound('ContinuousRunner.game'))
  agent = 'DR3BracAgent' if 'brac' in method else 'DR3CqlSacAgent'
  if method.endswith('_dr3'):
    assert len(bound(f'{agent}.penalties')) == 1
    expected = 1.0 if 'kitchen' in rest else 0.001
    assert bound('FeatureDotPenalty.coefficient') == expected
  else:
    with pytest.raises(ValueError):
      bound(f'{agent}.penalties')
  if 'antmaze' in rest:
    assert bound('ControlData.reward_scale') == 4.0
    assert bound('ControlData.reward_shift') == -0.5
    assert bound('DR3CqlSacAgent.cql_tau') == 5.0


@pytest.mark.parametrize(
  ('name', 'create'),
  [
    ('cql_dr3_antmaze-medium-play.gin', agent_setups.create_cql_agent),
    ('cql_hopper-full-replay.gin', agent_setups.create_cql_agent),
    ('brac_dr3_hopper-medium.gin', agent_setups.create_brac_agent),
  ],
)
def test_an_experiment_builds_its_agent(name, create):
  cli.load_gin([f'd4rl/{name}'], [])
  agent = create(spaces=agent_setups.Spaces(5, 2), seed=0)
  assert len(agent.penalties) == ('dr3' in name)


def test_dispatch_follows_includes():
  for name in EXPERIMENTS:
    assert frameworks.is_continuous(cli.gin_text([f'd4rl/{name}'], []))
  for name in ('atari/cql_dr3_1pct.gin', 'collect/freeway_scripted.gin'):
    assert not frameworks.is_continuous(cli.gin_text([name], []))
  text = cli.gin_text(['minatar/rem.gin'], ['ContinuousRunner.game = "hopper"'])
  assert frameworks.is_continuous(text)
