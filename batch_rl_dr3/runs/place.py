"""Files here or in a bucket: what is read and written, and tried again.

A run's folder is a `LocalFolder` or a `RemoteFolder`: an object is read and
written whole or not at all, and what a storage's client raises becomes an
OSError; the client itself has tried again by then, for a minute or six times.

A log is a `Storage`, read range by range, so that what broke goes on at the
byte reached; its reads are tried again by a `Retry`.

Names that come from a file or a bucket are foreign text. One may only mean a
file below the folder that it speaks of.
"""

import base64
from collections.abc import Callable, Iterator
import contextlib
import copy
import dataclasses
import datetime
import errno
import hashlib
import io
import logging
import os
import pathlib
import random
import secrets
import threading
import time
from typing import Any, BinaryIO, Protocol, TypeVar, cast
import urllib.parse
import warnings

import gin

from batch_rl_dr3.config import errors

_T = TypeVar('_T')
_Path = str | os.PathLike[str]

_FILE_SCHEME = 'file://'
# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0
# How often an object is fetched that arrives other than it was stated.
_MAX_FETCHES = 3
# What storages call the time of an object's last change.
_CHANGED_KEYS = ('mtime', 'updated', 'LastModified', 'last_modified', 'created')
# What they call what changes with its content.
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


def local_path(place: str) -> str | None:
  """Returns the path that a path or a file:// URL is; None for other URLs."""
  if place.startswith(_FILE_SCHEME):
    return place.removeprefix(_FILE_SCHEME)
  return None if '://' in place else place


def plain(name: Any, source: object, field: str) -> str:
  """Returns `name` if it is a plain relative path, such as `a/b.npy`.

  Args:
    name: what the file says.
    source: the file or the folder of a bucket that says it, for messages.
    field: where in it, such as 'files'.

  Raises:
    DataError: if it is no text, is empty or absolute, or holds `.`, `..`, an
      empty part, a backslash or a character that no file name should hold.
  """
  if not isinstance(name, str) or not _is_plain(name):
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is no plain name of a file '
      'below its folder. The file is damaged or not from this program; '
      'restore it from where it came from.'
    )
  return name


def _is_plain(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return (
    name.isprintable()
    and '\\' not in name
    and all(part not in ('', '.', '..') for part in name.split('/'))
  )


def path_below(
  root: _Path, name: Any, source: object, field: str
) -> pathlib.Path:
  """Returns the path of a plain name below a folder; see `plain`.

  Raises:
    DataError: if the name is not plain, or a link leads out of the folder.
  """
  path = pathlib.Path(root) / plain(name, source, field)
  if not path.resolve().is_relative_to(pathlib.Path(root).resolve()):
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is a link out of {root}. '
      'Replace the link by what it leads to.'
    )
  return path


class Folder(Protocol):
  """A folder for small files, shared by all who may work on a run."""

  def create(self, name: str, content: bytes) -> bool:
    """Writes a file unless it exists; returns whether it did not."""

  def write(self, name: str, content: bytes) -> None:
    """Writes a file, whole or not at all."""

  def read(self, name: str) -> bytes | None:
    """Returns the content of a file; None if there is none."""

  def names(self) -> list[str]:
    """Returns the names of the files."""


class LocalFolder:
  """A folder of a local or shared disk. It needs no locks of the system.

  It is made when something is written.
  """

  def __init__(self, folder: _Path):
    self._folder = pathlib.Path(folder)

  def create(self, name: str, content: bytes) -> bool:
    """See `Folder`. A kill can leave the file empty."""
    self._folder.mkdir(exist_ok=True)
    try:
      with open(self._folder / name, 'xb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except FileExistsError:
      return False
    return True

  def write(self, name: str, content: bytes) -> None:
    """See `Folder`."""
    temporary = self._folder / f'.{name}.{secrets.token_hex(4)}.tmp'
    try:
      temporary.write_bytes(content)
      os.replace(temporary, self._folder / name)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise

  def read(self, name: str) -> bytes | None:
    """See `Folder`."""
    with contextlib.suppress(OSError):
      os.utime(self._folder)  # A network file system then looks anew.
    try:
      return (self._folder / name).read_bytes()
    except FileNotFoundError:
      return None

  def names(self) -> list[str]:
    """See `Folder`."""
    with contextlib.suppress(FileNotFoundError):
      return os.listdir(self._folder)
    return []


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a listing says of an object.

  Attributes:
    size: in bytes.
    changed: when it was last written, in ms since 1970 by the storage's clock.
    md5: of its content, in base64; '' where it is not stated.
  """

  size: int
  changed: int
  md5: str = ''


class RemoteFolder:
  """A folder of any storage that fsspec can write to.

  It is a `Folder` for what is in it and not deeper. All methods raise OSError
  if the storage refuses.
  """

  def __init__(self, url: str):
    """Connects to the storage of a URL such as gs://BUCKET/RUNS.

    Raises:
      ConfigError: if no file system for this URL is installed, or it lacks
        credentials.
    """
    self.url = url.rstrip('/')
    self._filesystem, root = _open(self.url)
    self._root = root.rstrip('/')

  def folder(self, name: str) -> 'RemoteFolder':
    """Returns the folder of this name within this one."""
    within = copy.copy(self)
    within.url = f'{self.url}/{name}'
    within._root = self._path(name)
    return within

  def create(self, name: str, content: bytes) -> bool:
    """See `Folder`: a write on the condition of generation 0."""
    with _as_os_error():
      try:
        self._filesystem.pipe_file(self._path(name), content, mode='create')
      except FileExistsError:
        # Perhaps by this very call, whose answer was lost and which was sent
        # again.
        return self.read(name) == content
    return True

  def write(self, name: str, content: bytes) -> None:
    """See `Folder`."""
    with _as_os_error():
      self._filesystem.pipe_file(self._path(name), content)

  def read(self, name: str) -> bytes | None:
    """See `Folder`."""
    with _as_os_error():
      try:
        return bytes(self._filesystem.cat_file(self._path(name)))
      except FileNotFoundError:
        return None

  def read_part(self, name: str, start: int, end: int) -> bytes | None:
    """Returns bytes of an object; None if just these do not come."""
    with _as_os_error():
      try:
        part = self._filesystem.cat_file(self._path(name), start=start, end=end)
      except FileNotFoundError:
        return None
    return bytes(part) if len(part) == end - start else None

  def names(self) -> list[str]:
    """See `Folder`."""
    with _as_os_error():
      self._filesystem.invalidate_cache()
      try:
        paths = self._filesystem.ls(self._root, detail=False)
      except FileNotFoundError:
        return []
      return [path.rstrip('/').rpartition('/')[2] for path in paths]

  def find(self, below: str = '') -> dict[str, Entry]:
    """Returns all objects below a folder of it, at any depth, by their names.

    Raises:
      DataError: if a name would lead out of the folder.
    """
    with _as_os_error():
      self._filesystem.invalidate_cache()
      try:
        found = self._filesystem.find(self._path(below), detail=True)
      except FileNotFoundError:
        return {}
      return {
        plain(
          path.removeprefix(self._root).lstrip('/'), self.url, 'its listing'
        ): _entry(info)
        for path, info in found.items()
        if not path.endswith('/')  # What consoles make, to show a folder.
      }

  def fetch(
    self, name: str, target: pathlib.Path, entry: Entry
  ) -> Entry | None:
    """Writes an object's content to a file, and checks it.

    Args:
      name: of the object.
      target: the file; it may be left half-written by an error.
      entry: what a listing said of it.

    Returns:
      What is to be said of it now, as it may have changed; None if it is gone.
    """
    with _as_os_error():
      for _ in range(_MAX_FETCHES):
        try:
          self._filesystem.get_file(self._path(name), str(target))
          if _is_whole(target, entry):
            return entry
          self._filesystem.invalidate_cache()
          entry = _entry(self._filesystem.info(self._path(name)))
        except FileNotFoundError:
          return None
    raise OSError(errno.EIO, f'{self.url}/{name} arrives damaged')

  def put(self, path: _Path, name: str) -> None:
    """Uploads a file."""
    with _as_os_error():
      self._filesystem.put_file(os.fspath(path), self._path(name))

  def remove(self, name: str) -> None:
    """Removes an object, if there is one."""
    with _as_os_error(), contextlib.suppress(FileNotFoundError):
      self._filesystem.rm_file(self._path(name))

  def _path(self, name: str) -> str:
    return f'{self._root}/{name}' if name else self._root


def _entry(info: dict[str, Any]) -> Entry:
  changed = next((info[k] for k in _CHANGED_KEYS if info.get(k)), 0)
  if isinstance(changed, str):
    changed = datetime.datetime.fromisoformat(changed)
  if isinstance(changed, datetime.datetime):
    changed = changed.timestamp()
  return Entry(
    int(info['size']), round(1000 * changed), str(info.get('md5Hash') or '')
  )


def _is_whole(path: pathlib.Path, entry: Entry) -> bool:
  if path.stat().st_size != entry.size:
    return False
  if not entry.md5:
    return True
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'md5').digest()
  return base64.b64encode(digest).decode() == entry.md5


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns what a storage's client raises into an OSError."""
  try:
    yield
  except errors.BatchRLError:
    raise
  except Exception as error:  # Clients of storages raise many kinds.
    if isinstance(error, OSError) and error.strerror is not None:
      raise
    raise OSError(errno.EIO, _one_line(error)) from error


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


def _open(url: str) -> tuple[Any, str]:
  """Returns the file system of a URL, and the folder as it calls it."""
  import fsspec  # It and its clients load slowly.

  try:
    if not is_google(url):
      filesystem, root = fsspec.core.url_to_fs(url)
      return filesystem, str(root)
    emulated = bool(os.environ.get('STORAGE_EMULATOR_HOST'))
    filesystem = google_filesystem(
      'anon' if emulated else 'google_default', _TIMEOUT, consistency='md5'
    )
  except Exception as error:  # Of what is installed, and of credentials.
    raise errors.ConfigError(
      f'{url} cannot be opened: {_one_line(error)}'
    ) from error
  return filesystem, url.split('://', 1)[1]


def is_google(url: str) -> bool:
  """Returns whether a URL is of Google Cloud Storage."""
  return url.startswith(('gs://', 'gcs://'))


def google_filesystem(token: str, timeout: float, **options: Any) -> Any:
  """Returns gcsfs's file system, by plain HTTP and without caches.

  The class that fsspec would choose asks for the bucket's kind by gRPC first,
  which neither an anonymous user nor an emulator can answer.

  Args:
    token: see GCSFileSystem: 'anon', 'google_default' and others.
    timeout: seconds without a byte after which a connection is given up.
    **options: more of GCSFileSystem's.
  """
  # Google's packages warn of what the pinned versions do not support.
  warnings.filterwarnings('ignore', '', FutureWarning, 'google')
  from gcsfs import core

  # It logs a traceback of every failure that is then told in a line.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  return core.GCSFileSystem(
    token=token,
    requests_timeout=_limits(timeout),
    use_listings_cache=False,
    skip_instance_cache=True,
    **options,
  )


def _limits(timeout: float) -> Any:
  """Returns for aiohttp how long it waits, in seconds, for each byte."""
  import aiohttp

  return aiohttp.ClientTimeout(
    total=None, sock_connect=timeout, sock_read=timeout
  )


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

  gcsfs tries each request up to 6 times by itself; these attempts come on top
  of that, and cover what it does not: timeouts and short reads.
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
      attempts: how often a read is tried in all; twice at most where no
        connection could be made: gcsfs alone tries for a minute.
      first_delay: seconds before the second attempt; each further delay is
        twice as long. The delay used is a random half to whole of it, so that
        many readers do not come back at once.
      max_delay: the longest delay in seconds.
      sleep: what waits.

    Raises:
      ConfigError: if attempts is less than 1.
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
    """Returns what `read` returns.

    Args:
      name: what is read, for messages.
      read: what is tried.

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
        logging.info('%s: %s; again in %.1f s', name, _one_line(error), delay)
      self._sleep(delay)

  def _delay(self, name: str, error: Exception, attempt: int) -> float:
    """Returns after how many seconds to try again, if at all."""
    told = _one_line(error)
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
  """A file somewhere, that can be opened from its start.

  Attributes:
    name: what messages call it: a path or an address.
    num_bytes: its size as stored, compressed.
    open: makes a context manager of a binary stream of its bytes.
  """

  name: str
  num_bytes: int
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


def local_file(path: _Path, count: ByteCount | None = None) -> StoredFile:
  """Returns the file at a path of this machine.

  Args:
    path: where it is.
    count: what counts the bytes that are read of it.

  Raises:
    DataError: if there is none.
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
  """Returns what changes with an object's content, as JSON values.

  Args:
    info: what fsspec's `info` or `ls` says of it.
  """
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

  Attributes:
    url: what messages call the folder.
    count: counts the bytes that came over the network, of this folder and of
      those that `folder` returned.
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
    """Returns what is said of one object of the folder.

    Raises:
      RefusedError: if the storage refuses or there is no such object.
      DataError: if the storage does not state its size.
    """
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
  """Returns the folder at a URL.

  Args:
    url: what fsspec opens: gs://, s3://, https://, file://, memory://.
    endpoint_url: where gs:// is served; None for Google's own.
    google_token: gcsfs's token. None takes Google's default credentials where
      GOOGLE_APPLICATION_CREDENTIALS names a file of them or `gcloud auth
      application-default login` left one, and is anonymous elsewhere.
    timeout: seconds without a byte after which a connection is given up.
    retry: how reads are tried again.

  Raises:
    DataError: if no file system for this URL is installed.
  """
  import fsspec  # Only where something is read from afar; so is gcsfs.

  url = url.rstrip('/')
  options: dict[str, Any] = {}
  if is_google(url):
    if google_token is None:
      google_token = 'google_default' if _has_credentials() else 'anon'
    root = url.split('://', 1)[1]
    filesystem = google_filesystem(
      google_token, timeout, endpoint_url=endpoint_url
    )
    return Storage(url, filesystem, root, retry)
  if url.startswith(('http://', 'https://')):
    options = {'client_kwargs': {'timeout': _limits(timeout)}}
  elif url.startswith('s3://'):
    options = {'anon': 'AWS_ACCESS_KEY_ID' not in os.environ}
  try:
    filesystem, root = fsspec.core.url_to_fs(url, **options)
  except (ImportError, ValueError) as error:
    raise errors.DataError(f'{url} cannot be opened: {error}.') from error
  return Storage(url, filesystem, root, retry)
