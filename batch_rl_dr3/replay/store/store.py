"""Opens the local store of a log, built from its files when first asked for.

Every file of the log becomes one part, a folder: action.npy, reward.npy,
terminal.npy, the shards of frames, and, of a subset that is drawn,
source_row.npy (int64, the file's rows that are kept) and drawn.npy (bool, where
a transition may start). part.json is written last and holds each file's length
and checksums.

A part is extracted in a unique temporary folder and renamed into the build's
folder when it is whole; a killed build leaves that folder, and the next one
resumes from its parts. When all are there, the manifest is written and the
folder takes the store's name. So of any number of simultaneous builds one
rename wins, whether file locks work or not; a lock only saves the others work.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import socket
import threading
import time
from typing import Any
import uuid

from absl import logging
import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.config import progress as progress_bars
from batch_rl_dr3.replay.log import checkpoint_format, source_chain, sources
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import read, shards
from batch_rl_dr3.replay.store.read import (
  MAX_RESIDENT_BYTES,
  ReplayStore,
  ReplayTransitions,
)
from batch_rl_dr3.replay.store.subset import Segment, Subset, draw, rows_needed
from batch_rl_dr3.runs import atomic, place
from batch_rl_dr3.runs.retry import RefusedError

__all__ = ['ReplayStore', 'ReplayTransitions', 'open_store']

# Above this many bytes of frames, the default codec is zstd.
_MAX_RAW_BYTES = 32 << 30
_KEY_LENGTH = 16
# The first characters of a store's key, which stay when only the data change.
_NAME_LENGTH = 8
# Requests for small things at the same time.
_NUM_REQUESTS = 8
# Extractions below this many bytes take a second or two: no progress bar.
_TRIVIAL_BYTES = 256 << 20
# Files read at the same time; each takes some 20 MB of memory.
_MAX_THREADS = 4
# What nothing was written to for so long is left over from another machine.
_ABANDONED_SECONDS = 86_400
# What a part of a subset that is drawn has besides.
_TABLE_DTYPES: dict[str, np.dtype[Any]] = {
  'source_row': np.dtype(np.int64),
  'drawn': np.dtype(np.bool_),
}


@gin.configurable(allowlist=['max_resident_bytes', 'codec'])
def open_store(
  replay: str | os.PathLike[str] | Source,
  cache_dir: str | os.PathLike[str],
  subset: Subset,
  observation_shape: tuple[int, ...] | None,
  num_actions: int | None,
  stack_size: int,
  observation_dtype: npt.DTypeLike = np.uint8,
  max_resident_bytes: int = MAX_RESIDENT_BYTES,
  codec: str | None = None,
) -> ReplayStore:
  """Returns the store of a log, built first if the cache lacks it.

  Neither max_resident_bytes nor codec changes a bit of any batch. Batches of 32
  a second from one thread, of 300,000 frames of Seaquest on two shared cores,
  with files in the page cache or not (cold), and the bytes read a batch:

            size   resident   cached   cold   read a batch
      raw   2120 MB     880      590    150      1.06 MB
      zstd    40 MB    1000      410    340      0.03 MB

  Holding 2.1 GB takes 3 s at every start, reading as needed 10 ms, hence the
  default of 1 GiB.

  Args:
    replay: the folder or URL of a log or its parent, a Source, or a store.
    cache_dir: where stores are kept; raw, 7 GB per million Atari frames.
    subset: the part of the log that is used.
    observation_shape: of one frame of the game; None accepts any.
    num_actions: of the game; None accepts any logged action.
    stack_size: frames in a state.
    observation_dtype: the dtype of frames of the game.
    max_resident_bytes: larger frames are read from the disk as needed.
    codec: 'raw' or 'zstd'; None is raw up to 32 GiB of frames, zstd above.

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
  frames = observation_shape, observation_dtype
  if isinstance(replay, str | os.PathLike):
    replay = place.local_path(os.fspath(replay)) or replay
  if not isinstance(replay, Source) and read.is_store(replay):
    folder = pathlib.Path(replay)
  else:
    source = source_chain.make_source(replay)
    header = source.header('observation', source.suffixes()[0])
    checkpoint_format.check_frames(source.name, header, *frames)
    key = _store_key(source, subset, stack_size, codec)
    folder = pathlib.Path(cache_dir) / key
    if not folder.exists():
      _Build(source, subset, num_actions, stack_size, codec, folder).run()
  store = ReplayStore(folder, stack_size, max_resident_bytes)
  manifest = store.manifest
  if manifest['subset'] != subset.record():
    raise errors.ConfigError(
      f'{store.folder} holds the subset {manifest["subset"]} of its log, and '
      f'{subset.record()} is asked for. Name another store, or bind Subset as '
      'it is.'
    )
  checkpoint_format.check_frames(folder, store.header('observation'), *frames)
  _check_actions(manifest['source'], manifest['max_action'], num_actions)
  if manifest['missing_suffixes']:
    logging.warning(
      '%s has no files of suffix %s; what follows is without them.',
      manifest['source'],
      checkpoint_format.format_suffixes(manifest['missing_suffixes']),
    )
  return store


def default_codec(num_frame_bytes: int) -> str:
  """Returns the codec of a store with so many bytes of frames."""
  return shards.RAW if num_frame_bytes <= _MAX_RAW_BYTES else shards.ZSTD


def _check_actions(
  source: object, max_action: int, num_actions: int | None
) -> None:
  if num_actions is not None and max_action >= num_actions:
    raise errors.DataError(
      f'{source} holds action {max_action}; the game has {num_actions} '
      'actions, numbered from 0. Is it the data of another game?'
    )


def _store_key(
  source: Source, subset: Subset, stack_size: int, codec: str | None
) -> str:
  """Returns a name that changes whenever the store would."""
  what = [read.FORMAT_VERSION, shards.SHARD_ROWS, source.name, subset.record()]
  # Which frames a draw keeps depends on the stacks.
  what += [stack_size if subset.is_drawn else None, codec]
  name, version = (
    hashlib.sha256(json.dumps(content).encode()).hexdigest()
    for content in (what, source.fingerprint())
  )
  return (name[:_NAME_LENGTH] + version)[:_KEY_LENGTH]


def _remove_leftovers(building: pathlib.Path, is_alone: bool) -> None:
  """Removes what killed builds left, as far as its maker is surely gone."""
  name = building.name[: 1 + _NAME_LENGTH]
  for path in building.parent.glob(f'{name}*'):
    of_other_data = path.suffix == '.building' and path != building
    is_abandoned = path.suffix == '.part' and _is_abandoned(path)
    if (of_other_data and is_alone) or is_abandoned:
      shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: pathlib.Path) -> bool:
  # .key.host.pid.unique, where a host's name may hold dots.
  host, pid, _ = path.stem.split('.', 2)[2].rsplit('.', 2)
  if host == socket.gethostname():
    return not pathlib.Path('/proc', pid).exists()
  newest = max(p.stat().st_mtime for p in (path, *path.rglob('*')))
  return time.time() - newest > _ABANDONED_SECONDS


@dataclasses.dataclass(frozen=True)
class _FilePlan:
  """What one file of the log gives to the store."""

  segment: Segment
  num_held: int  # Its rows that are read; those behind them are ignored.
  # Of a draw, ascending rows: where transitions start, and all they need.
  drawn: npt.NDArray[np.int64] | None = None
  kept: npt.NDArray[np.int64] | None = None


@dataclasses.dataclass
class _Build:
  """The building of a store from the parts that its log's files give.

  Decompression and checksums release Python's lock, so a few threads extract;
  each holds one block of frames.
  """

  source: Source
  subset: Subset
  num_actions: int | None
  stack_size: int
  codec: str | None
  folder: pathlib.Path

  def run(self) -> None:
    """Builds the store, unless another process is faster.

    Resumes from the parts of earlier builds. A failed build keeps the parts
    that are whole, unless the disk is full, which is left as it was.
    """
    folder, name = self.folder, self.folder.name
    self._building = building = folder.with_name(f'.{name}.building')
    self._stop = threading.Event()
    with atomic.file_errors(folder):
      folder.parent.mkdir(parents=True, exist_ok=True)
      lock = folder.with_name(f'.{name[:_NAME_LENGTH]}.lock')
      with open(lock, 'w') as file:
        is_alone = False  # Where locks do not work.
        with contextlib.suppress(OSError):
          fcntl.flock(file, fcntl.LOCK_EX)
          is_alone = True
        if folder.exists():
          return
        _remove_leftovers(building, is_alone)
        self._plan()
        self._check_space()
        try:
          building.mkdir(exist_ok=True)
          self._extract_missing()
          text = read.manifest_text(self._manifest())
          atomic.write_text(building / read.MANIFEST, text)
          atomic.name_folder(building, folder)
        except (OSError, errors.WriteError):
          shutil.rmtree(building, ignore_errors=True)
          # Where locks do not work, another builder may have won.
          if not read.is_store(folder):
            raise
        finally:
          with contextlib.suppress(OSError):
            building.rmdir()  # Nothing is kept of a build that came to nothing.

  def _plan(self) -> None:
    """Decides what each file gives, in time order."""
    source, subset = self.source, self.subset
    lengths, segments = self._choose_segments()
    drawn: list[Any] = [None] * len(segments)
    if subset.is_drawn:
      terminals = [
        source.column('terminal', s.suffix)[: s.num_rows] for s in segments
      ]
      drawn = draw(subset, segments, terminals, lengths, self.stack_size)
    self._files: list[_FilePlan] = []
    self._num_rows = 0
    for whole, rows in zip(segments, drawn, strict=True):
      segment, kept = dataclasses.replace(whole, first_row=self._num_rows), None
      if rows is not None:
        kept = rows_needed(rows, whole.num_rows, self.stack_size)
        segment = dataclasses.replace(
          segment, num_rows=len(kept), num_drawn=len(rows)
        )
      if segment.num_rows:
        self._files.append(_FilePlan(segment, whole.num_rows, rows, kept))
      self._num_rows += segment.num_rows
    used = {file.segment.suffix for file in self._files}
    self._unused = [suffix for suffix in lengths if suffix not in used]
    self._frame = source.header('observation', self._files[0].segment.suffix)
    self._frame_shape = self._frame.shape[1:]
    self._row_bytes = math.prod(self._frame_shape) * self._frame.dtype.itemsize
    num_bytes = self._num_rows * self._row_bytes
    self._codec = self.codec or default_codec(num_bytes)

  def _choose_segments(self) -> tuple[dict[int, int], list[Segment]]:
    """Returns the rows of each file, and those that the subset is of."""
    source = self.source
    suffixes = source.suffixes()
    with futures.ThreadPoolExecutor(_NUM_REQUESTS) as pool:  # Storages are far.
      counts = pool.map(functools.partial(sources.count_rows, source), suffixes)
      lengths = dict(zip(suffixes, counts, strict=True))
      wanted = self.subset.rows_per_file(lengths, self.stack_size)
      wholes = list(pool.map(source.segment, wanted))
    segments = []
    for whole, count in zip(wholes, wanted.values(), strict=True):
      whole.check_counts(source.name)
      if isinstance(source, sources.LogSource):  # Others say no cursor's range.
        whole.check_cursor(source.name)
      segment = dataclasses.replace(
        whole,
        first_row=0,
        num_rows=min(count, whole.num_rows),
        read_to_end=count == lengths[whole.suffix],
      )
      if segment.num_rows:
        segments.append(segment)
    if not segments:
      raise errors.DataError(
        f'{source.name} holds no rows: its buffers are empty.'
      )
    return lengths, segments

  def _check_space(self) -> None:
    """Raises a WriteError if the parts, but for zstd frames, do not fit."""
    per_row = self._row_bytes if self._codec == shards.RAW else 0
    per_row += checkpoint_format.TABLE_BYTES
    needed = per_row * sum(
      file.segment.num_rows
      for file in self._files
      if not self._part(file).exists()
    )
    available = shutil.disk_usage(self.folder.parent).free
    if needed > available:
      raise errors.WriteError(
        f'the store needs {needed:,} bytes in {self.folder.parent}, where '
        f'{available:,} are available. Free some, choose another --cache_dir, '
        "or store frames compressed: open_store.codec = 'zstd'."
      )

  def _part(self, file: _FilePlan) -> pathlib.Path:
    return self._building / str(file.segment.suffix)

  def _record(self, file: _FilePlan) -> dict[str, Any] | None:
    """Returns the record of a part; None if it is not all there."""
    return read.read_part(self._part(file), file.segment.record())

  def _extract_missing(self) -> None:
    files = [file for file in self._files if self._record(file) is None]
    for file in files:
      shutil.rmtree(self._part(file), ignore_errors=True)
    num_rows = sum(file.num_held for file in files)
    bar = progress_bars.bar(
      num_rows,
      f'extracting {self.source.name}',
      'row',
      disable=num_rows * self._row_bytes < _TRIVIAL_BYTES,
    )
    already = self.source.count.total

    def on_rows(count: int) -> None:
      with bar.get_lock():
        num_read = (self.source.count.total - already) / 1e6
        bar.set_postfix_str(f'{num_read:,.0f} MB read', refresh=False)
        bar.update(count)

    # Whose it is can be told, and it is nobody else's.
    owner = f'{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}'
    temporary = self._building.with_name(f'{self._building.stem}.{owner}.part')
    temporary.mkdir()
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    try:
      with bar, futures.ThreadPoolExecutor(num_threads) as pool:
        running = [
          pool.submit(self._extract, file, temporary, on_rows) for file in files
        ]
        try:
          for future in futures.as_completed(running):
            future.result()
        except BaseException:
          self._stop.set()
          pool.shutdown(cancel_futures=True)
          raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)

  def _extract(
    self,
    file: _FilePlan,
    temporary: pathlib.Path,
    on_rows: Callable[[int], None],
  ) -> None:
    folder = temporary / str(file.segment.suffix)
    # Whole files were fetched twice already, if need be; of a prefix nobody
    # knew on the way that it is damaged.
    for is_last in (file.segment.read_to_end, True):
      folder.mkdir()
      try:
        self._write_part(file, folder, on_rows)
        break
      except errors.DataError as error:
        if is_last or isinstance(error, RefusedError):
          raise
        logging.warning('%s It is read once more.', error)
        shutil.rmtree(folder)
    try:
      atomic.name_folder(folder, self._part(file))
    except OSError:
      # Where locks do not work, another builder may have been faster.
      if self._record(file) is None:
        raise

  def _write_part(
    self, file: _FilePlan, folder: pathlib.Path, on_rows: Callable[[int], None]
  ) -> None:
    # The small arrays come first: they tell of a wrong game at once.
    tables = {
      name: np.concatenate([*self._blocks(file, name)])
      for name in reversed(checkpoint_format.ELEMENT_DTYPES)
    }
    max_action = int(tables['action'].max())
    _check_actions(self.source.name, max_action, self.num_actions)
    if file.kept is not None and file.drawn is not None:
      tables = {name: rows[file.kept] for name, rows in tables.items()}
      tables['source_row'] = file.kept
      tables['drawn'] = np.isin(file.kept, file.drawn)
    records: shards.Records = {}
    content: dict[str, str] = {}
    for name, table in tables.items():
      records |= shards.write_array(folder / f'{name}.npy', table)
      content[name] = hashlib.sha256(shards.array_bytes(table)).hexdigest()
    frame_records, content['observation'] = shards.write_frames(
      folder,
      self._codec,
      (file.segment.num_rows, *self._frame_shape),
      self._frame.dtype,
      self._frames(file, on_rows),
    )
    part = {
      'segment': file.segment.record(),
      'max_action': max_action,
      'files': records | frame_records,
      'content': content,
    }
    atomic.write_json(folder / read.RECORD, part)

  def _frames(
    self, file: _FilePlan, on_rows: Callable[[int], None]
  ) -> Iterator[npt.NDArray[Any]]:
    checkpoint_format.check_frames(
      self._name('observation', file),
      self.source.header('observation', file.segment.suffix),
      self._frame_shape,
      self._frame.dtype,
    )
    row = 0
    for block in self._blocks(file, 'observation'):
      if file.kept is None:
        yield block
      else:
        start, end = np.searchsorted(file.kept, (row, row + len(block)))
        yield block[file.kept[start:end] - row]
      row += len(block)
      on_rows(len(block))

  def _blocks(self, file: _FilePlan, name: str) -> Iterator[npt.NDArray[Any]]:
    # Reads whole files to their end, though rows may lie there that the
    # buffer did not hold yet, for the sake of the checksum.
    to_read = None if file.segment.read_to_end else file.num_held
    left = file.num_held
    for whole in self.source.rows(name, file.segment.suffix, to_read):
      if self._stop.is_set():
        raise futures.CancelledError  # Another part failed, and so the build.
      block = whole[:left]
      left -= len(block)
      if len(block):
        if problem := _find_problem(name, block):
          raise errors.DataError(f'{self._name(name, file)} holds {problem}.')
        yield block

  def _name(self, element: str, file: _FilePlan) -> str:
    name = checkpoint_format.file_name(element, file.segment.suffix)
    return f'{self.source.name}/{name}'

  def _manifest(self) -> dict[str, Any]:
    segments, described, max_action = [], [], 0
    for file in self._files:
      part, record = self._part(file), self._record(file)
      if record is None:
        raise FileNotFoundError(2, 'a part vanished', str(part))
      own = shards.content_record((part / read.RECORD).read_bytes())
      files = {**record['files'], read.RECORD: own}
      segments.append(record['segment'])
      described.append({'files': files, 'content': record['content']})
      max_action = max(max_action, record['max_action'])
    dtypes = checkpoint_format.ELEMENT_DTYPES
    if self.subset.is_drawn:
      dtypes = dtypes | _TABLE_DTYPES
    arrays = {
      name: {'dtype': dtype.str, 'shape': [self._num_rows, *shape]}
      for name, dtype, shape in (
        ('observation', self._frame.dtype, self._frame_shape),
        *((name, dtype, ()) for name, dtype in dtypes.items()),
      )
    }
    return {
      'format_version': read.FORMAT_VERSION,
      'source': self.source.name,
      'subset': self.subset.record(),
      'stack_size': self.stack_size if self.subset.is_drawn else None,
      'codec': self._codec,
      'shard_rows': shards.SHARD_ROWS,
      'num_rows': self._num_rows,
      'max_action': max_action,
      'arrays': arrays,
      'missing_suffixes': self.source.missing_suffixes(),
      'unused_suffixes': self._unused,
      'files': segments,
      'parts': described,
      'data_hash': read.data_hash(segments, described),
    }


def _find_problem(name: str, block: npt.NDArray[Any]) -> str | None:
  if name == 'action' and block.min() < 0:
    return f'the action {block.min()}'
  if name == 'terminal' and block.max() > 1:
    return f'the terminal flag {block.max()}, neither 0 nor 1'
  # A comparison with NaN is false, so NaN is a problem too.
  if name == 'reward' and not (np.abs(block) <= 1).all():
    return 'a reward outside [-1, 1]; logged rewards are clipped'
  return None
