"""Where logged replay lives: a local folder, or any storage that fsspec knows.

No row can be trusted before the iterator that yields it has ended without an
error: gzip's checksum stands at a file's end.
"""

import abc
import base64
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from typing import IO, Any

from absl import logging
import gin
import google_crc32c
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.store.validity import Segment
from batch_rl_dr3.runs import atomic, place
from batch_rl_dr3.runs.place import Place, version
from batch_rl_dr3.runs.retry import RefusedError, Retry

_CHUNK_BYTES = 8 << 20
_QUARANTINE = 'batch_rl_dr3_quarantine'


class Source(abc.ABC):
  """The rows of one logged run of one game, file by file.

  A file is known by its suffix and has the elements and attributes of the DQN
  Replay format, however they are stored. What is damaged is a DataError.
  """

  name: str  # Where it is, as messages and manifests call it.
  count: place.ByteCount  # Out of the storage so far, compressed.
  endpoint: str | None = None  # The web server that has to answer first.

  @abc.abstractmethod
  def suffixes(self) -> list[int]:
    """Returns the files' suffixes in time order, of which none lacks a part."""

  def missing_suffixes(self) -> list[int]:
    """Returns the suffixes that should be there and are not."""
    return checkpoint_format.missing_suffixes(self.suffixes())

  @abc.abstractmethod
  def fingerprint(self) -> list[Any]:
    """Returns what changes whenever the data do: JSON values."""

  @abc.abstractmethod
  def num_bytes(self, suffix: int) -> int:
    """Returns the size of one file in the storage, compressed as it is."""

  def segment(self, suffix: int) -> Segment:
    """Returns what is known of the rows of one file."""
    return whole_segment(self, suffix)

  @abc.abstractmethod
  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    """Returns the shape and dtype of one element of one file."""

  @abc.abstractmethod
  def rows(
    self,
    element: str,
    suffix: int,
    dtype: npt.DTypeLike,
    row_shape: tuple[int, ...],
    num_rows: int | None = None,
  ) -> Iterator[npt.NDArray[Any]]:
    """Yields the first rows of one element in blocks; None reads all."""

  @abc.abstractmethod
  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file."""

  def cut_rows(self, suffix: int) -> list[int]:
    """Returns the rows marked as terminals whose episodes were cut by time."""
    return []


def count_rows(source: Source, suffix: int) -> int:
  """Returns the number of rows of one file, which its elements agree on."""
  lengths = {}
  for name in checkpoint_format.ELEMENTS:
    shape = source.header(name, suffix).shape
    if not shape:
      raise errors.DataError(
        f'{name} of suffix {suffix} in {source.name} is a single number, not '
        'rows.'
      )
    lengths[name] = shape[0]
  if len(set(lengths.values())) > 1:
    raise errors.DataError(
      f'the files of suffix {suffix} in {source.name} differ in their number '
      f'of rows: {lengths}. Fetch them again, all from the same run.'
    )
  return lengths['terminal']


def whole_segment(source: Source, suffix: int) -> Segment:
  """Returns all rows that the buffer of one file held when it was saved.

  A buffer that was not full held only its first add_count rows.
  """
  length = count_rows(source, suffix)
  add_count = int(source.attribute('add_count', suffix))
  if add_count < 0:
    raise errors.DataError(
      f'add_count of suffix {suffix} in {source.name} is damaged: it says '
      f'{add_count}.'
    )
  return Segment(
    suffix=suffix,
    first_row=0,
    num_rows=min(length, add_count),
    num_rows_in_source=length,
    add_count=add_count,
    invalid_range=source.attribute('invalid_range', suffix).tolist(),
    read_to_end=True,
    cut_rows=source.cut_rows(suffix),
  )


class LogSource(Source):
  """A log in the DQN Replay layout, wherever its files are."""

  @abc.abstractmethod
  def _versions(self) -> dict[str, list[Any]]:
    """Returns the files there: name to size, and what else tells versions."""

  @abc.abstractmethod
  def _file(self, file_name: str) -> place.StoredFile:
    """Returns a file of the log."""

  @override
  def suffixes(self) -> list[int]:
    suffixes = checkpoint_format.complete_suffixes(self.name, self._versions())
    if not suffixes:
      raise RefusedError(
        f'{self.name} holds no replay logs. It must hold files such as '
        f'{checkpoint_format.file_name("observation", 0)}; download or collect '
        'a log there, or correct the location. Far from this machine, RL '
        'Unplugged is known by a folder atari_episodes_ordered or '
        'rlu_atari_checkpoints_ordered in its path.'
      )
    return suffixes

  @override
  def fingerprint(self) -> list[Any]:
    versions = self._versions()
    return [
      [name, *versions[name]]
      for suffix in self.suffixes()
      for name in (
        *checkpoint_format.file_names(suffix),
        checkpoint_format.file_name(checkpoint_format.CUT_ROWS, suffix),
      )
      if name in versions
    ]

  @override
  def num_bytes(self, suffix: int) -> int:
    versions = self._versions()
    names = checkpoint_format.file_names(suffix)
    return sum(int(versions[name][0]) for name in names)

  @override
  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    name = checkpoint_format.file_name(element, suffix)
    return checkpoint_format.read_header(self._file(name))

  @override
  def rows(
    self,
    element: str,
    suffix: int,
    dtype: npt.DTypeLike,
    row_shape: tuple[int, ...],
    num_rows: int | None = None,
  ) -> Iterator[npt.NDArray[Any]]:
    file = self._file(checkpoint_format.file_name(element, suffix))
    return checkpoint_format.read_rows(file, dtype, row_shape, num_rows)

  @override
  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    file = self._file(checkpoint_format.file_name(name, suffix))
    return checkpoint_format.read_attribute(file, name)

  @override
  def cut_rows(self, suffix: int) -> list[int]:
    name = checkpoint_format.CUT_ROWS
    if checkpoint_format.file_name(name, suffix) not in self._versions():
      return []
    rows: list[int] = self.attribute(name, suffix).tolist()
    return rows


@gin.configurable
class FolderSource(LogSource):
  """A log in a folder of this machine, vouched for by gzip's own checksums."""

  def __init__(self, folder: str | os.PathLike[str]):
    """Finds the log in the folder, or in `replay_logs` within it."""
    try:
      self._folder = checkpoint_format.find_replay_logs(folder).resolve()
    except errors.DataError as error:
      raise RefusedError(str(error)) from error
    self.name = str(self._folder)
    self.count = place.ByteCount()

  @override
  def _versions(self) -> dict[str, list[Any]]:
    try:
      with os.scandir(self._folder) as entries:
        stats = {e.name: e.stat() for e in entries if e.is_file()}
    except OSError as error:
      raise errors.DataError(
        f'cannot read {self._folder}: {error.strerror}.'
      ) from error
    return {n: [stat.st_size, stat.st_mtime_ns] for n, stat in stats.items()}

  @override
  def _file(self, file_name: str) -> place.StoredFile:
    return place.local_file(self._folder / file_name, self.count)


@gin.configurable
class FsspecSource(LogSource):
  """A log in any storage that fsspec opens: gs://, s3://, https:// and more.

  What is read whole is first fetched and checked (see `open_whole`); a proper
  prefix is vouched for only by its structure. s3:// needs the package s3fs, and
  https:// a page that links to the files.
  """

  def __init__(
    self,
    url: str,
    endpoint_url: str | None = None,
    google_token: str | None = None,
    timeout: float = 60.0,
    spool_dir: str | None = None,
    retry: Retry | None = None,
  ):
    """Reads nothing yet.

    Args:
      url: the folder of the log, or its parent where it is named `replay_logs`.
      endpoint_url: where gs:// is served; None for Google's own.
      google_token: gcsfs's token; see open_storage.
      timeout: seconds without a byte after which a connection is given up.
      spool_dir: of temporary files, one compressed file each; None is TMPDIR.
      retry: how reads are tried again; Retry() if None.
    """
    retry = Retry() if retry is None else retry
    self._storage = place.open_data(
      url, retry, endpoint_url, google_token, timeout
    )
    self.name = self._storage.name
    self.count = self._storage.count
    self.endpoint = find_endpoint(self.name, endpoint_url)
    self._spool_dir = spool_dir
    self._headers: dict[str, checkpoint_format.Header] = {}

  @functools.cached_property
  def _infos(self) -> dict[str, dict[str, Any]]:
    """What is there, as listed once: a source is one state of the data."""
    refusals: list[RefusedError | None] = []
    for storage in (self._storage, self._storage.folder('replay_logs')):
      try:
        infos = storage.listing(
          lambda name: bool(checkpoint_format.found_suffixes([name]))
        )
      except RefusedError as error:
        refusals.append(error)
        continue
      if infos:
        self._storage, self.name = storage, storage.name
        return infos
      refusals.append(None)
    if refusals[0] is not None:
      raise refusals[0]
    return {}

  @override
  def _versions(self) -> dict[str, list[Any]]:
    return {n: version(info) for n, info in self._infos.items()}

  def _info(self, file_name: str) -> dict[str, Any]:
    if file_name not in self._infos:
      raise errors.DataError(f'{self.name} has no {file_name}.')
    return self._infos[file_name]

  @override
  def _file(self, file_name: str) -> place.StoredFile:
    return self._storage.file(self._info(file_name))

  @override
  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    name = checkpoint_format.file_name(element, suffix)
    if name not in self._headers:
      try:
        header = super().header(element, suffix)
      except RefusedError:
        raise
      except errors.DataError:  # It may have been damaged on the way.
        header = super().header(element, suffix)
      self._headers[name] = header
    return self._headers[name]

  @override
  def rows(
    self,
    element: str,
    suffix: int,
    dtype: npt.DTypeLike,
    row_shape: tuple[int, ...],
    num_rows: int | None = None,
  ) -> Iterator[npt.NDArray[Any]]:
    name = checkpoint_format.file_name(element, suffix)
    header = self.header(element, suffix)
    checkpoint_format.check_rows(
      f'{self.name}/{name}', header, dtype, row_shape, num_rows
    )
    if num_rows is not None and num_rows < header.shape[0]:
      yield from super().rows(element, suffix, dtype, row_shape, num_rows)
      return
    with self._open_whole(name) as file:
      yield from checkpoint_format.read_rows(file, dtype, row_shape)

  @override
  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    with self._open_whole(checkpoint_format.file_name(name, suffix)) as file:
      return checkpoint_format.read_attribute(file, name)

  def _open_whole(
    self, file_name: str
  ) -> contextlib.AbstractContextManager[place.StoredFile]:
    check, info = checkpoint_format.check_gzip, self._info(file_name)
    return open_whole(self._storage, info, self._spool_dir, check)


def find_endpoint(url: str, endpoint_url: str | None) -> str | None:
  """Returns the web server that serves a URL or path, None if not known."""
  if place.is_google(url):
    emulator = os.environ.get('STORAGE_EMULATOR_HOST')
    return endpoint_url or emulator or 'https://storage.googleapis.com'
  return url if url.startswith(('http://', 'https://')) else None


@contextlib.contextmanager
def open_whole(
  storage: Place,
  info: dict[str, Any],
  spool_dir: str | None,
  check: Callable[[place.StoredFile], None],
) -> Iterator[place.StoredFile]:
  """Yields an object fetched whole into a temporary file, checked before use.

  Where the storage states no checksum, `check` raises a DataError. A damaged
  object goes to the folder batch_rl_dr3_quarantine in `spool_dir` and is
  fetched once more. The temporary file has no name, so it vanishes with the
  process.

  Raises:
    DataError: if it is damaged both times.
    WriteError: if there is no room for the temporary file.
  """
  name = storage.file(info).name
  folder = pathlib.Path(spool_dir or tempfile.gettempdir())
  try:
    spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
  except OSError as error:
    raise atomic.FileError(folder, error) from error
  with spool:
    path = f'/proc/self/fd/{spool.fileno()}'
    file = dataclasses.replace(
      place.local_file(path), name=name, num_bytes=info['size']
    )
    for is_last in (False, True):
      try:
        stated = _fetch(storage, info, spool, folder)
        if stated is None:
          check(file)
        elif stated[0].digest() != stated[1]:
          raise errors.DataError(
            f'{name} is damaged: its bytes do not have the checksum that the '
            'storage states.'
          )
        break
      except RefusedError:
        raise
      except errors.DataError as error:
        kept = _quarantine(name, path, folder)
        if is_last:
          raise errors.DataError(f'{error} It was so twice.{kept}') from error
        logging.warning('%s%s It is fetched once more.', error, kept)
    yield file


def _fetch(
  storage: Place, info: dict[str, Any], spool: IO[bytes], folder: pathlib.Path
) -> tuple[Any, bytes] | None:
  """Returns the checksum of what came and the stated one, None if none is.

  Google Cloud Storage states crc32c of every object, and md5Hash of most.
  """
  stated: tuple[Any, bytes] | None = None
  if 'crc32c' in info:
    crc = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
    stated = crc, base64.b64decode(info['crc32c'])
  elif 'md5Hash' in info:
    md5 = hashlib.md5(usedforsecurity=False)
    stated = md5, base64.b64decode(info['md5Hash'])
  with storage.open(info) as stream:
    try:
      spool.seek(0)
      spool.truncate()
      while data := stream.read(_CHUNK_BYTES):
        spool.write(data)
        if stated is not None:
          stated[0].update(data)
      spool.flush()
    except OSError as error:
      raise atomic.FileError(folder, error) from error
  return stated


def _quarantine(name: str, path: str, folder: pathlib.Path) -> str:
  """Keeps a damaged object; returns a sentence that says where."""
  target = folder / _QUARANTINE / re.sub(r'[^\w.$-]+', '_', name)
  try:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, target)
  except OSError:  # A full disk, say. The damage is what has to be told.
    return ''
  return f' What came is kept in {target}.'
