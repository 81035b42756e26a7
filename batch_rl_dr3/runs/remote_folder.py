"""A folder of a bucket, or of any storage that fsspec can write to.

An object is read and written whole or not at all. What a storage's client
raises becomes an OSError; the client itself has tried again by then: for a
minute, or six times.
"""

import base64
from collections.abc import Iterator
import contextlib
import copy
import dataclasses
import datetime
import errno
import hashlib
import logging
import os
import pathlib
from typing import Any
import warnings

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import names

# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0
# How often an object is fetched that arrives other than it was stated.
_MAX_FETCHES = 3
# What storages call the time of an object's last change.
_CHANGED_KEYS = ('mtime', 'updated', 'LastModified', 'last_modified', 'created')


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
  """A folder of a storage; a `folders.Folder` without folders below it.

  All methods raise OSError if the storage refuses.
  """

  def __init__(self, url: str):
    """Connects to the storage.

    Args:
      url: such as gs://BUCKET/RUNS.

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
    """Returns all objects of the folder, at any depth, by their names here.

    Args:
      below: only those of the folder of this name.

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
        names.plain(
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

  def put(self, path: str | os.PathLike[str], name: str) -> None:
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
  except (OSError, errors.BatchRLError) as error:
    if isinstance(error, OSError) and error.strerror is None:
      raise OSError(errno.EIO, _told(error)) from error
    raise
  except Exception as error:  # Clients of storages raise many kinds.
    raise OSError(errno.EIO, _told(error)) from error


def _told(error: Exception) -> str:
  return ' '.join(f'{type(error).__name__}: {error}'.split())


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
      f'{url} cannot be opened: {_told(error)}'
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
    requests_timeout=limits(timeout),
    use_listings_cache=False,
    skip_instance_cache=True,
    **options,
  )


def limits(timeout: float) -> Any:
  """Returns for aiohttp how long it waits, in seconds, for each byte."""
  import aiohttp

  return aiohttp.ClientTimeout(
    total=None, sock_connect=timeout, sock_read=timeout
  )
