"""Builds the local store: a log's rows as plain .npy files, and a manifest.

The rows of all files stand one after another in observation.npy, action.npy,
reward.npy and terminal.npy. They are written into a temporary folder that is
renamed when it is whole, so that a killed build leaves nothing that looks
like a store.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any
import uuid

import numpy as np
import numpy.typing as npt

from batch_rl_dr3 import errors, run_directory
from batch_rl_dr3 import progress as progress_bars
from batch_rl_dr3.replay import checkpoint_format, store_plan
from batch_rl_dr3.replay.subset import Subset

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
_KEY_LENGTH = 16
# Builds below this many bytes take a second or two: no progress bar.
_TRIVIAL_BYTES = 256 << 20


def check_frames(
  source: pathlib.Path,
  observation_shape: tuple[int, ...],
  observation_dtype: npt.DTypeLike,
) -> None:
  """Checks that a log's first frames are like the game's.

  Raises:
    DataError: if they have another shape or dtype.
  """
  suffix = checkpoint_format.list_suffixes(source)[0]
  path = checkpoint_format.file_path(source, 'observation', suffix)
  header = checkpoint_format.read_header(path)
  needed = checkpoint_format.Header(
    tuple(observation_shape), np.dtype(observation_dtype)
  )
  if checkpoint_format.Header(header.shape[1:], header.dtype) != needed:
    raise errors.DataError(
      f'{path} has frames of {header.dtype} {header.shape[1:]}; '
      f'{needed.dtype} {needed.shape} is needed. Is it the data of another '
      'game?'
    )


def check_actions(source: object, max_action: int, num_actions: int) -> None:
  """Checks that actions are among the game's.

  Raises:
    DataError: if they are not.
  """
  if max_action >= num_actions:
    raise errors.DataError(
      f'{source} holds action {max_action}; the game has {num_actions} '
      'actions, numbered from 0. Is it the data of another game?'
    )


def store_key(source: pathlib.Path, subset: Subset) -> str:
  """Returns a name that changes whenever the store would."""
  suffixes = checkpoint_format.list_suffixes(source)
  names = checkpoint_format.ELEMENTS + checkpoint_format.ATTRIBUTES
  paths = [
    checkpoint_format.file_path(source, name, suffix)
    for suffix in suffixes
    for name in names
  ]
  stats = [(path.name, path.stat()) for path in paths]
  content = json.dumps(
    [
      FORMAT_VERSION,
      str(source),
      [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
      dataclasses.asdict(subset),
    ]
  )
  return hashlib.sha256(content.encode()).hexdigest()[:_KEY_LENGTH]


def build(
  source: pathlib.Path,
  folder: pathlib.Path,
  subset: Subset,
  num_actions: int,
  stack_size: int,
  progress: bool,
) -> None:
  """Builds the store `folder`, unless another process is faster.

  Raises:
    DataError: if the log is incomplete, damaged, or of another game.
    ConfigError: if the subset is too small.
    WriteError: if the store cannot be written.
  """
  cache_dir = folder.parent
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(cache_dir / f'.{folder.name}.lock') as is_alone:
      if folder.exists():
        return
      if is_alone:
        for leftover in cache_dir.glob(f'.{folder.name}.*.building'):
          shutil.rmtree(leftover, ignore_errors=True)
      temporary = cache_dir / f'.{folder.name}.{uuid.uuid4().hex}.building'
      temporary.mkdir()
      try:
        files, unused = store_plan.plan_files(source, subset, stack_size)
        copied = _copy(source, temporary, files, num_actions, progress)
        manifest = _manifest(source, subset, files, unused, copied)
        run_directory.write_json(temporary / MANIFEST, manifest)
        # Two builders can be here where locks do not work; then the second
        # rename fails, and the first store is used.
        with contextlib.suppress(FileExistsError):
          _rename(temporary, folder)
      finally:
        shutil.rmtree(temporary, ignore_errors=True)
  except OSError as error:
    raise run_directory.WriteError(folder, error) from error


def _rename(temporary: pathlib.Path, folder: pathlib.Path) -> None:
  try:
    os.rename(temporary, folder)
  except OSError as error:
    if (folder / MANIFEST).exists():  # ENOTEMPTY or EEXIST, by file system.
      raise FileExistsError from error
    raise


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
  """Waits for other builders; yields False where locks do not work."""
  with open(path, 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX)
      is_alone = True
    except OSError:
      is_alone = False
    yield is_alone


def _copy(
  source: pathlib.Path,
  target: pathlib.Path,
  files: list[dict[str, Any]],
  num_actions: int,
  progress: bool,
) -> dict[str, Any]:
  """Copies the rows; returns what the manifest says of the arrays."""
  num_rows = sum(file['num_rows'] for file in files)
  first = checkpoint_format.read_header(
    checkpoint_format.file_path(source, 'observation', files[0]['suffix'])
  )
  arrays: dict[str, Any] = {}
  max_action = -1
  # The small arrays come first: they tell of a wrong game within seconds.
  for name in reversed(checkpoint_format.ELEMENTS):
    dtype = checkpoint_format.ELEMENT_DTYPES.get(name, first.dtype)
    row_shape = first.shape[1:] if name == 'observation' else ()
    shape = (num_rows, *row_shape)
    rows = _allocate(target / f'{name}.npy', shape, dtype)
    bar = progress_bars.bar(
      num_rows,
      f'copying {name} from {source}',
      'row',
      disable=not progress or rows.nbytes < _TRIVIAL_BYTES,
    )
    digest = hashlib.sha256()
    with bar:
      for start, block in _blocks(source, name, files, dtype, row_shape):
        if name == 'action':
          max_action = max(max_action, int(block.max()))
          check_actions(source, max_action, num_actions)
        rows[start : start + len(block)] = block
        digest.update(block.data)
        bar.update(len(block))
    rows.flush()
    arrays[name] = {
      'dtype': dtype.str,
      'shape': list(shape),
      'sha256': digest.hexdigest(),
    }
  return {'arrays': arrays, 'max_action': max_action, 'num_rows': num_rows}


def _allocate(
  path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.memmap[Any, Any]:
  """Returns a mapped array whose space on disk is reserved.

  Without that, a full disk is not an error but kills the process (SIGBUS).
  """
  rows: np.memmap[Any, Any] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
    path, 'w+', dtype, shape
  )
  with open(path, 'r+b') as file:
    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  return rows


def _blocks(
  source: pathlib.Path,
  name: str,
  files: list[dict[str, Any]],
  dtype: np.dtype[Any],
  row_shape: tuple[int, ...],
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
  """Yields (row in the store, block of checked rows) of one array."""
  for file in files:
    path = checkpoint_format.file_path(source, name, file['suffix'])
    # Reads whole files to their end, though rows may lie there that the
    # buffer did not hold yet, for the sake of the checksum.
    to_read = None if file['read_to_end'] else file['num_rows']
    row, left = file['first_row'], file['num_rows']
    for whole in checkpoint_format.read_rows(path, dtype, row_shape, to_read):
      block = whole[:left]
      if len(block):
        _check_values(path, name, block)
        yield row, block
      row, left = row + len(block), left - len(block)


def _check_values(
  path: pathlib.Path, name: str, block: npt.NDArray[Any]
) -> None:
  if name == 'action' and block.min() < 0:
    problem = f'the action {block.min()}'
  elif name == 'terminal' and block.max() > 1:
    problem = f'the terminal flag {block.max()}, neither 0 nor 1'
  # A comparison with NaN is false, so NaN is a problem too.
  elif name == 'reward' and not (np.abs(block) <= 1).all():
    problem = 'a reward outside [-1, 1]; logged rewards are clipped'
  else:
    return
  raise errors.DataError(f'{path} holds {problem}.')


def _manifest(
  source: pathlib.Path,
  subset: Subset,
  files: list[dict[str, Any]],
  unused: list[int],
  copied: Mapping[str, Any],
) -> dict[str, Any]:
  present = {file['suffix'] for file in files} | set(unused)
  missing = sorted(set(range(max(present))) - present)
  # What training sees, and nothing of where it was found.
  content = json.dumps([files, copied['arrays']], sort_keys=True)
  return {
    'format_version': FORMAT_VERSION,
    'source': str(source),
    'subset': {'rule': subset.rule, 'fraction': subset.fraction},
    'files': files,
    'missing_suffixes': missing,
    'unused_suffixes': unused,
    **copied,
    'data_hash': hashlib.sha256(content.encode()).hexdigest(),
  }
