"""Runs on a disk or in a bucket, read as files of this machine.

Runs on a disk are read where they are. Runs in a bucket are read in a mirror:
`refresh` lists the bucket once and fetches the objects whose size or date has
changed, and of those no more than is asked for: a log's beginning and end, a
checkpoint's size.
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
  """What a mirror holds of runs: patterns of names within run directories."""

  name: str  # Of this kind of mirror, and of its folder.
  whole: tuple[str, ...]  # Fetched.
  ends: tuple[str, ...] = ()  # Beginning and end, with zeros between.
  sizes: tuple[str, ...] = ()  # Only the size and date are right.


class Runs:
  """A folder of runs, called `name` in messages, with its files in `folder`."""

  def __init__(
    self, runs: str, cache_dir: str | os.PathLike[str], contents: Contents
  ):
    """Opens a folder, or a URL such as gs://BUCKET/RUNS; reads nothing yet.

    A bucket's `contents` are mirrored in cache_dir. ConfigError if there is no
    file system for the URL.
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
    """Fetches what has changed in these folders, which are listed in parallel.

    Raises:
      DataError: if they cannot be read.
    """
    remote = self._remote
    if remote is None:
      return
    below = list(below)
    with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
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
        changed = [
          n for n, e in held.items() if here.get(n) != (e.size, e.changed)
        ]
        for _ in pool.map(
          lambda name: self._fetch(remote, name, held[name]), changed
        ):
          pass
      except OSError as error:
        raise errors.DataError(
          f'cannot read {self.name} into {self.folder}: {error.strerror}.'
        ) from error
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
    """Writes an object's two ends; returns False if they do not come."""
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
    """Uploads a file that was written, if the runs are in a bucket."""
    if self._remote is not None:
      with atomic.file_errors(f'{self.name}/{name}'):
        self._remote.put(self.folder / name, name)

  def remove(self, name: str) -> None:
    """Removes a file, if there is one."""
    atomic.remove_tree(self.folder / name)
    if self._remote is not None:
      with atomic.file_errors(f'{self.name}/{name}'):
        self._remote.remove(name)

  def num_bytes(self, below: str) -> int:
    """Returns the size of a folder; in a bucket, at the last `refresh`."""
    if self._remote is None:
      files = (self.folder / below).rglob('*')
      return sum(path.stat().st_size for path in files if path.is_file())
    prefix = f'{below}/'
    return sum(e.size for n, e in self._listed.items() if n.startswith(prefix))


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
  """Returns whether a path ends with a name that matches one of patterns."""
  ends = '|'.join(fnmatch.translate(pattern) for pattern in patterns)
  expression = re.compile(f'(?:.*/)?(?:{ends})' if patterns else '(?!)')
  return lambda name: expression.match(name) is not None


class RunGlobs:
  """What globs of run directories match; so do `patterns` on this machine."""

  def __init__(
    self,
    patterns: Iterable[str],
    cache_dir: str | os.PathLike[str],
    contents: Contents,
  ):
    """Unpacks studies, and reads nothing of a bucket yet.

    The patterns are globs of paths, or of URLs such as gs://BUCKET/RUNS/**, and
    may name a study (see `results`) or go on below it. Mirrors and studies are
    in cache_dir, or in a temporary folder if that is ''.

    Raises:
      ConfigError: if there is no file system for a URL.
      DataError: if a study is damaged.
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
    """Refreshes the mirrors; raises DataError if one cannot be read."""
    for runs in self._mirrors:
      runs.refresh()

  @contextlib.contextmanager
  def kept_fresh(self, seconds: float) -> Iterator[None]:
    """Refreshes every so many seconds meanwhile; failures change nothing."""
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
