"""The words of a report: names of methods and data sets, and its prose.

templates/words.toml holds them. A section is a table, a figure or a subject;
in braces stands what differs from report to report.
"""

from collections.abc import Iterable
import functools
import pathlib
import tomllib
from typing import Any

_DR3 = '_dr3'


@functools.cache
def _words() -> dict[str, Any]:
  path = pathlib.Path(__file__).parent / 'templates' / 'words.toml'
  return tomllib.loads(path.read_text(encoding='utf-8'))


def say(section: str, part: str, **values: Any) -> str:
  """Returns a text of words.toml on one line, with `values` in its braces."""
  return ' '.join(_words()[section][part].format(**values).split())


def parts(section: str, **values: Any) -> dict[str, str]:
  """Returns the texts of a section by name, in order."""
  return {part: say(section, part, **values) for part in _words()[section]}


def entries(section: str, part: str) -> list[Any]:
  """Returns a list of words.toml, such as the columns of a table."""
  return list(_words()[section][part])


def base_of(method: str) -> str:
  """Returns the method without DR3: 'rem' of 'rem_dr3' and of 'rem'."""
  return method.removesuffix(_DR3)


def has_dr3(method: str) -> bool:
  """Returns whether the method's name says that it has the DR3 penalty."""
  return method.endswith(_DR3)


def with_dr3(base: str) -> str:
  """Returns the name of `base` with DR3: 'rem_dr3' of 'rem'."""
  return base + _DR3


def display_name(method: str) -> str:
  """Returns 'REM + DR3' for 'rem_dr3'; an unknown name as it is."""
  name = _words()['methods'].get(base_of(method))
  return method if name is None else name + ' + DR3' * has_dr3(method)


def dataset_name(dataset: str) -> str:
  """Returns '1%' for '1pct'; an unknown name as it is."""
  return str(_words()['datasets'].get(dataset, dataset))


def line_name(dataset: str, method: str) -> str:
  """Returns what is shown of a method on a data set, such as 'REM, 1%'."""
  return f'{display_name(method)}, {dataset_name(dataset)}'


def ordered(methods: Iterable[str]) -> list[str]:
  """Returns each method once: known ones first, a base before its DR3."""
  known = list(_words()['methods'])

  def key(method: str) -> tuple[int, str, bool]:
    base = base_of(method)
    rank = known.index(base) if base in known else len(known)
    return rank, base, has_dr3(method)

  return sorted(set(methods), key=key)


def listed(names: list[str], limit: int = 12) -> str:
  """Returns the first few of many names, and how many more there are."""
  more = len(names) - limit
  return ', '.join(names[:limit]) + (f' and {more} more' if more > 0 else '')
