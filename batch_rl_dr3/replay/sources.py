"""Where logged replay lives: a local folder, or any storage that fsspec knows.

All of them hold the DQN Replay layout: exactly the six files of a suffix are
read (see checkpoint_format), and whatever else lies there is ignored.
episode_end_indices, which is a pickle, is never opened.

No row can be trusted before the iterator that yields it has ended without an
error: gzip's checksum stands at a file's end.
"""

import abc
from collections.abc import Iterator
import os
import pathlib
from typing import Any

import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3 import errors
from batch_rl_dr3.replay import array_stream, checkpoint_format


class LogSource(abc.ABC):
  """A log in the DQN Replay layout: the protocol source.Source but storage."""

  @property
  @abc.abstractmethod
  def name(self) -> str:
    """Where it is, as messages and manifests call it."""

  @abc.abstractmethod
  def _versions(self) -> dict[str, list[Any]]:
    """Returns the files there: name to what changes with the content."""

  @abc.abstractmethod
  def _file(self, file_name: str) -> array_stream.StoredFile:
    """Returns a file of the log."""

  def suffixes(self) -> list[int]:
    """Returns the files' suffixes in time order.

    Raises:
      DataError: if there is none, or one lacks a file.
    """
    suffixes = checkpoint_format.complete_suffixes(self.name, self._versions())
    if not suffixes:
      raise errors.DataError(
        f'{self.name} holds no replay logs. It must hold files such as '
        f'{checkpoint_format.file_name("observation", 0)}; download or collect '
        'a log there, or correct the location.'
      )
    return suffixes

  def fingerprint(self) -> list[Any]:
    """Returns what changes whenever the data do: JSON values."""
    versions = self._versions()
    return [
      [name, *versions[name]]
      for suffix in self.suffixes()
      for name in checkpoint_format.file_names(suffix)
    ]

  def header(self, element: str, suffix: int) -> array_stream.Header:
    """Returns the shape and dtype of one element of one file."""
    name = checkpoint_format.file_name(element, suffix)
    return array_stream.read_header(self._file(name))

  def rows(
    self,
    element: str,
    suffix: int,
    dtype: npt.DTypeLike,
    row_shape: tuple[int, ...],
    num_rows: int | None = None,
  ) -> Iterator[npt.NDArray[Any]]:
    """Yields the first rows of one element in blocks; None reads all of them.

    Raises:
      DataError: if they are damaged, or not of this dtype and shape.
    """
    file = self._file(checkpoint_format.file_name(element, suffix))
    return array_stream.read_rows(file, dtype, row_shape, num_rows)

  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file."""
    file = self._file(checkpoint_format.file_name(name, suffix))
    return checkpoint_format.attribute_of(file, name)


@gin.configurable
class FolderSource(LogSource):
  """A log in a folder of this machine.

  gzip's own checksum is what vouches for its files.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Finds the log.

    Args:
      folder: the log's folder, or its parent where it is named `replay_logs`.

    Raises:
      DataError: if neither holds any file of a log.
    """
    self._folder = checkpoint_format.find_replay_logs(folder).resolve()

  @property
  def name(self) -> str:
    """The folder's absolute path."""
    return str(self._folder)

  def _versions(self) -> dict[str, list[Any]]:
    try:
      with os.scandir(self._folder) as entries:
        stats = {e.name: e.stat() for e in entries if e.is_file()}
    except OSError as error:
      raise errors.DataError(
        f'cannot read {self._folder}: {error.strerror}.'
      ) from error
    return {n: [stat.st_size, stat.st_mtime_ns] for n, stat in stats.items()}

  def _file(self, file_name: str) -> array_stream.StoredFile:
    return array_stream.local_file(pathlib.Path(self._folder) / file_name)
