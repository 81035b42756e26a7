"""The file format of logged replay data: the DQN Replay Dataset's.

A log is a folder that holds six files per suffix N, each the gzip of an array
in .npy format, as Dopamine's `OutOfGraphReplayBuffer.save` writes them:

    $store$_observation_ckpt.N.gz   uint8 [num_rows, *observation_shape]
    $store$_action_ckpt.N.gz        int32 [num_rows]
    $store$_reward_ckpt.N.gz        float32 [num_rows]
    $store$_terminal_ckpt.N.gz      uint8 [num_rows]
    add_count_ckpt.N.gz             int64 [], rows ever added to the buffer
    invalid_range_ckpt.N.gz         int64 [any], rows that are not sampleable

Newer versions of Dopamine add a seventh, episode_end_indices, which is a
pickle. It is never opened: only arrays are read here, and anything else in
place of an array is refused.
"""

from collections.abc import Iterable, Iterator, Sequence
import os
import pathlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import array_stream
from batch_rl_dr3.runs import stored_file

ELEMENTS = ('observation', 'action', 'reward', 'terminal')
ATTRIBUTES = ('add_count', 'invalid_range')
# The dtypes that Dopamine writes; observations may have others.
ELEMENT_DTYPES: dict[str, np.dtype[Any]] = {
  'action': np.dtype(np.int32),
  'reward': np.dtype(np.float32),
  'terminal': np.dtype(np.uint8),
}
# The number of dimensions of each attribute.
_ATTRIBUTE_NDIM = {'add_count': 0, 'invalid_range': 1}
_STORE_PREFIX = '$store$_'
# Longer numbers are no suffix: all below the largest are looked for.
_FILE_NAME = re.compile(r'(.+)_ckpt\.(\d{1,6})\.gz')

Header = array_stream.Header


def file_name(name: str, suffix: int) -> str:
  """Returns the name of one array's file.

  Args:
    name: one of ELEMENTS or ATTRIBUTES.
    suffix: int, the file's number.
  """
  prefix = _STORE_PREFIX if name in ELEMENTS else ''
  return f'{prefix}{name}_ckpt.{suffix}.gz'


def file_path(
  folder: str | os.PathLike[str], name: str, suffix: int
) -> pathlib.Path:
  """Returns the path of one array of a log.

  Args:
    folder: the folder of the log.
    name: one of ELEMENTS or ATTRIBUTES.
    suffix: int, the file's number.
  """
  return pathlib.Path(folder) / file_name(name, suffix)


def file_names(suffix: int) -> list[str]:
  """Returns the names of the six files of a suffix."""
  return [file_name(name, suffix) for name in ELEMENTS + ATTRIBUTES]


def found_suffixes(names: Iterable[str]) -> set[int]:
  """Returns the suffixes of which at least one file is among the names."""
  known = {name[: -len('_ckpt.0.gz')] for name in file_names(0)}
  matches = map(_FILE_NAME.fullmatch, names)
  return {int(match[2]) for match in matches if match and match[1] in known}


def find_replay_logs(replay_dir: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the folder that holds the log's files.

  Args:
    replay_dir: that folder, or its parent where it is named `replay_logs`.

  Raises:
    DataError: if neither folder holds any file of a log.
  """
  given = pathlib.Path(replay_dir)
  for folder in (given, given / 'replay_logs'):
    try:
      if folder.is_dir() and found_suffixes(os.listdir(folder)):
        return folder
    except OSError as error:
      raise errors.DataError(
        f'cannot read {folder}: {error.strerror}.'
      ) from error
  state = 'holds no replay logs' if given.is_dir() else 'is not a folder'
  raise errors.DataError(
    f'{given} {state}. It must hold files such as '
    f'{file_path("", "observation", 0)}, itself or in a folder replay_logs '
    'within it; download or collect a log there, or correct the path.'
  )


def missing_suffixes(present: Iterable[int]) -> list[int]:
  """Returns the suffixes that lack in a sequence that begins with 0.

  Args:
    present: suffixes, at least one.
  """
  there = set(present)
  return sorted(set(range(max(there))) - there)


def format_suffixes(suffixes: Iterable[int]) -> str:
  """Returns ascending suffixes in words: [0, 1, 2, 5] as '0-2, 5'."""
  runs: list[list[int]] = []
  for suffix in suffixes:
    if runs and suffix == runs[-1][-1] + 1:
      runs[-1][1:] = [suffix]
    else:
      runs.append([suffix])
  return ', '.join('-'.join(map(str, run)) for run in runs)


def complete_suffixes(location: object, names: Iterable[str]) -> list[int]:
  """Returns the suffixes among the names of files, in numeric order.

  Args:
    location: where the files are, for messages.
    names: names of files; those that are not of the format are ignored.

  Raises:
    DataError: if one of the six files of a suffix is missing.
  """
  present = set(names)
  suffixes = sorted(found_suffixes(present))
  for suffix in suffixes:
    missing = [name for name in file_names(suffix) if name not in present]
    if missing:
      raise errors.DataError(
        f'{location} lacks {", ".join(missing)}, though other files of suffix '
        f'{suffix} are there. Fetch it again, or move the others away to do '
        'without this suffix.'
      )
  return suffixes


def list_suffixes(folder: str | os.PathLike[str]) -> list[int]:
  """Returns the suffixes of a log in numeric order.

  Raises:
    DataError: if one of the six files of a suffix is missing.
  """
  return complete_suffixes(folder, os.listdir(folder))


def read_header(path: str | os.PathLike[str]) -> Header:
  """Returns `array_stream.read_header` of the file at a path."""
  return array_stream.read_header(stored_file.local_file(path))


def read_rows(
  path: str | os.PathLike[str],
  dtype: npt.DTypeLike,
  row_shape: Sequence[int],
  num_rows: int | None = None,
) -> Iterator[npt.NDArray[Any]]:
  """Returns `array_stream.read_rows` of the file at a path."""
  file = stored_file.local_file(path)
  return array_stream.read_rows(file, dtype, row_shape, num_rows)


def attribute_of(
  file: stored_file.StoredFile, name: str
) -> npt.NDArray[np.int64]:
  """Returns add_count (int64 []) or invalid_range (int64 [any]) in a file.

  Raises:
    DataError: if the file is damaged or is not a small array of integers.
  """
  return array_stream.read_integers(file, _ATTRIBUTE_NDIM[name])


def read_attribute(
  folder: str | os.PathLike[str], name: str, suffix: int
) -> npt.NDArray[np.int64]:
  """Returns `attribute_of` a file of a local folder."""
  file = stored_file.local_file(file_path(folder, name, suffix))
  return attribute_of(file, name)
