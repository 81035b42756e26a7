"""The flags of commands, as flags.toml has them."""

from collections.abc import Mapping
import pathlib
import tomllib
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # They are those of the module that defines them.

_TABLES: dict[str, dict[str, Any]] = tomllib.loads(
  (pathlib.Path(__file__).parent / 'flags.toml').read_text()
)
# By type, where a table says no other.
_DEFAULTS = {'boolean': False, 'multi_string': [], 'multi_enum': []}


def define(table: str, **computed: Mapping[str, Any]) -> None:
  """Defines the flags of a table; `computed` are further fields, by flag."""
  for name, fields in _TABLES[table].items():
    fields = {'help': fields} if isinstance(fields, str) else fields
    fields = {'type': 'string'} | fields | computed.get(name, {})
    kind = fields.pop('type')
    default = fields.pop('default', _DEFAULTS.get(kind))
    getattr(flags, f'DEFINE_{kind}')(name, default, **fields)
