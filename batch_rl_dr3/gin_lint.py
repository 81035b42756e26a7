"""Looks at gin configurations before they are parsed: to parse is to execute.

A gin file can import any module, and with dynamic registration call any
function, such as `@os.system`. Here a file is only read, with gin's own
parser, and everything that it includes with it.
"""

from collections.abc import Iterable, Sequence
import pathlib
import sys
from typing import NoReturn

from gin import config_parser

from batch_rl_dr3 import errors

# What a configuration may import: these, and what is inside them.
ALLOWED_IMPORTS = ('batch_rl_dr3', 'dopamine', 'tensorflow', 'tf_agents')
_MEND = (
  'Remove the line; or, if you wrote the file yourself and mean it, give '
  '--trust_gin.'
)


class _References(config_parser.ParserDelegate):
  """Takes note of the references of one text, and resolves none."""

  def __init__(self) -> None:
    self.found: list[str] = []

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> str:
    """Notes a reference."""
    del evaluate
    self.found.append(scoped_configurable_name)
    return scoped_configurable_name

  def macro(self, macro_name: str) -> str:
    """Returns a macro's name: what it stands for is looked at by itself."""
    return macro_name


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
    _check_file(pathlib.Path(path), search, ())


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
  _check(text, origin, search, ())


def _check_file(
  path: pathlib.Path,
  search: Sequence[pathlib.Path],
  including: Sequence[pathlib.Path],
) -> None:
  try:
    text = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.ConfigError(f'cannot read {path}: {error}.') from error
  _check(text, str(path), search, (*including, path.resolve()))


def _check(
  text: str,
  origin: str,
  search: Sequence[pathlib.Path],
  including: Sequence[pathlib.Path],
) -> None:
  references = _References()
  try:
    parser = config_parser.ConfigParser(text, references)
    line = 1
    while True:
      line = parser.current_token.start[0]
      statement = parser.parse_statement()
      _check_references(references, origin, line)
      if statement is None:
        return
      line = statement.location.line_num
      if isinstance(statement, config_parser.ImportStatement):
        _check_import(statement, origin, line)
      elif isinstance(statement, config_parser.IncludeStatement):
        included = _find(statement.filename, origin, line, search)
        if included.resolve() in including:
          _refuse(origin, line, f'includes itself through {included}')
        _check_file(included, search, including)
  except SyntaxError as error:
    raise errors.ConfigError(
      f'{origin}:{error.lineno or line}: no gin: {error.msg}'
    ) from error


def _check_import(
  statement: config_parser.ImportStatement, origin: str, line: int
) -> None:
  if statement.module.split('.')[0] == '__gin__':
    _refuse(origin, line, f'{statement.format()!r} lets gin call any function')
  if not _is_inside(statement.module, ALLOWED_IMPORTS):
    _refuse(
      origin,
      line,
      f'{statement.format()!r} executes a module that is not among '
      f'{", ".join(ALLOWED_IMPORTS)}',
    )


def _check_references(references: _References, origin: str, line: int) -> None:
  for name in references.found:
    root = name.rpartition('/')[2].split('.')[0]
    # What a configuration names is registered by a module that was imported,
    # and nobody registers Python's own.
    if root in sys.stdlib_module_names or root in ('__builtin__', '__gin__'):
      _refuse(origin, line, f'@{name} would call a function of Python itself')
  references.found.clear()


def _find(
  name: str, origin: str, line: int, search: Iterable[pathlib.Path]
) -> pathlib.Path:
  """Returns what gin would include.

  It would look inside Python packages, too, and import them for that.
  """
  for path in (pathlib.Path(name), *(folder / name for folder in search)):
    if path.is_file():
      return path
  _refuse(origin, line, f'there is no file {name!r} to include')


def _is_inside(module: str, packages: Iterable[str]) -> bool:
  return any(module == p or module.startswith(f'{p}.') for p in packages)


def _refuse(origin: str, line: int, what: str) -> NoReturn:
  raise errors.ConfigError(f'{origin}:{line}: {what}. {_MEND}')
