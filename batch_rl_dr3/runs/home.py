"""Where a run lives: its folder, and who may write to it."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
from typing import Protocol

from batch_rl_dr3.runs import atomic, folders, lease, remote_home, run_directory


class Home(Protocol):
  """The place of one run.

  Attributes:
    name: what messages call it.
    folder: where this process reads and writes; filled once it is locked.
  """

  name: str
  folder: pathlib.Path

  def lock(self) -> contextlib.AbstractContextManager[None]:
    """Keeps other workers away meanwhile.

    Raises:
      BusyError: if another one is at work.
      WriteError: if nothing can be written there.
    """

  def check(self) -> None:
    """Makes sure that this process may still write.

    Raises:
      FencedError: if another worker has taken over.
    """

  def is_lost(self) -> bool:
    """Returns whether another worker was seen to have taken over."""

  def publish(self) -> None:
    """Sees to it that what is in the folder outlives this machine.

    Raises:
      FencedError: if another worker has taken over.
      WriteError: if it cannot be written.
    """


def open_home(
  base_dir: str,
  cache_dir: str,
  is_wanted: Callable[[str], bool] = lambda name: True,
) -> Home:
  """Returns the home of a run.

  Args:
    base_dir: a folder, or a URL such as gs://BUCKET/RUNS/Pong/rem/seed0.
    cache_dir: where what lives in a bucket is worked on.
    is_wanted: which of its files are needed here.

  Raises:
    ConfigError: if there is no file system for the URL.
    WriteError: if the folder cannot be written.
  """
  path = folders.local_path(base_dir)
  if path is None:
    return remote_home.RemoteHome(base_dir, cache_dir, is_wanted)
  return LocalHome(path)


class LocalHome:
  """A run directory on a local or shared disk: what is written is there."""

  def __init__(self, base_dir: str | os.PathLike[str]):
    """Opens the folder, and creates it if need be.

    Raises:
      WriteError: if it cannot be written.
    """
    self.folder = atomic.make_directory(base_dir)
    self.name = str(base_dir)
    self._lease: lease.Lease | None = None

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """See `Home`."""
    with run_directory.lock(self.folder) as self._lease:
      yield

  def check(self) -> None:
    """See `Home`."""
    assert self._lease is not None, 'write only while the home is locked'
    self._lease.check()

  def is_lost(self) -> bool:
    """See `Home`."""
    return self._lease is not None and self._lease.is_lost

  def publish(self) -> None:
    """See `Home`; there is nothing to do."""
