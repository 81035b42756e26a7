"""The files of a run directory: names, columns, and how they are written.

A run directory is all that passes from training to evaluation, and its
`scores.csv` all that passes on to reporting, so its layout is defined once,
here, without TensorFlow.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import io
import json
import os
import pathlib
import secrets
import shutil
from typing import Any

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import folders, lease

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

SCORE_COLUMNS = (
  'suite',
  'game',
  'method',
  'dataset',
  'run',
  'seed',
  'iteration',
  'gradient_steps',
  'episode',
  'return',
  'length',
  'truncated',
)
# Where a row stands for all episodes of an evaluation, one more column: how
# many they are. `return` and `length` are then means, `truncated` is a count.
EPISODES = 'episodes'


def make_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns `path`, a directory that exists and can be written.

  Raises:
    ConfigError: if it is a URL.
    WriteError: if it cannot be created or written.
  """
  if '://' in os.fspath(path):
    raise errors.ConfigError(
      f'{path} is a URL, and only `train` writes to one. Choose a folder.'
    )
  directory = pathlib.Path(path)
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f'.write_probe_{os.getpid()}'
    probe.touch()
    probe.unlink(missing_ok=True)
  except OSError as error:
    raise WriteError(directory, error) from error
  return directory


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
    raise WriteError(folder / lease.FOLDER, error) from error
  try:
    _remove_temporaries(folder)
    yield held
  finally:
    held.release()


def _remove_temporaries(folder: pathlib.Path) -> None:
  """Removes what was to become a file of a run: its rename now fails."""
  for name in RUN_FILES:
    for temporary in folder.glob(f'.{name}.*.tmp'):
      remove(temporary)
  for leftover in (folder / CHECKPOINTS).glob('.*'):
    remove(leftover)


class WriteError(errors.WriteError):
  """Names the path that could not be written, and the system's reason."""

  def __init__(self, path: os.PathLike[str] | str, error: OSError):
    super().__init__(
      f'cannot write {path}: {error.strerror}. Choose a place that can be '
      'written and has room.'
    )


# Asked before something is published; raises if it must not be.
Check = Callable[[], None]


def unchecked() -> None:
  """Lets everything be published: the check of who shares with nobody."""


def write_atomically(
  path: str | os.PathLike[str], content: str, check: Check = unchecked
) -> None:
  """Writes a text file whole or not at all, even across a kill.

  The content goes to a temporary file beside `path`, is synced to disk and
  renamed over it.

  Args:
    path: the file.
    content: all of it.
    check: asked before the rename.

  Raises:
    WriteError: if the file system refuses; what was at `path` is kept.
  """
  target = pathlib.Path(path)
  # Of no other process's name, wherever that runs.
  temporary = target.with_name(f'.{target.name}.{secrets.token_hex(8)}.tmp')
  try:
    with open(temporary, 'w', newline='') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    check()
    os.replace(temporary, target)
    sync(target.parent)
  except OSError as error:
    with contextlib.suppress(OSError):
      check()  # Who has taken over has removed the temporary file.
    raise WriteError(target, error) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def remove(path: str | os.PathLike[str]) -> None:
  """Removes a file or a folder, if there is one.

  Raises:
    WriteError: if the file system refuses.
  """
  target = pathlib.Path(path)
  try:
    if target.is_dir():
      shutil.rmtree(target)
    else:
      target.unlink(missing_ok=True)
  except OSError as error:
    raise WriteError(target, error) from error


def sync(path: str | os.PathLike[str]) -> None:
  """Sees to it that a file or folder is on its disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_json(
  path: str | os.PathLike[str], value: Any, check: Check = unchecked
) -> None:
  """Writes `value` as indented JSON, whole or not at all."""
  text = json.dumps(value, indent=2, sort_keys=True) + '\n'
  write_atomically(path, text, check)


def is_finished(directory: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, scores and all."""
  path = pathlib.Path(directory) / FINISHED
  if not path.exists():
    return False
  return bool(json.loads(path.read_text())['num_iterations'] >= num_iterations)


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
  """Returns the whole rows of a CSV file; a row torn by a kill is left out."""
  if not os.path.exists(path):
    return []
  with open(path, newline='') as file:
    text = file.read()
  text = text[: text.rfind('\n') + 1]
  return list(csv.DictReader(io.StringIO(text)))


class CsvLog:
  """A CSV file that grows row by row and can go back to an earlier state."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    columns: Sequence[str],
    check: Check = unchecked,
  ):
    """Opens the log; the file appears with its first row.

    Args:
      path: the CSV file.
      columns: its columns, in order.
      check: asked before the file changes.
    """
    self._path = pathlib.Path(path)
    self._columns = tuple(columns)
    self._check = check

  def keep(self, predicate: Callable[[dict[str, str]], bool]) -> None:
    """Rewrites the file with only the rows that satisfy `predicate`."""
    if self._path.exists():
      self._replace(row for row in read_csv(self._path) if predicate(row))

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds one row. A kill can tear it; `read_csv` leaves a torn row out.

    Raises:
      WriteError: if the disk refuses; the rows before are kept.
    """
    self._check()
    try:
      with open(self._path, 'a', newline='') as file:
        writer = csv.DictWriter(file, self._columns)
        if file.tell() == 0:
          writer.writeheader()
        writer.writerow(row)
    except OSError as error:
      raise WriteError(self._path, error) from error

  def extend_atomically(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds all of `rows` or, across a kill, none of them."""
    self._replace([*read_csv(self._path), *rows])

  def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, self._columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(self._path, text.getvalue(), self._check)
