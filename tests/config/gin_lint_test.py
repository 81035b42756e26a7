import os
import pathlib

import pytest

from batch_rl_dr3.config import cli, errors, gin_lint


def write(folder, **texts):
  for name, text in texts.items():
    (folder / f'{name}.gin').write_text(text)
  return folder / 'a.gin'


@pytest.mark.parametrize(
  ('text', 'line', 'named'),
  [
    ('import os\n', 1, "'import os' executes a module"),
    ('A.b = 1\n\nfrom os import system\n', 3, 'from os import system'),
    ('import tensorflow_evil\n', 1, 'tensorflow_evil'),
    ('# one\nimport dopamine.x\nimport subprocess as tf\n', 3, 'subprocess'),
    ('from __gin__ import dynamic_registration\n', 1, 'any function'),
    ('A.b = @os.system()\n', 1, '@os.system would call'),
    ('A.b = [\n  1,\n  {2: @scope/subprocess.run}]\n', 1, 'subprocess.run'),
    ('A:\n  b = 1\n  c = @builtins.eval()\n', 1, 'builtins.eval'),
    ('m = @shutil.rmtree\n', 1, 'shutil.rmtree'),
    ("include 'nowhere.gin'\n", 1, "no file 'nowhere.gin'"),
    ('A.b = \n', 1, 'no gin'),
  ],
)
def test_what_would_execute_foreign_code_is_refused(
  tmp_path, text, line, named
):
  path = write(tmp_path, a=text)
  with pytest.raises(errors.ConfigError) as raised:
    gin_lint.check_files([path])
  assert str(raised.value).startswith(f'{path}:{line}: ')
  assert named in str(raised.value)
  assert raised.value.exit_code == 78


def test_includes_are_followed_and_may_not_go_in_circles(tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  write(other, b="A.b = 1\ninclude 'c.gin'\n", c='\nimport ctypes\n')
  path = write(tmp_path, a="include 'b.gin'\n")
  with pytest.raises(errors.ConfigError, match=r'c\.gin:2: .*ctypes'):
    gin_lint.check_files([path], [other])
  write(other, c=f"include '{path}'")
  with pytest.raises(errors.ConfigError, match='includes itself'):
    gin_lint.check_files([path], [other])


def test_what_is_our_own_may_be_imported(tmp_path):
  text = (
    'import batch_rl_dr3.agents.rem\n'
    'from dopamine.discrete_domains import atari_lib\n'
    'import tensorflow\n'
    'import tf_agents.agents as agents\n'
    'A.b = (@atari_lib.create_atari_environment, @tf.train.AdamOptimizer())\n'
    'A.c = %macro\n'
  )
  gin_lint.check_files([write(tmp_path, a=text)])


def test_every_shipped_file_passes():
  folder = cli.shipped_configs()
  files = sorted(folder.rglob('*.gin'))
  assert len(files) > 30
  gin_lint.check_files(files, [folder])


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
