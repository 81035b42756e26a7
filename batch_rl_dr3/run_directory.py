"""The files of a run directory: names, columns, and how they are written.

A run directory is all that passes from training to evaluation, and its
`scores.csv` all that passes on to reporting, so its layout is defined once,
here, without TensorFlow.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import fcntl
import io
import json
import os
import pathlib
from typing import Any

from batch_rl_dr3 import errors

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.gin'
PROVENANCE = 'provenance.json'
METRICS = 'metrics.csv'
SCORES = 'scores.csv'
# Written last, when every iteration is trained and evaluated.
FINISHED = 'finished.json'

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


def make_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns `path`, a directory that exists and can be written.

  Raises:
    WriteError: if it cannot be created or written.
  """
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
def lock(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Keeps other processes from writing to a run directory meanwhile.

  The system ends the lock with the process, however that ends.

  Raises:
    BusyError: if another process holds it.
    WriteError: if the lock's file cannot be written.
  """
  path = pathlib.Path(directory) / '.lock'
  try:
    file = open(path, 'a')  # noqa: SIM115
  except OSError as error:
    raise WriteError(path, error) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BusyError(
        f'{directory} is in use: another process trains or evaluates there. '
        'Wait for it, or end it.'
      ) from error
    except OSError:
      pass  # A file system without locks.
    yield


class BusyError(errors.WriteError):
  """A run directory that another process is writing to."""


class WriteError(errors.WriteError):
  """Names the path that could not be written, and the system's reason."""

  def __init__(self, path: os.PathLike[str] | str, error: OSError):
    super().__init__(
      f'cannot write {path}: {error.strerror}. Choose a place that can be '
      'written and has room.'
    )


def write_atomically(path: str | os.PathLike[str], content: str) -> None:
  """Writes a text file whole or not at all, even across a kill.

  The content goes to a temporary file beside `path`, is synced to disk and
  renamed over it.

  Raises:
    WriteError: if the file system refuses; what was at `path` is kept.
  """
  target = pathlib.Path(path)
  temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'w', newline='') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise WriteError(target, error) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes `value` as indented JSON, whole or not at all."""
  write_atomically(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


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

  def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]):
    """Opens the log; the file appears with its first row.

    Args:
      path: the CSV file.
      columns: its columns, in order.
    """
    self._path = pathlib.Path(path)
    self._columns = tuple(columns)

  def keep(self, predicate: Callable[[dict[str, str]], bool]) -> None:
    """Rewrites the file with only the rows that satisfy `predicate`."""
    if self._path.exists():
      self._replace(row for row in read_csv(self._path) if predicate(row))

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds one row. A kill can tear it; `read_csv` leaves a torn row out."""
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
    write_atomically(self._path, text.getvalue())
