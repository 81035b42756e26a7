"""A run that lives in a bucket: worked on here, published after every commit.

The process works in a folder of its own. `lock` fills it with what is in the
bucket; `publish` uploads what has changed since, each object whole or not at
all. Manifests of checkpoints go up after their files, finished.json after
everything else, and what is no longer kept is removed last, so that whoever
reads the bucket at any moment finds a run as a kill could have left it. An
upload that was broken off goes on with the objects that are not there yet.
"""

from collections.abc import Iterator
import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
from typing import Any

from batch_rl_dr3 import errors, lease, run_directory
from batch_rl_dr3.replay import storage

# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0
# An object's size and date of change, by which a change is seen.
_Stamp = tuple[int, int]


class RemoteHome:
  """A run directory in any storage that fsspec can write to."""

  def __init__(self, url: str, cache_dir: str | os.PathLike[str]):
    """Connects to the storage; see `training.home.Home`.

    Args:
      url: such as gs://BUCKET/RUNS/Pong/rem/seed0.
      cache_dir: below it is the folder that is worked in.

    Raises:
      ConfigError: if no file system for this URL is installed.
    """
    self.name = url.rstrip('/')
    self._filesystem, root = _open(self.name)
    self._root = root.rstrip('/')
    self._lease = lease.Lease(
      RemoteStorage(self._filesystem, f'{self._root}/{lease.FOLDER}'),
      self.name,
    )
    key = hashlib.sha256(self.name.encode()).hexdigest()[:16]
    self._cache = pathlib.Path(cache_dir) / 'runs' / key
    self.folder = self._cache
    self._published: dict[str, _Stamp] = {}

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """See `Home`. The folder is of this term alone, and ends with it."""
    try:
      self._lease.acquire()
    except OSError as error:
      self._lease.release()
      raise run_directory.WriteError(
        f'{self.name}/{lease.FOLDER}', error
      ) from error
    try:
      # Whoever was here before on this machine works no more.
      run_directory.remove(self._cache)
      self.folder = run_directory.make_directory(
        self._cache / str(self._lease.token)
      )
      self._restore()
      yield
    finally:
      self._lease.release()
      shutil.rmtree(self.folder, ignore_errors=True)

  def check(self) -> None:
    """See `Home`."""
    self._lease.check()

  def is_lost(self) -> bool:
    """See `Home`."""
    return self._lease.is_lost

  def publish(self) -> None:
    """See `Home`."""
    found = self._stamps()
    changed = [n for n, s in found.items() if self._published.get(n) != s]
    for name in sorted(changed, key=_rank):
      with _write_errors(f'{self.name}/{name}'):
        self.check()
        self._filesystem.put_file(
          str(self.folder / name), f'{self._root}/{name}'
        )
      self._published[name] = found[name]
    gone = self._published.keys() - found.keys()
    for name in sorted(gone, key=_rank, reverse=True):
      with _write_errors(f'{self.name}/{name}'):
        self.check()
        with contextlib.suppress(FileNotFoundError):
          self._filesystem.rm_file(f'{self._root}/{name}')
      del self._published[name]

  def _stamps(self) -> dict[str, _Stamp]:
    """Returns the files of the folder, but for temporary ones."""
    found = {}
    for path in self.folder.rglob('*'):
      name = path.relative_to(self.folder)
      if path.is_file() and not any(p.startswith('.') for p in name.parts):
        status = path.stat()
        found[name.as_posix()] = (status.st_size, status.st_mtime_ns)
    return found

  def _restore(self) -> None:
    """Fills the folder with what was published.

    Raises:
      DataError: if it cannot be read.
    """
    try:
      with _as_os_error():
        for name in self._names():
          target = self.folder / name
          target.parent.mkdir(parents=True, exist_ok=True)
          content = self._filesystem.cat_file(f'{self._root}/{name}')
          target.write_bytes(content)
    except OSError as error:
      raise errors.DataError(
        f'cannot read the run in {self.name}: {error.strerror}.'
      ) from error
    self._published = self._stamps()

  def _names(self) -> list[str]:
    self._filesystem.invalidate_cache()
    try:
      paths = self._filesystem.find(self._root)
    except FileNotFoundError:
      return []
    names = [path.removeprefix(self._root).lstrip('/') for path in paths]
    return [n for n in names if n and not n.startswith(f'{lease.FOLDER}/')]


class RemoteStorage:
  """A folder of a bucket, see `lease.Storage`."""

  def __init__(self, filesystem: Any, root: str):
    """Takes note of the folder.

    Args:
      filesystem: an fsspec file system that can create exclusively.
      root: the folder, as it calls it.
    """
    self._filesystem = filesystem
    self._root = root

  def create(self, name: str, content: bytes) -> bool:
    """See `lease.Storage`: a write on the condition of generation 0."""
    with _as_os_error():
      try:
        self._filesystem.pipe_file(
          f'{self._root}/{name}', content, mode='create'
        )
      except FileExistsError:
        # Perhaps by this very call, whose answer was lost and which was sent
        # again.
        return self.read(name) == content
    return True

  def write(self, name: str, content: bytes) -> None:
    """See `lease.Storage`."""
    with _as_os_error():
      self._filesystem.pipe_file(f'{self._root}/{name}', content)

  def read(self, name: str) -> bytes | None:
    """See `lease.Storage`."""
    with _as_os_error():
      try:
        return bytes(self._filesystem.cat_file(f'{self._root}/{name}'))
      except FileNotFoundError:
        return None

  def names(self) -> list[str]:
    """See `lease.Storage`."""
    with _as_os_error():
      self._filesystem.invalidate_cache()
      try:
        paths = self._filesystem.ls(self._root, detail=False)
      except FileNotFoundError:
        return []
      return [path.rstrip('/').rpartition('/')[2] for path in paths]


def _rank(name: str) -> tuple[int, str]:
  """Returns the order of uploads: what vouches for others comes after them."""
  path = pathlib.PurePosixPath(name)
  is_manifest = path.match(f'{run_directory.CHECKPOINTS}/ckpt.*.json')
  if name == run_directory.FINISHED:
    return 2, name
  # config.gin says that there is a run, as provenance.json describes it.
  return int(is_manifest or name == run_directory.CONFIG), name


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns what a storage's client raises into an OSError.

  The client itself has tried again by then: for a minute, or six times.
  """
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


@contextlib.contextmanager
def _write_errors(name: str) -> Iterator[None]:
  try:
    with _as_os_error():
      yield
  except OSError as error:
    raise run_directory.WriteError(name, error) from error


def _open(url: str) -> tuple[Any, str]:
  """Returns the file system of a URL, and the folder as it calls it."""
  import fsspec

  if not storage.is_google(url):
    try:
      filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
      raise errors.ConfigError(
        f'--base_dir={url} cannot be opened: {error}.'
      ) from error
    return filesystem, str(root)
  emulated = bool(os.environ.get('STORAGE_EMULATOR_HOST'))
  filesystem = storage.google_filesystem(
    'anon' if emulated else 'google_default', _TIMEOUT, consistency='md5'
  )
  return filesystem, url.split('://', 1)[1]
