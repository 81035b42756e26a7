"""Globs of run directories: on a disk, in a bucket, or kept in a study."""

from collections.abc import Iterable, Iterator
import contextlib
import glob
import os
import pathlib
import tempfile
import threading

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import mirror, results, run_directory
from batch_rl_dr3.runs import place as place_lib


class RunGlobs:
  """What globs of run directories match, wherever that is.

  Attributes:
    patterns: globs of files of this machine that match the same.
  """

  def __init__(
    self,
    patterns: Iterable[str],
    cache_dir: str | os.PathLike[str],
    contents: mirror.Contents,
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
    self._mirrors: list[mirror.Runs] = []
    self._studies: dict[str, pathlib.Path] = {}
    if not cache_dir:
      self._scratch = tempfile.TemporaryDirectory(prefix='batch_rl_dr3.')
      cache_dir = self._scratch.name
    studies_dir = pathlib.Path(cache_dir) / 'studies'
    for pattern in patterns:
      path = place_lib.local_path(pattern)
      if path is None:
        base, rest = _split(pattern)
        place = mirror.Runs(base, cache_dir, contents)
        self._mirrors.append(place)
        self.patterns.append(os.path.join(glob.escape(str(place.folder)), rest))
        continue
      studies = results.expand(path, studies_dir)
      for study, (folder, rest) in studies.items():
        self._studies[study] = folder
        self.patterns.append(os.path.join(glob.escape(str(folder)), rest))
      if not studies or _matches_runs(path):
        self.patterns.append(path)

  def name_of(self, path: str) -> str:
    """Returns where a file of this machine is from: its URL, or itself."""
    places = [(place.name, place.folder) for place in self._mirrors]
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
    for place in self._mirrors:
      place.refresh()

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
