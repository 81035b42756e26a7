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
* By RLDS's convention, TFDS's builder and Dopamine's own reader of it, the last
  step holds only the last observation: T steps are T - 1 transitions. But the
  original log never held an observation after a terminal transition, so the
  last step may be the log's last row. `last_step` says which reading is used.
  Under 'observation', an episode that ends with a reward contradicts it, and is
  an error.
* An episode that does not end in a terminal state was cut by time. Its last row
  is marked as terminal, so that no stack reaches over it, and is one of
  `cut_rows`: never sampled, and no Monte-Carlo return ends there.
* The number of steps of a file is stated nowhere, so every file is read whole
  once, even where only a prefix of its rows is used.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import re
import struct
import tempfile
import threading
from typing import Any, NamedTuple, cast

import gin
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, sources
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store import validity
from batch_rl_dr3.runs import place
from batch_rl_dr3.runs.place import version
from batch_rl_dr3.runs.retry import RefusedError, Retry

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
# Changes where the same files are read as other rows than before.
_READING = 2
_BLOCK_ROWS = 1024
# A prefix of a file that is fetched is longer than its share of the rows.
_PREFIX_MARGIN = 1.25
_PREFIX_BYTES = 1 << 20
_PNG_START = b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR'
_PNG_GREY_8_BIT = bytes([8, 0])  # Bit depth and colour type.


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
  checkpoint='checkpoint_idx',
  number='episode_idx',
  frames='observations',
  actions='actions',
  end='discounts',
  end_kind='float_list',
  terminal_value=0,
  rewards=(
    ('clipped_rewards', 'clipped_episode_return'),
    ('unclipped_rewards', 'episode_return'),
  ),
)
_TFDS = _Layout(
  checkpoint='checkpoint_id',
  number='episode_id',
  frames='steps/observation',
  actions='steps/action',
  end='steps/is_terminal',
  end_kind='int64_list',
  terminal_value=1,
  rewards=(
    ('steps/clipped_reward', 'clipped_episode_return'),
    ('steps/reward', 'episode_return'),
  ),
)


class _Shard(NamedTuple):
  """One file of a checkpoint: which part of how many, and what is listed."""

  part: int
  num_parts: int
  is_array_record: bool
  info: dict[str, Any]


class _Steps(NamedTuple):
  """One episode, step by step."""

  checkpoint: int  # Which millionth of the run.
  number: int
  frames: Sequence[bytes]  # PNG files.
  actions: npt.NDArray[np.int32]
  rewards: npt.NDArray[np.float32]  # As the file has them.
  is_terminal: bool  # Else it was cut.


def is_location(location: str) -> bool:
  """Whether a path or URL is of RL Unplugged's Atari data.

  Folders of this machine are also known by the names of their files.
  """
  if _LOCATION.search(location) or _SHUFFLED_LOCATION.search(f'{location}/'):
    return True
  if '://' in location:
    return False
  folder = pathlib.Path(location)
  if re.fullmatch(r'run_\d+', folder.name) and not folder.is_dir():
    folder = folder.parent
  try:
    names = os.listdir(folder)
  except OSError:
    return False
  return any(_RUN_FILE.fullmatch(n) or _TFDS_FILE.fullmatch(n) for n in names)


def _tf_records(path: str, is_gzip: bool, name: str) -> Iterator[bytes]:
  """Yields the records of a TFRecord file, each checked by its CRC-32C."""
  # TensorFlow takes seconds to import, and other sources do without it.
  import tensorflow as tf

  options = tf.io.TFRecordOptions(compression_type='GZIP' if is_gzip else '')
  # All that it says is that eager code should use another reader.
  logger = tf.get_logger()
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    records = tf.compat.v1.io.tf_record_iterator(path, options)
  finally:
    logger.setLevel(level)
  try:
    yield from records
  except tf.errors.OpError as error:
    raise errors.DataError(
      f'{name} is damaged or cut short ({error.message}). Fetch it again.'
    ) from error


def _array_records(path: str, name: str) -> Iterator[bytes]:
  """Yields the records of an ArrayRecord file, whose chunks are checked."""
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise errors.ConfigError(
      f'{name} is an ArrayRecord file, and its reader is not installed. '
      "Install it with `pip install 'batch-rl-dr3[rlu]'`, or write the data "
      'set as TFRecord with `tfds convert_format --dataset_dir=DIR '
      '--out_file_format=tfrecord --out_path=NEW`.'
    ) from error
  try:
    reader = array_record_module.ArrayRecordReader(path)
    for number in range(reader.num_records()):
      yield reader.read([number])[0]
  except (RuntimeError, ValueError, IndexError) as error:
    raise errors.DataError(
      f'{name} is damaged or cut short ({error}). Fetch it again.'
    ) from error


def _parse(record: bytes, layout: _Layout, name: str) -> _Steps:
  """Returns the episode in a serialised tf.train.Example."""
  from tensorflow.core.example import example_pb2

  try:
    features = example_pb2.Example.FromString(record).features.feature
  except Exception as error:  # protobuf's DecodeError; it has no types.
    raise errors.DataError(
      f'{name} holds a record that is no tf.train.Example.'
    ) from error
  if 'o_t' in features or 'r_t' in features:
    raise errors.DataError(f'{name} holds single transitions: it {_SHUFFLED}')

  def values(field: str, kind: str) -> Any:
    # Looking a name up in this map would add it.
    if field not in features or features[field].WhichOneof('kind') != kind:
      raise errors.DataError(
        f'{name} holds an episode without {field} ({kind}); it has '
        f'{", ".join(sorted(features))}. It is not in the layout of RL '
        "Unplugged's Atari data that is known here."
      )
    return getattr(features[field], kind).value

  def one(field: str, kind: str) -> Any:
    found = values(field, kind)
    if len(found) != 1:
      raise errors.DataError(f'{name} holds {len(found)} values of {field}.')
    return found[0]

  clipped = layout.rewards[0]
  pair = next((p for p in layout.rewards if p[0] in features), clipped)
  steps = {
    field: values(field, kind)
    for field, kind in (
      (layout.frames, 'bytes_list'),
      (layout.actions, 'int64_list'),
      (pair[0], 'float_list'),
      (layout.end, layout.end_kind),
    )
  }
  frames, actions, rewards, ends = steps.values()
  lengths = {field: len(found) for field, found in steps.items()}
  if len(set(lengths.values())) > 1 or not frames:
    raise errors.DataError(
      f'{name} holds an episode whose fields differ in length: {lengths}.'
    )
  if min(actions) < 0 or max(actions) > np.iinfo(np.int32).max:
    raise errors.DataError(f'{name} holds the action {min(actions)}.')
  episode = _Steps(
    checkpoint=one(layout.checkpoint, 'int64_list'),
    number=one(layout.number, 'int64_list'),
    frames=frames,
    actions=np.array(actions, np.int32),
    rewards=np.array(rewards, np.float32),
    is_terminal=ends[-1] == layout.terminal_value,
  )
  stated_return = one(pair[1], 'float_list')
  exact = episode.rewards.astype(np.float64)
  if not np.isfinite(exact).all():
    raise errors.DataError(f'{name} holds a reward that is no number.')
  if pair == clipped and (np.abs(exact) > 1).any():
    raise errors.DataError(f'{name} holds a clipped reward outside [-1, 1].')
  tolerance = 1e-3 * max(1.0, abs(stated_return))
  if not abs(exact.sum() - stated_return) <= tolerance:
    raise errors.DataError(
      f'{name}: the rewards of episode {episode.number} sum up to '
      f'{exact.sum()}; the file states {stated_return}.'
    )
  return episode


def _frame_shape(png: bytes, name: str) -> tuple[int, int]:
  """Returns height and width of a frame, read from its header only."""
  if not png.startswith(_PNG_START) or png[24:26] != _PNG_GREY_8_BIT:
    raise errors.DataError(f'{name} holds a frame that is no 8-bit grey PNG.')
  width, height = struct.unpack('>II', png[16:24])
  return height, width


def _decode_frame(
  png: bytes, shape: tuple[int, ...], name: str
) -> npt.NDArray[np.uint8]:
  import cv2

  # Before decoding: what a header claims is what is allocated.
  if _frame_shape(png, name) != shape:
    raise errors.DataError(
      f'{name} holds frames of shapes {shape} and {_frame_shape(png, name)}.'
    )
  frame = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  if frame is None or frame.shape != shape or frame.dtype != np.uint8:
    raise errors.DataError(f'{name} holds a frame that cannot be decoded.')
  return cast(npt.NDArray[np.uint8], frame)


@gin.configurable
class RluSource(Source):
  """One run of one game of RL Unplugged."""

  def __init__(
    self,
    url: str,
    last_step: str = 'observation',
    stack_size: int = 4,
    update_horizon: int = 1,
    endpoint_url: str | None = None,
    google_token: str | None = None,
    timeout: float = 60.0,
    spool_dir: str | None = None,
    retry: Retry | None = None,
  ):
    """Reads nothing yet; the last five arguments are as FsspecSource has them.

    Args:
      url: .../atari_episodes_ordered/<Game>/run_<n>, or the folder of
        rlu_atari_checkpoints_ordered/<Game>_run_<n>/<version>; a URL or path.
      last_step: what an episode's last step is: 'observation' or 'transition'.
      stack_size: frames in a state; stack_size - 1 rows are padding.
      update_horizon: steps in a transition, for invalid_range.
      endpoint_url: where gs:// is served.
      google_token: gcsfs's token.
      timeout: of a connection, in seconds.
      spool_dir: it also takes 9 bytes per row read so far.
      retry: how reads are tried again.
    """
    if last_step not in LAST_STEPS:
      raise errors.ConfigError(
        f'RluSource.last_step is {last_step!r}; it must be one of '
        f'{", ".join(LAST_STEPS)}.'
      )
    self._last_step = last_step
    self._stack_size = stack_size
    self._update_horizon = update_horizon
    self._spool_dir = spool_dir
    self._index_lock = threading.Lock()
    self._is_local = '://' not in url
    self.name = url.rstrip('/')
    folder, _, last = self.name.rpartition('/')
    self._run = last if re.fullmatch(r'run_\d+', last) else None
    self._is_tfds = self._run is None
    self._layout = _TFDS if self._is_tfds else _BUCKET
    self._storage = place.open_data(
      self.name if self._is_tfds else folder or '.',
      Retry() if retry is None else retry,
      endpoint_url,
      google_token,
      timeout,
    )
    self.count = self._storage.count
    self.endpoint = sources.find_endpoint(self._storage.name, endpoint_url)

  @functools.cached_property
  def _shards(self) -> dict[int, list[_Shard]]:
    """The files of each suffix, as listed once."""
    if _SHUFFLED_LOCATION.search(f'{self.name}/'):
      raise errors.DataError(f'{self.name} {_SHUFFLED}')
    infos = self._storage.listing(
      lambda name: bool(_RUN_FILE.fullmatch(name) or _TFDS_FILE.fullmatch(name))
    )
    shards: dict[int, list[_Shard]] = {}
    runs: set[str] = set()
    for name, info in sorted(infos.items()):
      if match := _TFDS_FILE.fullmatch(name):
        if self._is_tfds:
          kind, part, num_parts = match.group(2, 3, 4)
          shards.setdefault(int(match[1]), []).append(
            _Shard(int(part), int(num_parts), kind == 'array_record', info)
          )
      elif match := _RUN_FILE.fullmatch(name):
        runs.add(match[1])
        if match[1] == self._run:
          shards[int(match[2])] = [_Shard(0, int(match[3]), False, info)]
    totals = {part.num_parts for parts in shards.values() for part in parts}
    if not self._is_tfds and len(totals) > 1:
      raise errors.DataError(
        f'{self.name}: some of its files say that there are {min(totals)} of '
        f'them, others {max(totals)}. Keep those of one data set.'
      )
    if not shards and runs:
      named = ', '.join(sorted(runs, key=lambda run: int(run[4:])))
      raise errors.DataError(
        f'{self._storage.name} holds {named}. Name one of them, such as '
        f'{self._storage.name}/{min(runs)}.'
      )
    return shards

  @override
  def suffixes(self) -> list[int]:
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
          f'{self._storage.name} lacks parts of checkpoint {suffix}: there '
          f'are {len(parts)} of {num_parts}. Fetch them again.'
        )
    return sorted(self._shards)

  @override
  def missing_suffixes(self) -> list[int]:
    # How many there are is in the names of the bucket's files, and in TFDS's
    # dataset_info.json.
    if self._is_tfds:
      expected = {suffix for suffix, _ in self._num_episodes}
    else:
      totals = {shards[0].num_parts for shards in self._shards.values()}
      expected = set(range(max(totals)))
    return sorted(expected - set(self.suffixes()))

  @override
  def fingerprint(self) -> list[Any]:
    reading = [
      _READING,
      self._last_step,
      self._stack_size,
      self._update_horizon,
    ]
    versions = [
      [suffix, *version(shard.info)]
      for suffix in self.suffixes()
      for shard in self._shards[suffix]
    ]
    return [reading, *versions]

  @override
  def num_bytes(self, suffix: int) -> int:
    return sum(int(shard.info['size']) for shard in self._parts(suffix))

  @override
  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    num_rows = len(self._index(suffix)['action'])
    if element == 'observation':
      shape = self._index(suffix)['frame_shape'].tolist()
      return checkpoint_format.Header((num_rows, *shape), np.dtype(np.uint8))
    dtype = checkpoint_format.ELEMENT_DTYPES[element]
    return checkpoint_format.Header((num_rows,), dtype)

  @override
  def rows(
    self,
    element: str,
    suffix: int,
    dtype: npt.DTypeLike,
    row_shape: tuple[int, ...],
    num_rows: int | None = None,
  ) -> Iterator[npt.NDArray[Any]]:
    header = self.header(element, suffix)
    name = f'{self.name}, checkpoint {suffix},'
    checkpoint_format.check_rows(name, header, dtype, row_shape, num_rows)
    left = header.shape[0] if num_rows is None else num_rows
    if element != 'observation':
      yield self._index(suffix)[element][:left]
      return
    for block in self._frame_blocks(suffix, left, row_shape, name):
      yield block[:left]
      left -= min(left, len(block))
      if not left and num_rows is not None:
        return
    if left:
      raise errors.DataError(f'{name} ends {left} rows early. Fetch it again.')

  @override
  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    # Those of a buffer that was as large as the file, filled once.
    num_rows = self.header('action', suffix).shape[0]
    if name == 'add_count':
      return np.array(num_rows, np.int64)
    around_cursor = validity.cursor_range(
      0, num_rows, self._stack_size, self._update_horizon
    )
    return np.concatenate([around_cursor, self._index(suffix)['cut']])

  @override
  def cut_rows(self, suffix: int) -> list[int]:
    cuts: list[int] = self._index(suffix)['cut'].tolist()
    return cuts

  def _num_rows(self, episode: _Steps) -> int:
    """Returns how many of an episode's steps become rows."""
    num_steps = len(episode.actions)
    return num_steps - 1 if self._last_step == 'observation' else num_steps

  def _index(self, suffix: int) -> Any:
    """Returns all but the frames of a suffix by name, from a file made once."""
    path = pathlib.Path(self._index_dir.name, f'{suffix}.npz')
    with self._index_lock:
      if not path.exists():
        np.savez(path, **self._make_index(suffix))
    return np.load(path)

  @functools.cached_property
  def _index_dir(self) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
      prefix='batch_rl_dr3_', dir=self._spool_dir
    )

  def _make_index(self, suffix: int) -> dict[str, npt.NDArray[Any]]:
    """Returns all rows but the frames, and part_rows, the rows of each file."""
    name = f'{self.name}, checkpoint {suffix},'
    num_padding = self._stack_size - 1
    columns: dict[str, list[npt.NDArray[Any]]] = {
      element: [] for element in checkpoint_format.ELEMENT_DTYPES
    }
    cut: list[int] = []
    part_rows: list[int] = []
    num_rows = 0
    shape = before = None
    for shard in self._parts(suffix):
      start = num_rows
      for episode in self._whole_episodes(suffix, shard):
        if before is not None and episode.checkpoint != before.checkpoint:
          raise errors.DataError(
            f'{name} mixes the checkpoints {before.checkpoint} and '
            f'{episode.checkpoint}; a file of one checkpoint is needed.'
          )
        if before is not None and episode.number <= before.number:
          raise errors.DataError(
            f'{name} holds episode {episode.number} after episode '
            f'{before.number}; they are needed in the order of play.'
          )
        if self._last_step == 'observation' and episode.rewards[-1] != 0:
          raise errors.DataError(
            f'{name}: the last step of episode {episode.number} has the reward '
            f'{episode.rewards[-1]}, which counts in its return, so it is more '
            "than an observation. Set RluSource.last_step = 'transition'."
          )
        before = episode
        shape = shape or _frame_shape(episode.frames[0], name)
        count = self._num_rows(episode)
        if not count:
          continue
        terminals = np.zeros(count, np.uint8)
        terminals[-1] = 1
        rewards = np.clip(episode.rewards[:count], -1, 1)
        values = [episode.actions[:count], rewards, terminals]
        own: npt.NDArray[Any]
        for column, own in zip(columns.values(), values, strict=True):
          column += [np.zeros(num_padding, own.dtype), own]
        num_rows += num_padding + count
        if not episode.is_terminal:
          cut.append(num_rows - 1)
      part_rows.append(num_rows - start)
    if not num_rows:
      raise errors.DataError(f'{name} holds no transition.')
    return {
      **{element: np.concatenate(found) for element, found in columns.items()},
      'cut': np.array(cut, np.int64),
      'frame_shape': np.array(shape, np.int64),
      'part_rows': np.array(part_rows, np.int64),
    }

  def _frame_blocks(
    self, suffix: int, num_rows: int, shape: tuple[int, ...], name: str
  ) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the frames of at least the first rows of a checkpoint."""
    all_part_rows = self._index(suffix)['part_rows'].tolist()
    for shard, part_rows in zip(
      self._parts(suffix), all_part_rows, strict=True
    ):
      if num_rows <= 0:
        return
      share = min(1.0, num_rows / max(1, part_rows))
      num_rows -= part_rows
      for episode in self._first_episodes(suffix, shard, share):
        count = self._num_rows(episode)
        if count:
          yield np.zeros((self._stack_size - 1, *shape), np.uint8)
        for start in range(0, count, _BLOCK_ROWS):
          frames = episode.frames[start : min(count, start + _BLOCK_ROWS)]
          yield np.stack([_decode_frame(png, shape, name) for png in frames])

  def _parts(self, suffix: int) -> list[_Shard]:
    if suffix not in self._shards:
      raise errors.DataError(f'{self.name} has no checkpoint {suffix}.')
    return self._shards[suffix]

  def _whole_episodes(self, suffix: int, shard: _Shard) -> Iterator[_Steps]:
    """Yields the episodes of a file that was fetched whole and checked."""
    num_episodes = 0
    with self._open_shard(shard) as (path, name):
      for episode in self._episodes(path, shard, name):
        yield episode
        num_episodes += 1
    # gzip knows its end; TFDS's files do not.
    if self._is_tfds:
      stated = self._num_episodes.get((suffix, shard.part))
      if num_episodes != stated:
        raise errors.DataError(
          f'{name} holds {num_episodes} episodes; {_TFDS_INFO} states '
          f'{stated}. Fetch it again.'
        )

  def _first_episodes(
    self, suffix: int, shard: _Shard, share: float
  ) -> Iterator[_Steps]:
    """Yields episodes until the caller has a share of the file's rows.

    Of a far file only a prefix is fetched first; its records' checksums vouch.
    """
    size = shard.info['size']
    num_bytes = int(_PREFIX_MARGIN * share * size) + _PREFIX_BYTES
    num_done = 0
    if self._is_local:
      path = str(shard.info['name'])
      yield from self._episodes(path, shard, path)
      return
    if num_bytes < size and not shard.is_array_record:
      file = self._storage.file(shard.info)
      with (
        tempfile.NamedTemporaryFile(dir=self._spool_dir) as prefix,
        file.open() as stream,
      ):
        while prefix.tell() < num_bytes:
          prefix.write(stream.read(num_bytes - prefix.tell()))
        prefix.flush()
        # It ends within a record; where that is too early, all is fetched.
        with contextlib.suppress(errors.DataError):
          for episode in self._episodes(prefix.name, shard, file.name):
            yield episode
            num_done += 1
    episodes = self._whole_episodes(suffix, shard)
    yield from itertools.islice(episodes, num_done, None)

  @contextlib.contextmanager
  def _open_shard(self, shard: _Shard) -> Iterator[tuple[str, str]]:
    """Gives the path of a whole file, and what messages call it."""

    def check(file: place.StoredFile) -> None:
      if not self._is_tfds:
        checkpoint_format.check_gzip(file)

    if self._is_local:
      path = str(shard.info['name'])
      check(place.local_file(path))
      yield path, path
      return
    info, spool_dir = shard.info, self._spool_dir
    with (
      sources.open_whole(self._storage, info, spool_dir, check) as file,
      file.open() as stream,
    ):
      yield f'/proc/self/fd/{stream.fileno()}', file.name

  def _episodes(self, path: str, shard: _Shard, name: str) -> Iterator[_Steps]:
    if shard.is_array_record:
      records = _array_records(path, name)
    else:
      records = _tf_records(path, not self._is_tfds, name)
    for record in records:
      yield _parse(record, self._layout, name)

  @functools.cached_property
  def _num_episodes(self) -> dict[tuple[int, int], int]:
    """What TFDS states of its files: (suffix, part) to a number of episodes."""
    infos = self._storage.listing(lambda name: name == _TFDS_INFO)
    if not infos:
      raise errors.DataError(
        f'{self._storage.name} lacks {_TFDS_INFO}, without which nobody can '
        'tell whether its files are whole. Fetch it too.'
      )
    with sources.open_whole(
      self._storage, infos[_TFDS_INFO], self._spool_dir, lambda _: None
    ) as file:
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
