"""Runs on a disk or in a bucket, read as files of this machine.

Whoever reads runs reads files. Of runs in a bucket these are a mirror, of
which `refresh` fetches what has changed: it lists the bucket once, and an
object is unchanged whose size and date its file has. No more is fetched than
is asked for: of a log only its beginning and its end, of a checkpoint only its
size. Runs on a disk are read where they are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import fnmatch
import glob
import os
import pathlib
import re
import secrets
import tempfile
import threading

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic, place, results, run_directory

# Requests at a time.
_NUM_THREADS = 32
# Bytes of the beginning and of the end of a log.
_PART_BYTES = 8192
_FOLDER = 'mirrors'


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a mirror holds of runs.

  Patterns are of names within run directories, such as checkpoints/ckpt.*.

  Attributes:
    name: of this kind of mirror, of which each has a folder of its own.
    whole: files that are fetched.
    ends: files of which the beginning and the end are, with zeros between.
    sizes: files of which nothing is, but size and date are right.
  """

  name: str
  whole: tuple[str, ...]
  ends: tuple[str, ...] = ()
  sizes: tuple[str, ...] = ()


class Runs:
  """A folder of runs: on a disk, or in a bucket and mirrored.

  Attributes:
    name: what messages call it.
    folder: where its files are read.
  """

  def __init__(
    self, runs: str, cache_dir: str | os.PathLike[str], contents: Contents
  ):
    """Reads nothing yet.

    Args:
      runs: a folder, or a URL such as gs://BUCKET/RUNS.
      cache_dir: where what is in a bucket is mirrored.
      contents: what is read of it.

    Raises:
      ConfigError: if there is no file system for the URL.
    """
    self._remote: place.RemoteFolder | None = None
    path = place.local_path(runs)
    if path is not None:
      self.name = path
      self.folder = pathlib.Path(path)
      return
    self._remote = place.RemoteFolder(runs)
    self.name = self._remote.url
    below = self.name.replace('://', '/', 1).lstrip('/')
    self.folder = pathlib.Path(cache_dir) / _FOLDER / contents.name / below
    self._is_read = _matcher(contents.whole + contents.ends)
    self._ends = _matcher(contents.ends)
    self._is_held = _matcher(contents.whole + contents.ends + contents.sizes)
    self._listed: dict[str, place.Entry] = {}

  def refresh(self, below: Iterable[str] = ('',)) -> None:
    """Sees to it that the files are as they are now.

    Args:
      below: only those of these folders, which are listed at the same time.

    Raises:
      DataError: if they cannot be read.
    """
    remote = self._remote
    if remote is None:
      return
    below = list(below)
    with self._pool() as pool:
      try:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._listed = {}
        for found in pool.map(remote.find, below):
          self._listed |= found
        held = {
          n: e for n, e in self._listed.items() if self._is_held(self._path(n))
        }
        here = {n: s for name in below for n, s in self._stamps(name)}
        for name in here.keys() - held.keys():
          (self.folder / name).unlink(missing_ok=True)
        changed = [n for n, e in held.items() if here.get(n) != _stamp(e)]
        for _ in pool.map(
          lambda name: self._fetch(remote, name, held[name]), changed
        ):
          pass
      except OSError as error:
        raise errors.DataError(
          f'cannot read {self.name} into {self.folder}: {error.strerror}.'
        ) from error

  @contextlib.contextmanager
  def _pool(self) -> Iterator[futures.ThreadPoolExecutor]:
    with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
      try:
        yield pool
      finally:
        pool.shutdown(cancel_futures=True)

  def _stamps(self, below: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the files that are here, with their sizes and dates."""
    for folder, _, files in os.walk(self.folder / below):
      for name in files:
        if name.startswith('.'):  # Half-written, perhaps by another process.
          continue
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
          status = os.stat(path)
          relative = os.path.relpath(path, self.folder)
          yield relative, (status.st_size, status.st_mtime_ns // 10**6)

  def _fetch(
    self, remote: place.RemoteFolder, name: str, entry: place.Entry
  ) -> None:
    """Makes the file of an object, whole or not at all."""
    target = place.path_below(self.folder, name, self.name, 'its listing')
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.name}.{secrets.token_hex(8)}.tmp')
    try:
      now: place.Entry | None = entry
      is_done = not self._is_read(name) or (
        self._ends(self._path(name))
        and entry.size > 2 * _PART_BYTES
        and self._write_ends(remote, name, temporary, entry.size)
      )
      if not is_done:
        now = remote.fetch(name, temporary, entry)
      if now is not None:  # Else it has gone meanwhile.
        with open(temporary, 'ab') as file:
          file.truncate(now.size)
        os.utime(temporary, ns=(now.changed * 10**6,) * 2)
        os.replace(temporary, target)
    finally:
      temporary.unlink(missing_ok=True)

  def _write_ends(
    self, remote: place.RemoteFolder, name: str, path: pathlib.Path, size: int
  ) -> bool:
    """Writes the beginning and the end of an object; returns whether it could.

    It cannot of one that has changed since, or where storages know no parts.
    """
    with open(path, 'wb') as file:
      for start in (0, size - _PART_BYTES):
        part = remote.read_part(name, start, start + _PART_BYTES)
        if part is None:
          return False
        file.seek(start)
        file.write(part)
    return True

  def _path(self, name: str) -> str:
    # The folder can be one within a run directory.
    return f'{self.name}/{name}'

  def publish(self, name: str) -> None:
    """Sees to it that a file that was written outlives this machine.

    Raises:
      WriteError: if it cannot be written.
    """
    if self._remote is not None:
      with _write_errors(f'{self.name}/{name}'):
        self._remote.put(self.folder / name, name)

  def remove(self, name: str) -> None:
    """Removes a file, if there is one.

    Raises:
      WriteError: if that fails.
    """
    atomic.remove_tree(self.folder / name)
    if self._remote is not None:
      with _write_errors(f'{self.name}/{name}'):
        self._remote.remove(name)

  def num_bytes(self, below: str) -> int:
    """Returns the size of all files of a folder, whatever is read of them.

    In a bucket it is as of the last `refresh`.
    """
    if self._remote is None:
      files = (self.folder / below).rglob('*')
      return sum(path.stat().st_size for path in files if path.is_file())
    prefix = f'{below}/'
    return sum(e.size for n, e in self._listed.items() if n.startswith(prefix))


@contextlib.contextmanager
def _write_errors(name: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise atomic.FileError(name, error) from error


def _stamp(entry: place.Entry) -> tuple[int, int]:
  return entry.size, entry.changed


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
  """Returns whether a path ends with a name that matches one of patterns."""
  ends = '|'.join(fnmatch.translate(pattern) for pattern in patterns)
  expression = re.compile(f'(?:.*/)?(?:{ends})' if patterns else '(?!)')
  return lambda name: expression.match(name) is not None


class RunGlobs:
  """What globs of run directories match, wherever that is.

  Attributes:
    patterns: globs of files of this machine that match the same.
  """

  def __init__(
    self,
    patterns: Iterable[str],
    cache_dir: str | os.PathLike[str],
    contents: Contents,
  ):
    """Reads nothing of a bucket yet, and unpacks studies.

    Args:
      patterns: globs of paths, or of URLs such as gs://BUCKET/RUNS/**. They
        may name a study (see `results`), or go on below it.
      cache_dir: where what is in a bucket is mirrored, and where studies are
        unpacked; '' for a folder that is gone afterwards.
      contents: what is read of it.

    Raises:
      ConfigError: if there is no file system for a URL.
      DataError: if a study is damaged.
      WriteError: if the cache cannot be written.
    """
    self.patterns: list[str] = []
    self._mirrors: list[Runs] = []
    self._studies: dict[str, pathlib.Path] = {}
    if not cache_dir:
      self._scratch = tempfile.TemporaryDirectory(prefix='batch_rl_dr3.')
      cache_dir = self._scratch.name
    studies_dir = pathlib.Path(cache_dir) / 'studies'
    for pattern in patterns:
      path = place.local_path(pattern)
      if path is None:
        base, rest = _split(pattern)
        runs = Runs(base, cache_dir, contents)
        self._mirrors.append(runs)
        self.patterns.append(os.path.join(glob.escape(str(runs.folder)), rest))
        continue
      studies = results.expand(path, studies_dir)
      for study, (folder, rest) in studies.items():
        self._studies[study] = folder
        self.patterns.append(os.path.join(glob.escape(str(folder)), rest))
      if not studies or _matches_runs(path):
        self.patterns.append(path)

  def name_of(self, path: str) -> str:
    """Returns where a file of this machine is from: its URL, or itself."""
    places = [(runs.name, runs.folder) for runs in self._mirrors]
    for name, folder in (*places, *self._studies.items()):
      rest = path.removeprefix(str(folder))
      if rest != path:
        return f'{name}{rest}'
    return path

  @property
  def is_elsewhere(self) -> bool:
    """Whether files are read in a cache, of a bucket or of a study."""
    return bool(self._mirrors or self._studies)

  def refresh(self) -> None:
    """Sees to it that the files are as they are now.

    Raises:
      DataError: if they cannot be read.
    """
    for runs in self._mirrors:
      runs.refresh()

  @contextlib.contextmanager
  def kept_fresh(self, seconds: float) -> Iterator[None]:
    """Refreshes it every so many seconds meanwhile.

    What cannot be read is tried again, and until then is as it was.
    """
    ended = threading.Event()

    def refresh() -> None:
      while not ended.wait(seconds):
        with contextlib.suppress(errors.DataError):
          self.refresh()

    thread = threading.Thread(target=refresh, daemon=True)
    if self._mirrors:
      thread.start()
    try:
      yield
    finally:
      ended.set()


def _split(pattern: str) -> tuple[str, str]:
  """Returns the folder that a glob of a URL begins with, and the rest."""
  scheme, _, path = pattern.partition('://')
  parts = path.rstrip('/').split('/')
  first = next(
    (i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts)
  )
  if first == 0:
    raise errors.UsageError(f'{pattern} has to name a bucket.')
  return f'{scheme}://{"/".join(parts[:first])}', '/'.join(parts[first:])


def _matches_runs(pattern: str) -> bool:
  return any(
    os.path.isfile(os.path.join(path, name))
    for path in glob.iglob(os.path.expanduser(pattern), recursive=True)
    for name in (run_directory.PROVENANCE, run_directory.METRICS)
    if not results.is_study(path)
  )
