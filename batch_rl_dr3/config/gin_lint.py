"""Looks at gin configurations before they are parsed: to parse is to execute.

A gin file can import any module, and with dynamic registration call any
function, such as `@os.system`. Here a file is only read, and everything that
it includes with it.
"""

from collections.abc import Iterable, Iterator, Sequence
import pathlib
import sys
from typing import Any, NoReturn

from batch_rl_dr3.config import errors, gin_statements

# What a configuration may import: these, and what is inside them.
ALLOWED_IMPORTS = ('batch_rl_dr3', 'dopamine', 'tensorflow', 'tf_agents')
_MEND = (
  'Remove the line; or, if you wrote the file yourself and mean it, give '
  '--trust_gin.'
)


class _References(gin_statements.Names):
  """Takes note of references."""

  def __init__(self) -> None:
    self.found: list[str] = []

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> gin_statements.Name:
    """Notes a reference."""
    self.found.append(scoped_configurable_name)
    return super().configurable_reference(scoped_configurable_name, evaluate)


def check_files(
  paths: Sequence[str | pathlib.Path], search: Sequence[pathlib.Path] = ()
) -> None:
  """Makes sure that parsing files would execute nothing foreign.

  Args:
    paths: the files.
    search: folders in which gin looks for what is included.

  Raises:
    ConfigError: if one would, is no gin, or includes what is not there.
  """
  for path in paths:
    references = _References()
    _check(
      gin_statements.of_file(pathlib.Path(path), search, references),
      references,
    )


def check_text(
  text: str, origin: str, search: Sequence[pathlib.Path] = ()
) -> None:
  """Does the same for a text.

  Args:
    text: gin.
    origin: what messages call it.
    search: folders in which gin looks for what is included.

  Raises:
    ConfigError: see `check_files`.
  """
  references = _References()
  _check(gin_statements.of_text(text, origin, search, references), references)


def _check(
  statements: Iterator[tuple[str, Any]], references: _References
) -> None:
  for place, statement in statements:
    _check_references(references, place)
    if isinstance(statement, gin_statements.Import):
      _check_import(statement, place)


def _check_import(statement: gin_statements.Import, place: str) -> None:
  if statement.module.split('.')[0] == '__gin__':
    _refuse(place, f'{statement.format()!r} lets gin call any function')
  if not _is_inside(statement.module, ALLOWED_IMPORTS):
    _refuse(
      place,
      f'{statement.format()!r} executes a module that is not among '
      f'{", ".join(ALLOWED_IMPORTS)}',
    )


def _check_references(references: _References, place: str) -> None:
  for name in references.found:
    root = name.rpartition('/')[2].split('.')[0]
    # What a configuration names is registered by a module that was imported,
    # and nobody registers Python's own.
    if root in sys.stdlib_module_names or root in ('__builtin__', '__gin__'):
      _refuse(place, f'@{name} would call a function of Python itself')
  references.found.clear()


def _is_inside(module: str, packages: Iterable[str]) -> bool:
  return any(module == p or module.startswith(f'{p}.') for p in packages)


def _refuse(place: str, what: str) -> NoReturn:
  raise errors.ConfigError(f'{place}: {what}. {_MEND}')
