"""Code of a user's own, outside the package, that --import names.

A file or an installed module that registers penalties, agents or games with
gin. It is read first, which gives its names without TensorFlow and its
SHA-256, which is part of what a run is; it is executed where it is needed.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import pathlib
import sys
import types

from batch_rl_dr3.config import errors

# The modules that this process has executed, by name.
_executed: dict[str, 'OwnCode'] = {}
# What `load` was asked for last.
_loaded: tuple['OwnCode', ...] = ()


@dataclasses.dataclass(frozen=True)
class OwnCode:
  """A file of code, as --import names it."""

  name: str  # Of a file without its folder, or of an installed module.
  path: str  # Absolute.
  sha256: str
  definitions: frozenset[str]  # Classes and functions, for gin to reference.

  @property
  def module(self) -> str:
    """The name of the module that it becomes."""
    return self.name.removesuffix('.py')

  @property
  def is_file(self) -> bool:
    """Whether it is no installed module."""
    return self.name.endswith('.py')


def find(names: Sequence[str]) -> tuple[OwnCode, ...]:
  """Returns what --import names, without executing it.

  Of a module in a package, Python executes the package to find it. ConfigError
  if one is not there, or is no Python; UsageError if two have the same name.
  """
  found: dict[str, OwnCode] = {}
  for name in names:
    code = _read(name)
    if found.setdefault(code.name, code) != code:
      raise errors.UsageError(
        f'--import names two files {code.name}: {found[code.name].path} and '
        f'{code.path}. Rename one.'
      )
  return tuple(found.values())


def _read(name: str) -> OwnCode:
  is_file = name.endswith('.py')
  path = pathlib.Path(name if is_file else _module_file(name))
  try:
    content = path.read_bytes()
    tree = ast.parse(content)
  except (OSError, SyntaxError, ValueError) as error:
    raise errors.ConfigError(f'--import={name}: {error}.') from error
  kinds = (ast.ClassDef, ast.FunctionDef)
  return OwnCode(
    path.name if is_file else name,
    str(path.resolve()),
    hashlib.sha256(content).hexdigest(),
    frozenset(node.name for node in tree.body if isinstance(node, kinds)),
  )


def _module_file(name: str) -> str:
  spec = None
  with contextlib.suppress(ImportError, ValueError):
    spec = importlib.util.find_spec(name)
  if spec is None or spec.origin is None or not spec.has_location:
    raise errors.ConfigError(
      f'--import={name}: there is no such module. A file is named by its path, '
      f'such as {name}.py.'
    )
  return spec.origin


def definitions(code: Iterable[OwnCode]) -> frozenset[str]:
  """Returns the names that gin may reference."""
  return frozenset(name for each in code for name in each.definitions)


def load(code: Sequence[OwnCode]) -> None:
  """Executes what was found, once a process, so that gin knows its names.

  As a notebook needs it, a file that has changed since is executed again.
  ConfigError if one fails, has changed since it was found, or has the name of
  another module.
  """
  global _loaded
  for each in code:
    if _executed.get(each.module) != each:
      _execute(each)
      _executed[each.module] = each
  _loaded = tuple(code)


def _execute(code: OwnCode) -> None:
  import gin  # Reports read no gin.

  try:
    content = pathlib.Path(code.path).read_bytes()
  except OSError as error:
    raise errors.ConfigError(f'--import={code.path}: {error}.') from error
  if hashlib.sha256(content).hexdigest() != code.sha256:
    raise errors.ConfigError(
      f'--import={code.path} has changed since the command began.'
    )
  before = sys.modules.get(code.module)
  if code.is_file and before and code.module not in _executed:
    raise errors.ConfigError(
      f'--import={code.path}: there is another module {code.module!r}; rename '
      'the file.'
    )
  try:
    with gin.config.interactive_mode():
      if not code.is_file:
        importlib.import_module(code.module)
        return
      module = sys.modules[code.module] = types.ModuleType(code.module)
      module.__file__ = code.path
      exec(compile(content, code.path, 'exec'), module.__dict__)
  except BaseException as error:
    if code.is_file:
      del sys.modules[code.module]
      if before:
        sys.modules[code.module] = before
    if not isinstance(error, Exception):
      raise
    raise errors.ConfigError(  # Whatever the user's code raises.
      f'--import={code.path}: {type(error).__name__}: {errors.one_line(error)}'
    ) from error


def loaded() -> tuple[OwnCode, ...]:
  """Returns what the process has loaded for its run."""
  return _loaded


def record(code: Iterable[OwnCode]) -> dict[str, str]:
  """Returns what provenance.json says of it: SHA-256 by name."""
  return {each.name: each.sha256 for each in code}


def matching(
  recorded: Mapping[str, str], given: Sequence[OwnCode], run: str
) -> tuple[OwnCode, ...]:
  """Returns those of `given` that a run was made with, by its record.

  ConfigError if one is missing, or is not what it was.
  """
  by_name = {each.name: each for each in given}
  for name, sha256 in recorded.items():
    if name not in by_name:
      raise errors.ConfigError(
        f'{run} was made with --import={name} (sha256 {sha256[:12]}): if you '
        'trust that code, give the same --import.'
      )
    if by_name[name].sha256 != sha256:
      raise errors.ConfigError(
        f'{run} was made with another {name} (sha256 {sha256[:12]}) than '
        f'--import names ({by_name[name].sha256[:12]}): give the file as it '
        'was.'
      )
  return tuple(by_name[name] for name in recorded)
