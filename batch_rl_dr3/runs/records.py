"""Reads a run's JSON files and checks every value against its schema.

A file that cannot be read is an error that names it, the field and the mend.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import os
import pathlib
import re
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory

_Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Field:
  """What a value may be."""

  types: tuple[type, ...]  # True and False are no numbers.
  words: str  # The same for messages, such as 'a whole number'.
  minimum: float | None = None
  pattern: str = ''  # That a text matches whole.
  required: bool = False
  # Of an object, by name; others may be there.
  fields: Mapping[str, 'Field'] = dataclasses.field(default_factory=dict)
  values: 'Field | None' = None  # Of an object or a list.
  length: int | None = None

  def must(self) -> 'Field':
    """Returns the field as one that has to be there."""
    return dataclasses.replace(self, required=True)


_NONE = type(None)
COUNT = Field((int,), 'a whole number from 0 on', minimum=0)
CODE = Field((int, _NONE), 'a whole number or null')
FLAG = Field((bool,), 'true or false')
TEXT = Field((str,), 'a text')
WORD = Field((str,), 'a text that is not empty', pattern='.+')
TEXT_OR_NONE = Field((str, _NONE), 'a text or null')
OBJECT = Field((dict,), 'an object')
_LOGGED_RUN = Field((int, str, _NONE), 'a number, a text or null')
_OBJECT_OR_NONE = Field((dict, _NONE), 'an object or null')


def _object(**fields: Field) -> Field:
  return dataclasses.replace(OBJECT, fields=fields)


PROVENANCE = _object(
  suite=TEXT_OR_NONE,
  game=WORD,
  method=WORD,
  dataset=TEXT_OR_NONE,
  run=_LOGGED_RUN,
  seed=_LOGGED_RUN,
  total_gradient_steps=COUNT,
  data_hash=TEXT_OR_NONE,
  data=_OBJECT_OR_NONE,
  protocol=OBJECT,
  numbers_version=COUNT,
  versions=dataclasses.replace(OBJECT, values=TEXT_OR_NONE),
  rom_md5=TEXT_OR_NONE,
  device=TEXT_OR_NONE,
  git_revision=TEXT_OR_NONE,
  imports=dataclasses.replace(OBJECT, values=TEXT),
  command=Field((list,), 'a list of texts', values=TEXT),
)
FINISHED = _object(
  num_iterations=COUNT.must(), gradient_steps=COUNT, num_evaluations=COUNT
)
FAILED = _object(
  error=WORD, message=TEXT.must(), exit_code=COUNT, gradient_steps=COUNT
)
ATTEMPT = _object(
  attempts=COUNT,
  without_progress=COUNT,
  progress=Field(
    (list,), 'a list of two counts', values=COUNT, length=2, required=True
  ),
  began=TEXT,
  host=TEXT,
  exit_code=CODE,
  error=TEXT,
  is_set_aside=FLAG,
)
_FILE = _object(
  bytes=COUNT.must(),
  sha256=Field((str,), 'a SHA-256', pattern='[0-9a-f]{64}', required=True),
)
CHECKPOINT = _object(
  name=Field(
    (str,), 'the name of a checkpoint', pattern=r'\d+(_\d+)?', required=True
  ),
  gradient_steps=COUNT.must(),
  files=dataclasses.replace(OBJECT, values=_FILE, required=True),
)


def read_text(path: _Path, mend: str) -> str | None:
  """Returns the text of a file, None if absent; DataError ends with `mend`."""
  try:
    return pathlib.Path(path).read_bytes().decode()
  except FileNotFoundError:
    return None
  except OSError as error:
    reason = error.strerror
  except UnicodeDecodeError as error:
    reason = f'byte {error.start} is not UTF-8'
  raise errors.DataError(f'cannot read {path}: {reason}. {mend}')


def read(
  path: _Path, schema: Field, mend: str, required: tuple[str, ...] = ()
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
  fields = {**schema.fields}
  for name in required:
    fields[name] = fields[name].must()
  wrong = _wrong(value, dataclasses.replace(schema, fields=fields), '')
  if wrong is not None:
    raise errors.DataError(f'{path}: {wrong}. {mend}')
  return dict(value)


def _wrong(value: Any, field: Field, name: str) -> str | None:
  """Returns which value is not as its field says; None if all are."""
  told = f'{name or "it"} is {_short(value)}, not {field.words}'
  if not _is_one(value, field):
    return told
  if isinstance(value, dict):
    for key, one in field.fields.items():
      if key not in value:
        if one.required:
          return f'{_join(name, key)} is missing'
      elif wrong := _wrong(value[key], one, _join(name, key)):
        return wrong
  if field.values is not None and isinstance(value, dict | list):
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
      if wrong := _wrong(item, field.values, _join(name, str(key))):
        return wrong
  return None


def _is_one(value: Any, field: Field) -> bool:
  if isinstance(value, bool) and bool not in field.types:
    return False
  if not isinstance(value, field.types):
    return False
  if isinstance(value, int | float) and field.minimum is not None:
    return math.isfinite(value) and value >= field.minimum
  if isinstance(value, str) and field.pattern:
    return re.fullmatch(field.pattern, value) is not None
  if isinstance(value, list) and field.length is not None:
    return len(value) == field.length
  return True


def _join(name: str, key: str) -> str:
  return f'{name}.{key}' if name else key


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


def is_finished(folder: _Path, num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, scores and all."""
  finished = read_finished(folder)
  return finished is not None and finished['num_iterations'] >= num_iterations
