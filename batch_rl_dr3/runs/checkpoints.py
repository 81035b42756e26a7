"""Checkpoints that are whole or absent.

A checkpoint is Dopamine's `tf_ckpt-<name>` files plus a manifest
`ckpt.<name>.json`, written last, with each file's size and sha256. What has no
manifest does not exist; what does not match its manifest is set aside, and the
one before it is used.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
import pathlib
import secrets
import shutil
from typing import Any

from absl import logging

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, place, records

_PREFIX = 'tf_ckpt-'
_DAMAGED = '.damaged'
# How many checkpoints within the iteration in progress are kept.
_KEEP_WITHIN = 2
_MEND = 'Remove it; the checkpoint before it is then used.'


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint, as its manifest describes it."""

  # The iteration, or <iteration>_<gradient steps> within one.
  name: str
  gradient_steps: int
  prefix: str  # What TensorFlow's Saver takes.
  # By name, with their 'bytes' and 'sha256'; none of another program's.
  files: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def manifest(self) -> pathlib.Path:
    """The file that vouches for it."""
    return pathlib.Path(self.prefix).with_name(f'ckpt.{self.name}.json')

  def damage(self, with_content: bool = True) -> str | None:
    """Returns how the files, or their sizes alone, differ; None if not."""
    for file_name, expected in self.files.items():
      path = self.manifest.with_name(file_name)
      try:
        size = path.stat().st_size
        if size != expected['bytes']:
          return f'{file_name} has {size} bytes, not all'
        if with_content and atomic.sha256_of(path) != expected['sha256']:
          return f'{file_name} does not match its sha256'
      except FileNotFoundError:
        return f'{file_name} is missing'
      except OSError as error:
        return f'{file_name} cannot be read: {error.strerror}'
    return None


def _read(path: pathlib.Path) -> Checkpoint | None:
  """Returns the checkpoint of a manifest; None if it is not there."""
  record = records.read(path, records.CHECKPOINT, _MEND)
  if record is None:
    return None
  name, files = record['name'], record['files']
  wrong = '' if files else 'files names no file'
  if path.name != f'ckpt.{name}.json':
    wrong = f'name is {name!r}, not its own'
  for file_name in files:
    place.path_below(path.parent, file_name, path, 'files')
    if not file_name.startswith(f'{_PREFIX}{name}.') or '/' in file_name:
      wrong = wrong or f'files names {file_name!r}, no file of the checkpoint'
  if wrong:
    raise errors.DataError(f'{path}: {wrong}. {_MEND}')
  prefix = str(path.with_name(f'{_PREFIX}{name}'))
  return Checkpoint(name, record['gradient_steps'], prefix, files)


def manifests(
  directory: pathlib.Path,
  on_damage: Callable[[pathlib.Path, errors.DataError], None] = (
    lambda _, error: logging.warning('%s', error)
  ),
) -> Iterator[Checkpoint]:
  """Yields what the undamaged manifests of a folder say.

  Another process may write to the folder meanwhile.
  """
  for path in sorted(directory.glob('ckpt.*.json')):
    try:
      if (checkpoint := _read(path)) is not None:
        yield checkpoint
    except errors.DataError as error:
      on_damage(path, error)


def of_iterations(directory: pathlib.Path) -> dict[int, Checkpoint]:
  """Returns the checkpoints that end an iteration, whole or not, in order."""
  found = {int(c.name): c for c in manifests(directory) if c.name.isdigit()}
  return dict(sorted(found.items()))


def check_whole(checkpoint: Checkpoint) -> None:
  """Raises DataError if a checkpoint's files are not as its manifest says."""
  found = _read(checkpoint.manifest)
  reason = 'it has no manifest' if found is None else found.damage()
  if reason is not None:
    raise errors.DataError(
      f'{checkpoint.prefix} is damaged: {reason}. Restore it from a backup, or '
      'play the others.'
    )


@dataclasses.dataclass
class Checkpoints:
  """The checkpoints of one run, in a folder that is created if need be.

  Kept are the newest `keep_last` that end an iteration, the newest two that
  were written within the one since, and every `keep_every`th for good.
  """

  directory: str | os.PathLike[str]
  keep_last: int = 4
  keep_every: int | None = None
  check: atomic.Check = atomic.unchecked
  # Names of those that stay, whatever is saved after them.
  protected: set[str] = dataclasses.field(default_factory=set)

  def __post_init__(self) -> None:
    self._directory = atomic.make_directory(self.directory)

  def save(
    self, write: Callable[[str], None], name: str, gradient_steps: int
  ) -> None:
    """Has `write` write a checkpoint, then drops what is no longer kept.

    WriteError if the disk refuses; earlier checkpoints are untouched.
    """
    target = self._directory / f'{_PREFIX}{name}'
    # Of no other process's name, wherever that runs.
    temporary = self._directory / f'.writing.{name}.{secrets.token_hex(8)}'
    try:
      with atomic.file_errors(target, self.check):
        temporary.mkdir()
        write(str(temporary / target.name))
        files = {}
        for path in sorted(temporary.iterdir()):
          atomic.sync(path)
          size = path.stat().st_size
          files[path.name] = {'bytes': size, 'sha256': atomic.sha256_of(path)}
        self.check()
        for file_name in files:
          os.replace(temporary / file_name, self._directory / file_name)
        atomic.sync(self._directory)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
    atomic.write_json(
      self._directory / f'ckpt.{name}.json',
      {'name': name, 'gradient_steps': gradient_steps, 'files': files},
      self.check,
    )
    self._prune()

  def of_iterations(self) -> dict[int, Checkpoint]:  # noqa: D102
    return of_iterations(self._directory)

  def latest(self) -> Checkpoint | None:
    """Returns the newest whole checkpoint; None where none was ever written.

    What a kill left half-written is removed, so only the writer may ask.

    Raises:
      DataError: if there are checkpoints and none of them is whole: a run is
        never started over silently.
    """
    self._remove_leftovers()
    for checkpoint in self._newest_first():
      reason = checkpoint.damage()
      if reason is None:
        return checkpoint
      _set_aside(checkpoint.manifest, f'{checkpoint.manifest}: {reason}.')
    if any(self._directory.glob(f'ckpt.*{_DAMAGED}')):
      raise errors.DataError(
        f'every checkpoint in {self._directory} is damaged, and a run is not '
        'started over by itself. Restore one from a backup, or start over '
        'with --overwrite.'
      )
    return None

  def _remove_leftovers(self) -> None:
    """Removes temporary files and files without a manifest, left by a kill."""
    for leftover in self._directory.glob('.*'):
      atomic.remove_tree(leftover)
    for path in self._directory.glob(f'{_PREFIX}*'):
      name = path.name.removeprefix(_PREFIX).partition('.')[0]
      if not any(self._directory.glob(f'ckpt.{name}.json*')):
        atomic.remove_file(path)

  def _newest_first(self) -> list[Checkpoint]:
    """Returns the checkpoints; sets those with a damaged manifest aside."""
    found = manifests(self._directory, _set_aside)
    return sorted(found, key=lambda c: c.gradient_steps, reverse=True)

  def _prune(self) -> None:
    found = self._newest_first()
    written = [checkpoint.name for checkpoint in found]
    ends = [name for name in written if name.isdigit()]
    within = written[: written.index(ends[0])] if ends else written
    kept = {*ends[: self.keep_last], *within[:_KEEP_WITHIN], *self.protected}
    if self.keep_every is not None:
      kept |= {name for name in ends if int(name) % self.keep_every == 0}
    for checkpoint in found:
      if checkpoint.name not in kept:
        # The manifest goes first: without it the rest does not exist.
        atomic.remove_file(checkpoint.manifest)
        for file_name in checkpoint.files:
          atomic.remove_file(self._directory / file_name)


def _set_aside(manifest: pathlib.Path, reason: object) -> None:
  logging.warning('%s It is set aside.', reason)
  with atomic.file_errors(manifest):
    manifest.rename(manifest.with_name(f'{manifest.name}{_DAMAGED}'))
