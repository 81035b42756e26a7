"""Checkpoints that are whole or absent.

A checkpoint is Dopamine's `tf_ckpt-<name>` files plus a manifest
`ckpt.<name>.json` that is written last and holds each file's size and sha256.
What has no manifest does not exist; what does not match its manifest is set
aside, and the one before it is used.
"""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from absl import logging

from batch_rl_dr3 import errors, run_directory

_PREFIX = 'tf_ckpt-'
_DAMAGED = '.damaged'


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A whole checkpoint on disk.

  Attributes:
    name: the iteration, or `<iteration>_<gradient steps>` for one that was
      written in the middle of an iteration.
    gradient_steps: how many its weights have had.
    prefix: the path that TensorFlow's Saver takes.
  """

  name: str
  gradient_steps: int
  prefix: str


class Checkpoints:
  """The checkpoints of one run."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    keep_last: int = 4,
    keep_every: int | None = None,
  ):
    """Opens the folder, and creates it if need be.

    Args:
      directory: the folder.
      keep_last: how many of the newest are kept.
      keep_every: the checkpoints of every so many iterations are kept for
        good; None keeps no others.
    """
    self._directory = run_directory.make_directory(directory)
    self._keep_last = keep_last
    self._keep_every = keep_every
    self._protected: set[str] = set()
    for leftover in self._directory.glob('.writing.*'):
      shutil.rmtree(leftover)

  def save(
    self, write: Callable[[str], None], name: str, gradient_steps: int
  ) -> None:
    """Writes a checkpoint, then drops those that are no longer kept.

    Args:
      write: writes TensorFlow's files for a path prefix.
      name: see Checkpoint.
      gradient_steps: how many the weights have had.

    Raises:
      WriteError: if the disk refuses; earlier checkpoints are untouched.
    """
    temporary = self._directory / f'.writing.{name}'
    try:
      temporary.mkdir(exist_ok=True)
      write(str(temporary / f'{_PREFIX}{name}'))
      files = {}
      for path in sorted(temporary.iterdir()):
        _sync(path)
        files[path.name] = {
          'bytes': path.stat().st_size,
          'sha256': _sha256(path),
        }
        os.replace(path, self._directory / path.name)
      temporary.rmdir()
      _sync(self._directory)
    except OSError as error:
      shutil.rmtree(temporary, ignore_errors=True)
      raise run_directory.WriteError(temporary, error) from error
    run_directory.write_json(
      self._manifest(name),
      {'name': name, 'gradient_steps': gradient_steps, 'files': files},
    )
    self._prune()

  def of_iterations(self) -> dict[int, Checkpoint]:
    """See the function of this name."""
    return of_iterations(self._directory)

  def protect(self, name: str) -> None:
    """Keeps a checkpoint until `release`, whatever is saved after it."""
    self._protected.add(name)

  def release(self, name: str) -> None:
    """Lets a checkpoint go when the next one is saved."""
    self._protected.discard(name)

  def latest(self) -> Checkpoint | None:
    """Returns the newest whole checkpoint; None where none was ever written.

    Raises:
      DataError: if there are checkpoints and none of them is whole: a run is
        never started over silently.
    """
    records = self._records()
    for record in records:
      name = record['name']
      reason = _damage(self._directory, record['files'])
      if reason is None:
        prefix = str(self._directory / f'{_PREFIX}{name}')
        return Checkpoint(name, record['gradient_steps'], prefix)
      logging.warning(
        'Checkpoint %s is damaged (%s) and set aside; trying the one before.',
        self._manifest(name),
        reason,
      )
      manifest = self._manifest(name)
      manifest.rename(f'{manifest}{_DAMAGED}')
    if records or any(self._directory.glob(f'ckpt.*{_DAMAGED}')):
      raise errors.DataError(
        f'every checkpoint in {self._directory} is damaged. Restore one from '
        'a backup, or start over with --overwrite.'
      )
    return None

  def _records(self) -> list[dict[str, Any]]:
    """Returns the manifests, most gradient steps first."""
    records = []
    for path in self._directory.glob('ckpt.*.json'):
      try:
        record = json.loads(path.read_text())
        record['name'], record['gradient_steps'], record['files']
      except (ValueError, KeyError, TypeError):
        logging.warning('%s is no manifest; set aside.', path)
        path.rename(f'{path}{_DAMAGED}')
      else:
        records.append(record)
    return sorted(records, key=lambda r: r['gradient_steps'], reverse=True)

  def _prune(self) -> None:
    for record in self._records()[self._keep_last :]:
      name = record['name']
      kept = name in self._protected or (
        self._keep_every is not None
        and name.isdigit()
        and int(name) % self._keep_every == 0
      )
      if not kept:
        # The manifest goes first: without it the rest does not exist.
        self._manifest(name).unlink()
        for file_name in record['files']:
          (self._directory / file_name).unlink(missing_ok=True)

  def _manifest(self, name: str) -> pathlib.Path:
    return self._directory / f'ckpt.{name}.json'


def of_iterations(directory: pathlib.Path) -> dict[int, Checkpoint]:
  """Returns the checkpoints that end an iteration, whole or not, in order.

  Nothing in the folder is changed: another process may be writing to it.

  Args:
    directory: the folder.
  """
  found = {}
  for path in directory.glob('ckpt.*.json'):
    try:
      record = json.loads(path.read_text())
      name, steps = record['name'], int(record['gradient_steps'])
    except (OSError, ValueError, KeyError, TypeError):
      continue  # Torn or gone: it does not exist.
    if name.isdigit():
      found[int(name)] = Checkpoint(
        name, steps, str(directory / f'{_PREFIX}{name}')
      )
  return dict(sorted(found.items()))


def check_whole(checkpoint: Checkpoint) -> None:
  """Compares a checkpoint's files with its manifest.

  Raises:
    DataError: if they differ, or there is no manifest any more.
  """
  directory = pathlib.Path(checkpoint.prefix).parent
  try:
    record = json.loads(
      (directory / f'ckpt.{checkpoint.name}.json').read_text()
    )
    reason = _damage(directory, record['files'])
  except (OSError, ValueError, KeyError) as error:
    reason = f'its manifest cannot be read: {error}'
  if reason is not None:
    raise errors.DataError(f'{checkpoint.prefix} is damaged: {reason}.')


def _damage(
  directory: pathlib.Path, files: Mapping[str, Mapping[str, Any]]
) -> str | None:
  """Returns in which way files differ from their manifest; None if in none."""
  for file_name, expected in files.items():
    path = directory / file_name
    if not path.exists():
      return f'{file_name} is missing'
    if path.stat().st_size != expected['bytes']:
      return f'{file_name} has {path.stat().st_size} bytes, not all'
    if _sha256(path) != expected['sha256']:
      return f'{file_name} does not match its sha256'
  return None


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
