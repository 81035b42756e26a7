"""The folder of a store: its manifest, and whether it is what it says.

A store holds a folder per file of the log, named by the file's suffix (see
store_part), and manifest.json, which is there if and only if all of it is.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import store_part

# 1 had each element in one array.
FORMAT_VERSION = 2
MANIFEST = 'manifest.json'
_BLOCK_BYTES = 1 << 20


def part_folder(store: pathlib.Path, suffix: int) -> pathlib.Path:
  """Returns the folder of what one file of the log gave."""
  return store / str(suffix)


def read_part(
  folder: pathlib.Path, segment: dict[str, Any]
) -> dict[str, Any] | None:
  """Returns the record of a part; None if it is not there, or not whole.

  Args:
    folder: the part's.
    segment: what the part must be of, as planned.
  """
  try:
    record: dict[str, Any] = json.loads(
      (folder / store_part.RECORD).read_text()
    )
    if record['segment'] != segment:
      return None
    _check_sizes(folder.parent, folder.name, record)
  except (OSError, ValueError, KeyError, errors.DataError):
    return None
  return record


def verify(store: pathlib.Path, full: bool = False) -> dict[str, Any]:
  """Returns the manifest of a store, which is found to be right.

  Args:
    store: the store's own folder.
    full: whether to read all of it and compare checksums, at the speed of
      the disk, rather than only the lengths of files.

  Raises:
    DataError: if anything differs from the manifest; it names what.
  """
  try:
    manifest: dict[str, Any] = json.loads((store / MANIFEST).read_text())
    if manifest['format_version'] != FORMAT_VERSION:
      raise damaged(store, f'its format is {manifest["format_version"]}')
    if manifest['data_hash'] != data_hash(manifest['files'], manifest['parts']):
      raise damaged(store, 'data_hash is not that of the manifest')
    for segment, part in zip(manifest['files'], manifest['parts'], strict=True):
      _check_sizes(store, str(segment['suffix']), part)
      if full:
        _check_content(store, str(segment['suffix']), part)
  except OSError as error:
    raise damaged(store, f'{error.filename}: {error.strerror}') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise damaged(store, f'{MANIFEST}: {error}') from error
  return manifest


def data_hash(
  segments: list[dict[str, Any]], parts: list[dict[str, Any]]
) -> str:
  """Returns SHA-256 of what training sees, and nothing of how it is stored."""
  content = json.dumps(
    [segments, [part['content'] for part in parts]], sort_keys=True
  )
  return hashlib.sha256(content.encode()).hexdigest()


def _check_sizes(
  store: pathlib.Path, folder: str, part: dict[str, Any]
) -> None:
  for name, record in part['files'].items():
    size = os.stat(store / folder / name).st_size
    if size != record['num_bytes']:
      raise damaged(
        store, f'{folder}/{name} has {size} bytes, not {record["num_bytes"]}'
      )


def _check_content(
  store: pathlib.Path, folder: str, part: dict[str, Any]
) -> None:
  for name, record in part['files'].items():
    digest = hashlib.sha256()
    with open(store / folder / name, 'rb') as file:
      while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    if digest.hexdigest() != record['sha256']:
      raise damaged(store, f'{folder}/{name} has another SHA-256')


def damaged(store: pathlib.Path, problem: str) -> errors.DataError:
  """Returns the error that a store is not what it says."""
  return errors.DataError(
    f'the store {store} is damaged ({problem}). Delete that folder; it is '
    'built again from the log.'
  )
