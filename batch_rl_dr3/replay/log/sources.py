"""Where logged replay lives: a local folder, or any storage that fsspec knows.

No row can be trusted before the iterator that yields it has ended: gzip's
checksum stands at a file's end.
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

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.replay.store.subset import Segment
from batch_rl_dr3.runs import atomic, place
from batch_rl_dr3.runs.place import version
from batch_rl_dr3.runs.retry import RefusedError, Retry

_Opened = contextlib.AbstractContextManager[place.StoredFile]
_CHUNK_BYTES = 8 << 20
_QUARANTINE = 'batch_rl_dr3_quarantine'


class Source(abc.ABC):
  """The rows of one logged run of one game, by the suffixes of its files.

  They have the elements of the DQN Replay format, however they are stored. What
  is damaged is a DataError.
  """

  name: str  # Where it is, as messages and manifests call it.
  count: place.ByteCount  # Out of the storage so far, compressed.
  endpoint: str | None = None  # The web server that has to answer first.

  @abc.abstractmethod
  def suffixes(self) -> list[int]:
    """Returns the files' suffixes in time order, of which none lacks a part."""

  def missing_suffixes(self) -> list[int]:
    """Returns the suffixes that should be there and are not."""
    there = self.suffixes()
    return sorted(set(range(there[-1])) - set(there))

  @abc.abstractmethod
  def fingerprint(self) -> list[Any]:
    """Returns what changes whenever the data do: JSON values."""

  @abc.abstractmethod
  def num_bytes(self, suffix: int) -> int:
    """Returns the size of one file in the storage, compressed as it is."""

  @abc.abstractmethod
  def segment(self, suffix: int) -> Segment:
    """Returns what is known of the rows of one file."""

  @abc.abstractmethod
  def header(self, element: str, suffix: int) -> checkpoint_format.Header:
    """Returns the shape and dtype of one element of one file."""

  @abc.abstractmethod
  def rows(
    self, element: str, suffix: int, num_rows: int | None = None
  ) -> Iterator[npt.NDArray[Any]]:
    """Yields the first rows of one element in blocks; None reads all.

    All but frames have Dopamine's dtypes.
    """

  def column(self, element: str, suffix: int) -> npt.NDArray[Any]:
    """Returns all rows of one element, in memory."""
    return np.concatenate([*self.rows(element, suffix)])


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


class LogSource(Source):
  """A log in the DQN Replay layout, wherever its files are."""

  def __init__(self, name: str, count: place.ByteCount):
    self.name = name
    self.count = count
    self._headers: dict[str, checkpoint_format.Header] = {}

  @abc.abstractmethod
  def _versions(self) -> dict[str, list[Any]]:
    """Returns the files there: name to size, and what else tells versions."""

  @abc.abstractmethod
  def _open(self, file_name: str, whole: bool) -> _Opened:
    """Gives a file of the log, checked as well as can be if `whole`."""

  def suffixes(self) -> list[int]:  # noqa: D102
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

  def fingerprint(self) -> list[Any]:  # noqa: D102
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

  def num_bytes(self, suffix: int) -> int:  # noqa: D102
    versions = self._versions()
    names = checkpoint_format.file_names(suffix)
    return sum(int(versions[name][0]) for name in names)

  def segment(self, suffix: int) -> Segment:  # noqa: D102
    length = count_rows(self, suffix)
    add_count = int(self.attribute('add_count', suffix))
    if add_count < 0:
      raise errors.DataError(
        f'add_count of suffix {suffix} in {self.name} is damaged: it says '
        f'{add_count}.'
      )
    name = checkpoint_format.CUT_ROWS
    has_cuts = checkpoint_format.file_name(name, suffix) in self._versions()
    # A buffer that was not full held only its first add_count rows.
    return Segment(
      suffix=suffix,
      num_rows=min(length, add_count),
      num_rows_in_source=length,
      add_count=add_count,
      invalid_range=self.attribute('invalid_range', suffix).tolist(),
      cut_rows=self.attribute(name, suffix).tolist() if has_cuts else (),
    )

  def header(self, element: str, suffix: int) -> checkpoint_format.Header:  # noqa: D102
    name = checkpoint_format.file_name(element, suffix)
    if name not in self._headers:
      with self._open(name, whole=False) as file:
        try:
          header = checkpoint_format.read_header(file)
        except RefusedError:
          raise
        except errors.DataError:  # It may have been damaged on the way.
          header = checkpoint_format.read_header(file)
      self._headers[name] = header
    return self._headers[name]

  def rows(  # noqa: D102
    self, element: str, suffix: int, num_rows: int | None = None
  ) -> Iterator[npt.NDArray[Any]]:
    shape, dtype = self.header(element, suffix)
    row_shape = shape[1:] if element == 'observation' else ()
    dtype = checkpoint_format.ELEMENT_DTYPES.get(element, dtype)
    whole = num_rows is None or shape[:1] == (num_rows,)
    name = checkpoint_format.file_name(element, suffix)
    with self._open(name, whole) as file:
      yield from checkpoint_format.read_rows(file, dtype, row_shape, num_rows)

  def attribute(self, name: str, suffix: int) -> npt.NDArray[np.int64]:
    """Returns add_count or invalid_range of one file."""
    file_name = checkpoint_format.file_name(name, suffix)
    with self._open(file_name, whole=True) as file:
      return checkpoint_format.read_attribute(file, name)


@gin.configurable
class FolderSource(LogSource):
  """A log in a folder of this machine, vouched for by gzip's own checksums."""

  def __init__(self, folder: str | os.PathLike[str]):
    """Finds the log in the folder, or in `replay_logs` within it."""
    given = pathlib.Path(folder)
    for self._folder in (given.resolve(), (given / 'replay_logs').resolve()):
      if self._folder.is_dir() and checkpoint_format.found_suffixes(
        self._versions()
      ):
        super().__init__(str(self._folder), place.ByteCount())
        return
    state = 'holds no replay logs' if given.is_dir() else 'is not a folder'
    raise RefusedError(
      f'{given} {state}. It must hold files such as '
      f'{checkpoint_format.file_name("observation", 0)}, itself or in a folder '
      'replay_logs within it; download or collect a log there, or correct the '
      'path.'
    )

  def _versions(self) -> dict[str, list[Any]]:
    try:
      with os.scandir(self._folder) as entries:
        stats = {e.name: e.stat() for e in entries if e.is_file()}
    except OSError as error:
      raise RefusedError(
        f'cannot read {self._folder}: {error.strerror}.'
      ) from error
    return {n: [stat.st_size, stat.st_mtime_ns] for n, stat in stats.items()}

  def _open(self, file_name: str, whole: bool) -> _Opened:
    path = self._folder / file_name
    return contextlib.nullcontext(place.local_file(path, self.count))


class RemoteFiles:
  """The objects of a folder in any storage that fsspec opens.

  What is read from its `storage` is checked by nobody; what is fetched, is.
  Temporary files, one compressed file each, go to `spool_dir`, or TMPDIR; the
  other arguments are as for `place.open_data`. s3:// needs the package s3fs,
  and https:// a page that links to the files.
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
    self.storage = place.open_data(
      url, retry or Retry(), endpoint_url, google_token, timeout
    )
    self.spool_dir = spool_dir
    self.endpoint = url if url.startswith(('http://', 'https://')) else None
    if place.is_google(url):
      emulator = os.environ.get('STORAGE_EMULATOR_HOST')
      google = 'https://storage.googleapis.com'
      self.endpoint = endpoint_url or emulator or google

  @contextlib.contextmanager
  def fetch(
    self,
    info: dict[str, Any],
    check: Callable[[place.StoredFile], None],
    num_bytes: int | None = None,
  ) -> Iterator[place.StoredFile]:
    """Yields an object fetched whole into a temporary file, checked before use.

    Where the storage states no checksum, `check` raises a DataError. A damaged
    object goes to quarantine and is fetched once more. With `num_bytes`, only
    they are fetched, unchecked. The file vanishes with the process.

    Raises:
      DataError: if it is damaged both times.
      WriteError: if there is no room for the temporary file.
    """
    name = self.storage.file(info).name
    folder = pathlib.Path(self.spool_dir or tempfile.gettempdir())
    with atomic.file_errors(folder):
      spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with spool:
      path = f'/proc/self/fd/{spool.fileno()}'
      file = dataclasses.replace(
        place.local_file(path), name=name, num_bytes=info['size']
      )
      for is_last in (False, True):
        try:
          with atomic.file_errors(folder):
            stated = self._copy(info, spool, num_bytes)
          if num_bytes is None and stated is None:
            check(file)
          elif num_bytes is None and stated[0].digest() != stated[1]:
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

  def _copy(
    self, info: dict[str, Any], spool: IO[bytes], num_bytes: int | None
  ) -> Any:
    """Returns the checksum of what came and the stated one, None if none is.

    Google Cloud Storage states crc32c of every object, and md5Hash of most.
    """
    stated: Any = None
    if 'crc32c' in info:
      crc = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
      stated = crc, base64.b64decode(info['crc32c'])
    elif 'md5Hash' in info:
      md5 = hashlib.md5(usedforsecurity=False)
      stated = md5, base64.b64decode(info['md5Hash'])
    left = info['size'] if num_bytes is None else num_bytes
    spool.seek(0)
    spool.truncate()
    with self.storage.file(info).open() as stream:
      while data := stream.read(min(left, _CHUNK_BYTES)):
        spool.write(data)
        left -= len(data)
        if stated is not None:
          stated[0].update(data)
    spool.flush()
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


@gin.configurable
class FsspecSource(LogSource):
  """A log in any storage that fsspec opens: gs://, s3://, https:// and more.

  `url` is of its folder, or of the one above its `replay_logs`; the further
  arguments are those of RemoteFiles. What is read whole is first fetched and
  checked; a proper prefix is vouched for only by its structure.
  """

  def __init__(self, url: str, **storage: Any):
    self._files = RemoteFiles(url, **storage)
    super().__init__(self._files.storage.name, self._files.storage.count)
    self.endpoint = self._files.endpoint

  @functools.cached_property
  def _infos(self) -> dict[str, dict[str, Any]]:
    """What is there, as listed once: a source is one state of the data."""
    given = self._files.storage
    refusal: RefusedError | None = None
    for storage in (given, given.folder('replay_logs')):
      infos = {}
      try:
        infos = storage.listing(
          lambda name: bool(checkpoint_format.found_suffixes([name]))
        )
      except RefusedError as error:
        refusal = error if storage is given else refusal
      if infos:
        self._files.storage, self.name = storage, storage.name
        return infos
    if refusal is not None:
      raise refusal
    return {}

  def _versions(self) -> dict[str, list[Any]]:
    return {n: version(info) for n, info in self._infos.items()}

  def _open(self, file_name: str, whole: bool) -> _Opened:
    if file_name not in self._infos:
      raise errors.DataError(f'{self.name} has no {file_name}.')
    info = self._infos[file_name]
    if not whole:
      return contextlib.nullcontext(self._files.storage.file(info))
    return self._files.fetch(info, checkpoint_format.check_gzip)
