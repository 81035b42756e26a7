"""The files of one run of RL Unplugged's Atari data, by their names."""

import json
import re
from typing import Any, NamedTuple

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import spool
from batch_rl_dr3.runs import stored_file
from batch_rl_dr3.runs.storage import Storage

TFDS_INFO = 'dataset_info.json'
_MAX_INFO_BYTES = 16 << 20
_RUN_FILE = re.compile(r'(run_\d+)-(\d{5})-of-(\d{5})')
_TFDS_FILE = re.compile(
  r'rlu_atari_checkpoints_ordered-checkpoint_(\d+)'
  r'\.tfrecord-(\d{5})-of-(\d{5})'
)


class Shard(NamedTuple):
  """One file of a checkpoint: which part of how many, and what is listed."""

  part: int
  num_parts: int
  info: dict[str, Any]


def list_shards(storage: Storage, run: str | None) -> dict[int, list[Shard]]:
  """Returns the files of each checkpoint, in order.

  Args:
    storage: the folder that holds them.
    run: str, 'run_1' to 'run_5' in the bucket's layout; None in TFDS's.

  Raises:
    DataError: if a part of a checkpoint is missing.
  """
  pattern = _TFDS_FILE if run is None else _RUN_FILE
  infos = storage.list(lambda name: bool(pattern.fullmatch(name)))
  shards: dict[int, list[Shard]] = {}
  for name in sorted(infos):
    match = pattern.fullmatch(name)
    assert match is not None
    if run is None:
      shard = Shard(int(match[2]), int(match[3]), infos[name])
      shards.setdefault(int(match[1]), []).append(shard)
    elif match[1] == run:
      shards[int(match[2])] = [Shard(0, 1, infos[name])]
  for suffix, parts in shards.items():
    num_parts = parts[0].num_parts
    if [part.part for part in parts] != list(range(num_parts)):
      raise errors.DataError(
        f'{storage.url} lacks parts of checkpoint {suffix}: there are '
        f'{len(parts)} of {num_parts}. Fetch them again.'
      )
  return shards


def stated_lengths(
  storage: Storage, spool_dir: str | None
) -> dict[tuple[int, int], int]:
  """Returns the number of episodes by (checkpoint, part), as TFDS states it.

  Args:
    storage: the folder, in TFDS's layout.
    spool_dir: where temporary files are.

  Raises:
    DataError: if TFDS's dataset_info.json is missing or damaged.
  """
  infos = storage.list(lambda name: name == TFDS_INFO)
  if not infos:
    raise errors.DataError(
      f'{storage.url} lacks {TFDS_INFO}, without which nobody can tell whether '
      'its files are whole. Fetch it too.'
    )
  with spool.fetched(
    storage, infos[TFDS_INFO], spool_dir, lambda _: None
  ) as file:
    return _parse_lengths(file)


def _parse_lengths(
  file: stored_file.StoredFile,
) -> dict[tuple[int, int], int]:
  """Returns the lengths in dataset_info.json, whose splits are checkpoints."""
  try:
    with file.open() as stream:
      splits = json.loads(stream.read(_MAX_INFO_BYTES))['splits']
    return {
      (int(split['name'].removeprefix('checkpoint_')), part): int(length)
      for split in splits
      for part, length in enumerate(split['shardLengths'])
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.DataError(
      f'{file.name} does not state the lengths of files as TFDS does '
      f'({error}). Fetch it again.'
    ) from error
