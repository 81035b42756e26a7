"""Globs of run directories, on a disk or in a bucket."""

from collections.abc import Iterable, Iterator
import contextlib
import glob
import os
import threading

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import folders, mirror


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
    """Reads nothing yet.

    Args:
      patterns: globs of paths, or of URLs such as gs://BUCKET/RUNS/**.
      cache_dir: where what is in a bucket is mirrored.
      contents: what is read of it.

    Raises:
      ConfigError: if there is no file system for a URL.
    """
    self.patterns: list[str] = []
    self._mirrors: list[mirror.Mirror] = []
    for pattern in patterns:
      path = folders.local_path(pattern)
      if path is None:
        base, rest = _split(pattern)
        place = mirror.Mirror(base, cache_dir, contents)
        self._mirrors.append(place)
        path = os.path.join(glob.escape(str(place.folder)), rest)
      self.patterns.append(path)

  def name_of(self, path: str) -> str:
    """Returns where a file of this machine is from: its URL, or itself."""
    for place in self._mirrors:
      rest = path.removeprefix(str(place.folder))
      if rest != path:
        return f'{place.name}{rest}'
    return path

  @property
  def is_remote(self) -> bool:
    """Whether anything of it is in a bucket."""
    return bool(self._mirrors)

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
    if self.is_remote:
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
