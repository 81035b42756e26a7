"""The files of a run directory, and the lock on it.

A run directory is all that passes from training to evaluation, and its
`scores.csv` all that passes on to reporting, so its layout is defined once,
here, without TensorFlow.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib

from batch_rl_dr3.runs import atomic, folders, lease

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


@contextlib.contextmanager
def lock(directory: str | os.PathLike[str]) -> Iterator[lease.Lease]:
  """Keeps other processes from writing to a run directory meanwhile.

  What a worker that is no more left half-written is removed first.

  Yields:
    What is to be asked before everything that is published.

  Raises:
    BusyError: if another process holds it.
    WriteError: if the lease cannot be written.
  """
  folder = pathlib.Path(directory)
  held = lease.Lease(folders.LocalFolder(folder / lease.FOLDER), str(folder))
  try:
    held.acquire()
  except OSError as error:
    held.release()
    raise atomic.FileError(folder / lease.FOLDER, error) from error
  try:
    _remove_temporaries(folder)
    yield held
  finally:
    held.release()


def _remove_temporaries(folder: pathlib.Path) -> None:
  """Removes what was to become a file of a run: its rename now fails."""
  for name in RUN_FILES:
    for temporary in folder.glob(f'.{name}.*.tmp'):
      atomic.remove_file(temporary)
  for leftover in (folder / CHECKPOINTS).glob('.*'):
    atomic.remove_tree(leftover)
