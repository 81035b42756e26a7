"""Opens the local store of a log, which is built when it is first asked for.

A log is copied once, out of its compressed files, into a folder of a cache;
every later run opens that folder within a second.
"""

import os
import pathlib

from absl import logging
import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, source_chain
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import build, read, shards
from batch_rl_dr3.replay.store.read import (
  MAX_RESIDENT_BYTES,
  ReplayStore,
  ReplayTransitions,
)
from batch_rl_dr3.replay.store.subset import Subset

__all__ = ['ReplayStore', 'ReplayTransitions', 'open_store']


@gin.configurable(
  denylist=[
    'replay',
    'cache_dir',
    'subset',
    'observation_shape',
    'num_actions',
    'stack_size',
    'progress',
    'observation_dtype',
  ]
)
def open_store(
  replay: str | os.PathLike[str] | Source,
  cache_dir: str | os.PathLike[str],
  subset: Subset,
  observation_shape: tuple[int, ...],
  num_actions: int | None,
  stack_size: int,
  progress: bool = True,
  observation_dtype: npt.DTypeLike = np.uint8,
  max_resident_bytes: int = MAX_RESIDENT_BYTES,
  codec: str | None = None,
) -> ReplayStore:
  """Returns the store of a log, built first if the cache lacks it.

  Neither max_resident_bytes nor codec changes a bit of any batch. Measured on
  300,000 frames of Seaquest, random play, on two shared cores, before stacking
  became three times as fast: batches of 32 a second from one thread, with files
  in the page cache or not (a cold start), and the bytes then read a batch:

            size   resident   cached   cold   read a batch
      raw   2120 MB     880      590    150      1.06 MB
      zstd    40 MB    1000      410    340      0.03 MB

  So raw is the faster as long as the page cache holds it, and zstd beyond.
  Holding 2.1 GB in memory takes 3 s at every start, reading as needed 10 ms,
  hence the default of 1 GiB.

  Args:
    replay: the log: its folder, or that one's parent, a URL that fsspec
      opens, or a Source; or the folder of a store, which is then opened as it
      is, wherever its log may be.
    cache_dir: where stores are kept; it needs the room of the uncompressed
      rows, 7 GB per million Atari frames, if they are not compressed.
    subset: the part of the log that is used.
    observation_shape: the shape of one frame of the game.
    num_actions: int, the number of the game's actions; None does not hold
      the logged ones against it.
    stack_size: int, frames in a state.
    progress: whether to show a progress bar when a build takes long.
    observation_dtype: the dtype of frames of the game.
    max_resident_bytes: int; frames are held in memory up to so many bytes,
      and above that read from the disk as they are needed.
    codec: str, how frames are stored: 'raw' or 'zstd'. If None, raw up to
      32 GiB of frames, zstd above.

  Raises:
    DataError: if the log is missing, damaged, or of another game.
    ConfigError: if the subset is too small, the codec unknown, or the given
      store that of another subset.
    WriteError: if the store cannot be written.
  """
  if codec is not None and codec not in shards.CODECS:
    raise errors.ConfigError(
      f'open_store.codec is {codec!r}; it must be one of '
      f'{", ".join(shards.CODECS)}.'
    )
  if isinstance(replay, str | os.PathLike):
    replay = source_chain.local_path(os.fspath(replay))
  if isinstance(replay, str) and read.is_store(replay):
    folder = pathlib.Path(replay)
  else:
    source = source_chain.make_source(replay)
    build.check_frames(source, observation_shape, observation_dtype)
    key = build.store_key(source, subset, stack_size, codec)
    folder = pathlib.Path(cache_dir) / key
    if not folder.exists():
      build.build(
        source, folder, subset, num_actions, stack_size, codec, progress
      )
  store = ReplayStore(folder, stack_size, max_resident_bytes)
  _check(store, subset, observation_shape, num_actions, observation_dtype)
  if store.manifest['format_version'] < read.FORMAT_VERSION:
    logging.warning(
      '%s was made before single frames had checksums: those of codec raw are '
      'not checked as they are read. `data verify` checks all of it; `data '
      'fetch` makes it anew from %s.',
      store.folder,
      store.manifest['source'],
    )
  if store.manifest['missing_suffixes']:
    logging.warning(
      '%s has no files of suffix %s; what follows is without them.',
      store.manifest['source'],
      checkpoint_format.format_suffixes(store.manifest['missing_suffixes']),
    )
  return store


def _check(
  store: ReplayStore,
  subset: Subset,
  observation_shape: tuple[int, ...],
  num_actions: int | None,
  observation_dtype: npt.DTypeLike,
) -> None:
  """Checks that a store is of the subset and the game that are asked for.

  Raises:
    ConfigError: if it holds another subset.
    DataError: if it is of another game.
  """
  manifest = store.manifest
  if manifest['subset'] != subset.record():
    raise errors.ConfigError(
      f'{store.folder} holds the subset {manifest["subset"]} of its log, and '
      f'{subset.record()} is asked for. Name another store, or bind Subset as '
      'it is.'
    )
  build.check_frame(
    str(store.folder),
    store.observation_shape,
    np.dtype(manifest['arrays']['observation']['dtype']),
    observation_shape,
    observation_dtype,
  )
  build.check_actions(manifest['source'], manifest['max_action'], num_actions)
