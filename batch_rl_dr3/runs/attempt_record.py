"""What a run directory says of the attempts at its run.

    attempt.json   how often it was tried, how often without progress, how the
                   last attempt ended, and whether the run is set aside
    train.log      what `train` printed, one attempt after another

Progress is a newer checkpoint or more scores.
"""

import dataclasses
import os
import pathlib

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import checkpoints, mirror, records, run_directory

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
  value = records.read(
    pathlib.Path(folder) / NAME,
    records.ATTEMPT,
    'Remove it; the run is then tried as if for the first time.',
  )
  if value is None:
    return Record()
  known = {f.name for f in dataclasses.fields(Record)}
  fields = {name: v for name, v in value.items() if name in known}
  return Record(**{**fields, 'progress': tuple(value['progress'])})


def is_finished(folder: str | os.PathLike[str], num_iterations: int) -> bool:
  """Returns whether a run has had so many iterations, and all is written."""
  try:
    return records.is_finished(folder, num_iterations)
  except errors.DataError:
    return False  # Written last, and whole: what cannot be read is none.


def progress(folder: str | os.PathLike[str]) -> tuple[int, int]:
  """Returns what grows as a run gets on, whatever becomes of its process.

  The gradient steps of the newest checkpoint, and the bytes of scores.csv.
  """
  root = pathlib.Path(folder)
  found = checkpoints.manifests(root / run_directory.CHECKPOINTS)
  steps = max((m.gradient_steps for m in found), default=0)
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
