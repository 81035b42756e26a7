"""What keeps the package easy to find one's way in, held by numbers."""

import ast
import collections
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'batch_rl_dr3'
COMMANDS = {
  *('train', 'evaluate', 'collect', 'data', 'report', 'select', 'sweep'),
  *('study', 'benchmark', 'diagnose', 'export', '__init__', '_version'),
}


def _name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts).removesuffix('.__init__')


@pytest.fixture(scope='module')
def modules():
  """Returns the syntax tree of every module, by name."""
  return {_name(p): ast.parse(p.read_text()) for p in PACKAGE.rglob('*.py')}


def test_nothing_but_commands_stands_at_the_top():
  assert {path.stem for path in PACKAGE.glob('*.py')} <= COMMANDS


def test_no_class_name_stands_twice(modules):
  places = collections.defaultdict(list)
  for name, tree in modules.items():
    for node in tree.body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
        places[node.name].append(name)
  assert {n: found for n, found in places.items() if len(found) > 1} == {}


def test_no_circle_of_imports_even_inside_functions(modules):
  imports = {
    name: {
      f'{node.module}.{alias.name}'
      if f'{node.module}.{alias.name}' in modules
      else node.module
      for node in ast.walk(tree)
      if isinstance(node, ast.ImportFrom) and node.module
      for alias in node.names
    }
    & set(modules)
    for name, tree in modules.items()
  }
  remaining = dict(imports)
  # What imports nothing that remains is on no circle.
  while free := [n for n, on in remaining.items() if not on & set(remaining)]:
    for name in free:
      del remaining[name]
  assert sorted(remaining) == []


@pytest.mark.parametrize('name', ['README.md', 'ARCHITECTURE.md'])
def test_a_page_is_a_page(name):
  assert len((ROOT / name).read_text().splitlines()) <= 150


def test_results_are_three_files_a_study():
  if not (ROOT / '.git').exists():
    pytest.skip('not a git checkout')
  listed = subprocess.run(
    ['git', 'ls-files', 'results'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert len(listed.stdout.split()) <= 60
