"""A run directory: its files, where it lives, and who may write to it.

It is all that passes from training to evaluation, and its `scores.csv` all
that passes on to reporting.

A run in a bucket is worked on in a folder here, which `lock` fills and
`publish` uploads, object by object. Checkpoints' manifests go up after their
files, finished.json last, and only then is removed what is no longer kept: at
any moment the bucket holds a run as a kill could have left it. An interrupted
upload resumes with the missing objects.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import os
import pathlib
import shutil

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, lease
from batch_rl_dr3.runs import place as place_lib

BusyError = lease.BusyError

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.gin'
PROVENANCE = 'provenance.json'
METRICS = 'metrics.csv'
SCORES = 'scores.csv'
# Why the last attempt failed; the next one removes it.
FAILED = 'failed.json'
# Written last, when every iteration is trained and evaluated.
FINISHED = 'finished.json'
# All but the folders, and what others add.
RUN_FILES = (CONFIG, PROVENANCE, METRICS, SCORES, FAILED, FINISHED)

# An object's size and date of change, by which a change is seen.
_Stamp = tuple[int, int]


class Home:
  """The place of one run, called `name` in messages: a folder or a URL.

  This process works in `folder`, which is filled once the home is locked.
  """

  def __init__(
    self,
    base_dir: str,
    cache_dir: str | os.PathLike[str],
    is_wanted: Callable[[str], bool] = lambda name: True,
  ):
    """Opens a folder, created if need be, or a URL such as gs://BUCKET/RUNS/a.

    What `is_wanted` in a bucket is worked on below cache_dir.

    Raises:
      ConfigError: if there is no file system for the URL.
    """
    self._is_wanted = is_wanted
    self._lease: lease.Lease | None = None
    self._published: dict[str, _Stamp] = {}
    self._remote: place_lib.RemoteFolder | None = None
    path = place_lib.local_path(base_dir)
    if path is not None:
      self.name = path
      self.folder = atomic.make_directory(path)
      return
    self._remote = place_lib.RemoteFolder(base_dir)
    self.name = self._remote.url
    key = hashlib.sha256(self.name.encode()).hexdigest()[:16]
    self.folder = pathlib.Path(cache_dir) / 'runs' / key

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Keeps other workers away meanwhile.

    Raises:
      BusyError: if another one is at work.
      DataError: if what is in the bucket cannot be read.
      WriteError: if nothing can be written there.
    """
    if self._remote is None:
      with lock(self.folder) as self._lease:
        yield
      return
    storage = self._remote.folder(lease.FOLDER)
    with _held(storage, self.name) as self._lease:
      cache = self.folder
      try:
        # Whoever was here before on this machine works no more.
        atomic.remove_tree(cache)
        # The folder is of this term alone, and ends with it.
        self.folder = atomic.make_directory(cache / str(self._lease.token))
        self._restore(self._remote)
        yield
      finally:
        shutil.rmtree(self.folder, ignore_errors=True)

  def check(self) -> None:
    """Raises FencedError if another worker has taken over."""
    assert self._lease is not None, 'write only while the home is locked'
    self._lease.check()

  def is_lost(self) -> bool:
    """Returns whether another worker was seen to have taken over."""
    return self._lease is not None and self._lease.is_lost

  def publish(self) -> None:
    """Uploads what has changed; FencedError if another worker took over."""
    if self._remote is None:
      return
    found = self._stamps()
    changed = [n for n, s in found.items() if self._published.get(n) != s]
    for name in sorted(changed, key=_rank):
      with atomic.file_errors(f'{self.name}/{name}'):
        self.check()
        self._remote.put(self.folder / name, name)
      self._published[name] = found[name]
    gone = self._published.keys() - found.keys()
    for name in sorted(gone, key=_rank, reverse=True):
      with atomic.file_errors(f'{self.name}/{name}'):
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

  def _restore(self, remote: place_lib.RemoteFolder) -> None:
    try:
      for name, entry in remote.find().items():
        if name.startswith(f'{lease.FOLDER}/') or not self._is_wanted(name):
          continue
        target = place_lib.path_below(
          self.folder, name, self.name, 'its listing'
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        remote.fetch(name, target, entry)
    except OSError as error:
      raise errors.DataError(
        f'cannot read the run in {self.name}: {error.strerror}.'
      ) from error
    self._published = self._stamps()


def _rank(name: str) -> tuple[int, str]:
  """Returns the order of uploads: what vouches for others comes after them."""
  path = pathlib.PurePosixPath(name)
  is_manifest = path.match('ckpt.*.json')
  if name == FINISHED:
    return 2, name
  # config.gin says that there is a run, as provenance.json describes it.
  return int(is_manifest or name == CONFIG), name


@contextlib.contextmanager
def _held(storage: place_lib.Folder, name: str) -> Iterator[lease.Lease]:
  held = lease.Lease(storage, name)
  try:
    held.acquire()
  except OSError as error:
    held.release()
    raise atomic.FileError(f'{name}/{lease.FOLDER}', error) from error
  try:
    yield held
  finally:
    held.release()


@contextlib.contextmanager
def lock(directory: str | os.PathLike[str]) -> Iterator[lease.Lease]:
  """Keeps other processes from writing to a run directory; yields its lease.

  What a dead worker left half-written is removed first. Errors are those of
  `Home.lock`.
  """
  folder = pathlib.Path(directory)
  with _held(place_lib.LocalFolder(folder / lease.FOLDER), str(folder)) as held:
    _remove_temporaries(folder)
    yield held


def _remove_temporaries(folder: pathlib.Path) -> None:
  for name in RUN_FILES:
    for temporary in folder.glob(f'.{name}.*.tmp'):
      atomic.remove_file(temporary)
  for leftover in (folder / CHECKPOINTS).glob('.*'):
    atomic.remove_tree(leftover)
