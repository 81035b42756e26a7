"""Reads a local store: what can be sampled from it, and what a sample holds.

A store holds a folder per file of the log, named by the file's suffix (see
store), and manifest.json, which is there if and only if all of it is, and holds
the checksums of all other files and of itself.

What can be sampled and a sample equal Dopamine's `OutOfGraphReplayBuffer`, file
by file, except that

* a file of which only a prefix is used counts as a buffer stopped there;
* of a subset that is drawn, only the transitions drawn can be sampled;
* Dopamine trusts a loaded file's invalid_range, which was written for the
  update horizon of the run that made it. Here the rows around the cursor are
  left out for the horizon in use, so that an n-step transition never runs from
  a file's newest rows into its oldest.
"""

from collections.abc import Iterator
import hashlib
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import shards
from batch_rl_dr3.replay.store.subset import (
  UPDATE_HORIZON,
  Segment,
  episode_returns,
)
from batch_rl_dr3.runs import atomic, place

# 1 had each element in one array; 2 had no checks of single frames.
FORMAT_VERSION = 3
MANIFEST = 'manifest.json'
# Of each part, what it was when it was extracted.
RECORD = 'part.json'
# Frames up to this size are held in memory. See store.open_store.
MAX_RESIDENT_BYTES = 1 << 30
# Frames that are read at a time where all are.
_BLOCK_FRAMES = 256


def is_store(folder: str | os.PathLike[str]) -> bool:
  """Whether a folder is that of a local store."""
  return (pathlib.Path(folder) / MANIFEST).is_file()


def read_part(
  folder: pathlib.Path, segment: dict[str, Any]
) -> dict[str, Any] | None:
  """Returns the record of a segment's part; None if it is not all there."""
  try:
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    [*_files_of(folder, record, folder / RECORD)]
  except (OSError, ValueError, KeyError, errors.DataError):
    return None
  return record if record['segment'] == segment else None


def verify(store: pathlib.Path, full: bool = False) -> dict[str, Any]:
  """Returns the manifest of a store; a DataError names what differs from it.

  Compares the lengths of files, and with `full` their SHA-256.
  """
  try:
    manifest = _read_manifest(store)
    for segment, part in zip(manifest['files'], manifest['parts'], strict=True):
      folder = store / str(int(segment['suffix']))
      for path, record in _files_of(folder, part, store / MANIFEST):
        if path.name == RECORD:
          shards.check_content(path, path.read_bytes(), record)
        elif full and atomic.sha256_of(path) != record['sha256']:
          raise shards.damaged_file(path, 'it has another SHA-256')
  except OSError as error:
    raise _damaged(store, f'{error.filename}: {error.strerror}') from error
  except errors.MALFORMED_JSON as error:
    raise _damaged(store, f'{MANIFEST}: {error}') from error
  return manifest


def _read_manifest(store: pathlib.Path) -> dict[str, Any]:
  text = (store / MANIFEST).read_bytes().decode()
  manifest: dict[str, Any] = json.loads(text)
  if manifest['format_version'] != FORMAT_VERSION:
    raise ValueError(f'its format is {manifest["format_version"]}')
  if manifest['data_hash'] != data_hash(manifest['files'], manifest['parts']):
    raise ValueError('data_hash is not what follows from its files')
  if text != manifest_text(manifest):
    raise ValueError('it is not what was written')
  return manifest


def manifest_text(manifest: dict[str, Any]) -> str:
  """Returns the text of a manifest, with its own SHA-256 among its entries."""
  content = {k: v for k, v in manifest.items() if k != 'manifest_sha256'}
  signed = {**content, 'manifest_sha256': _hash(content)}
  return json.dumps(signed, indent=2, sort_keys=True) + '\n'


def data_hash(
  segments: list[dict[str, Any]], parts: list[dict[str, Any]]
) -> str:
  """Returns the SHA-256 of what training sees, however it is stored."""
  return _hash([segments, [part['content'] for part in parts]])


def _hash(content: Any) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _files_of(
  folder: pathlib.Path, part: dict[str, Any], source: pathlib.Path
) -> Iterator[tuple[pathlib.Path, dict[str, Any]]]:
  """Yields the path and record of each file of a part, its size checked."""
  for name, record in part['files'].items():
    path = folder / place.plain(name, source, 'files')
    size = os.stat(path).st_size
    if size != record['num_bytes']:
      raise shards.damaged_file(
        path, f'it has {size} bytes, not {record["num_bytes"]}'
      )
    yield path, record


def _damaged(store: pathlib.Path, problem: str) -> errors.DataError:
  return errors.DataError(
    f'the store {store} is damaged ({problem}). Delete that folder; it is '
    'built again from the log.'
  )


class ReplayTransitions(NamedTuple):
  """A batch with Dopamine's dtypes; where `terminals` is 1, next_* are any."""

  states: Any  # [B, *observation_shape, stack_size], as observations.
  actions: Any  # int32 [B]
  rewards: Any  # float32 [B], discounted sum over the transition's steps.
  next_states: Any
  next_actions: Any
  next_rewards: Any
  terminals: Any  # uint8 [B], 1 where the episode ends in the transition.
  indices: Any  # int64 [B], rows of the store.


class ReplayStore:
  """The rows of a log, and what can be sampled from them."""

  def __init__(
    self,
    folder: pathlib.Path,
    stack_size: int,
    max_resident_bytes: int = MAX_RESIDENT_BYTES,
  ):
    """Opens a store; a DataError says that it is damaged."""
    self.folder = folder
    self.stack_size = stack_size
    self.manifest: dict[str, Any] = verify(folder)
    try:
      self.segments = tuple(Segment(**f) for f in self.manifest['files'])
      self._check_segments()
      self.actions = self._load('action')
      self.rewards = self._load('reward')
      self.terminals = self._load('terminal')
      # Whether its rows are what a draw from the log needs.
      self.is_drawn = 'drawn' in self.manifest['arrays']
      self._drawn = self._load('drawn') if self.is_drawn else None
      self.observation_shape = self.header('observation').shape[1:]
      self._frames = self._open_frames()
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise _damaged(folder, str(error)) from error
    self.fits_memory = self.num_frame_bytes <= max_resident_bytes
    self.first_rows = np.array([s.first_row for s in self.segments])
    # Modulo the file's length where stacks wrap around its end.
    self.lengths = np.array([s.num_rows for s in self.segments])

  def _check_segments(self) -> None:
    num_rows = 0
    for segment in self.segments:
      segment.check_counts(self.folder / MANIFEST)
      if segment.first_row != num_rows:
        raise ValueError(f'row {num_rows} is in no file')
      num_rows += segment.num_rows
    if num_rows != self.manifest['num_rows']:
      raise ValueError(f'its files have {num_rows} rows')

  def _parts(self) -> Iterator[tuple[pathlib.Path, int, shards.Records]]:
    parts = self.manifest['parts']
    for segment, part in zip(self.segments, parts, strict=True):
      folder = self.folder / str(segment.suffix)
      yield folder, segment.num_rows, part['files']

  def _load(self, name: str) -> Any:
    file = f'{name}.npy'
    return np.concatenate(
      [
        shards.read_array(folder / file, records[file])
        for folder, _, records in self._parts()
      ]
    )

  def _open_frames(self) -> shards.Frames:
    return shards.Frames(
      self.manifest['codec'],
      self._parts(),
      self.manifest['shard_rows'],
      self.observation_shape,
      self.header('observation').dtype,
    )

  def header(self, element: str) -> checkpoint_format.Header:
    """Returns the shape and dtype of one element of all rows."""
    array = self.manifest['arrays'][element]
    return checkpoint_format.Header(
      tuple(array['shape']), np.dtype(array['dtype'])
    )

  @property
  def data_hash(self) -> str:
    """SHA-256 over all rows and their division into files, in hexadecimal."""
    return str(self.manifest['data_hash'])

  @property
  def num_rows(self) -> int:
    """The number of rows, padding included."""
    return len(self.actions)

  @property
  def num_frame_bytes(self) -> int:
    """The bytes of all frames."""
    shape, dtype = self.header('observation')
    return math.prod(shape) * dtype.itemsize

  def frames(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns the single frames at any rows, [n, *observation_shape]."""
    frames = self._frames.rows(np.asarray(rows, np.int64))
    return frames.reshape(-1, *self.observation_shape)

  def all_frames(self) -> npt.NDArray[Any]:
    """Returns all frames, read anew: [num_rows, numbers in a frame]."""
    return self._open_frames().hold()

  def hold_frames(self) -> None:
    """Reads all frames into memory, if few enough, while nobody else reads."""
    if self.fits_memory:
      self._frames.hold()

  def source_rows(self) -> npt.NDArray[np.int64]:
    """Returns where each row was in its file of the log, int64 [num_rows]."""
    if self.is_drawn:
      return self._load('source_row')
    return np.concatenate([np.arange(s.num_rows) for s in self.segments])

  def valid_indices(self, update_horizon: int = 1) -> npt.NDArray[np.int64]:
    """Returns the rows where a transition may start, in ascending order.

    A DataError if there is none, a ConfigError if others were drawn.
    """
    if self._drawn is not None:
      self._check_drawn(update_horizon)
      return np.flatnonzero(self._drawn)
    own = np.split(self.terminals, self.first_rows[1:])
    rows = np.concatenate(
      [
        segment.valid_rows(terminals, self.stack_size, update_horizon)
        for segment, terminals in zip(self.segments, own, strict=True)
      ]
    )
    if not len(rows):
      raise errors.DataError(
        f'{self.manifest["source"]} holds no transition of {update_horizon} '
        f'steps with stacks of {self.stack_size} frames in its '
        f'{self.num_rows} rows. Use a larger part of it.'
      )
    return rows

  def _check_drawn(self, update_horizon: int) -> None:
    if update_horizon != UPDATE_HORIZON:
      raise errors.ConfigError(
        f'a uniform subset holds transitions of 1 step; {update_horizon} were '
        "asked for. Use another Subset.rule, such as 'prefix'."
      )
    if self.stack_size > self.manifest['stack_size']:
      raise errors.ConfigError(
        f'{self.folder} was drawn for stacks of '
        f'{self.manifest["stack_size"]} frames, not {self.stack_size}.'
      )

  def gather(
    self, rows: npt.ArrayLike, update_horizon: int = 1, gamma: float = 0.99
  ) -> ReplayTransitions:
    """Returns the transitions that start at valid rows, int [B], as arrays.

    Equals Dopamine's `sample_transition_batch(indices=...)`, file by file.
    """
    rows = np.asarray(rows, dtype=np.int64)
    segment = np.searchsorted(self.first_rows, rows, side='right') - 1
    first, length = self.first_rows[segment], self.lengths[segment]

    def move(steps: Any) -> Any:
      return first + (rows - first + steps) % length

    reward = np.zeros(rows.shape, dtype=np.float32)
    terminal = np.zeros(rows.shape, dtype=np.bool_)
    num_steps = np.zeros_like(rows)
    for step in range(update_horizon):
      # Nothing is added any more where the episode has ended.
      discount = np.float32(gamma**step)
      reward += np.where(terminal, 0, discount * self.rewards[move(step)])
      num_steps += ~terminal
      terminal |= self.terminals[move(step)] != 0
    next_rows = move(num_steps)
    ages = np.arange(self.stack_size - 1, -1, -1)[:, np.newaxis]
    states, next_states = self._frames.stacks(
      np.stack([move(-ages).T, move(num_steps - ages).T])
    ).reshape(2, len(rows), *self.observation_shape, self.stack_size)
    return ReplayTransitions(
      states=states,
      actions=self.actions[rows],
      rewards=reward,
      next_states=next_states,
      next_actions=self.actions[next_rows],
      next_rewards=self.rewards[next_rows],
      terminals=terminal.astype(np.uint8),
      indices=rows,
    )

  def returns_to_go(self, gamma: float) -> npt.NDArray[np.float32]:
    """Returns the discounted sum of rewards to the end of each row's episode.

    float32 [num_rows], NaN where it does not end in the store; a ConfigError if
    the store was drawn, and so has no episodes.
    """
    if self.is_drawn:
      raise errors.ConfigError(
        'a uniform subset holds single transitions and no episodes, so there '
        "are no Monte-Carlo returns. Use another Subset.rule, such as 'prefix'."
      )
    return episode_returns(self.segments, self.rewards, self.terminals, gamma)


class StoreSource(Source):
  """What a store took of each file of a log, as the files of a source."""

  def __init__(self, folder: str | os.PathLike[str]):
    self._store = ReplayStore(
      pathlib.Path(folder), stack_size=1, max_resident_bytes=0
    )
    if self._store.is_drawn:
      raise errors.DataError(
        f'{folder} holds transitions drawn at random, and no episodes to look '
        f'at. Name the log they are from: {self._store.manifest["source"]}.'
      )
    self._segments = {s.suffix: s for s in self._store.segments}
    self.name = str(self._store.folder)
    self.count = place.ByteCount()

  def suffixes(self) -> list[int]:  # noqa: D102
    return list(self._segments)

  def missing_suffixes(self) -> list[int]:  # noqa: D102
    missing: list[int] = self._store.manifest['missing_suffixes']
    return missing

  def fingerprint(self) -> list[Any]:  # noqa: D102
    return [self._store.data_hash]

  def num_bytes(self, suffix: int) -> int:  # noqa: D102
    folder = self._store.folder / str(suffix)
    return sum(path.stat().st_size for path in folder.iterdir())

  def segment(self, suffix: int) -> Segment:  # noqa: D102
    if suffix not in self._segments:
      raise errors.DataError(f'{self.name} has no rows of suffix {suffix}.')
    return self._segments[suffix]

  def header(self, element: str, suffix: int) -> checkpoint_format.Header:  # noqa: D102
    (_, *row_shape), dtype = self._store.header(element)
    shape = (self.segment(suffix).num_rows, *row_shape)
    return checkpoint_format.Header(shape, dtype)

  def rows(  # noqa: D102
    self, element: str, suffix: int, num_rows: int | None = None
  ) -> Iterator[npt.NDArray[Any]]:
    segment = self.segment(suffix)
    start = segment.first_row
    end = start + (segment.num_rows if num_rows is None else num_rows)
    if element != 'observation':
      yield getattr(self._store, f'{element}s')[start:end]
      return
    for row in range(start, end, _BLOCK_FRAMES):
      yield self._store.frames(np.arange(row, min(row + _BLOCK_FRAMES, end)))
