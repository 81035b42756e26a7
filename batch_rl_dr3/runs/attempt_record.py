"""What a run directory says of the attempts at its run.

    attempt.json   how often it was tried, how often without progress, how the
                   last attempt ended, and whether the run is set aside
    train.log      what `train` printed, one attempt after another

Progress is a newer checkpoint or more scores.
"""

import dataclasses
import json
import os
import pathlib

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import mirror, run_directory

NAME = 'attempt.json'
LOG = 'train.log'
# What is read of a run before and after an attempt.
CONTENTS = mirror.Contents(
  'attempt',
  whole=(
    NAME,
    LOG,
    run_directory.FINISHED,
    f'{run_directory.CHECKPOINTS}/ckpt.*.json',
  ),
  sizes=(run_directory.SCORES,),
)
# Bytes at the end of a log among which its last line is.
_TAIL_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Record:
  """What is known of the attempts at a run.

  Attributes:
    attempts: how many were begun.
    without_progress: how many of the last ones, but for the newest, came to
      nothing.
    progress: of the run when the newest attempt began.
    began: when that was, in ISO 8601, UTC.
    host: where.
    exit_code: how it ended; None if nobody lived to say so, or it goes on.
    error: the last line of its log, if it did not end well.
    is_set_aside: whether the run is not to be tried again until `retry`.
  """

  attempts: int = 0
  without_progress: int = 0
  progress: tuple[int, int] = (0, 0)
  began: str = ''
  host: str = ''
  exit_code: int | None = None
  error: str = ''
  is_set_aside: bool = False


def read(folder: str | os.PathLike[str]) -> Record:
  """Returns what is recorded in a run directory; of a new run, nothing."""
  try:
    value = json.loads((pathlib.Path(folder) / NAME).read_text())
    value['progress'] = tuple(value['progress'])
    return Record(**value)
  except FileNotFoundError:
    return Record()
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.DataError(
      f'{pathlib.Path(folder) / NAME} cannot be read: {error}. Remove '
      f'{NAME} of the run, and it is tried as if for the first time.'
    ) from error


def is_finished(folder: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, and all is written."""
  try:
    return run_directory.is_finished(folder, num_iterations)
  except (OSError, ValueError, KeyError, TypeError):
    return False  # Written last, and whole: what cannot be read is none.


def progress(folder: str | os.PathLike[str]) -> tuple[int, int]:
  """Returns what grows as a run gets on, whatever becomes of its process.

  The gradient steps of the newest checkpoint, and the bytes of scores.csv.
  """
  root = pathlib.Path(folder)
  steps = 0
  for path in (root / run_directory.CHECKPOINTS).glob('ckpt.*.json'):
    try:
      steps = max(steps, int(json.loads(path.read_text())['gradient_steps']))
    except (OSError, ValueError, KeyError, TypeError):
      continue  # Torn or gone: it does not exist.
  try:
    return steps, (root / run_directory.SCORES).stat().st_size
  except OSError:
    return steps, 0


def last_line(path: str | os.PathLike[str]) -> str:
  """Returns the last line of a log that is not empty; '' if there is none."""
  try:
    with open(path, 'rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - _TAIL_BYTES))
      text = file.read().decode(errors='replace')
  except OSError:
    return ''
  lines = [line.strip() for line in text.replace('\r', '\n').split('\n')]
  return next((line for line in reversed(lines) if line), '')
