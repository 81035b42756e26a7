"""Builds the local store of a log, part by part.

Every file of the log becomes one part, a folder (see store_part), extracted in
a unique temporary folder and renamed into the build's folder when it is whole.
A build that is killed leaves that folder, and the next one goes on from the
parts that are there. When all are, the manifest is written and the build's
folder takes the store's name. So of any number of builds at the same time one
rename wins, for each part and for the store, whether file locks work or not;
a lock only saves the others the work.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import (
  shards,
  store_extract,
  store_files,
  store_part,
  store_plan,
)
from batch_rl_dr3.replay.store.subset import Subset
from batch_rl_dr3.runs import run_directory

# Above this many bytes of frames, the default codec is zstd.
MAX_RAW_BYTES = 32 << 30
_KEY_LENGTH = 16


def check_frames(
  source: Source,
  observation_shape: tuple[int, ...],
  observation_dtype: npt.DTypeLike,
) -> None:
  """Checks that a log's first frames are like the game's.

  Raises:
    DataError: if they have another shape or dtype.
  """
  suffix = source.suffixes()[0]
  header = source.header('observation', suffix)
  check_frame(
    source.name,
    header.shape[1:],
    header.dtype,
    observation_shape,
    observation_dtype,
  )


def check_frame(
  name: str,
  shape: tuple[int, ...],
  dtype: np.dtype[Any],
  observation_shape: tuple[int, ...],
  observation_dtype: npt.DTypeLike,
) -> None:
  """Checks that a frame of a log or store is like the game's.

  Raises:
    DataError: if it has another shape or dtype.
  """
  wanted = tuple(observation_shape), np.dtype(observation_dtype)
  if (shape, dtype) != wanted:
    raise errors.DataError(
      f'{name} has frames of {dtype} {shape}; {wanted[1]} {wanted[0]} is '
      'needed. Is it the data of another game?'
    )


def store_key(
  source: Source, subset: Subset, stack_size: int, codec: str | None
) -> str:
  """Returns a name that changes whenever the store would."""
  what = [
    store_files.FORMAT_VERSION,
    shards.SHARD_ROWS,
    source.name,
    subset.record(),
    # Which frames a uniform subset keeps depends on it.
    stack_size if subset.is_uniform else None,
    codec,
  ]
  name = _digest(what)[: store_extract.NAME_LENGTH]
  version = _digest(source.fingerprint())
  return (name + version)[:_KEY_LENGTH]


def _digest(content: Any) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def build(
  source: Source,
  folder: pathlib.Path,
  subset: Subset,
  num_actions: int | None,
  stack_size: int,
  codec: str | None = None,
  progress: bool = True,
) -> None:
  """Builds the store `folder`, unless another process is faster.

  What an earlier build of it has left is used. What fails keeps the parts that
  are whole for the next time, but for a full disk, which is left as it was.

  Args:
    source: the log.
    folder: the store's folder, named by `store_key`.
    subset: the part of the log that is used.
    num_actions: int, the number of the game's actions; None if not known.
    stack_size: int, frames in a state.
    codec: str, one of shards.CODECS; by size if None.
    progress: whether to show a progress bar when it takes long.

  Raises:
    DataError: if the log is incomplete, damaged, or of another game.
    ConfigError: if the subset is too small.
    WriteError: if the store cannot be written.
  """
  cache_dir = folder.parent
  lock = cache_dir / f'.{folder.name[: store_extract.NAME_LENGTH]}.lock'
  building = cache_dir / f'.{folder.name}.building'
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(lock) as is_alone:
      if folder.exists():
        return
      store_extract.remove_leftovers(building, is_alone)
      plan = store_plan.plan_files(source, subset, stack_size)
      header = source.header('observation', plan.files[0].segment['suffix'])
      codec = codec or _default_codec(plan, header)
      _check_space(plan, header, codec, building)
      try:
        building.mkdir(exist_ok=True)
        with store_extract.Extraction(plan, building) as extraction:
          extraction.run(source, codec, header, num_actions, progress)
        manifest = _manifest(source, subset, plan, codec, header, building)
        run_directory.write_json(building / store_files.MANIFEST, manifest)
        _rename(building, folder)
      except (OSError, errors.WriteError):
        shutil.rmtree(building, ignore_errors=True)
        # Where locks do not work, another builder may have won.
        if not (folder / store_files.MANIFEST).exists():
          raise
      finally:
        with contextlib.suppress(OSError):
          building.rmdir()  # Nothing is kept of a build that came to nothing.
  except OSError as error:
    raise run_directory.WriteError(folder, error) from error


def _rename(temporary: pathlib.Path, folder: pathlib.Path) -> None:
  os.rename(temporary, folder)


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


def _default_codec(
  plan: store_plan.Plan, header: checkpoint_format.Header
) -> str:
  num_bytes = plan.num_rows * store_extract.row_bytes(header)
  return shards.RAW if num_bytes <= MAX_RAW_BYTES else shards.ZSTD


def _check_space(
  plan: store_plan.Plan,
  header: checkpoint_format.Header,
  codec: str,
  building: pathlib.Path,
) -> None:
  """Checks that there is room for the parts that are not there yet.

  How small zstd makes frames is not known before, so they are not counted.

  Raises:
    WriteError: if there is not.
  """
  per_row = store_extract.row_bytes(header) if codec == shards.RAW else 0
  per_row += sum(d.itemsize for d in checkpoint_format.ELEMENT_DTYPES.values())
  needed = 0
  for file in plan.files:
    part = store_files.part_folder(building, file.segment['suffix'])
    if not part.exists():
      needed += file.segment['num_rows'] * per_row
  available = shutil.disk_usage(building.parent).free
  if needed > available:
    raise errors.WriteError(
      f'the store needs {needed:,} bytes in {building.parent}, where '
      f'{available:,} are available. Free some, choose another --cache_dir, '
      "or store frames compressed: open_store.codec = 'zstd'."
    )


def _manifest(
  source: Source,
  subset: Subset,
  plan: store_plan.Plan,
  codec: str,
  header: checkpoint_format.Header,
  building: pathlib.Path,
) -> dict[str, Any]:
  segments = [file.segment for file in plan.files]
  records = []
  for segment in segments:
    folder = store_files.part_folder(building, segment['suffix'])
    record = store_files.read_part(folder, segment)
    if record is None:
      raise FileNotFoundError(2, 'a part vanished', str(folder))
    records.append(record)
  parts = [
    {'files': record['files'], 'content': record['content']}
    for record in records
  ]
  dtypes = {'observation': header.dtype, **checkpoint_format.ELEMENT_DTYPES}
  if subset.is_uniform:
    dtypes |= store_part.TABLE_DTYPES
  return {
    'format_version': store_files.FORMAT_VERSION,
    'source': source.name,
    'subset': subset.record(),
    'stack_size': plan.files[0].stack_size if subset.is_uniform else None,
    'codec': codec,
    'shard_rows': shards.SHARD_ROWS,
    'num_rows': plan.num_rows,
    'max_action': max(record['max_action'] for record in records),
    'arrays': {
      name: {
        'dtype': dtype.str,
        'shape': [
          plan.num_rows,
          *(header.shape[1:] if name == 'observation' else ()),
        ],
      }
      for name, dtype in dtypes.items()
    },
    'missing_suffixes': source.missing_suffixes(),
    'unused_suffixes': plan.unused,
    'files': segments,
    'parts': parts,
    'data_hash': store_files.data_hash(segments, parts),
  }
