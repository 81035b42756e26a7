"""Folders here or in a bucket, one class for both, on fsspec.

Runs are written there: objects are read and written whole or not at all. Logs
are read range by range, so that what is tried again resumes at the byte
reached. Names that come from a file or a bucket are foreign text, and may only
mean a file below its folder.
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
import threading
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
import urllib.parse
import warnings

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic

_Path = str | os.PathLike[str]
_T = TypeVar('_T')

# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0
# How often an object is fetched that arrives other than it was stated.
_MAX_FETCHES = 3
# What storages call the time of an object's last change.
_CHANGED_KEYS = ('mtime', 'updated', 'LastModified', 'last_modified', 'created')
# What they call what changes with an object's content.
_VERSION_KEYS = (
  *('crc32c', 'md5Hash', 'generation', 'ETag', 'etag'),
  *('LastModified', 'mtime', 'created'),
)
# What exceptions without a number are; all others are EIO.
_NUMBERS = dict[type, int](
  {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST}
)
_BUFFER_BYTES = 128 << 10
_FIRST_CHUNK_BYTES = 256 << 10
_CHUNK_BYTES = 8 << 20

# Calls what reads something of a name, and tries again; see `retry.Retry`.
_Again = Callable[[str, Callable[[], Any]], Any]


def local_path(place: str) -> str | None:
  """Returns the path that a path or a file:// URL is; None for other URLs."""
  scheme, is_url, rest = place.partition('://')
  host, slash, path = rest.partition('/')
  if not is_url:
    return place
  # urlsplit refuses the brackets of a glob.
  is_here = scheme == 'file' and host in ('', 'localhost')
  return urllib.parse.unquote(slash + path) if is_here else None


def plain(name: Any, source: object, field: str) -> str:
  """Returns `name` if it is a plain relative path, such as `a/b.npy`.

  If not, a DataError says that `source`, a file or bucket, names it in `field`.
  """
  if not (
    isinstance(name, str)
    and name.isprintable()  # So it is UTF-8, too.
    and '\\' not in name
    and all(part not in ('', '.', '..') for part in name.split('/'))
  ):
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is no plain name of a file '
      'below its folder. The file is damaged or not from this program; '
      'restore it from where it came from.'
    )
  return str(name)


def path_below(
  root: _Path, name: Any, source: object, field: str
) -> pathlib.Path:
  """Returns the path of a `plain` name; a link out of root is a DataError."""
  path = pathlib.Path(root) / plain(name, source, field)
  if not path.resolve().is_relative_to(pathlib.Path(root).resolve()):
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is a link out of {root}. '
      'Replace the link by what it leads to.'
    )
  return path


class Entry(NamedTuple):
  """What a listing says of an object."""

  size: int  # In bytes.
  changed: int  # Ms since 1970, by the storage's clock.
  md5: str = ''  # In base64; '' where it is not stated.


def _entry(info: dict[str, Any]) -> Entry:
  changed = next((info[k] for k in _CHANGED_KEYS if info.get(k)), 0)
  if isinstance(changed, str):
    changed = datetime.datetime.fromisoformat(changed)
  if isinstance(changed, datetime.datetime):
    changed = changed.timestamp()
  return Entry(info['size'], round(1000 * changed), info.get('md5Hash') or '')


def version(info: dict[str, Any]) -> list[Any]:
  """Returns the JSON values of fsspec's `info` that change with the content."""
  return [info['size'], *(str(info[k]) for k in _VERSION_KEYS if k in info)]


class ByteCount:
  """How many bytes came out of a storage, in `total`, for several threads."""

  def __init__(self) -> None:
    self.total = 0
    self._lock = threading.Lock()

  def add(self, count: int) -> None:
    """Adds bytes that have just come."""
    with self._lock:
      self.total += count


@dataclasses.dataclass(frozen=True)
class StoredFile:
  """A file somewhere; `open` makes a binary stream from its beginning."""

  name: str
  num_bytes: int  # As stored, compressed.
  open: Callable[[], contextlib.AbstractContextManager[BinaryIO]]


class _CountedFile(io.FileIO):
  def __init__(self, path: pathlib.Path, count: ByteCount):
    super().__init__(path)
    self._count = count

  def readinto(self, buffer: Any) -> int | None:
    count = super().readinto(buffer)
    self._count.add(count or 0)
    return count


def local_file(path: _Path, count: ByteCount | None = None) -> StoredFile:
  """Returns a file of this machine, whose bytes `count` counts."""
  path, count = pathlib.Path(path), count or ByteCount()
  try:
    num_bytes = path.stat().st_size
  except OSError as error:
    raise errors.DataError(f'cannot read {path}: {error.strerror}.') from error
  return StoredFile(
    str(path),
    num_bytes,
    lambda: io.BufferedReader(_CountedFile(path, count), _BUFFER_BYTES),
  )


def one_line(error: BaseException | None) -> str:
  """Returns the class of an error and what it says, on one line."""
  return ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip(':')


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns what a storage's client raises into an OSError with a reason."""
  try:
    yield
  except errors.BatchRLError:
    raise
  except Exception as error:  # Clients of storages raise many kinds.
    if isinstance(error, OSError) and error.strerror is not None:
      raise
    number = _NUMBERS.get(type(error), errno.EIO)
    raise OSError(number, one_line(error)) from error


class Place:
  """A folder here or in any storage that fsspec knows.

  All methods raise OSError if the storage refuses, but for `listing`, `info`
  and `file`, which are for logs and raise what `retry` does.

  Attributes:
    name: its path or URL.
    path: where it is on this machine; None if it is elsewhere.
    count: what was read of `file`, in all folders of `folder`, too.
  """

  def __init__(
    self, location: _Path, retry: _Again | None = None, **options: Any
  ):
    """Connects to a path or a URL such as gs://BUCKET/RUNS.

    The options are the file system's; ConfigError if there is none.
    """
    location = os.fspath(location)
    path = local_path(location)
    self.name = location.rstrip('/') if path is None else path
    self.path = None if path is None else pathlib.Path(path)
    self.count = ByteCount()
    self._retry = retry
    self._filesystem, root = _connect(location, options)
    self._root = root.rstrip('/')

  def folder(self, name: str) -> 'Place':
    """Returns the folder of this name within this one."""
    within = copy.copy(self)
    within.name = f'{self.name}/{name}'
    within.path = None if self.path is None else self.path / name
    within._root = self._path(name)
    return within

  def create(self, name: str, content: bytes) -> bool:
    """Writes a file unless it exists; returns whether it did not.

    On a disk a kill can leave the file empty.
    """
    try:
      with _as_os_error():
        if self.path is None:
          self._filesystem.pipe_file(self._path(name), content, mode='create')
        else:
          self.path.mkdir(exist_ok=True)
          with open(self.path / name, 'xb') as file:
            file.write(content)
          atomic.sync(self.path / name)
    except FileExistsError:
      # Perhaps by this very call, which was sent again as its answer was lost.
      return self.read(name) == content
    return True

  def write(self, name: str, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    if self.path is None:
      with _as_os_error():
        self._filesystem.pipe_file(self._path(name), content)
    else:
      with atomic.replaced(self.path / name, durable=False) as temporary:
        temporary.write_bytes(content)

  def read(self, name: str) -> bytes | None:
    """Returns the content of a file; None if there is none."""
    if self.path is not None:
      with contextlib.suppress(OSError):
        os.utime(self.path)  # A network file system then looks anew.
    with contextlib.suppress(FileNotFoundError), _as_os_error():
      return bytes(self._filesystem.cat_file(self._path(name)))
    return None

  def read_part(self, name: str, start: int, end: int) -> bytes | None:
    """Returns bytes of an object; None if just these do not come."""
    with contextlib.suppress(FileNotFoundError), _as_os_error():
      part = self._filesystem.cat_file(self._path(name), start=start, end=end)
      return bytes(part) if len(part) == end - start else None
    return None

  def names(self) -> list[str]:
    """Returns the names of the files."""
    with contextlib.suppress(FileNotFoundError), _as_os_error():
      self._filesystem.invalidate_cache()
      paths = self._filesystem.ls(self._root, detail=False)
      return [path.rstrip('/').rpartition('/')[2] for path in paths]
    return []

  def find(self, below: str = '') -> dict[str, Entry]:
    """Returns the objects below a folder of it, at any depth, by name."""
    with contextlib.suppress(FileNotFoundError), _as_os_error():
      self._filesystem.invalidate_cache()
      found = self._filesystem.find(self._path(below), detail=True)
      names = {p: p.removeprefix(self._root).lstrip('/') for p in found}
      return {
        plain(names[path], self.name, 'its listing'): _entry(info)
        for path, info in found.items()
        if not path.endswith('/')  # What consoles make, to show a folder.
      }
    return {}

  def fetch(self, name: str, target: pathlib.Path, entry: Entry) -> Entry:
    """Writes an object to a file, checks it, and returns its entry by then.

    An error can leave the file half-written; FileNotFoundError says that the
    object is gone.
    """
    with _as_os_error():
      for _ in range(_MAX_FETCHES):
        self._filesystem.get_file(self._path(name), str(target))
        if _is_whole(target, entry):
          return entry
        self._filesystem.invalidate_cache()
        entry = _entry(self._filesystem.info(self._path(name)))
    raise OSError(errno.EIO, f'{self.name}/{name} arrives damaged')

  def put(self, path: _Path, name: str) -> None:
    """Uploads a file."""
    with _as_os_error():
      self._filesystem.put_file(os.fspath(path), self._path(name))

  def remove(self, name: str) -> None:
    """Removes an object, if there is one."""
    with contextlib.suppress(FileNotFoundError), _as_os_error():
      self._filesystem.rm_file(self._path(name))

  def _path(self, name: str) -> str:
    return f'{self._root}/{name}' if name else self._root

  def listing(
    self, is_wanted: Callable[[str], bool]
  ) -> dict[str, dict[str, Any]]:
    """Returns the wanted objects of the folder: name to what is said of each.

    An object without a stated size is a DataError.
    """
    # A web server tells folders by the slash.
    root = f'{self._root}/' if '://' in self._root else self._root

    def ls() -> list[dict[str, Any]]:
      self._filesystem.invalidate_cache()
      return self._filesystem.ls(root, detail=True)

    found = {
      _last_part(info['name']): info
      for info in self._again(self.name, ls)
      if info.get('type') != 'directory'
    }
    return {n: self._sized(n, i) for n, i in found.items() if is_wanted(n)}

  def info(self, name: str) -> dict[str, Any]:
    """Returns what is said of one object of the folder."""
    return self._sized(name, {'name': self._path(name)})

  def _sized(self, name: str, info: dict[str, Any]) -> dict[str, Any]:
    if info.get('size') is None:  # Listings of web servers say no sizes.
      path, where = info['name'], f'{self.name}/{name}'
      found = self._again(where, lambda: self._filesystem.info(path))
      info = {**found, 'name': path}
      if info.get('size') is None:
        raise errors.DataError(f'{where} has no stated size.')
    return info

  def file(self, info: dict[str, Any]) -> StoredFile:
    """Returns an object as a file, whose bytes nobody checks."""
    name = f'{self.name}/{_last_part(info["name"])}'

    def read(start: int, end: int) -> bytes:
      data = self._filesystem.cat_file(info['name'], start=start, end=end)
      self.count.add(len(data))
      # A server that ignores ranges sends everything.
      data = data[start:end] if len(data) > end - start else data
      if not data:
        raise ConnectionError(f'nothing came of bytes {start} to {end}')
      return bytes(data)

    def read_again(start: int, end: int) -> bytes:
      return self._again(name, lambda: read(start, end))

    size = info['size']
    return StoredFile(
      name, size, lambda: cast(BinaryIO, _RangeStream(read_again, size))
    )

  def _again(self, name: str, read: Callable[[], _T]) -> _T:
    return read() if self._retry is None else self._retry(name, read)


def _last_part(name: str) -> str:
  return urllib.parse.unquote(name.rstrip('/').rsplit('/', 1)[-1])


def _is_whole(path: pathlib.Path, entry: Entry) -> bool:
  with open(path, 'rb') as file:
    if os.fstat(file.fileno()).st_size != entry.size:
      return False
    digest = hashlib.file_digest(file, 'md5').digest() if entry.md5 else b''
  return base64.b64encode(digest).decode() == entry.md5


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


def open_data(
  url: str,
  retry: _Again,
  endpoint_url: str | None = None,
  google_token: str | None = None,
  timeout: float = _TIMEOUT,
) -> Place:
  """Returns a folder of logged data; DataError if there is no file system.

  `endpoint_url` is where gs:// is served, if not by Google. Where gcsfs's
  `google_token` is None, Google's default credentials are used if
  GOOGLE_APPLICATION_CREDENTIALS names a file of them or `gcloud auth
  application-default login` left one; access is anonymous if not.
  """
  options: dict[str, Any] = {}
  if is_google(url):
    default = 'google_default' if _has_credentials() else 'anon'
    options = {
      'token': google_token or default,
      'timeout': timeout,
      'endpoint_url': endpoint_url,
      'consistency': 'none',  # What is read is checked by itself.
    }
  elif url.startswith(('http://', 'https://')):
    options = {'client_kwargs': {'timeout': _limits(timeout)}}
  elif url.startswith('s3://'):
    options = {'anon': 'AWS_ACCESS_KEY_ID' not in os.environ}
  try:
    return Place(url.rstrip('/') or url, retry, **options)
  except errors.ConfigError as error:
    raise errors.DataError(str(error)) from error


def is_google(url: str) -> bool:
  """Returns whether a URL is of Google Cloud Storage."""
  return url.startswith(('gs://', 'gcs://'))


def _is_emulated() -> bool:
  return bool(os.environ.get('STORAGE_EMULATOR_HOST'))


def _has_credentials() -> bool:
  """Whether there are Google's application default credentials."""
  if _is_emulated():
    return False
  if os.environ.get('GOOGLE_APPLICATION_CREDENTIALS'):
    return True
  folder = os.environ.get('CLOUDSDK_CONFIG') or '~/.config/gcloud'
  path = os.path.join(folder, 'application_default_credentials.json')
  return os.path.isfile(os.path.expanduser(path))


def _connect(location: str, options: dict[str, Any]) -> tuple[Any, str]:
  """Returns a file system, and what it calls a path or URL."""
  import fsspec  # It and its clients load slowly.

  path = local_path(location)
  try:
    if path is not None:
      return fsspec.filesystem('file'), os.path.abspath(path)
    if is_google(location):
      return _google(**options), location.split('://', 1)[1]
    filesystem, root = fsspec.core.url_to_fs(location, **options)
  except Exception as error:  # Of what is installed, and of credentials.
    raise errors.ConfigError(
      f'{location} cannot be opened: {one_line(error)}.'
    ) from error
  return filesystem, str(root)


def _google(timeout: float = _TIMEOUT, **options: Any) -> Any:
  """Returns gcsfs's file system, by plain HTTP and without caches.

  The class that fsspec would choose asks for the bucket's kind by gRPC first,
  which neither an anonymous user nor an emulator can answer.
  """
  # Google's packages warn of what the pinned versions do not support.
  warnings.filterwarnings('ignore', '', FutureWarning, 'google')
  from gcsfs import core

  # It logs a traceback of every failure that is then told in a line.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  return core.GCSFileSystem(
    **{
      'token': 'anon' if _is_emulated() else 'google_default',
      'consistency': 'md5',
      **options,
    },
    requests_timeout=_limits(timeout),
    use_listings_cache=False,
    skip_instance_cache=True,
  )


def _limits(timeout: float) -> Any:
  """Returns aiohttp's timeout of so many seconds for each byte."""
  import aiohttp

  return aiohttp.ClientTimeout(
    total=None, sock_connect=timeout, sock_read=timeout
  )
