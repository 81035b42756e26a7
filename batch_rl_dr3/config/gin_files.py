"""Gin files, read and checked without resolving or executing what they name.

Parsing a gin file executes it: gin imports any module and calls any function
that a file references. Here gin's own parser reads a file and what it includes,
one statement at a time, with references and macros left as text: `check`
refuses what would execute foreign code, and `read_bindings` tells a sweep a
thousand runs in a second without TensorFlow.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
import functools
import pathlib
import re
import tomllib
from typing import Any, NoReturn

from gin import config_parser

from batch_rl_dr3.config import errors

Binding = config_parser.BindingStatement

_RULES: dict[str, Any] = tomllib.loads(
  (pathlib.Path(__file__).parent / 'gin_rules.toml').read_text()
)
# Modules that a configuration may import, beside those of this package; what it
# may reference; and what stands here in the place of other programs' modules.
ALLOWED_IMPORTS = tuple(_RULES['imports'])
ALLOWED_REFERENCES = frozenset[str]().union(*_RULES['references'].values())
_COUNTERPARTS: dict[str, str] = _RULES['counterparts']
_OTHER_PROGRAMS = ('batch_rl', 'dopamine', 'gin')
_OUR_PACKAGE = __name__.partition('.')[0]

# What may stand before a colon in a bound text: Gymnasium and others import
# the module of 'module:Name'.
_SCHEMES = r'(?:abfs|az|file|gcs|gs|hf|https?|memory|s3)://|minari:'
_MODULE_AND_NAME = re.compile(rf'(?!(?:{_SCHEMES}))\s*[A-Za-z_][\w./-]*:')
# Lists and dicts in each other. Python's own limit comes at some 90.
_MAX_DEPTH = 40
_MEND = (
  'Remove the line; or name code of your own by --import=FILE.py; or, if you '
  'wrote the gin file yourself and mean it, give --trust_gin.'
)


def shipped_configs() -> pathlib.Path:
  """Returns the folder of the gin files that ship with the package."""
  package = pathlib.Path(__file__).resolve().parent.parent
  installed = package / 'gin_configs'
  return installed if installed.is_dir() else package.parent / 'gin_configs'


def find(name: str, place: str = '') -> str:
  """Returns the path of a gin file, named by it or as a shipped file.

  `place` is that of the statement which includes it. ConfigError if there is
  none.
  """
  bare = name if place else name.removeprefix('gin_configs/')
  for candidate in (pathlib.Path(name), shipped_configs() / bare):
    if candidate.is_file():
      return str(candidate)
  missing = f'no gin file {name!r}'
  if place:
    missing = f'{place}: there is no file {name!r} to include'
  raise errors.ConfigError(
    f'{missing}, neither as a path nor among the shipped ones in '
    f'{shipped_configs()}.'
  )


class Name(str):
  """A reference or macro as it is written, such as @DQN() or %GAMES."""

  def __repr__(self) -> str:
    return str(self)


class _Names(config_parser.ParserDelegate):
  """Has references and macros stand for themselves, and counts the former."""

  def __init__(self) -> None:
    self.references: list[str] = []

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> Name:
    self.references.append(scoped_configurable_name)
    return Name(f'@{scoped_configurable_name}{"()" if evaluate else ""}')

  def macro(self, macro_name: str) -> Name:
    return Name(f'%{macro_name}')


# 'file:line', a statement, and the references in it.
Statement = tuple[str, Any, tuple[str, ...]]


def statements_of_file(
  name: str | pathlib.Path, _including: Sequence[pathlib.Path] = ()
) -> Iterator[Statement]:
  """Yields the statements of a file and of all that it includes.

  Gin would look inside Python packages, too, and import them for that.

  Raises:
    ConfigError: if a file is no gin, or what it includes is not there or
      includes it.
  """
  path = pathlib.Path(name)
  if path.resolve() in _including:
    raise errors.ConfigError(f'{path} includes itself through {_including[-1]}')
  try:
    text = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.ConfigError(f'cannot read {path}: {error}.') from error
  yield from statements_of_text(text, str(path), (*_including, path.resolve()))


def statements_of_text(
  text: str, origin: str, _including: Sequence[pathlib.Path] = ()
) -> Iterator[Statement]:
  """Does the same for a text, which messages call `origin`."""
  names = _Names()
  line = 1
  try:
    parser = config_parser.ConfigParser(text, names)
    while True:
      line = parser.current_token.start[0]
      names.references.clear()
      statement = parser.parse_statement()
      if statement is None:
        return
      place = f'{origin}:{statement.location.line_num}'
      if isinstance(statement, config_parser.IncludeStatement):
        found = find(statement.filename, place)
        yield from statements_of_file(found, _including)
      else:
        yield place, statement, tuple(names.references)
  except errors.ConfigError:
    raise
  except (RecursionError, MemoryError) as error:
    raise errors.ConfigError(
      f'{origin}:{line}: lists, dicts or files are nested too deeply.'
    ) from error
  except Exception as error:  # Gin and Python's tokenizer have many kinds.
    line = getattr(error, 'lineno', None) or line
    message = getattr(error, 'msg', None) or str(error)
    raise errors.ConfigError(
      f'{origin}:{line}: no gin: {" ".join(message.split())}'
    ) from error


def read_bindings(
  files: Sequence[str], lines: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns the value that is bound last to each 'scope/name.parameter'.

  References and macros are strings whose repr() is what the file says. Later
  files, named as for `find`, win over earlier ones, and the lines over all.
  ConfigError if a file is missing, or one is no gin.
  """
  return _bindings_of_files(tuple(files)) | _bindings(
    statements_of_text('\n'.join(lines), 'gin_bindings')
  )


@functools.lru_cache(maxsize=256)
def _bindings_of_files(files: tuple[str, ...]) -> dict[str, Any]:
  paths = map(find, files)
  return _bindings(s for path in paths for s in statements_of_file(path))


def _bindings(statements: Iterable[Statement]) -> dict[str, Any]:
  bound = {}
  for _, statement, _ in statements:
    if isinstance(statement, Binding):
      scope = f'{statement.scope}/' if statement.scope else ''
      # A macro has no parameter.
      name = f'.{statement.arg_name}' if statement.arg_name else ''
      bound[f'{scope}{statement.selector}{name}'] = statement.value
  return bound


def check(statements: Iterable[Statement], own: Collection[str] = ()) -> None:
  """Makes sure that parsing statements would execute nothing foreign.

  Only modules in `ALLOWED_IMPORTS` and this package's own are imported, only
  `ALLOWED_REFERENCES` and `own` names, of --import's code, are referenced, and
  no value is a 'module:Name' that somebody might import; ConfigError if not.
  """
  for place, statement, references in statements:
    if isinstance(statement, config_parser.ImportStatement):
      _check_import(statement, place)
    for name in references:
      last = name.rpartition('/')[2].split('.')[-1]
      if last not in ALLOWED_REFERENCES and last not in own:
        _refuse(
          place,
          f'@{name} would call what is not among the configurables of this '
          'package',
        )
    if isinstance(statement, Binding):
      _check_value(statement.value, place)


def _check_import(statement: Any, place: str) -> None:
  module, line = statement.module, repr(statement.format())
  root = module.split('.')[0]
  if root == '__gin__':
    _refuse(place, f'{line} lets gin call any function')
  if root in _OTHER_PROGRAMS and module not in ALLOWED_IMPORTS:
    name = f'{module}.'
    mend = next(text for part, text in _COUNTERPARTS.items() if part in name)
    raise errors.ConfigError(f'{place}: {line} is for another program: {mend}.')
  if root != _OUR_PACKAGE and module not in ALLOWED_IMPORTS:
    allowed = ', '.join((_OUR_PACKAGE, *ALLOWED_IMPORTS))
    _refuse(place, f'{line} executes a module that is not among {allowed}')


def _check_value(value: Any, place: str, depth: int = 0) -> None:
  if depth == _MAX_DEPTH:
    raise errors.ConfigError(
      f'{place}: lists and dicts are nested deeper than {_MAX_DEPTH}.'
    )
  if isinstance(value, str) and _MODULE_AND_NAME.match(value):
    _refuse(
      place, f'{value!r} may name a module, which whoever reads it imports'
    )
  if isinstance(value, dict):
    value = [*value, *value.values()]
  if isinstance(value, list | tuple | set):
    for item in value:
      _check_value(item, place, depth + 1)


def _refuse(place: str, what: str) -> NoReturn:
  raise errors.ConfigError(f'{place}: {what}. {_MEND}')
