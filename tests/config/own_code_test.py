"""Code of a user's own: found, executed once, and held against a run's."""

import hashlib
import sys

import gin
import pytest

from batch_rl_dr3.config import errors, gin_files, own_code
from batch_rl_dr3.runs import provenance

CODE = """
import gin

@gin.configurable
class Own{name}:
  def __init__(self, size=1):
    self.size = size

def helper():
  pass
"""


@pytest.fixture
def write(tmp_path):
  """Writes a file of code and returns its path; its module goes at the end."""
  before = {}

  def write(name, text):
    path = tmp_path / f'{name}.py'
    path.write_text(text)
    before.setdefault(name, sys.modules.get(name))
    return str(path)

  yield write
  own_code.load([])
  for name, module in before.items():
    sys.modules.pop(name, None)
    if module is not None:
      sys.modules[name] = module
    own_code._executed.pop(name, None)


def test_a_file_is_found_without_being_executed(write):
  text = CODE.format(name='Found') + 'raise AssertionError'
  (code,) = own_code.find([write('own_found', text)])
  assert code.name == 'own_found.py'
  assert code.sha256 == hashlib.sha256(text.encode()).hexdigest()
  assert code.definitions == {'OwnFound', 'helper'}
  assert 'own_found' not in sys.modules


def test_a_file_is_executed_once_and_anew_when_it_has_changed(write):
  path = write('own_once', CODE.format(name='Once'))
  own_code.load(own_code.find([path]))
  module = sys.modules['own_once']
  own_code.load(own_code.find([path]))
  assert sys.modules['own_once'] is module
  assert gin.get_configurable('OwnOnce')().size == 1
  write('own_once', CODE.format(name='Once').replace('size=1', 'size=2'))
  code = own_code.find([path])
  own_code.load(code)
  assert gin.get_configurable('OwnOnce')().size == 2
  assert own_code.loaded() == code
  own_code.load([])
  assert own_code.record(own_code.loaded()) == {}


def test_an_installed_module_is_named_as_it_is_imported():
  (code,) = own_code.find(['json.decoder'])
  assert code.name == code.module == 'json.decoder'
  assert 'JSONDecoder' in code.definitions
  own_code.load([code])
  own_code.load([])


@pytest.mark.parametrize(
  ('name', 'text', 'named'),
  [
    ('own_syntax', 'def f(:', 'invalid syntax'),
    ('own_error', 'x = {}["no"]', "KeyError: 'no'"),
    ('json', 'x = 1', "another module 'json'"),
  ],
)
def test_what_cannot_be_executed_is_named(write, name, text, named):
  before = sys.modules.get(name)
  path = write(name, text)
  with pytest.raises(errors.ConfigError, match=named) as raised:
    own_code.load(own_code.find([path]))
  assert f'{name}.py' in str(raised.value)
  assert sys.modules.get(name) is before


def test_what_is_not_there_is_named():
  with pytest.raises(errors.ConfigError, match=r'no_such\.py'):
    own_code.find(['no_such.py'])
  for name in ('no_such_module', 'no_such.module', 'sys', ''):
    with pytest.raises(errors.ConfigError, match='no such module'):
      own_code.find([name])


def test_two_files_of_one_name_are_refused(write, tmp_path):
  first = write('own_twice', 'x = 1')
  (tmp_path / 'other').mkdir()
  other = tmp_path / 'other' / 'own_twice.py'
  other.write_text('x = 1')
  assert len(own_code.find([first, first])) == 1
  with pytest.raises(errors.UsageError, match='two files own_twice'):
    own_code.find([first, str(other)])


def test_a_file_that_changed_since_it_was_found_is_refused(write):
  code = own_code.find([write('own_changed', 'x = 1')])
  write('own_changed', 'x = 2')
  with pytest.raises(errors.ConfigError, match='has changed since'):
    own_code.load(code)
  assert 'own_changed' not in sys.modules


def test_gin_may_reference_what_the_code_defines_and_nothing_else(write):
  code = own_code.find([write('own_gin', CODE.format(name='Gin'))])
  own = own_code.definitions(code)

  def check(text, own=()):
    gin_files.check(gin_files.statements_of_text(text, 'text'), own)

  check('A.b = @OwnGin()', own)
  for text in ('A.b = @Another()', 'import own_gin', "A.b = 'own:Gin'"):
    with pytest.raises(errors.ConfigError, match='--import=FILE'):
      check(text, own)
  with pytest.raises(errors.ConfigError, match='@OwnGin'):
    check('A.b = @OwnGin()')


def test_a_run_takes_the_code_that_it_was_made_with(write):
  code = own_code.find([write('own_a', 'x = 1'), write('own_b', 'x = 2')])
  assert own_code.matching({}, code, 'RUN') == ()
  sha256 = code[1].sha256
  assert own_code.matching({'own_b.py': sha256}, code, 'RUN') == code[1:]
  with pytest.raises(errors.ConfigError, match=r'RUN was .*--import=own_b\.py'):
    own_code.matching({'own_b.py': sha256}, code[:1], 'RUN')
  with pytest.raises(errors.ConfigError, match='made with another own_b'):
    own_code.matching({'own_b.py': '0' * 64}, code, 'RUN')


def test_a_run_with_code_is_not_the_run_without(tmp_path):
  record = {'method': 'dqn', 'game': 'pong', 'seed': 0, 'data_hash': 'abc'}
  provenance.claim(tmp_path, 'A.b = 1\n', {**record, 'imports': {}})
  provenance.claim(tmp_path, 'A.b = 1\n', record)  # As before there were any.
  own = {**record, 'imports': {'own.py': 'f' * 64}}
  with pytest.raises(
    errors.ConfigError,
    match=f'--import=own.py is None there and sha256 {"f" * 12} here',
  ):
    provenance.claim(tmp_path, 'A.b = 1\n', own)
