"""Reads a run's JSON files and checks every value against its schema.

A file that cannot be read is an error that names it, the field and the mend.

A schema is one of `KINDS`, with a ? if null will do; a list of the schema of
its items; or an object's schemas by field, with a ! where the field has to be
there, and * for fields that are not named, which may be anything without it. Of
a tuple, the first schema is for texts and the second for what is no text.
"""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
import re
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory

_Path = str | os.PathLike[str]


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 0  # True and False are no numbers.


def _matches(pattern: str) -> Callable[[Any], bool]:
  return lambda value: (
    isinstance(value, str) and re.fullmatch(pattern, value) is not None
  )


# What a value may be: the words for messages, and whether it is.
KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
  'count': ('a whole number from 0 on', _is_count),
  'positive': ('a positive number', lambda v: _is_count(v) and v > 0),
  'code': ('a whole number', lambda v: type(v) is int),
  'flag': ('true or false', lambda v: type(v) is bool),
  'text': ('a text', lambda v: isinstance(v, str)),
  'word': ('a text that is not empty', _matches('.+')),
  'object': ('an object', lambda v: isinstance(v, dict)),
  'name': ('a number, a text', lambda v: type(v) in (int, str)),
  'sha256': ('a SHA-256', _matches('[0-9a-f]{64}')),
  'checkpoint': ('the name of a checkpoint', _matches(r'\d+(_\d+)?')),
  'progress': (
    'a list of two counts',
    lambda v: isinstance(v, list) and [_is_count(n) for n in v] == [True] * 2,
  ),
}
PROVENANCE = {
  **dict.fromkeys(('game', 'method'), 'word'),
  **dict.fromkeys(('suite', 'dataset', 'device'), 'text?'),
  **dict.fromkeys(('data_hash', 'rom_md5', 'git_revision'), 'text?'),
  **dict.fromkeys(('run', 'seed'), 'name?'),
  **dict.fromkeys(('total_gradient_steps', 'numbers_version'), 'count'),
  **{'data': 'object?', 'protocol': 'object', 'command': ['text']},
  **{'versions': {'*': 'text?'}, 'imports': {'*': 'text'}},
}
FINISHED = {
  'num_iterations!': 'count',
  **dict.fromkeys(('gradient_steps', 'num_evaluations'), 'count'),
}
FAILED = {
  **{'error': 'word', 'message!': 'text'},
  **dict.fromkeys(('exit_code', 'gradient_steps'), 'count'),
}
ATTEMPT = {
  **dict.fromkeys(('attempts', 'without_progress'), 'count'),
  **dict.fromkeys(('began', 'host', 'error'), 'text'),
  **{'progress!': 'progress', 'exit_code': 'code?', 'is_set_aside': 'flag'},
}
CHECKPOINT = {
  **{'name!': 'checkpoint', 'gradient_steps!': 'count'},
  'files!': {'*': {'bytes!': 'count', 'sha256!': 'sha256'}},
}


def read_text(path: _Path, mend: str, whole_lines: bool = False) -> str | None:
  """Returns a file's text, None if absent; a DataError ends with `mend`.

  Of `whole_lines`, a last line without its end, torn by a kill, is left out.
  """
  where = ''
  try:
    content = pathlib.Path(path).read_bytes()
    if whole_lines:
      content = content[: content.rfind(b'\n') + 1]
    return content.decode()
  except FileNotFoundError:
    return None
  except OSError as error:
    reason = error.strerror
  except UnicodeDecodeError as error:
    where = f', line {error.object.count(10, 0, error.start) + 1}'
    reason = f'byte {error.start} is not UTF-8'
  raise errors.DataError(f'cannot read {path}{where}: {reason}. {mend}')


def read(
  path: _Path,
  schema: Mapping[str, Any],
  mend: str,
  required: tuple[str, ...] = (),
) -> dict[str, Any] | None:
  """Returns what a JSON file says; None if there is no such file.

  Raises:
    DataError: if it cannot be read, a value is not as its field in `schema`
      says, or a `required` one is missing; it ends with the sentence `mend`.
  """
  text = read_text(path, mend)
  if text is None:
    return None
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    reason = ' '.join(str(error).split())
    raise errors.DataError(
      f'cannot read {path}: it is no JSON ({reason}). {mend}'
    ) from error
  needed = {f'{n}!' if n in required else n: s for n, s in schema.items()}
  wrong = _wrong(value, needed)
  if wrong is not None:
    raise errors.DataError(f'{path}: {wrong}. {mend}')
  return dict(value)


def _wrong(value: Any, schema: Any, name: str = '') -> str | None:
  """Returns which value is not as its schema says; None if all are."""
  if isinstance(schema, tuple):
    schema = schema[0 if isinstance(value, str) else 1]
  prefix = f'{name}.' if name else ''
  items: Mapping[Any, tuple[Any, Any]] = {}
  if isinstance(schema, str):
    kind = schema.removesuffix('?')
    words, accepts = KINDS[kind]
    is_one = accepts(value)
    if schema != kind:
      words, is_one = f'{words} or null', is_one or value is None
  elif isinstance(schema, list):
    words, is_one = 'a list', isinstance(value, list)
    items = {i: (v, schema[0]) for i, v in enumerate(value if is_one else ())}
  else:
    words, is_one = KINDS['object'][0], isinstance(value, dict)
    fields = {field.removesuffix('!'): s for field, s in schema.items()}
    for field in fields if is_one else ():
      if f'{field}!' in schema and field not in value:
        return f'{prefix}{field} is missing'
    rest = fields.get('*')
    items = {
      k: (v, fields.get(k, rest)) for k, v in (value if is_one else {}).items()
    }
  if not is_one:
    return f'{name or "it"} is {_short(value)}, not {words}'
  wrong = (_wrong(v, s, f'{prefix}{k}') for k, (v, s) in items.items() if s)
  return next(filter(None, wrong), None)


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def read_provenance(
  folder: _Path, required: tuple[str, ...] = ('method', 'game')
) -> dict[str, Any] | None:
  """Returns what a run directory says of its run; None if it says nothing."""
  return read(
    pathlib.Path(folder) / run_directory.PROVENANCE,
    PROVENANCE,
    'Restore it from a backup, or train the run again with --overwrite.',
    required,
  )


def read_finished(folder: _Path) -> dict[str, Any] | None:
  """Returns what a run says of its end; None if it is not finished."""
  return read(
    pathlib.Path(folder) / run_directory.FINISHED,
    FINISHED,
    'Remove it and rerun `train`, which writes it again.',
  )


def read_failed(folder: _Path) -> dict[str, Any] | None:
  """Returns why the last attempt at a run failed; None if it did not."""
  return read(
    pathlib.Path(folder) / run_directory.FAILED,
    FAILED,
    'Remove it; the next attempt writes its own.',
  )
