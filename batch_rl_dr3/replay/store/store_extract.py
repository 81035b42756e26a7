"""Extracts the parts of a store, several files of the log at a time."""

from concurrent import futures
import os
import pathlib
import shutil
import socket
import threading
import time
from typing import Self
import uuid

from absl import logging
import numpy as np

from batch_rl_dr3.config import errors
from batch_rl_dr3.config import progress as progress_bars
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import store_files, store_part, store_plan
from batch_rl_dr3.runs.retry import RefusedError

# The first characters of a store's key, which stay when only the data change.
NAME_LENGTH = 8
# Extractions below this many bytes take a second or two: no progress bar.
_TRIVIAL_BYTES = 256 << 20
# Files read at the same time; each takes some 20 MB of memory.
_MAX_THREADS = 4
# What nothing was written to for so long is left over from another machine.
_ABANDONED_SECONDS = 86_400


def row_bytes(header: checkpoint_format.Header) -> int:
  """Returns the size of one frame."""
  return int(np.prod(header.shape[1:])) * header.dtype.itemsize


class Extraction:
  """Extracts all parts that a build lacks, with a few threads.

  Decompression and checksums leave Python's lock to others. Memory is bounded
  by a block of frames per thread.
  """

  def __init__(self, plan: store_plan.Plan, building: pathlib.Path):
    """Prepares; nothing is written yet.

    Args:
      plan: what the parts are.
      building: the folder that finished parts are moved to.
    """
    self._plan = plan
    self._building = building
    # Whose it is can be told, and it is nobody else's.
    owner = f'{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}'
    self._temporary = building.with_name(f'{building.stem}.{owner}.part')
    self._stop = threading.Event()

  def __enter__(self) -> Self:
    self._temporary.mkdir()
    return self

  def __exit__(self, *unused: object) -> None:
    shutil.rmtree(self._temporary, ignore_errors=True)

  def run(
    self,
    source: Source,
    codec: str,
    header: checkpoint_format.Header,
    num_actions: int | None,
    progress: bool,
  ) -> None:
    """Extracts the parts that are not there.

    Raises:
      DataError: if a file is damaged, or of another game.
      OSError: if a part cannot be written.
    """
    files = [file for file in self._plan.files if not self._is_done(file)]
    num_rows = sum(file.num_held for file in files)
    is_trivial = num_rows * row_bytes(header) < _TRIVIAL_BYTES
    bar = progress_bars.bar(
      num_rows,
      f'extracting {source.name}',
      'row',
      disable=is_trivial or not progress,
    )
    counting = threading.Lock()

    already = source.num_bytes_read

    def on_rows(count: int) -> None:
      with counting:
        read = (source.num_bytes_read - already) / 1e6
        bar.set_postfix_str(f'{read:,.0f} MB read', refresh=False)
        bar.update(count)

    builder = store_part.PartBuilder(
      source,
      codec,
      header.shape[1:],
      header.dtype,
      num_actions,
      on_rows,
      self._stop.is_set,
    )
    with bar, futures.ThreadPoolExecutor(_num_threads()) as pool:
      running = [pool.submit(self._extract, builder, file) for file in files]
      try:
        for future in futures.as_completed(running):
          future.result()
      except BaseException:
        self._stop.set()
        pool.shutdown(cancel_futures=True)
        raise

  def _final(self, file: store_plan.FilePlan) -> pathlib.Path:
    return store_files.part_folder(self._building, file.segment['suffix'])

  def _is_done(self, file: store_plan.FilePlan) -> bool:
    final = self._final(file)
    if not final.exists():
      return False
    if store_files.read_part(final, file.segment) is not None:
      return True
    shutil.rmtree(final)
    return False

  def _extract(
    self, builder: store_part.PartBuilder, file: store_plan.FilePlan
  ) -> None:
    temporary = store_files.part_folder(self._temporary, file.segment['suffix'])
    temporary.mkdir()
    try:
      builder.build(file, temporary)
    except RefusedError:
      raise
    except errors.DataError as error:
      # Whole files were fetched twice already, if need be; of a prefix nobody
      # knew on the way that it is damaged.
      if file.segment['read_to_end']:
        raise
      logging.warning('%s It is read once more.', error)
      shutil.rmtree(temporary)
      temporary.mkdir()
      builder.build(file, temporary)
    try:
      os.rename(temporary, self._final(file))
    except OSError:
      # Where locks do not work, another builder may have been faster.
      if store_files.read_part(self._final(file), file.segment) is None:
        raise


def _num_threads() -> int:
  return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


def remove_leftovers(building: pathlib.Path, is_alone: bool) -> None:
  """Removes what builds that were killed left and this one cannot use.

  Args:
    building: the folder of the build; it is kept.
    is_alone: whether a lock says that there is no other build. Some file
      systems' locks lie, so that parts go only when their maker is gone.
  """
  name = building.name[: 1 + NAME_LENGTH]
  for path in building.parent.glob(f'{name}*'):
    of_other_data = path.suffix == '.building' and path != building
    if (of_other_data and is_alone) or _is_abandoned(path):
      shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: pathlib.Path) -> bool:
  if path.suffix != '.part':
    return False
  # .key.host.pid.unique, where a host's name may hold dots.
  host, pid, _ = path.stem.split('.', 2)[2].rsplit('.', 2)
  if host == socket.gethostname():
    return not pathlib.Path('/proc', pid).exists()
  newest = max(p.stat().st_mtime for p in (path, *path.rglob('*')))
  return time.time() - newest > _ABANDONED_SECONDS
