import os
import pathlib
import re

import pytest

from batch_rl_dr3.config import cli, errors, gin_files

PACKAGE = pathlib.Path(gin_files.__file__).parent.parent


def write(folder, **texts):
  for name, text in texts.items():
    (folder / f'{name}.gin').write_text(text)
  return folder / 'a.gin'


def check(path):
  gin_files.check(gin_files.statements_of_file(path))


@pytest.mark.parametrize(
  ('text', 'line', 'named'),
  [
    ('import os\n', 1, "'import os' executes a module"),
    ('A.b = 1\n\nfrom os import system\n', 3, 'from os import system'),
    ('import tensorflow_evil\n', 1, 'tensorflow_evil'),
    ('# one\nimport dopamine.x\nimport subprocess as tf\n', 2, 'dopamine.x'),
    ('# one\nimport subprocess as tf\n', 2, 'subprocess'),
    # What registers a function that imports what a binding says.
    ('import dopamine.discrete_domains.gym_lib\n', 1, 'another program'),
    ('import tensorflow.python.eager\n', 1, 'executes a module'),
    ('import tf_agents.environments.suite_gym\n', 1, 'executes a module'),
    ('A.b = @tf_agents.environments.suite_gym.load()\n', 1, '.load would call'),
    ('A.b = @load()\n', 1, '@load would call'),
    ('A.b = @SavedModelPyTFEagerPolicy()\n', 1, 'would call'),
    ('A.b = @x/gin.macro()\n', 1, 'gin.macro would call'),
    ('from __gin__ import dynamic_registration\n', 1, 'any function'),
    ('A.b = @os.system()\n', 1, '@os.system would call'),
    ('A.b = [\n  1,\n  {2: @scope/subprocess.run}]\n', 1, 'subprocess.run'),
    ('A:\n  b = 1\n  c = @builtins.eval()\n', 1, 'builtins.eval'),
    ('m = @shutil.rmtree\n', 1, 'shutil.rmtree'),
    ("A.game_name = 'evilmod:Foo'\n", 1, "'evilmod:Foo' may name a module"),
    ("m = ('x', {'k': ['evil.mod:Foo']})\n", 1, "'evil.mod:Foo'"),
    ("A.b = 'ALE/evil:Foo'\n", 1, "'ALE/evil:Foo'"),
    ("include 'nowhere.gin'\n", 1, "no file 'nowhere.gin'"),
    ('A.b = \n', 1, 'no gin'),
    ('A.b = (1,\n', 1, 'no gin'),
    (f'A.b = {"[" * 41}{"]" * 41}\n', 1, 'nested deeper than 40'),
    (f'A.b = {"(" * 5000}1{")" * 5000}\n', 1, ''),
    (f'A.b = {"{1:" * 2000}1{"}" * 2000}\n', 1, ''),
  ],
)
def test_what_would_execute_foreign_code_is_refused(
  tmp_path, text, line, named
):
  path = write(tmp_path, a=text)
  with pytest.raises(errors.ConfigError) as raised:
    check(path)
  assert str(raised.value).startswith(f'{path}:{line}: ')
  assert named in str(raised.value)
  assert raised.value.exit_code == 78


# As Dopamine, batch_rl and the Atari code of CQL publish them.
@pytest.mark.parametrize(
  ('module', 'counterpart'),
  [
    ('gin.tf.external_configurables', 'remove the line'),
    ('dopamine.agents.dqn.dqn_agent', 'FixedReplayDQNAgent'),
    ('dopamine.jax.agents.dqn.dqn_agent', 'atari/dqn_1pct.gin'),
    ('dopamine.jax.agents.quantile.quantile_agent', 'FixedReplayQRCQLAgent'),
    ('dopamine.tf.agents.rainbow.rainbow_agent', 'no Rainbow'),
    (
      'dopamine.tf.agents.implicit_quantile.implicit_quantile_agent',
      'no IQN',
    ),
    ('dopamine.discrete_domains.run_experiment', 'FixedReplayRunner'),
    ('dopamine.replay_memory.prioritized_replay_buffer', 'Subset'),
    ('dopamine.continuous_domains.run_experiment', 'FixedReplayRunner'),
    ('batch_rl.fixed_replay.agents.dqn_agent', 'FixedReplayDQNAgent'),
    (
      'batch_rl.fixed_replay.agents.multi_head_dqn_agent',
      'FixedReplayREMAgent',
    ),
    ('batch_rl.fixed_replay.agents.quantile_agent', 'atari/cql_1pct.gin'),
    ('batch_rl.fixed_replay.replay_memory.fixed_replay_buffer', 'Subset'),
    ('batch_rl.baselines.agents.random_agent', 'UniformBehaviour'),
  ],
)
def test_other_programs_imports_are_told_their_counterpart(
  tmp_path, module, counterpart
):
  path = write(tmp_path, a=f'# theirs\nimport {module}\nA.b = 1\n')
  with pytest.raises(errors.ConfigError) as raised:
    check(path)
  message = str(raised.value)
  assert message.startswith(f"{path}:2: 'import {module}' is for another")
  assert counterpart in message
  assert 'trust_gin' not in message
  for name in re.findall(r'\S+\.gin\b', message.partition(': ')[2]):
    assert (gin_files.shipped_configs() / name).is_file()


def test_includes_are_followed_and_may_not_go_in_circles(tmp_path, monkeypatch):
  other = tmp_path / 'other'
  other.mkdir()
  monkeypatch.setattr(gin_files, 'shipped_configs', lambda: other)
  write(other, b="A.b = 1\ninclude 'c.gin'\n", c='\nimport ctypes\n')
  path = write(tmp_path, a="include 'b.gin'\n")
  with pytest.raises(errors.ConfigError, match=r'c\.gin:2: .*ctypes'):
    check(path)
  write(other, c=f"include '{path}'")
  with pytest.raises(errors.ConfigError, match='includes itself'):
    check(path)


def test_what_is_our_own_may_be_imported(tmp_path):
  text = (
    'import batch_rl_dr3.agents.bellman\n'
    'from dopamine.discrete_domains import atari_lib\n'
    'import tensorflow\n'
    'import tf_agents.agents as agents\n'
    'A.b = (@atari_lib.create_atari_environment, @tf.train.AdamOptimizer())\n'
    'A.c = %macro\n'
    "A.d = ('gs://bucket/x', 'minari:D4RL/x', '/data/10:30', 'a = b:c')\n"
  )
  check(write(tmp_path, a=text))


def test_every_shipped_file_passes():
  folder = gin_files.shipped_configs()
  files = sorted(folder.rglob('*.gin'))
  assert len(files) > 30
  for path in files:
    check(path)


def test_whatever_the_package_registers_may_be_referenced():
  registered = {
    name
    for path in PACKAGE.rglob('*.py')
    for name in re.findall(
      r'^@gin\.configurable(?:\([^)]*\))?\n(?:@.*\n)*(?:class|def) (\w+)',
      path.read_text(),
      re.MULTILINE,
    )
  }
  assert len(registered) > 30
  assert registered <= gin_files.ALLOWED_REFERENCES


def test_nothing_is_executed_unless_it_is_trusted(
  tmp_path, clear_gin, monkeypatch
):
  module = tmp_path / 'foreign.py'
  module.write_text(f'open({str(tmp_path / "done")!r}, "w").close()\n')
  monkeypatch.syspath_prepend(tmp_path)
  path = write(tmp_path, a='import foreign\n')
  for files, bindings in (([str(path)], []), ([], ['import foreign'])):
    with pytest.raises(errors.ConfigError, match='foreign'):
      cli.load_gin(files, bindings)
    with pytest.raises(errors.ConfigError, match='foreign'):
      cli.gin_text(files, bindings)
  assert not os.path.exists(tmp_path / 'done')
  monkeypatch.setattr(cli, 'trusts_gin', lambda: True)
  cli.load_gin([str(path)], [])
  assert pathlib.Path(tmp_path / 'done').exists()
