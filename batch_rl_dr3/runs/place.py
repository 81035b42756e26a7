"""Folders here or in a bucket.

Objects are read and written whole or not at all. A storage client's errors,
raised once it has given up trying again, become OSErrors. Names that come from
a file or a bucket are foreign text, and may only mean a file below its folder.
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
import secrets
from typing import Any, Protocol
import warnings

from batch_rl_dr3.config import errors

_Path = str | os.PathLike[str]

_FILE_SCHEME = 'file://'
# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0
# How often an object is fetched that arrives other than it was stated.
_MAX_FETCHES = 3
# What storages call the time of an object's last change.
_CHANGED_KEYS = ('mtime', 'updated', 'LastModified', 'last_modified', 'created')


def local_path(place: str) -> str | None:
  """Returns the path that a path or a file:// URL is; None for other URLs."""
  if place.startswith(_FILE_SCHEME):
    return place.removeprefix(_FILE_SCHEME)
  return None if '://' in place else place


def plain(name: Any, source: object, field: str) -> str:
  """Returns `name` if it is a plain relative path, such as `a/b.npy`.

  Messages say that `source`, a file or bucket, gives the name in its `field`.

  Raises:
    DataError: if it is no text, is empty or absolute, or holds `.`, `..`, an
      empty part, a backslash or a character that no file name should hold.
  """
  is_plain = (
    isinstance(name, str)
    and name.isprintable()  # So it is UTF-8, too.
    and '\\' not in name
    and all(part not in ('', '.', '..') for part in name.split('/'))
  )
  if not is_plain:
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is no plain name of a file '
      'below its folder. The file is damaged or not from this program; '
      'restore it from where it came from.'
    )
  return str(name)


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
  """A folder of a local or shared disk, without locks; writing creates it."""

  def __init__(self, folder: _Path):
    self._folder = pathlib.Path(folder)

  def create(self, name: str, content: bytes) -> bool:
    """Writes a file unless it exists. A kill can leave the file empty."""
    self._folder.mkdir(exist_ok=True)
    try:
      with open(self._folder / name, 'xb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    except FileExistsError:
      return False
    return True

  def write(self, name: str, content: bytes) -> None:  # noqa: D102
    temporary = self._folder / f'.{name}.{secrets.token_hex(4)}.tmp'
    try:
      temporary.write_bytes(content)
      os.replace(temporary, self._folder / name)
    except OSError:
      temporary.unlink(missing_ok=True)
      raise

  def read(self, name: str) -> bytes | None:  # noqa: D102
    with contextlib.suppress(OSError):
      os.utime(self._folder)  # A network file system then looks anew.
    try:
      return (self._folder / name).read_bytes()
    except FileNotFoundError:
      return None

  def names(self) -> list[str]:  # noqa: D102
    with contextlib.suppress(FileNotFoundError):
      return os.listdir(self._folder)
    return []


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a listing says of an object."""

  size: int  # In bytes.
  changed: int  # Ms since 1970, by the storage's clock.
  md5: str = ''  # In base64; '' where it is not stated.


class RemoteFolder:
  """A folder of any storage that fsspec can write to; a `Folder` for its files.

  All methods raise OSError if the storage refuses.
  """

  def __init__(self, url: str):
    """Connects to a URL such as gs://BUCKET/RUNS; ConfigError if it cannot."""
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
    """Writes an object on the condition that it has no generation yet."""
    with _as_os_error():
      try:
        self._filesystem.pipe_file(self._path(name), content, mode='create')
      except FileExistsError:
        # Perhaps by this very call, whose answer was lost and which was sent
        # again.
        return self.read(name) == content
    return True

  def write(self, name: str, content: bytes) -> None:  # noqa: D102
    with _as_os_error():
      self._filesystem.pipe_file(self._path(name), content)

  def read(self, name: str) -> bytes | None:  # noqa: D102
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

  def names(self) -> list[str]:  # noqa: D102
    with _as_os_error():
      self._filesystem.invalidate_cache()
      try:
        paths = self._filesystem.ls(self._root, detail=False)
      except FileNotFoundError:
        return []
      return [path.rstrip('/').rpartition('/')[2] for path in paths]

  def find(self, below: str = '') -> dict[str, Entry]:
    """Returns the objects below a folder of it, at any depth, by name."""
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
    """Writes an object to the file `target` and checks it against its entry.

    Returns the entry as it is by then, or None if the object is gone. An error
    can leave the target half-written.
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
    raise OSError(errno.EIO, one_line(error)) from error


def one_line(error: Exception) -> str:
  """Returns the class of an error and what it says."""
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


def _open(url: str) -> tuple[Any, str]:
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
      f'{url} cannot be opened: {one_line(error)}'
    ) from error
  return filesystem, url.split('://', 1)[1]


def is_google(url: str) -> bool:
  """Returns whether a URL is of Google Cloud Storage."""
  return url.startswith(('gs://', 'gcs://'))


def google_filesystem(token: str, timeout: float, **options: Any) -> Any:
  """Returns gcsfs's file system, by plain HTTP and without caches.

  The class that fsspec would choose asks for the bucket's kind by gRPC first,
  which neither an anonymous user nor an emulator can answer. The timeout is in
  seconds without a byte; the options are further ones of GCSFileSystem.
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
  """Returns aiohttp's timeout of so many seconds for each byte."""
  import aiohttp

  return aiohttp.ClientTimeout(
    total=None, sock_connect=timeout, sock_read=timeout
  )
