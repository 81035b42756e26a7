"""Reads bytes of any storage that fsspec knows, tried again when it falters.

Every read is of a range, so that what broke goes on at the byte reached.
"""

from collections.abc import Callable
import io
import os
import pathlib
from typing import Any, BinaryIO, cast
import urllib.parse

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import remote_folder, stored_file
from batch_rl_dr3.runs.retry import Retry

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
_FIRST_CHUNK_BYTES = 256 << 10
_CHUNK_BYTES = 8 << 20


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
  """The objects of one folder of a storage.

  Attributes:
    url: str, what messages call the folder.
    count: counts the bytes that came over the network, of this folder and of
      those that `folder` returned.
  """

  def __init__(self, url: str, filesystem: Any, root: str, retry: Retry):
    """Reads nothing yet; see open_storage.

    Args:
      url: str, what messages call the folder.
      filesystem: an fsspec file system.
      root: str, the folder as that file system calls it.
      retry: how reads are tried again.
    """
    self.url = url
    self._filesystem = filesystem
    self._root = root.rstrip('/')
    self._retry = retry
    self.count = stored_file.ByteCount()

  def folder(self, name: str) -> 'Storage':
    """Returns the folder of this name within this one."""
    root = f'{self._root}/{name}'
    within = Storage(f'{self.url}/{name}', self._filesystem, root, self._retry)
    within.count = self.count
    return within

  def list(self, is_wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """Returns the wanted objects of the folder: name to what is said of each.

    Args:
      is_wanted: whether an object of this name matters.

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
      if len(data) > end - start:
        # A server that ignores ranges sends everything.
        data = data[start:end]
      if not data:
        raise ConnectionError(f'nothing came of bytes {start} to {end}')
      return bytes(data)

    def read_again(start: int, end: int) -> bytes:
      return self._retry(name, lambda: read(start, end))

    return cast(BinaryIO, _RangeStream(read_again, info['size']))

  def file(self, info: dict[str, Any]) -> stored_file.StoredFile:
    """Returns an object as a file whose bytes nobody checks: for prefixes."""
    name = f'{self.url}/{_last_part(info["name"])}'
    return stored_file.StoredFile(name, info['size'], lambda: self.open(info))


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
    url: str, what fsspec opens: gs://, s3://, https://, file://, memory://.
    endpoint_url: str, where gs:// is served; None for Google's own.
    google_token: str, gcsfs's token. None takes Google's default credentials
      where GOOGLE_APPLICATION_CREDENTIALS names a file of them or `gcloud auth
      application-default login` left one, and is anonymous elsewhere.
    timeout: float, seconds without a byte after which a connection is given up.
    retry: how reads are tried again.

  Raises:
    DataError: if no file system for this URL is installed.
  """
  import fsspec  # Only where something is read from afar; so is gcsfs.

  url = url.rstrip('/')
  options: dict[str, Any] = {}
  if remote_folder.is_google(url):
    if google_token is None:
      google_token = 'google_default' if _has_credentials() else 'anon'
    root = url.split('://', 1)[1]
    filesystem = remote_folder.google_filesystem(
      google_token, timeout, endpoint_url=endpoint_url
    )
    return Storage(url, filesystem, root, retry)
  if url.startswith(('http://', 'https://')):
    options = {'client_kwargs': {'timeout': remote_folder.limits(timeout)}}
  elif url.startswith('s3://'):
    options = {'anon': 'AWS_ACCESS_KEY_ID' not in os.environ}
  try:
    filesystem, root = fsspec.core.url_to_fs(url, **options)
  except (ImportError, ValueError) as error:
    raise errors.DataError(f'{url} cannot be opened: {error}.') from error
  return Storage(url, filesystem, root, retry)
