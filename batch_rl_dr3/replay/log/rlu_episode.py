"""The episodes of RL Unplugged's Atari data, as they stand in its files.

Files are TFRecords of tf.train.Example, one episode each, in two layouts with
other names for the same features:

* atari_episodes_ordered/<Game>/run_<n>-000NN-of-00050, gzip'ed: the files that
  the bucket holds. The names are those that TFDS's own builder parses
  (tensorflow_datasets/rl_unplugged/atari_utils.py).
* rlu_atari_checkpoints_ordered/<Game>_run_<n>/1.1.0/*-checkpoint_NN.tfrecord-*:
  what that builder writes.

Every record's length and data are followed by masked CRC-32C checksums, which
are checked, so that no byte of an episode is used unchecked.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import struct
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors

# A game of 27,000 agent steps has about 50 MB of PNG frames.
_MAX_RECORD_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
_MASK_DELTA = 0xA282EAD8
_PNG_START = b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR'
_PNG_GREY_8_BIT = bytes([8, 0])  # Bit depth and colour type.


@dataclasses.dataclass(frozen=True)
class Layout:
  """The names of an episode's features.

  Attributes:
    checkpoint: int64, which millionth of the run it is from.
    episode: int64, its number there.
    clipped_return: float, the sum of clipped rewards.
    frames: bytes [steps], PNG.
    actions: int64 [steps].
    rewards: float [steps], clipped to [-1, 1].
    end: float or int64 [steps]; its last value tells of a terminal state.
    terminal_value: what that value is then.
    is_gzip: whether files are gzip'ed.
  """

  checkpoint: str
  episode: str
  clipped_return: str
  frames: str
  actions: str
  rewards: str
  end: str
  terminal_value: int
  is_gzip: bool


BUCKET_LAYOUT = Layout(
  checkpoint='checkpoint_idx',
  episode='episode_idx',
  clipped_return='clipped_episode_return',
  frames='observations',
  actions='actions',
  rewards='clipped_rewards',
  end='discounts',
  terminal_value=0,
  is_gzip=True,
)
TFDS_LAYOUT = Layout(
  checkpoint='checkpoint_id',
  episode='episode_id',
  clipped_return='clipped_episode_return',
  frames='steps/observation',
  actions='steps/action',
  rewards='steps/clipped_reward',
  end='steps/is_terminal',
  terminal_value=1,
  is_gzip=False,
)


@dataclasses.dataclass(frozen=True)
class Episode:
  """One episode, step by step.

  Attributes:
    checkpoint: int, which millionth of the run it is from.
    number: int, its number there.
    frames: bytes of PNG files, one per step.
    actions: int32 [steps].
    rewards: float32 [steps], in [-1, 1].
    clipped_return: float, what the file says is the sum of the rewards.
    is_terminal: whether it ends in a terminal state; else it was cut.
  """

  checkpoint: int
  number: int
  frames: Sequence[bytes]
  actions: npt.NDArray[np.int32]
  rewards: npt.NDArray[np.float32]
  clipped_return: float
  is_terminal: bool


def read_records(stream: BinaryIO, name: str) -> Iterator[bytes]:
  """Yields the records of a TFRecord file, each one checked.

  Args:
    stream: the file, decompressed.
    name: what messages call it.

  Raises:
    DataError: if a record is damaged or cut short.
  """
  while True:
    head = _read(stream, 8)
    if not head:
      return
    _check_crc(head, _read(stream, 4), name)
    (num_bytes,) = struct.unpack('<Q', head)
    if num_bytes > _MAX_RECORD_BYTES:
      raise errors.DataError(f'{name} holds a record of {num_bytes} bytes.')
    data = _read(stream, num_bytes)
    if len(data) != num_bytes:
      raise errors.DataError(f'{name} is cut short. Fetch it again.')
    _check_crc(data, _read(stream, 4), name)
    yield data


def _read(stream: BinaryIO, num_bytes: int) -> bytes:
  # In pieces, so that memory follows what is there, not what is claimed.
  pieces = []
  while num_bytes:
    piece = stream.read(min(num_bytes, _PIECE_BYTES))
    if not piece:
      break
    pieces.append(piece)
    num_bytes -= len(piece)
  return b''.join(pieces)


def masked_crc(data: bytes) -> bytes:
  """Returns the checksum of TFRecord files: CRC-32C, rotated and shifted.

  Args:
    data: the bytes that it vouches for.
  """
  crc = google_crc32c.value(data)
  rotated = (crc >> 15 | crc << 17) + _MASK_DELTA
  return struct.pack('<I', rotated & 0xFFFFFFFF)


def _check_crc(data: bytes, stated: bytes, name: str) -> None:
  if masked_crc(data) != stated:
    raise errors.DataError(
      f'{name} is damaged: a record does not have its checksum. Fetch it again.'
    )


def parse(record: bytes, layout: Layout, name: str) -> Episode:
  """Returns the episode in a record.

  Args:
    record: a serialised tf.train.Example.
    layout: the names of its features.
    name: what messages call the file.

  Raises:
    DataError: if it is no such episode.
  """
  # TensorFlow takes seconds to import, and other sources do without it.
  from google.protobuf import message  # type: ignore[import-untyped]
  from tensorflow.core.example import example_pb2

  example = example_pb2.Example()
  try:
    example.ParseFromString(record)
  except message.DecodeError as error:
    raise errors.DataError(
      f'{name} holds a record that is no tf.train.Example.'
    ) from error
  features = example.features.feature

  def values(feature: str, kind: str) -> Any:
    # Looking a name up in this map would add it.
    if feature not in features or features[feature].WhichOneof('kind') != kind:
      raise errors.DataError(
        f'{name} holds an episode without {feature} ({kind}); it has '
        f'{", ".join(sorted(features))}. It is not in the layout of RL '
        "Unplugged's Atari data that is known here."
      )
    return getattr(features[feature], kind).value

  def one(feature: str, kind: str) -> Any:
    found = values(feature, kind)
    if len(found) != 1:
      raise errors.DataError(f'{name} holds {len(found)} values of {feature}.')
    return found[0]

  end_kind = 'float_list' if layout.end == 'discounts' else 'int64_list'
  steps = {
    layout.frames: values(layout.frames, 'bytes_list'),
    layout.actions: values(layout.actions, 'int64_list'),
    layout.rewards: values(layout.rewards, 'float_list'),
    layout.end: values(layout.end, end_kind),
  }
  lengths = {feature: len(found) for feature, found in steps.items()}
  if len(set(lengths.values())) > 1 or not lengths[layout.frames]:
    raise errors.DataError(
      f'{name} holds an episode whose features differ in length: {lengths}.'
    )
  actions = np.array(steps[layout.actions], np.int64)
  rewards = np.array(steps[layout.rewards], np.float32)
  if actions.min() < 0 or actions.max() > np.iinfo(np.int32).max:
    raise errors.DataError(f'{name} holds the action {actions.min()}.')
  if not (np.abs(rewards) <= 1).all():
    raise errors.DataError(f'{name} holds a clipped reward outside [-1, 1].')
  return Episode(
    checkpoint=one(layout.checkpoint, 'int64_list'),
    number=one(layout.episode, 'int64_list'),
    frames=steps[layout.frames],
    actions=actions.astype(np.int32),
    rewards=rewards,
    clipped_return=one(layout.clipped_return, 'float_list'),
    is_terminal=steps[layout.end][-1] == layout.terminal_value,
  )


def frame_shape(png: bytes, name: str) -> tuple[int, int]:
  """Returns height and width of a frame, read from its header only.

  Raises:
    DataError: if it is no PNG of 8 bits a grey pixel.
  """
  if not png.startswith(_PNG_START) or png[24:26] != _PNG_GREY_8_BIT:
    raise errors.DataError(f'{name} holds a frame that is no 8-bit grey PNG.')
  width, height = struct.unpack('>II', png[16:24])
  return height, width


def decode_frame(
  png: bytes, shape: tuple[int, int], name: str
) -> npt.NDArray[np.uint8]:
  """Returns a frame, uint8 [*shape].

  Raises:
    DataError: if it is damaged or of another shape.
  """
  import cv2

  # Before decoding: what a header claims is what is allocated.
  if frame_shape(png, name) != shape:
    raise errors.DataError(
      f'{name} holds frames of shapes {shape} and {frame_shape(png, name)}.'
    )
  frame = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  if frame is None or frame.shape != shape or frame.dtype != np.uint8:
    raise errors.DataError(f'{name} holds a frame that cannot be decoded.')
  return cast(npt.NDArray[np.uint8], frame)
