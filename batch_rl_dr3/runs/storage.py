"""Reads a log in any storage that fsspec knows, tried again when it falters.

Every read is of a range, so an interrupted read resumes at the byte reached.
"""

from collections.abc import Callable
import contextlib
import copy
import dataclasses
import io
import os
import pathlib
import random
import threading
import time
from typing import Any, BinaryIO, TypeVar, cast
import urllib.parse

from absl import logging
import gin

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import place

_T = TypeVar('_T')
# What storages call what changes with an object's content.
_VERSION_KEYS = (
  'crc32c',
  'md5Hash',
  'generation',
  'ETag',
  'etag',
  'LastModified',
  'mtime',
  'created',
)
_BUFFER_BYTES = 256 << 10
_FIRST_CHUNK_BYTES = 256 << 10
_CHUNK_BYTES = 8 << 20

_REFUSALS = frozenset({400, 401, 403, 404})
_FALTERS = frozenset({408, 425, 429})
# Names of exceptions, so that no client library is imported to compare types.
_REFUSING = {
  'FileNotFoundError',
  'PermissionError',
  'NoCredentialsError',
  'GoogleAuthError',
}
_FALTERING = {
  'ClientError',  # aiohttp's, for connections and bodies that break.
  'RequestException',
  'TimeoutError',
  'ConnectionError',
  'FSTimeoutError',
}
# No connection was ever made: a wrong address, no network, a wall.
_UNREACHABLE = 'ClientConnectorError'
_UNREACHABLE_ATTEMPTS = 2


class RefusedError(errors.DataError):
  """A storage does not give the data: forbidden, absent, or out of reach."""


def _status(error: BaseException) -> int | None:
  for name in ('status', 'code'):
    value = getattr(error, name, None)
    if isinstance(value, int | str) and str(value).isdigit():
      return int(value)
  return None


def _is_refusal(error: Exception) -> bool:
  """Whether to ask elsewhere: 401, 403, 404, no such bucket, no credentials."""
  return (
    _status(error) in _REFUSALS
    # gcsfs turns 403 into a bare OSError, and a bad bucket into a ValueError.
    or str(error).startswith(('Forbidden', 'Bad Request'))
    or bool(_kinds(error) & _REFUSING)
  )


def _falters(error: Exception) -> bool:
  """Whether another attempt may succeed: 429, 5xx, timeouts, broken bodies."""
  status = _status(error)
  if status is not None:
    return status in _FALTERS or status >= 500
  return bool(_kinds(error) & _FALTERING)


def _kinds(error: Exception) -> set[str]:
  return {kind.__name__ for kind in type(error).__mro__}


@gin.configurable
class Retry:
  """Tries again what may pass: exponential backoff with jitter, bounded.

  These attempts come on top of gcsfs's own, up to 6 a request, and cover what
  those do not: timeouts and short reads.
  """

  def __init__(
    self,
    attempts: int = 5,
    first_delay: float = 1.0,
    max_delay: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Sets the rule.

    Args:
      attempts: of a read in all; at most two where no connection could be made.
      first_delay: seconds before the second attempt, doubled for each further.
        A random half to whole of it is used, so that many readers spread out.
      max_delay: the longest delay in seconds.
      sleep: what waits.
    """
    if attempts < 1:
      raise errors.ConfigError(
        f'Retry.attempts is {attempts}; it must be at least 1.'
      )
    self._attempts = attempts
    self._first_delay = first_delay
    self._max_delay = max_delay
    self._sleep = sleep

  def __call__(self, name: str, read: Callable[[], _T]) -> _T:
    """Returns what `read` returns; messages call what is read by `name`.

    Raises:
      RefusedError: if the storage refuses, or did not answer in any attempt.
      DataError: if anything else goes wrong.
    """
    attempt = 0
    while True:
      attempt += 1
      try:
        return read()
      except errors.BatchRLError:
        raise
      except Exception as error:  # fsspec's backends raise many kinds.
        delay = self._delay(name, error, attempt)
        logging.info(
          '%s: %s; again in %.1f s', name, place.one_line(error), delay
        )
      self._sleep(delay)

  def _delay(self, name: str, error: Exception, attempt: int) -> float:
    """Returns the seconds until the next attempt, or raises."""
    told = place.one_line(error)
    if _is_refusal(error):
      raise RefusedError(f'{name} is refused: {told}.') from error
    if not _falters(error):
      raise errors.DataError(f'cannot read {name}: {told}.') from error
    is_unreachable = _UNREACHABLE in _kinds(error)
    most = _UNREACHABLE_ATTEMPTS if is_unreachable else self._attempts
    if attempt >= min(most, self._attempts):
      raise RefusedError(
        f'{name} could not be read in {attempt} attempts; the last one '
        f'ended with: {told}. Try again later.'
      ) from error
    delay = min(self._max_delay, self._first_delay * 2 ** (attempt - 1))
    return delay * random.uniform(0.5, 1)


@dataclasses.dataclass(frozen=True)
class StoredFile:
  """A file somewhere; `open` makes a binary stream from its beginning."""

  name: str
  num_bytes: int  # As stored, compressed.
  open: Callable[[], contextlib.AbstractContextManager[BinaryIO]]


class ByteCount:
  """How many bytes came out of a storage, in `total`, for several threads."""

  def __init__(self) -> None:
    self.total = 0
    self._lock = threading.Lock()

  def add(self, count: int) -> None:
    """Adds bytes that have just come."""
    with self._lock:
      self.total += count


class _CountedFile(io.FileIO):
  def __init__(self, path: pathlib.Path, count: ByteCount):
    super().__init__(path)
    self._count = count

  def readinto(self, buffer: Any) -> int | None:
    count = super().readinto(buffer)
    self._count.add(count or 0)
    return count


def local_file(
  path: str | os.PathLike[str], count: ByteCount | None = None
) -> StoredFile:
  """Returns a file of this machine, or raises DataError if there is none.

  `count` counts the bytes that are read of it.
  """
  path = pathlib.Path(path)
  try:
    num_bytes = path.stat().st_size
  except OSError as error:
    raise errors.DataError(f'cannot read {path}: {error.strerror}.') from error
  if count is None:
    return StoredFile(str(path), num_bytes, lambda: open(path, 'rb'))
  return StoredFile(
    str(path),
    num_bytes,
    lambda: io.BufferedReader(_CountedFile(path, count), _BUFFER_BYTES),
  )


def version(info: dict[str, Any]) -> list[Any]:
  """Returns the JSON values of fsspec's `info` that change with the content."""
  return [info['size'], *(str(info[k]) for k in _VERSION_KEYS if k in info)]


class _RangeStream(io.RawIOBase):
  """The bytes of an object from its start, read range by range."""

  def __init__(self, read: Callable[[int, int], bytes], num_bytes: int):
    super().__init__()
    self._read = read
    self._num_bytes = num_bytes
    self._reached = 0
    self._chunk = memoryview(b'')
    self._chunk_bytes = _FIRST_CHUNK_BYTES

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    if not self._chunk and self._reached < self._num_bytes:
      end = min(self._num_bytes, self._reached + self._chunk_bytes)
      self._chunk = memoryview(self._read(self._reached, end))
      self._reached += len(self._chunk)
      # A short prefix should cost little; a long read should not cost many
      # requests.
      self._chunk_bytes = min(_CHUNK_BYTES, 2 * self._chunk_bytes)
    count = min(len(buffer), len(self._chunk))
    buffer[:count] = self._chunk[:count]
    self._chunk = self._chunk[count:]
    return count


class Storage:
  """The objects of one folder of a storage, read; see `open_storage`.

  `count` also counts what is read of the folders that `folder` returned.
  """

  def __init__(self, url: str, filesystem: Any, root: str, retry: Retry):
    self.url = url
    self._filesystem = filesystem
    self._root = root.rstrip('/')
    self._retry = retry
    self.count = ByteCount()

  def folder(self, name: str) -> 'Storage':
    """Returns the folder of this name within this one."""
    within = copy.copy(self)
    within.url = f'{self.url}/{name}'
    within._root = f'{self._root}/{name}'
    return within

  def list(self, is_wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """Returns the wanted objects of the folder: name to what is said of each.

    Raises:
      RefusedError: if the storage refuses or there is no such folder.
      DataError: if the storage does not state an object's size.
    """
    # A web server tells folders by the slash.
    root = f'{self._root}/' if '://' in self._root else self._root

    def ls() -> list[dict[str, Any]]:
      self._filesystem.invalidate_cache()
      return self._filesystem.ls(root, detail=True)

    found = {
      _last_part(info['name']): info
      for info in self._retry(self.url, ls)
      if info.get('type') != 'directory'
    }
    return {n: self._sized(n, i) for n, i in found.items() if is_wanted(n)}

  def info(self, name: str) -> dict[str, Any]:
    """Returns what is said of one object of the folder."""
    return self._sized(name, {'name': f'{self._root}/{name}'})

  def _sized(self, name: str, info: dict[str, Any]) -> dict[str, Any]:
    if info.get('size') is None:  # Listings of web servers say no sizes.
      path = info['name']
      info = self._retry(
        f'{self.url}/{name}',
        lambda: {**self._filesystem.info(path), 'name': path},
      )
    if info.get('size') is None:
      raise errors.DataError(f'{self.url}/{name} has no stated size.')
    return info

  def open(self, info: dict[str, Any]) -> BinaryIO:
    """Returns a stream of an object's bytes, read range by range."""
    name = f'{self.url}/{_last_part(info["name"])}'

    def read(start: int, end: int) -> bytes:
      data = self._filesystem.cat_file(info['name'], start=start, end=end)
      self.count.add(len(data))
      # A server that ignores ranges sends everything.
      data = data[start:end] if len(data) > end - start else data
      if not data:
        raise ConnectionError(f'nothing came of bytes {start} to {end}')
      return bytes(data)

    def read_again(start: int, end: int) -> bytes:
      return self._retry(name, lambda: read(start, end))

    return cast(BinaryIO, _RangeStream(read_again, info['size']))

  def file(self, info: dict[str, Any]) -> StoredFile:
    """Returns an object as a file whose bytes nobody checks: for prefixes."""
    name = f'{self.url}/{_last_part(info["name"])}'
    return StoredFile(name, info['size'], lambda: self.open(info))


def _last_part(name: str) -> str:
  return urllib.parse.unquote(name.rstrip('/').rsplit('/', 1)[-1])


def _has_credentials() -> bool:
  """Whether there are Google's application default credentials."""
  if os.environ.get('STORAGE_EMULATOR_HOST'):
    return False
  if os.environ.get('GOOGLE_APPLICATION_CREDENTIALS'):
    return True
  folder = os.environ.get('CLOUDSDK_CONFIG') or pathlib.Path.home().joinpath(
    '.config', 'gcloud'
  )
  return pathlib.Path(folder, 'application_default_credentials.json').is_file()


def open_storage(
  url: str,
  endpoint_url: str | None,
  google_token: str | None,
  timeout: float,
  retry: Retry,
) -> Storage:
  """Returns the folder at a gs://, s3://, https://, file:// or memory:// URL.

  `endpoint_url` is where gs:// is served, if not by Google, and `timeout` is in
  seconds without a byte. Where gcsfs's `google_token` is None, Google's default
  credentials are used if GOOGLE_APPLICATION_CREDENTIALS names a file of them or
  `gcloud auth application-default login` left one; access is anonymous if not.

  Raises:
    DataError: if no file system for this URL is installed.
  """
  import fsspec  # Only where something is read from afar; so is gcsfs.

  url = url.rstrip('/')
  options: dict[str, Any] = {}
  if place.is_google(url):
    if google_token is None:
      google_token = 'google_default' if _has_credentials() else 'anon'
    root = url.split('://', 1)[1]
    filesystem = place.google_filesystem(
      google_token, timeout, endpoint_url=endpoint_url
    )
    return Storage(url, filesystem, root, retry)
  if url.startswith(('http://', 'https://')):
    options = {'client_kwargs': {'timeout': place.limits(timeout)}}
  elif url.startswith('s3://'):
    options = {'anon': 'AWS_ACCESS_KEY_ID' not in os.environ}
  try:
    filesystem, root = fsspec.core.url_to_fs(url, **options)
  except (ImportError, ValueError) as error:
    raise errors.DataError(f'{url} cannot be opened: {error}.') from error
  return Storage(url, filesystem, root, retry)
