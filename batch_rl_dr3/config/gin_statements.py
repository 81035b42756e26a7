"""Gin files read statement by statement, with nothing resolved or executed.

Gin's own parser does it; what a file includes is read where it is included,
as gin does.
"""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Any

from gin import config_parser

from batch_rl_dr3.config import errors

Binding = config_parser.BindingStatement
Import = config_parser.ImportStatement


class Name(str):
  """A reference or macro as it is written, such as @DQN() or %GAMES."""

  def __repr__(self) -> str:
    return str(self)


class Names(config_parser.ParserDelegate):
  """Has references and macros stand for themselves."""

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> Name:
    """Returns the reference as text."""
    return Name(f'@{scoped_configurable_name}{"()" if evaluate else ""}')

  def macro(self, macro_name: str) -> Name:
    """Returns the macro's name as text."""
    return Name(f'%{macro_name}')


def of_file(
  path: pathlib.Path,
  search: Sequence[pathlib.Path] = (),
  names: Names | None = None,
  _including: Sequence[pathlib.Path] = (),
) -> Iterator[tuple[str, Any]]:
  """Yields 'file:line' and statement, of a file and of all that it includes.

  Args:
    path: the file.
    search: folders in which gin looks for what is included.
    names: is told of references and macros, before their statement comes.

  Raises:
    ConfigError: if a file is no gin, or what it includes is not there or
      includes it.
  """
  if path.resolve() in _including:
    raise errors.ConfigError(f'{path} includes itself through {_including[-1]}')
  try:
    text = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.ConfigError(f'cannot read {path}: {error}.') from error
  yield from of_text(
    text, str(path), search, names, (*_including, path.resolve())
  )


def of_text(
  text: str,
  origin: str,
  search: Sequence[pathlib.Path] = (),
  names: Names | None = None,
  _including: Sequence[pathlib.Path] = (),
) -> Iterator[tuple[str, Any]]:
  """Does the same for a text.

  Args:
    text: gin.
    origin: what messages call it.
    search: see `of_file`.
    names: see `of_file`.

  Raises:
    ConfigError: see `of_file`.
  """
  names = Names() if names is None else names
  line = 1
  try:
    parser = config_parser.ConfigParser(text, names)
    while True:
      line = parser.current_token.start[0]
      statement = parser.parse_statement()
      if statement is None:
        return
      place = f'{origin}:{statement.location.line_num}'
      if isinstance(statement, config_parser.IncludeStatement):
        found = _find(statement.filename, place, search)
        yield from of_file(found, search, names, _including)
      else:
        yield place, statement
  except (SyntaxError, ValueError) as error:
    line = getattr(error, 'lineno', None) or line
    message = getattr(error, 'msg', None) or str(error)
    raise errors.ConfigError(
      f'{origin}:{line}: no gin: {" ".join(message.split())}'
    ) from error


def _find(
  name: str, place: str, search: Sequence[pathlib.Path]
) -> pathlib.Path:
  """Returns what gin would include.

  It would look inside Python packages, too, and import them for that.
  """
  for path in (pathlib.Path(name), *(folder / name for folder in search)):
    if path.is_file():
      return path
  raise errors.ConfigError(
    f'{place}: there is no file {name!r} to include, neither as a path nor in '
    f'{", ".join(map(str, search)) or "another folder"}.'
  )
