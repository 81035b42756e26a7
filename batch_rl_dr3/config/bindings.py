"""What gin files bind, read without anything that they name.

`train` resolves every name in a gin file, and for that needs TensorFlow. A
sweep of a thousand runs has only to know what each file says: the last value
of every parameter, as text and, where it is a literal, as a value.
"""

from collections.abc import Iterable, Sequence
import functools
import pathlib
from typing import Any

from batch_rl_dr3.config import cli, gin_statements


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
  _add(
    gin_statements.of_text(
      '\n'.join(lines), 'gin_bindings', [cli.shipped_configs()]
    ),
    found,
  )
  return found


def to_text(values: dict[str, Any]) -> str:
  """Returns bindings as gin text, a line each, sorted by name."""
  return ''.join(f'{name} = {values[name]!r}\n' for name in sorted(values))


@functools.lru_cache(maxsize=256)
def _read_files(files: tuple[str, ...]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name in files:
    path = pathlib.Path(cli.find_gin_file(name))
    _add(gin_statements.of_file(path, [cli.shipped_configs()]), found)
  return found


def _add(statements: Iterable[tuple[str, Any]], found: dict[str, Any]) -> None:
  """Adds what statements bind to `found`."""
  for _, statement in statements:
    if isinstance(statement, gin_statements.Binding):
      scope = f'{statement.scope}/' if statement.scope else ''
      name = f'{scope}{statement.selector}'
      if statement.arg_name:  # A macro has none.
        name += f'.{statement.arg_name}'
      found[name] = statement.value
