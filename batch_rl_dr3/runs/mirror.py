"""The files of a place, held in a folder of this machine.

Those of a disk are where they are. Those of a bucket are mirrored: `refresh`
lists the bucket once and fetches the objects whose size or date has changed,
and of those no more than is asked for: a log's beginning and end, a
checkpoint's size.
"""

from collections.abc import Iterable
from concurrent import futures
import contextlib
import dataclasses
import fnmatch
import os
import pathlib

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic
from batch_rl_dr3.runs import place as place_lib

# Requests at a time.
_NUM_THREADS = 32
# Bytes of the beginning and of the end of a log.
_PART_BYTES = 8192

# A file's size and date of change in ns, by which a change is seen.
Stamp = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a mirror holds of runs: patterns of names within run directories."""

  name: str  # Of this kind of mirror, and of its folder.
  whole: tuple[str, ...]  # Fetched.
  ends: tuple[str, ...] = ()  # Beginning and end, with zeros between.
  sizes: tuple[str, ...] = ()  # Only the size and date are right.

  def form(self, path: str) -> str:
    """Returns how a path is held: 'whole', 'ends', 'sizes', or not at all."""
    for form in ('ends', 'whole', 'sizes'):
      patterns: tuple[str, ...] = getattr(self, form)
      if any(fnmatch.fnmatchcase(f'/{path}', f'*/{p}') for p in patterns):
        return form
    return ''


class Mirror:
  """A place, called `name` in messages, with its files in `folder`."""

  def __init__(
    self,
    location: str,
    cache_dir: str | os.PathLike[str],
    contents: Contents,
    leave_out: str | None = None,
  ):
    """Opens a folder, or a URL such as gs://BUCKET/RUNS; reads nothing yet.

    A bucket's `contents` are mirrored in cache_dir, but for its own folder
    `leave_out`. ConfigError if there is no file system for the URL.
    """
    self.place = place_lib.Place(location)
    self.name = self.place.name
    below = self.name.replace('://', '/', 1).lstrip('/')
    self.folder = self.place.path or (
      pathlib.Path(cache_dir) / 'mirrors' / contents.name / below
    )
    self._contents = contents
    self._leave_out = f'{leave_out}/'
    self._listed: dict[str, place_lib.Entry] = {}

  @property
  def is_elsewhere(self) -> bool:
    """Whether the files here are copies."""
    return self.place.path is None

  def _form(self, name: str) -> str:
    # The folder can be one within a run directory.
    is_out = name.startswith(self._leave_out)
    return '' if is_out else self._contents.form(f'{self.name}/{name}')

  def refresh(self, below: Iterable[str] = ('',)) -> None:
    """Fetches what has changed in these folders, or raises DataError."""
    if not self.is_elsewhere:
      return
    below = list(below)
    with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
      try:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._listed = {}
        for found in pool.map(self.place.find, below):
          self._listed |= found
        held = {n: e for n, e in self._listed.items() if self._form(n)}
        here = {n: s for name in below for n, s in self.stamps(name).items()}
        for name in here.keys() - held.keys():
          (self.folder / name).unlink(missing_ok=True)
        # A file here has the size and date, in ms, of its object.
        known = {n: (size, ns // 10**6) for n, (size, ns) in here.items()}
        changed = {n: e for n, e in held.items() if known.get(n) != e[:2]}
        for _ in pool.map(self._fetch, changed, changed.values()):
          pass
      except OSError as error:
        raise errors.DataError(
          f'cannot read {self.name} into {self.folder}: {error.strerror}.'
        ) from error
      finally:
        pool.shutdown(cancel_futures=True)

  def stamps(self, below: str = '') -> dict[str, Stamp]:
    """Returns the files that are here, but for half-written ones."""
    found = {}
    for folder, folders, files in os.walk(self.folder / below):
      folders[:] = [name for name in folders if not name.startswith('.')]
      for name in files:
        if not name.startswith('.'):  # Perhaps another process writes it.
          path = pathlib.Path(folder, name)
          with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            relative = path.relative_to(self.folder).as_posix()
            found[relative] = status.st_size, status.st_mtime_ns
    return found

  def _fetch(self, name: str, entry: place_lib.Entry) -> None:
    target = place_lib.path_below(self.folder, name, self.name, 'its listing')
    target.parent.mkdir(parents=True, exist_ok=True)
    form = self._form(name)
    with (
      contextlib.suppress(FileNotFoundError),  # It has gone meanwhile.
      atomic.replaced(target, durable=False) as temporary,
    ):
      if form == 'ends' and entry.size > 2 * _PART_BYTES:
        is_written = self._write_ends(name, temporary, entry.size)
      else:
        is_written = form == 'sizes'
      if not is_written:
        entry = self.place.fetch(name, temporary, entry)
      with open(temporary, 'ab') as file:
        file.truncate(entry.size)
      os.utime(temporary, ns=(entry.changed * 10**6,) * 2)

  def _write_ends(self, name: str, path: pathlib.Path, size: int) -> bool:
    """Writes an object's two ends; returns False if they do not come."""
    with open(path, 'wb') as file:
      for start in (0, size - _PART_BYTES):
        part = self.place.read_part(name, start, start + _PART_BYTES)
        file.seek(start)
        file.write(part or b'')
        if part is None:
          return False
    return True

  def upload(self, name: str) -> None:
    """Uploads a file that was written, if it is of a bucket."""
    if self.is_elsewhere:
      with atomic.file_errors(f'{self.name}/{name}'):
        self.place.put(self.folder / name, name)

  def remove(self, name: str) -> None:
    """Removes a file, if there is one."""
    atomic.remove_tree(self.folder / name)
    if self.is_elsewhere:
      with atomic.file_errors(f'{self.name}/{name}'):
        self.place.remove(name)

  def num_bytes(self, below: str) -> int:
    """Returns the size of a folder; in a bucket, at the last `refresh`."""
    if not self.is_elsewhere:
      return sum(size for size, _ in self.stamps(below).values())
    prefix = f'{below}/'
    return sum(e.size for n, e in self._listed.items() if n.startswith(prefix))
