"""RL Unplugged's Atari data as a source of rows in the DQN Replay format.

RL Unplugged holds the episodes of the same logged runs, one file (or group of
files) per million steps, one serialised tf.train.Example per episode:

* atari_episodes_ordered/<Game>/run_<n>-000NN-of-00050, gzip'ed TFRecords: the
  files in the bucket.
* rlu_atari_checkpoints_ordered/<Game>_run_<n>/<version>/
  *-checkpoint_NN.tfrecord-* or .array_record-*: what TFDS prepares from them.
  Version 1.0 has clipped and unclipped rewards; 1.1 has one field of rewards.

Rows are laid out as Dopamine would: zero padding before each episode, rewards
clipped to [-1, 1].

* Known from TFDS's builder: the fields, and that episodes and checkpoints are
  in order. Checked here: order, one checkpoint per file, equal lengths, and
  rewards that sum to the episode's return.
* By RLDS's convention and TFDS's builder, the last step holds only the last
  observation: T steps are T - 1 transitions. But the original log never held an
  observation after a terminal transition, so the last step may be the log's
  last row. `last_step` says which reading is used.
* An episode that does not end in a terminal state was cut by time. Its last row
  is marked as terminal, so that no stack reaches over it, and is one of
  `cut_rows`: never sampled, and no Monte-Carlo return ends there.
* The number of steps of a file is stated nowhere, so every file is read whole
  once, even where only a prefix of its rows is used.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import json
import os
import pathlib
import re
from typing import Any, NamedTuple, cast

import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.log.checkpoint_format import Damage, damage_of
from batch_rl_dr3.replay.log.sources import RemoteFiles, Source
from batch_rl_dr3.replay.store.subset import Segment, cursor_range
from batch_rl_dr3.runs import place
from batch_rl_dr3.runs.place import version
from batch_rl_dr3.runs.retry import RefusedError

LAST_STEPS = ('observation', 'transition')
_TFDS_INFO = 'dataset_info.json'
_MAX_INFO_BYTES = 16 << 20
_RUN_FILE = re.compile(r'(run_\d{1,3})-(\d{5})-of-(\d{5})')
_TFDS_FILE = re.compile(
  r'\w+-checkpoint_(\d{1,5})\.(tfrecord|array_record)-(\d{5})-of-(\d{5})'
)
_LOCATION = re.compile(
  r'(^|/)(atari_episodes_ordered|rlu_atari_checkpoints_ordered)/'
)
_SHUFFLED_LOCATION = re.compile(
  r'://(\S+/)?(rl_unplugged/atari|atari_episodes|rlu_atari'
  r'|rlu_atari_checkpoints)/'
)
_SHUFFLED = (
  'is shuffled, and training needs rows in time order. Use RL '
  "Unplugged's atari_episodes_ordered/<Game>/run_<n>."
)
# Steps in a transition, for invalid_range; stores heed the horizon in use.
_UPDATE_HORIZON = 1
# Changes where the same files are read as other rows than before.
_READING = 2
_BLOCK_ROWS = 1024
# A prefix of a file that is fetched is longer than its share of the rows.
_PREFIX_MARGIN = 1.25
_PREFIX_BYTES = 1 << 20


class _Layout(NamedTuple):
  """The names of an episode's fields."""

  checkpoint: str
  number: str
  frames: str
  actions: str
  end: str
  end_kind: str  # The kind of list that `end` is.
  terminal_value: int  # The last value of `end` in a terminal state.
  # Rewards and their sum, clipped and as they are: the first there is is read.
  rewards: tuple[tuple[str, str], tuple[str, str]]


_BUCKET = _Layout(
  *('checkpoint_idx', 'episode_idx', 'observations', 'actions'),
  *('discounts', 'float_list', 0),
  rewards=(
    ('clipped_rewards', 'clipped_episode_return'),
    ('unclipped_rewards', 'episode_return'),
  ),
)
_TFDS = _Layout(
  *('checkpoint_id', 'episode_id', 'steps/observation', 'steps/action'),
  *('steps/is_terminal', 'int64_list', 1),
  rewards=(
    ('steps/clipped_reward', 'clipped_episode_return'),
    ('steps/reward', 'episode_return'),
  ),
)


class _Part(NamedTuple):
  """One file of a checkpoint: which part of how many, and what is listed."""

  part: int
  num_parts: int
  is_array_record: bool
  info: dict[str, Any]


class _Episode(NamedTuple):
  """The rows that an episode becomes, without padding."""

  place: tuple[int, int]  # Which millionth of the run, and its number.
  frames: Sequence[bytes]  # PNG files.
  columns: list[npt.NDArray[Any]]  # Actions, rewards, terminals.
  is_cut: bool  # Whether it ends in no terminal state.


def _is_file(name: str) -> bool:
  return bool(_RUN_FILE.fullmatch(name) or _TFDS_FILE.fullmatch(name))


def is_location(location: str) -> bool:
  """Whether a location is RL Unplugged's, by its path or its files here."""
  if _LOCATION.search(location) or _SHUFFLED_LOCATION.search(f'{location}/'):
    return True
  if '://' in location:
    return False
  folder = pathlib.Path(location)
  if re.fullmatch(r'run_\d+', folder.name) and not folder.is_dir():
    folder = folder.parent
  try:
    return any(map(_is_file, os.listdir(folder)))
  except OSError:
    return False


def _records(
  path: str, is_array_record: bool, is_gzip: bool, name: str
) -> Iterator[bytes]:
  """Yields the records of a file, each checked by its own checksum."""
  # TensorFlow takes seconds to import, and other sources do without it.
  import tensorflow as tf
  from tensorflow.python.util import deprecation

  try:
    if is_array_record:
      reader = _array_reader(path, name)
      for number in range(reader.num_records()):
        yield reader.read([number])[0]
    else:
      options = tf.io.TFRecordOptions('GZIP' if is_gzip else '')
      with deprecation.silence():  # Eager code should use another reader.
        records = tf.compat.v1.io.tf_record_iterator(path, options)
      yield from records
  except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
    raise errors.DataError(
      f'{name} is damaged or cut short ({error}). Fetch it again.'
    ) from error


def _array_reader(path: str, name: str) -> Any:
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise errors.ConfigError(
      f'{name} is an ArrayRecord file, and its reader is not installed. '
      "Install it with `pip install 'batch-rl-dr3[rlu]'`, or write the data "
      'set as TFRecord with `tfds convert_format --dataset_dir=DIR '
      '--out_file_format=tfrecord --out_path=NEW`.'
    ) from error
  return array_record_module.ArrayRecordReader(path)


def _parse(record: bytes, layout: _Layout, last_step: str) -> _Episode:
  """Returns the episode in a serialised tf.train.Example."""
  from tensorflow.core.example import example_pb2

  try:
    features = example_pb2.Example.FromString(record).features.feature
  except Exception as error:  # protobuf's DecodeError; it has no types.
    raise Damage('holds a record that is no tf.train.Example.') from error
  if 'o_t' in features or 'r_t' in features:
    raise Damage(f'holds single transitions: it {_SHUFFLED}')
  clipped = layout.rewards[0]
  pair = next((p for p in layout.rewards if p[0] in features), clipped)
  kinds = {
    layout.frames: 'bytes_list',
    layout.actions: 'int64_list',
    pair[0]: 'float_list',
    layout.end: layout.end_kind,
    # Of these there is one an episode.
    layout.checkpoint: 'int64_list',
    layout.number: 'int64_list',
    pair[1]: 'float_list',
  }
  found: dict[str, Any] = {}
  for field, kind in kinds.items():
    # Looking a name up in this map would add it.
    if field not in features or features[field].WhichOneof('kind') != kind:
      raise Damage(
        f'holds an episode without {field} ({kind}); it has '
        f'{", ".join(sorted(features))}. It is not in the layout of RL '
        "Unplugged's Atari data that is known here."
      )
    found[field] = getattr(features[field], kind).value
  lengths = {field: len(values) for field, values in found.items()}
  for field in [*kinds][4:]:
    if (count := lengths.pop(field)) != 1:
      raise Damage(f'holds {count} values of {field}.')
  frames, actions, exact, ends, [checkpoint], [number], [total] = found.values()
  if len(set(lengths.values())) > 1 or not frames:
    raise Damage(f'holds an episode whose fields differ in length: {lengths}.')
  if min(actions) < 0 or max(actions) > np.iinfo(np.int32).max:
    raise Damage(f'holds the action {min(actions)}.')
  rewards = np.array(exact, np.float64)
  if not np.isfinite(rewards).all():
    raise Damage('holds a reward that is no number.')
  if pair == clipped and (np.abs(rewards) > 1).any():
    raise Damage('holds a clipped reward outside [-1, 1].')
  if not abs(rewards.sum() - total) <= 1e-3 * max(1.0, abs(total)):
    raise Damage(
      f'holds an episode, {number}, whose rewards sum up to {rewards.sum()}; '
      f'the file states {total}.'
    )
  count = len(frames)
  if last_step == 'observation':
    count -= 1
    if rewards[-1] != 0:
      raise Damage(
        f'holds an episode, {number}, whose last step has the reward '
        f'{rewards[-1]}, which counts in its return, so it is more than an '
        "observation. Set RluSource.last_step = 'transition'."
      )
  terminals = np.zeros(count, np.uint8)
  terminals[-1:] = 1
  columns: list[npt.NDArray[Any]] = [
    np.array(actions[:count], np.int32),
    np.clip(rewards[:count].astype(np.float32), -1, 1),
    terminals,
  ]
  is_cut = ends[-1] != layout.terminal_value
  return _Episode((checkpoint, number), frames[:count], columns, is_cut)


def _decode_frame(png: bytes) -> npt.NDArray[np.uint8]:
  import cv2

  frame = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  if frame is None or frame.ndim != 2 or frame.dtype != np.uint8:
    raise Damage('holds a frame that is no 8-bit grey PNG.')
  return cast(npt.NDArray[np.uint8], frame)


def _check_order(
  before: tuple[int, int] | None, following: tuple[int, int]
) -> None:
  """Raises Damage unless episodes are of one checkpoint and in order."""
  if before is None:
    return
  if following[0] != before[0]:
    raise Damage(
      f'mixes the checkpoints {before[0]} and {following[0]}; a file of one '
      'checkpoint is needed.'
    )
  if following[1] <= before[1]:
    raise Damage(
      f'holds episode {following[1]} after episode {before[1]}; they are '
      'needed in the order of play.'
    )


class _Index(NamedTuple):
  """All of a checkpoint but its frames."""

  segment: Segment
  columns: dict[str, npt.NDArray[Any]]
  frame_shape: tuple[int, ...]
  part_rows: list[int]  # The rows of each file.


@gin.configurable
class RluSource(Source):
  """One run of one game of RL Unplugged.

  `url` is .../atari_episodes_ordered/<Game>/run_<n>, or the folder of
  rlu_atari_checkpoints_ordered/<Game>_run_<n>/<version>, or a path; `last_step`
  what an episode's last step is, 'observation' or 'transition'. stack_size - 1
  rows are padding. The further arguments are those of RemoteFiles.
  """

  def __init__(
    self,
    url: str,
    last_step: str = 'observation',
    stack_size: int = 4,
    **storage: Any,
  ):
    if last_step not in LAST_STEPS:
      raise errors.ConfigError(
        f'RluSource.last_step is {last_step!r}; it must be one of '
        f'{", ".join(LAST_STEPS)}.'
      )
    self._last_step = last_step
    self._stack_size = stack_size
    self._is_local = '://' not in url
    self.name = url.rstrip('/')
    folder, _, last = self.name.rpartition('/')
    self._run = last if re.fullmatch(r'run_\d+', last) else None
    self._is_tfds = self._run is None
    self._files = RemoteFiles(
      self.name if self._is_tfds else folder or '.', **storage
    )
    self.count = self._files.storage.count
    self.endpoint = self._files.endpoint
    self._indexes: dict[int, _Index] = {}

  @functools.cached_property
  def _shards(self) -> dict[int, list[_Part]]:
    """The files of each suffix, as listed once."""
    url = self._files.storage.name
    if _SHUFFLED_LOCATION.search(f'{self.name}/'):
      raise errors.DataError(f'{self.name} {_SHUFFLED}')
    infos = self._files.storage.listing(_is_file)
    shards: dict[int, list[_Part]] = {}
    runs: set[str] = set()
    for name, info in sorted(infos.items()):
      if match := _RUN_FILE.fullmatch(name):
        runs.add(match[1])
        if match[1] == self._run:
          shards[int(match[2])] = [_Part(0, int(match[3]), False, info)]
      elif self._is_tfds and (match := _TFDS_FILE.fullmatch(name)):
        kind, part, num_parts = match.group(2, 3, 4)
        shards.setdefault(int(match[1]), []).append(
          _Part(int(part), int(num_parts), kind == 'array_record', info)
        )
    totals = {part.num_parts for parts in shards.values() for part in parts}
    if not self._is_tfds and len(totals) > 1:
      raise errors.DataError(
        f'{self.name}: some of its files say that there are {min(totals)} of '
        f'them, others {max(totals)}. Keep those of one data set.'
      )
    if not shards and runs:
      named = ', '.join(sorted(runs, key=lambda run: int(run[4:])))
      raise errors.DataError(
        f'{url} holds {named}. Name one of them, such as {url}/{min(runs)}.'
      )
    return shards

  def suffixes(self) -> list[int]:  # noqa: D102
    if not self._shards:
      raise RefusedError(
        f'{self.name} holds no data of RL Unplugged: no files such as '
        'run_1-00000-of-00050, and none such as rlu_atari_checkpoints_ordered-'
        'checkpoint_00.tfrecord-00000-of-00001.'
      )
    for suffix, parts in self._shards.items():
      num_parts = parts[0].num_parts if self._is_tfds else 1
      if [part.part for part in parts] != list(range(num_parts)):
        raise errors.DataError(
          f'{self._files.storage.name} lacks parts of checkpoint {suffix}: '
          f'there are {len(parts)} of {num_parts}. Fetch them again.'
        )
    return sorted(self._shards)

  def missing_suffixes(self) -> list[int]:  # noqa: D102
    # How many there are is in the names of the bucket's files, and in TFDS's
    # dataset_info.json.
    there = self.suffixes()
    if self._is_tfds:
      expected = {suffix for suffix, _ in self._num_episodes}
    else:
      expected = set(range(self._shards[there[0]][0].num_parts))
    return sorted(expected - set(there))

  def fingerprint(self) -> list[Any]:  # noqa: D102
    reading = [_READING, self._last_step, self._stack_size, _UPDATE_HORIZON]
    versions = [
      [suffix, *version(shard.info)]
      for suffix in self.suffixes()
      for shard in self._shards[suffix]
    ]
    return [reading, *versions]

  def num_bytes(self, suffix: int) -> int:  # noqa: D102
    return sum(int(shard.info['size']) for shard in self._parts(suffix))

  def header(self, element: str, suffix: int) -> checkpoint_format.Header:  # noqa: D102
    index = self._index(suffix)
    if element == 'observation':
      shape = (index.segment.num_rows, *index.frame_shape)
      return checkpoint_format.Header(shape, np.dtype(np.uint8))
    column = index.columns[element]
    return checkpoint_format.Header(column.shape, column.dtype)

  def rows(  # noqa: D102
    self, element: str, suffix: int, num_rows: int | None = None
  ) -> Iterator[npt.NDArray[Any]]:
    index = self._index(suffix)
    if element != 'observation':
      yield index.columns[element][:num_rows]
      return
    left = index.segment.num_rows if num_rows is None else num_rows
    with damage_of(f'{self.name}, checkpoint {suffix},'):
      for block in self._frame_blocks(suffix, index, left):
        yield block[:left]
        left -= min(left, len(block))
        if not left and num_rows is not None:
          return
      if left:
        raise Damage(f'ends {left} rows early. Fetch it again.')

  def segment(self, suffix: int) -> Segment:  # noqa: D102
    return self._index(suffix).segment

  def _index(self, suffix: int) -> _Index:
    if suffix not in self._indexes:
      with damage_of(f'{self.name}, checkpoint {suffix},'):
        self._indexes.setdefault(suffix, self._read_index(suffix))
    return self._indexes[suffix]

  def _read_index(self, suffix: int) -> _Index:
    columns: list[list[npt.NDArray[Any]]] = []
    cut_rows: list[int] = []
    part_rows: list[int] = []
    num_rows, num_padding = 0, self._stack_size - 1
    shape = before = None
    for shard in self._parts(suffix):
      part_rows.append(-num_rows)
      for episode in self._episodes(suffix, shard):
        _check_order(before, episode.place)
        before = episode.place
        if not episode.frames:
          continue
        shape = shape or _decode_frame(episode.frames[0]).shape
        columns.append([np.pad(c, (num_padding, 0)) for c in episode.columns])
        num_rows += num_padding + len(episode.frames)
        if episode.is_cut:
          cut_rows.append(num_rows - 1)
      part_rows[-1] += num_rows
    if shape is None:
      raise Damage('holds no transition.')
    around_cursor = cursor_range(0, num_rows, self._stack_size, _UPDATE_HORIZON)
    segment = Segment(  # Of a buffer that was filled just once.
      suffix=suffix,
      num_rows=num_rows,
      num_rows_in_source=num_rows,
      add_count=num_rows,
      invalid_range=[*around_cursor.tolist(), *cut_rows],
      cut_rows=cut_rows,
    )
    whole = map(np.concatenate, zip(*columns, strict=True))
    by_name = dict(zip(checkpoint_format.ELEMENT_DTYPES, whole, strict=True))
    return _Index(segment, by_name, shape, part_rows)

  def _frame_blocks(
    self, suffix: int, index: _Index, num_rows: int
  ) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames of at least the first rows of a checkpoint."""
    padding = np.zeros((self._stack_size - 1, *index.frame_shape), np.uint8)
    parts = self._parts(suffix)
    for shard, part_rows in zip(parts, index.part_rows, strict=True):
      if num_rows <= 0:
        return
      share = min(1.0, num_rows / max(1, part_rows))
      num_rows -= part_rows
      for _, pngs, *_ in self._episodes(suffix, shard, share):
        if pngs:
          yield padding
        for start in range(0, len(pngs), _BLOCK_ROWS):
          frames = [*map(_decode_frame, pngs[start : start + _BLOCK_ROWS])]
          shapes = {frame.shape for frame in frames}
          if shapes != {index.frame_shape}:
            raise Damage(f'holds frames of shapes {shapes}.')
          yield np.stack(frames)

  def _parts(self, suffix: int) -> list[_Part]:
    if suffix not in self._shards:
      raise errors.DataError(f'{self.name} has no checkpoint {suffix}.')
    return self._shards[suffix]

  def _episodes(
    self, suffix: int, shard: _Part, share: float | None = None
  ) -> Iterator[_Episode]:
    """Yields the episodes of a file that is fetched whole and checked.

    With the `share` of its rows that is wanted, it has been checked before. Of
    a far one, only a prefix is fetched first; its records' checksums vouch.
    """
    num_done = num_episodes = 0
    size = shard.info['size']
    num_bytes = int(_PREFIX_MARGIN * (share or 0) * size) + _PREFIX_BYTES
    is_far = not (self._is_local or shard.is_array_record)
    if share is not None and is_far and num_bytes < size:
      # It ends within a record; where that is too early, all is fetched.
      with contextlib.suppress(errors.DataError):
        for episode in self._read(shard, num_bytes):
          yield episode
          num_done += 1
    is_known = share is not None
    for num_episodes, episode in enumerate(
      self._read(shard, None, is_known), 1
    ):
      if num_episodes > num_done:
        yield episode
    # gzip knows its end; TFDS's files do not.
    if self._is_tfds:
      stated = self._num_episodes.get((suffix, shard.part))
      if num_episodes != stated:
        raise errors.DataError(
          f'{self._files.storage.file(shard.info).name} holds {num_episodes} '
          f'episodes; {_TFDS_INFO} states {stated}. Fetch it again.'
        )

  def _read(
    self, shard: _Part, num_bytes: int | None, is_known: bool = False
  ) -> Iterator[_Episode]:
    """Yields the episodes of a file, or of its first bytes."""
    check = (lambda _: None) if self._is_tfds else checkpoint_format.check_gzip
    with contextlib.ExitStack() as stack:
      if self._is_local:
        path = name = str(shard.info['name'])
        if not is_known:
          check(place.local_file(path))
      else:
        fetched = self._files.fetch(shard.info, check, num_bytes)
        file = stack.enter_context(fetched)
        stream = stack.enter_context(file.open())
        path, name = f'/proc/self/fd/{stream.fileno()}', file.name
      layout = _TFDS if self._is_tfds else _BUCKET
      stack.enter_context(damage_of(name))
      is_array_record = shard.is_array_record
      for record in _records(path, is_array_record, not self._is_tfds, name):
        yield _parse(record, layout, self._last_step)

  @functools.cached_property
  def _num_episodes(self) -> dict[tuple[int, int], int]:
    """What TFDS states of its files: (suffix, part) to a number of episodes."""
    infos = self._files.storage.listing(lambda name: name == _TFDS_INFO)
    if not infos:
      raise errors.DataError(
        f'{self._files.storage.name} lacks {_TFDS_INFO}, without which nobody '
        'can tell whether its files are whole. Fetch it too.'
      )
    with self._files.fetch(infos[_TFDS_INFO], lambda _: None) as file:
      try:
        with file.open() as stream:
          splits = json.loads(stream.read(_MAX_INFO_BYTES))['splits']
        # The splits are checkpoints.
        return {
          (int(split['name'].removeprefix('checkpoint_')), part): int(length)
          for split in splits
          for part, length in enumerate(split['shardLengths'])
        }
      except errors.MALFORMED_JSON as error:
        raise errors.DataError(
          f'{file.name} does not state the lengths of files as TFDS does '
          f'({error}). Fetch it again.'
        ) from error
