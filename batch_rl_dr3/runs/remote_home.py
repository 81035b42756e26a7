"""A run that lives in a bucket: worked on here, published after every commit.

The process works in a folder of its own. `lock` fills it with what is in the
bucket; `publish` uploads what has changed since, each object whole or not at
all. Manifests of checkpoints go up after their files, finished.json after
everything else, and what is no longer kept is removed last, so that whoever
reads the bucket at any moment finds a run as a kill could have left it. An
upload that was broken off goes on with the objects that are not there yet.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import os
import pathlib
import shutil

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, lease, names, remote_folder, run_directory

# An object's size and date of change, by which a change is seen.
_Stamp = tuple[int, int]


class RemoteHome:
  """A run directory in any storage that fsspec can write to."""

  def __init__(
    self,
    url: str,
    cache_dir: str | os.PathLike[str],
    is_wanted: Callable[[str], bool] = lambda name: True,
  ):
    """Connects to the storage; see `training.home.Home`.

    Args:
      url: such as gs://BUCKET/RUNS/Pong/rem/seed0.
      cache_dir: below it is the folder that is worked in.
      is_wanted: which of the run's files are needed here; the others stay
        where they are, and as they are.

    Raises:
      ConfigError: if no file system for this URL is installed.
    """
    self._remote = remote_folder.RemoteFolder(url)
    self.name = self._remote.url
    self._is_wanted = is_wanted
    self._lease = lease.Lease(self._remote.folder(lease.FOLDER), self.name)
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
      raise atomic.FileError(f'{self.name}/{lease.FOLDER}', error) from error
    try:
      # Whoever was here before on this machine works no more.
      atomic.remove_tree(self._cache)
      self.folder = atomic.make_directory(self._cache / str(self._lease.token))
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
        self._remote.put(self.folder / name, name)
      self._published[name] = found[name]
    gone = self._published.keys() - found.keys()
    for name in sorted(gone, key=_rank, reverse=True):
      with _write_errors(f'{self.name}/{name}'):
        self.check()
        self._remote.remove(name)
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
      for name, entry in self._remote.find().items():
        if name.startswith(f'{lease.FOLDER}/') or not self._is_wanted(name):
          continue
        target = names.path_below(self.folder, name, self.name, 'its listing')
        target.parent.mkdir(parents=True, exist_ok=True)
        self._remote.fetch(name, target, entry)
    except OSError as error:
      raise errors.DataError(
        f'cannot read the run in {self.name}: {error.strerror}.'
      ) from error
    self._published = self._stamps()


def _rank(name: str) -> tuple[int, str]:
  """Returns the order of uploads: what vouches for others comes after them."""
  path = pathlib.PurePosixPath(name)
  is_manifest = path.match('ckpt.*.json')
  if name == run_directory.FINISHED:
    return 2, name
  # config.gin says that there is a run, as provenance.json describes it.
  return int(is_manifest or name == run_directory.CONFIG), name


@contextlib.contextmanager
def _write_errors(name: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise atomic.FileError(name, error) from error
