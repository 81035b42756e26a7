"""Builds the local store of a log: plans it, extracts its parts, assembles it.

The plan says which rows of which files make up the store. Every file of the log
becomes one part, a folder: action.npy, reward.npy, terminal.npy, the shards of
frames, and, of a subset that is drawn, source_row.npy (int64, the file's rows
that are kept) and drawn.npy (bool, where a transition may start). part.json is
written last and says how long each file is, and its checksums.

A part is extracted in a unique temporary folder and renamed into the build's
folder when it is whole. A build that is killed leaves that folder, and the next
one goes on from the parts that are there. When all are, the manifest is written
and the build's folder takes the store's name. So of any number of builds at the
same time one rename wins, for each part and for the store, whether file locks
work or not; a lock only saves the others the work.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import socket
import threading
import time
from typing import Any, Self, TypeVar
import uuid

from absl import logging
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.config import progress as progress_bars
from batch_rl_dr3.replay.log import checkpoint_format, sources
from batch_rl_dr3.replay.log import source as replay_source
from batch_rl_dr3.replay.log.source import Source
from batch_rl_dr3.replay.store import read, shards
from batch_rl_dr3.replay.store import subset as replay_subset
from batch_rl_dr3.replay.store.subset import HeldOut, Subset
from batch_rl_dr3.replay.store.validity import Segment
from batch_rl_dr3.runs import atomic
from batch_rl_dr3.runs.retry import RefusedError

_T = TypeVar('_T')
# Above this many bytes of frames, the default codec is zstd.
MAX_RAW_BYTES = 32 << 30
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
# Keeps the draw of held-out rows apart from the subset's of the same seed.
_HELD_OUT_STREAM = 1
# What a part of a subset that is drawn has besides.
_TABLE_DTYPES: dict[str, np.dtype[Any]] = {
  'source_row': np.dtype(np.int64),
  'drawn': np.dtype(np.bool_),
}


class StoppedError(Exception):
  """Another part failed, and with it the build."""


@dataclasses.dataclass(frozen=True)
class FilePlan:
  """What one file of the log gives to the store.

  Attributes:
    segment: dict, the fields of its Segment, as in the manifest.
    num_held: int, its rows that are read; those behind them are ignored.
    drawn: of a subset that is drawn, whether a transition was at each of
      these rows, as bits (`np.packbits`); None of another.
    stack_size: int, frames in a state.
  """

  segment: dict[str, Any]
  num_held: int
  drawn: npt.NDArray[np.uint8] | None
  stack_size: int

  def kept_rows(self) -> npt.NDArray[np.int64] | None:
    """Returns the rows of the file that are kept, ascending; None is all."""
    if self.drawn is None:
      return None
    return replay_subset.rows_needed(
      self.drawn_rows(), self.num_held, self.stack_size
    )

  def drawn_rows(self) -> npt.NDArray[np.int64]:
    """Returns the rows of the file where transitions were drawn."""
    assert self.drawn is not None
    return np.flatnonzero(np.unpackbits(self.drawn, count=self.num_held))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What makes up a store.

  Attributes:
    files: one FilePlan per file used, in time order.
    unused: suffixes of files that are there and give nothing.
  """

  files: tuple[FilePlan, ...]
  unused: list[int]

  @property
  def num_rows(self) -> int:
    """The number of rows that the store will have."""
    return sum(int(file.segment['num_rows']) for file in self.files)


def plan_files(source: Source, subset: Subset, stack_size: int) -> Plan:
  """Returns which rows of which files make up the store.

  A file's rows are counted as its arrays are long. A buffer that was not full
  when it was saved (add_count below the length) holds only its first
  add_count rows; what lies behind them is never used.

  Args:
    source: the log.
    subset: the part that is used.
    stack_size: int, frames in a state.

  Raises:
    DataError: if files are missing, damaged, or disagree with each other.
    ConfigError: if the subset is too small.
  """
  suffixes = source.suffixes()
  lengths = dict(
    zip(
      suffixes,
      _of_each(replay_source.count_rows, source, suffixes),
      strict=True,
    )
  )
  wanted = subset.rows_per_file(list(lengths.items()), stack_size)
  files: list[FilePlan] = []
  wholes = _of_each(replay_source.whole_segment, source, list(wanted))
  for whole, (suffix, rows) in zip(wholes, wanted.items(), strict=True):
    whole.check_counts(source.name)
    if isinstance(source, sources.LogSource):  # Others say no cursor's range.
      whole.check_cursor(source.name)
    num_rows = min(rows, whole.num_rows)
    segment = {
      **dataclasses.asdict(whole),
      'num_rows': num_rows,
      'read_to_end': rows == lengths[suffix],
    }
    del segment['num_drawn']
    if not whole.cut_rows:  # As in stores that were made before it was known.
      del segment['cut_rows']
    files.append(FilePlan(segment, num_rows, None, stack_size))
  files = [file for file in files if file.num_held]
  if not files:
    raise errors.DataError(
      f'{source.name} holds no rows: its buffers are empty.'
    )
  if subset.is_drawn:
    files = _draw(source, files, subset, lengths)
  files = _in_rows(files)
  used = {file.segment['suffix'] for file in files}
  return Plan(
    tuple(files), [suffix for suffix in lengths if suffix not in used]
  )


def _of_each(
  read: Callable[[Source, int], _T], source: Source, suffixes: list[int]
) -> list[_T]:
  """Returns what is read of each file, many at a time: storages are far."""
  with futures.ThreadPoolExecutor(_NUM_REQUESTS) as pool:
    return list(pool.map(lambda suffix: read(source, suffix), suffixes))


def _in_rows(files: list[FilePlan]) -> list[FilePlan]:
  """Returns the files that give rows, each with its first row of the store."""
  placed: list[FilePlan] = []
  first_row = 0
  for file in files:
    if file.segment['num_rows']:
      segment = {**file.segment, 'first_row': first_row}
      placed.append(dataclasses.replace(file, segment=segment))
      first_row += segment['num_rows']
  return placed


def _draw(
  source: Source,
  files: list[FilePlan],
  subset: Subset,
  lengths: dict[int, int],
) -> list[FilePlan]:
  """Returns the files with what is drawn from each."""
  base = subset.subset if isinstance(subset, HeldOut) else subset
  valid, in_episodes = [], []
  for number, file in enumerate(files):
    terminals = _read_terminals(source, file)
    segment = Segment(**file.segment)
    mask = np.zeros(file.num_held, np.bool_)
    mask[
      segment.valid_rows(
        terminals, file.stack_size, replay_subset.UPDATE_HORIZON
      )
    ] = True
    valid.append(np.packbits(mask))
    if base.rule == 'episodes':
      in_time = segment.rows_in_time()
      places = replay_subset.draw_episodes(
        terminals[in_time], base.num_drawn(file.num_held), [_seed(base), number]
      )
      rows = np.sort(in_time[places])
      in_episodes.append(rows[mask[rows]])
  drawn = in_episodes
  if base.rule == 'episodes' and not any(map(len, in_episodes)):
    raise errors.ConfigError(
      f'no file of {source.name} holds a whole episode, so that none can be '
      "drawn. Use another Subset.rule, such as 'prefix'."
    )
  if base.rule == 'uniform':
    drawn = _draw_uniform(files, valid, base)
  if isinstance(subset, HeldOut):
    learnt = [
      np.concatenate([rows, rows + replay_subset.UPDATE_HORIZON])
      for rows in drawn
    ]
    if not base.is_drawn:
      counts = base.rows_per_file(list(lengths.items()), files[0].stack_size)
      learnt = [
        np.arange(min(counts.get(file.segment['suffix'], 0), file.num_held))
        for file in files
      ]
    drawn = _draw_others(files, valid, learnt, subset)
  planned = []
  for file, rows in zip(files, drawn, strict=True):
    mask = np.zeros(file.num_held, np.bool_)
    mask[rows] = True
    kept = replay_subset.rows_needed(rows, file.num_held, file.stack_size)
    own = {**file.segment, 'num_rows': len(kept), 'num_drawn': len(rows)}
    planned.append(
      dataclasses.replace(file, segment=own, drawn=np.packbits(mask))
    )
  return planned


def _draw_uniform(
  files: list[FilePlan], valid: list[npt.NDArray[np.uint8]], subset: Subset
) -> list[npt.NDArray[np.int64]]:
  count = subset.num_drawn(sum(file.num_held for file in files))
  return replay_subset.draw_rows(
    valid, _count_bits(valid), count, [_seed(subset)]
  )


def _draw_others(
  files: list[FilePlan],
  valid: list[npt.NDArray[np.uint8]],
  learnt: list[npt.NDArray[np.int64]],
  held_out: HeldOut,
) -> list[npt.NDArray[np.int64]]:
  """Returns rows of each file whose states are not learnt from."""
  others = []
  for file, bits, rows in zip(files, valid, learnt, strict=True):
    mask = np.unpackbits(bits, count=file.num_held)
    mask[rows % file.num_held] = 0
    others.append(np.packbits(mask))
  numbers = _count_bits(others)
  if not sum(numbers):
    raise errors.ConfigError(
      'the subset leaves no transition of the log to hold out. Use a smaller '
      'Subset.fraction, or hold out 0.'
    )
  return replay_subset.draw_rows(
    others,
    numbers,
    min(held_out.count, sum(numbers)),
    [_seed(held_out), _HELD_OUT_STREAM],
  )


def _seed(subset: Subset) -> int:
  assert not isinstance(subset.seed, str)
  return subset.seed


def _count_bits(masks: list[npt.NDArray[np.uint8]]) -> list[int]:
  return [int(np.unpackbits(mask).sum()) for mask in masks]


def _read_terminals(source: Source, file: FilePlan) -> npt.NDArray[np.uint8]:
  dtype = checkpoint_format.ELEMENT_DTYPES['terminal']
  blocks = source.rows('terminal', file.segment['suffix'], dtype, ())
  terminals: npt.NDArray[np.uint8] = np.concatenate(list(blocks))
  return terminals[: file.num_held]


@dataclasses.dataclass(frozen=True)
class PartBuilder:
  """What all parts of a store have in common.

  Attributes:
    source: the log.
    codec: str, one of shards.CODECS.
    frame_shape: the shape of one frame.
    frame_dtype: its dtype.
    num_actions: int, the number of the game's actions; None if not known.
    on_rows: called with the number of frames just read.
    should_stop: whether to give up.
  """

  source: Source
  codec: str
  frame_shape: tuple[int, ...]
  frame_dtype: np.dtype[Any]
  num_actions: int | None
  on_rows: Callable[[int], None]
  should_stop: Callable[[], bool]

  def build(self, file: FilePlan, folder: pathlib.Path) -> None:
    """Writes one part into an empty folder, reading the file once.

    Raises:
      DataError: if the file is damaged, or of another game.
      StoppedError: if told to stop.
    """
    kept = file.kept_rows()
    records: dict[str, Any] = {}
    content: dict[str, str] = {}
    max_action = -1
    # The small arrays come first: they tell of a wrong game at once.
    for name, dtype in reversed(checkpoint_format.ELEMENT_DTYPES.items()):
      blocks = list(self._blocks(file, name, dtype, ()))
      rows = np.concatenate(blocks)
      if name == 'action':
        max_action = int(rows.max())
        check_actions(self.source.name, max_action, self.num_actions)
      rows = rows if kept is None else rows[kept]
      records |= shards.write_array(folder / f'{name}.npy', rows)
      content[name] = hashlib.sha256(shards.array_bytes(rows)).hexdigest()
    if kept is not None:
      drawn = np.isin(kept, file.drawn_rows(), assume_unique=True)
      for name, table in (('source_row', kept), ('drawn', drawn)):
        records |= shards.write_array(folder / f'{name}.npy', table)
        content[name] = hashlib.sha256(shards.array_bytes(table)).hexdigest()
    records_of_shards, content['observation'] = self._write_frames(
      file, kept, folder
    )
    atomic.write_json(
      folder / read.RECORD,
      {
        'segment': file.segment,
        'max_action': max_action,
        'files': records | records_of_shards,
        'content': content,
      },
    )

  def _write_frames(
    self,
    file: FilePlan,
    kept: npt.NDArray[np.int64] | None,
    folder: pathlib.Path,
  ) -> tuple[dict[str, Any], str]:
    shape = (file.segment['num_rows'], *self.frame_shape)
    row = 0
    with shards.ShardWriter(
      folder, self.codec, shape, self.frame_dtype
    ) as writer:
      for block in self._blocks(
        file, 'observation', self.frame_dtype, self.frame_shape
      ):
        if kept is None:
          writer.write(block)
        else:
          start, end = np.searchsorted(kept, (row, row + len(block)))
          writer.write(block[kept[start:end] - row])
        row += len(block)
        self.on_rows(len(block))
    return writer.records, writer.content.hexdigest()

  def _blocks(
    self,
    file: FilePlan,
    name: str,
    dtype: np.dtype[Any],
    row_shape: tuple[int, ...],
  ) -> Iterator[npt.NDArray[Any]]:
    """Yields blocks of checked rows of one element of the file."""
    suffix = file.segment['suffix']
    # Reads whole files to their end, though rows may lie there that the
    # buffer did not hold yet, for the sake of the checksum.
    to_read = None if file.segment['read_to_end'] else file.num_held
    left = file.num_held
    for whole in self.source.rows(name, suffix, dtype, row_shape, to_read):
      if self.should_stop():
        raise StoppedError
      block = whole[:left]
      if len(block):
        self._check_values(name, suffix, block)
        yield block
      left -= len(block)

  def _check_values(
    self, name: str, suffix: int, block: npt.NDArray[Any]
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
    file_name = checkpoint_format.file_name(name, suffix)
    raise errors.DataError(f'{self.source.name}/{file_name} holds {problem}.')


def check_actions(
  source: object, max_action: int, num_actions: int | None
) -> None:
  """Checks that actions are among the game's, if these are known.

  Raises:
    DataError: if they are not.
  """
  if num_actions is not None and max_action >= num_actions:
    raise errors.DataError(
      f'{source} holds action {max_action}; the game has {num_actions} '
      'actions, numbered from 0. Is it the data of another game?'
    )


def row_bytes(header: checkpoint_format.Header) -> int:
  """Returns the size of one frame."""
  return int(np.prod(header.shape[1:])) * header.dtype.itemsize


class Extraction:
  """Extracts all parts that a build lacks, with a few threads.

  Decompression and checksums leave Python's lock to others. Memory is bounded
  by a block of frames per thread.
  """

  def __init__(self, plan: Plan, building: pathlib.Path):
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

    builder = PartBuilder(
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

  def _final(self, file: FilePlan) -> pathlib.Path:
    return read.part_folder(self._building, file.segment['suffix'])

  def _is_done(self, file: FilePlan) -> bool:
    final = self._final(file)
    if not final.exists():
      return False
    if read.read_part(final, file.segment) is not None:
      return True
    shutil.rmtree(final)
    return False

  def _extract(self, builder: PartBuilder, file: FilePlan) -> None:
    temporary = read.part_folder(self._temporary, file.segment['suffix'])
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
      if read.read_part(self._final(file), file.segment) is None:
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
  name = building.name[: 1 + _NAME_LENGTH]
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
    read.FORMAT_VERSION,
    shards.SHARD_ROWS,
    source.name,
    subset.record(),
    # Which frames a draw keeps depends on it.
    stack_size if subset.is_drawn else None,
    codec,
  ]
  name = _digest(what)[:_NAME_LENGTH]
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
  lock = cache_dir / f'.{folder.name[:_NAME_LENGTH]}.lock'
  building = cache_dir / f'.{folder.name}.building'
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(lock) as is_alone:
      if folder.exists():
        return
      remove_leftovers(building, is_alone)
      plan = plan_files(source, subset, stack_size)
      header = source.header('observation', plan.files[0].segment['suffix'])
      codec = codec or _default_codec(plan, header)
      _check_space(plan, header, codec, building)
      try:
        building.mkdir(exist_ok=True)
        with Extraction(plan, building) as extraction:
          extraction.run(source, codec, header, num_actions, progress)
        manifest = _manifest(source, subset, plan, codec, header, building)
        atomic.write_text(
          building / read.MANIFEST, read.manifest_text(manifest)
        )
        _rename(building, folder)
      except (OSError, errors.WriteError):
        shutil.rmtree(building, ignore_errors=True)
        # Where locks do not work, another builder may have won.
        if not (folder / read.MANIFEST).exists():
          raise
      finally:
        with contextlib.suppress(OSError):
          building.rmdir()  # Nothing is kept of a build that came to nothing.
  except OSError as error:
    raise atomic.FileError(folder, error) from error


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


def _default_codec(plan: Plan, header: checkpoint_format.Header) -> str:
  num_bytes = plan.num_rows * row_bytes(header)
  return shards.RAW if num_bytes <= MAX_RAW_BYTES else shards.ZSTD


def _check_space(
  plan: Plan,
  header: checkpoint_format.Header,
  codec: str,
  building: pathlib.Path,
) -> None:
  """Checks that there is room for the parts that are not there yet.

  How small zstd makes frames is not known before, so they are not counted.

  Raises:
    WriteError: if there is not.
  """
  per_row = row_bytes(header) if codec == shards.RAW else 0
  per_row += sum(d.itemsize for d in checkpoint_format.ELEMENT_DTYPES.values())
  needed = 0
  for file in plan.files:
    part = read.part_folder(building, file.segment['suffix'])
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
  plan: Plan,
  codec: str,
  header: checkpoint_format.Header,
  building: pathlib.Path,
) -> dict[str, Any]:
  segments = [file.segment for file in plan.files]
  records, parts = [], []
  for segment in segments:
    folder = read.part_folder(building, segment['suffix'])
    record = read.read_part(folder, segment)
    if record is None:
      raise FileNotFoundError(2, 'a part vanished', str(folder))
    records.append(record)
    content = (folder / read.RECORD).read_bytes()
    parts.append(
      {
        'files': {
          **record['files'],
          read.RECORD: shards.content_record(content),
        },
        'content': record['content'],
      }
    )
  dtypes = {'observation': header.dtype, **checkpoint_format.ELEMENT_DTYPES}
  if subset.is_drawn:
    dtypes |= _TABLE_DTYPES
  return {
    'format_version': read.FORMAT_VERSION,
    'source': source.name,
    'subset': subset.record(),
    'stack_size': plan.files[0].stack_size if subset.is_drawn else None,
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
    'data_hash': read.data_hash(segments, parts),
  }
