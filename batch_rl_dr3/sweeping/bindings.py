"""What gin files bind, read without anything that they name.

`train` resolves every name in a gin file, and for that needs TensorFlow. A
sweep of a thousand runs has only to know what each file says: the last value
of every parameter, as text and, where it is a literal, as a value.
"""

from collections.abc import Sequence
import functools
import os
import pathlib
from typing import Any

from gin import config_parser

from batch_rl_dr3 import cli, errors


class _Name(str):
  """A reference or macro as it is written, such as @DQN() or %GAMES."""

  def __repr__(self) -> str:
    return str(self)


class _Names(config_parser.ParserDelegate):
  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> _Name:
    """Returns the reference as text."""
    return _Name(f'@{scoped_configurable_name}{"()" if evaluate else ""}')

  def macro(self, macro_name: str) -> _Name:
    """Returns the macro's name as text."""
    return _Name(f'%{macro_name}')


def read(files: Sequence[str], lines: Sequence[str] = ()) -> dict[str, Any]:
  """Returns the value that is bound last to each 'scope/name.parameter'.

  References and macros are strings whose repr() is what the file says.

  Args:
    files: paths or names of shipped files, later ones winning.
    lines: bindings that win over the files.

  Raises:
    ConfigError: if a file is missing, or one is no gin.
  """
  found = dict(_read_files(tuple(files)))
  _parse('\n'.join(lines), 'a binding', found)
  return found


def to_text(values: dict[str, Any]) -> str:
  """Returns bindings as gin text, a line each, sorted by name."""
  return ''.join(f'{name} = {values[name]!r}\n' for name in sorted(values))


@functools.lru_cache(maxsize=256)
def _read_files(files: tuple[str, ...]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name in files:
    _read_file(name, None, found)
  return found


def _read_file(
  name: str, including: pathlib.Path | None, found: dict[str, Any]
) -> None:
  path = _find(name, including)
  _parse(path.read_text(), str(path), found)


def _find(name: str, including: pathlib.Path | None) -> pathlib.Path:
  bare = name.removeprefix('gin_configs' + os.sep)
  for path in (pathlib.Path(name), cli.shipped_configs() / bare):
    if path.is_file():
      return path
  by = f', which {including} includes' if including is not None else ''
  raise errors.ConfigError(
    f'no gin file {name!r}{by}, neither as a path nor among the shipped ones '
    f'in {cli.shipped_configs()}.'
  )


def _parse(text: str, origin: str, found: dict[str, Any]) -> None:
  """Adds what a text binds to `found`."""
  try:
    for statement in config_parser.ConfigParser(text, _Names()):
      if isinstance(statement, config_parser.IncludeStatement):
        _read_file(statement.filename, pathlib.Path(origin), found)
      elif isinstance(statement, config_parser.BindingStatement):
        scope = f'{statement.scope}/' if statement.scope else ''
        name = f'{scope}{statement.selector}'
        if statement.arg_name:  # A macro has none.
          name += f'.{statement.arg_name}'
        found[name] = statement.value
  except (SyntaxError, ValueError) as error:
    line = ' '.join(str(error).split())
    raise errors.ConfigError(f'{origin} is no gin: {line}') from error
