"""A run directory: its files, where it lives, and who may write to it.

A run in a bucket is worked on in a folder here, which `lock` fills and
`publish` uploads, object by object. Checkpoints' manifests go up after their
files, finished.json last, and only then is removed what is no longer kept: at
any moment the bucket holds a run as a kill could have left it.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
import pathlib
import shutil

from batch_rl_dr3.runs import atomic, lease, mirror

BusyError = lease.BusyError

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.gin'
PROVENANCE = 'provenance.json'
METRICS = 'metrics.csv'
SCORES = 'scores.csv'
FAILED = 'failed.json'  # Why the last attempt did; the next one removes it.
FINISHED = 'finished.json'  # Written last, when all is trained and evaluated.
TRACKED = 'tracked.json'  # What trackers have been told.
# All but the folders, and what others add.
RUN_FILES = (CONFIG, PROVENANCE, METRICS, SCORES, FAILED, FINISHED, TRACKED)


class Home(mirror.Mirror):
  """The place of one run, called `name` in messages: a folder or a URL.

  This process works in `folder`, which is filled once the home is locked.
  """

  def __init__(
    self,
    base_dir: str,
    cache_dir: str | os.PathLike[str],
    whole: tuple[str, ...] = ('*',),
  ):
    """Opens a folder, created if need be, or a URL such as gs://BUCKET/RUNS/a.

    Files of a bucket that match patterns `whole` are worked on below cache_dir.
    """
    contents = mirror.Contents('run', whole)
    super().__init__(base_dir, cache_dir, contents, lease.FOLDER)
    self._lease: lease.Lease | None = None
    self._published: dict[str, mirror.Stamp] = {}
    if self.is_elsewhere:
      key = hashlib.sha256(self.name.encode()).hexdigest()[:16]
      self.folder = pathlib.Path(cache_dir) / 'runs' / key
    else:
      atomic.make_directory(self.folder)

  @contextlib.contextmanager
  def lock(self) -> Iterator[lease.Lease]:
    """Keeps other workers away meanwhile, and yields the lease.

    What a dead worker left half-written is removed first.

    Raises:
      BusyError: if another one is at work.
      DataError: if what is in the bucket cannot be read.
      WriteError: if nothing can be written there.
    """
    terms = self.place.folder(lease.FOLDER)
    with lease.held(terms, self.name) as self._lease:
      if not self.is_elsewhere:
        for name in RUN_FILES:
          for temporary in self.folder.glob(f'.{name}.*.tmp'):
            atomic.remove_file(temporary)
        for leftover in (self.folder / CHECKPOINTS).glob('.*'):
          atomic.remove_tree(leftover)
        yield self._lease
        return
      try:
        # Whoever was here before on this machine works no more.
        atomic.remove_tree(self.folder)
        # The folder is of this term alone, and ends with it.
        self.folder /= str(self._lease.token)
        atomic.make_directory(self.folder)
        self.refresh()
        self._published = self.stamps()
        yield self._lease
      finally:
        shutil.rmtree(self.folder, ignore_errors=True)

  def check(self) -> None:
    """Raises FencedError if another worker has taken over."""
    assert self._lease is not None, 'write only while the home is locked'
    with atomic.file_errors(f'{self.name}/{lease.FOLDER}'):
      self._lease.check()

  def is_lost(self) -> bool:
    """Returns whether another worker was seen to have taken over."""
    return self._lease is not None and self._lease.is_lost

  def publish(self) -> None:
    """Uploads what has changed; FencedError if another worker took over."""
    if not self.is_elsewhere:
      return
    found = self.stamps()
    changed = [n for n, s in found.items() if self._published.get(n) != s]
    for name in sorted(changed, key=_rank):
      self.check()
      self.upload(name)
      self._published[name] = found[name]
    gone = self._published.keys() - found.keys()
    for name in sorted(gone, key=_rank, reverse=True):
      self.check()
      self.remove(name)
      del self._published[name]


def _rank(name: str) -> tuple[bool, bool, str]:
  """Returns the order of uploads: what vouches for others comes after them."""
  is_manifest = pathlib.PurePosixPath(name).match('ckpt.*.json')
  # config.gin says that there is a run, as provenance.json describes it.
  return name == FINISHED, is_manifest or name == CONFIG, name
