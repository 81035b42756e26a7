"""Checkpoints that are whole or absent.

A checkpoint is Dopamine's `tf_ckpt-<name>` files plus a manifest
`ckpt.<name>.json` that is written last and holds each file's size and sha256.
What has no manifest does not exist; what does not match its manifest is set
aside, and the one before it is used.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from typing import Any

from absl import logging

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import run_directory

_PREFIX = 'tf_ckpt-'
_DAMAGED = '.damaged'
_WRITING = '.writing.'
# How many checkpoints within the iteration in progress are kept.
_KEEP_WITHIN = 2


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
    check: run_directory.Check = run_directory.unchecked,
  ):
    """Opens the folder, and creates it if need be.

    Args:
      directory: the folder.
      keep_last: how many of the newest that end an iteration are kept. Of
        those since then, written within an iteration, the newest two are.
      keep_every: the checkpoints of every so many iterations are kept for
        good; None keeps no others.
      check: asked before anything is published.
    """
    self._directory = run_directory.make_directory(directory)
    self._keep_last = keep_last
    self._keep_every = keep_every
    self._check = check
    self._protected: set[str] = set()

  def _remove_leftovers(self) -> None:
    """Removes what a kill left: temporary files, and files of no manifest."""
    for leftover in self._directory.glob('.*'):
      run_directory.remove(leftover)
    for path in self._directory.glob(f'{_PREFIX}*'):
      name = path.name.removeprefix(_PREFIX).partition('.')[0]
      manifest = self._manifest(name)
      if not manifest.exists() and not _set_aside(manifest).exists():
        run_directory.remove(path)

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
    target = self._directory / f'{_PREFIX}{name}'
    # Of no other process's name, wherever that runs.
    temporary = self._directory / f'{_WRITING}{name}.{secrets.token_hex(8)}'
    try:
      temporary.mkdir()
      write(str(temporary / target.name))
      files = {}
      for path in sorted(temporary.iterdir()):
        run_directory.sync(path)
        files[path.name] = {
          'bytes': path.stat().st_size,
          'sha256': _sha256(path),
        }
      self._check()
      for file_name in files:
        os.replace(temporary / file_name, self._directory / file_name)
      run_directory.sync(self._directory)
    except OSError as error:
      with contextlib.suppress(OSError):
        self._check()  # Who has taken over has removed the temporary folder.
      raise run_directory.WriteError(target, error) from error
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
    run_directory.write_json(
      self._manifest(name),
      {'name': name, 'gradient_steps': gradient_steps, 'files': files},
      self._check,
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

    What a kill left half-written is removed, so ask only where nobody else
    writes.

    Raises:
      DataError: if there are checkpoints and none of them is whole: a run is
        never started over silently.
    """
    self._remove_leftovers()
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
      _put_aside(self._manifest(name))
    if records or any(self._directory.glob(f'ckpt.*{_DAMAGED}')):
      raise errors.DataError(
        f'every checkpoint in {self._directory} is damaged, and a run is not '
        'started over by itself. Restore one from a backup, or start over '
        'with --overwrite.'
      )
    return None

  def _records(self) -> list[dict[str, Any]]:
    """Returns the manifests, most gradient steps first."""
    records = []
    for path in self._directory.glob('ckpt.*.json'):
      try:
        record = json.loads(path.read_text())
        record['name'], record['gradient_steps'], record['files']
      except (OSError, ValueError, KeyError, TypeError):
        logging.warning('%s is no manifest; set aside.', path)
        _put_aside(path)
      else:
        records.append(record)
    return sorted(records, key=lambda r: r['gradient_steps'], reverse=True)

  def _prune(self) -> None:
    """Drops what is no longer kept.

    Raises:
      WriteError: if the disk refuses.
    """
    records = self._records()
    names = [record['name'] for record in records]
    ends = [name for name in names if name.isdigit()]
    within = names[: names.index(ends[0])] if ends else names
    kept = {*ends[: self._keep_last], *within[:_KEEP_WITHIN], *self._protected}
    if self._keep_every is not None:
      kept |= {name for name in ends if int(name) % self._keep_every == 0}
    for record in records:
      if record['name'] not in kept:
        self._drop(record)

  def _drop(self, record: Mapping[str, Any]) -> None:
    # The manifest goes first: without it the rest does not exist.
    run_directory.remove(self._manifest(record['name']))
    for file_name in record['files']:
      run_directory.remove(self._directory / file_name)

  def _manifest(self, name: str) -> pathlib.Path:
    return self._directory / f'ckpt.{name}.json'


def _set_aside(manifest: pathlib.Path) -> pathlib.Path:
  return manifest.with_name(f'{manifest.name}{_DAMAGED}')


def _put_aside(manifest: pathlib.Path) -> None:
  try:
    manifest.rename(_set_aside(manifest))
  except OSError as error:
    raise run_directory.WriteError(manifest, error) from error


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
    try:
      if path.stat().st_size != expected['bytes']:
        return f'{file_name} has {path.stat().st_size} bytes, not all'
      if _sha256(path) != expected['sha256']:
        return f'{file_name} does not match its sha256'
    except OSError as error:
      return f'{file_name} cannot be read: {error.strerror}'
  return None


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
