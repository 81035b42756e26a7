"""A sweep as a job array: one task a run, for systems that know no Ray.

A task is `sweep task`, and which run it is follows from its number and
`--only`: a task's number counts through what is left, so that arrays of any
system can be emitted for any part of a sweep.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import itertools
import math
from typing import Protocol

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import folders
from batch_rl_dr3.sweeping import attempt
from batch_rl_dr3.sweeping.grid import Sweep
from batch_rl_dr3.sweeping.run import Run

# How often a task that was preempted is begun again by the system; beyond
# that, `sweep reconcile` emits what is left. It is the most that Google Cloud
# Batch takes.
MAX_RETRIES = 10
# Seconds that a task has to save between SIGTERM and SIGKILL.
STOP_SECONDS = 180
OWN_FAULT = tuple(sorted(attempt.OWN_FAULT))
# What an image of the shipped Dockerfile calls Python.
_PYTHON = 'python'


def format_ranges(indices: Iterable[int]) -> str:
  """Returns '0-2,5' for 0, 1, 2, 5."""
  parts = []
  for _, group in itertools.groupby(
    enumerate(sorted(indices)), lambda pair: pair[1] - pair[0]
  ):
    run = [index for _, index in group]
    parts.append(f'{run[0]}' if len(run) == 1 else f'{run[0]}-{run[-1]}')
  return ','.join(parts)


def parse_ranges(text: str) -> list[int]:
  """Returns 0, 1, 2, 5 for '0-2,5'.

  Raises:
    UsageError: if the text is no such list.
  """
  indices: list[int] = []
  try:
    for part in text.split(','):
      first, dash, last = part.partition('-')
      indices += range(int(first), int(last if dash else first) + 1)
  except ValueError as error:
    raise errors.UsageError(
      f'{text!r} is no list of runs, such as 0-2,5.'
    ) from error
  return indices


@dataclasses.dataclass(frozen=True)
class JobArray:
  """What every system has to be told.

  Attributes:
    name: of lower-case letters, digits and dashes.
    indices: the runs, by their place in the sweep.
    flags: of `sweep task`, without --only.
    runs: the folder of all runs, or its URL.
    num_cpus: processor cores of a task.
    num_gpus: GPUs of a task; may be a fraction.
    gigabytes: memory of a task, with its store.
  """

  name: str
  indices: tuple[int, ...]
  flags: tuple[str, ...]
  runs: str
  num_cpus: float
  num_gpus: float
  gigabytes: float

  @property
  def command(self) -> list[str]:
    """What a task executes."""
    return [
      *(_PYTHON, '-m', 'batch_rl_dr3.sweep', 'task'),
      *self.flags,
      f'--only={format_ranges(self.indices)}',
    ]

  @property
  def mount(self) -> str | None:
    """Where a shared disk has to be mounted; None if runs are in a bucket."""
    return folders.local_path(self.runs)

  @property
  def milli_cpus(self) -> int:
    """Thousandths of a core of a task."""
    return math.ceil(1000 * self.num_cpus)

  @property
  def mebibytes(self) -> int:
    """Memory of a task."""
    return math.ceil(self.gigabytes * 1e9 / 2**20)

  @property
  def whole_gpus(self) -> int:
    """GPUs of a task where a fraction cannot be asked for."""
    return math.ceil(self.num_gpus)

  def parts(self, length: int) -> list['JobArray']:
    """Returns arrays of at most so many tasks, which are this one together."""
    cut = [
      self.indices[start : start + length]
      for start in range(0, len(self.indices), length)
    ]
    if len(cut) == 1:
      return [self]
    return [
      dataclasses.replace(self, name=f'{self.name}-{number}', indices=part)
      for number, part in enumerate(cut)
    ]


class Backend(Protocol):
  """A system that executes job arrays."""

  def files(self, array: JobArray) -> dict[str, str]:
    """Returns the contents of the files to submit, by name."""

  def submit(self, names: Sequence[str]) -> list[str]:
    """Returns the commands that submit files of these names."""


def create(
  sweep: Sweep,
  runs_of_sweep: Sequence[Run],
  name: str,
  runs: str,
  flags: Sequence[str],
) -> JobArray:
  """Returns the job array of some runs of a sweep.

  The same runs have the same name: a system that refuses to take a name twice
  does not execute them twice.

  Args:
    sweep: the sweep.
    runs_of_sweep: those of its runs that are to be executed.
    name: of the sweep.
    runs: the folder of all runs, as a task sees it.
    flags: of `sweep task`.
  """
  identities = ' '.join(run.identity for run in runs_of_sweep)
  digest = hashlib.sha256(identities.encode()).hexdigest()[:8]
  largest = max(sweep.store_bytes(run) for run in runs_of_sweep)
  return JobArray(
    name=f'{name.replace("_", "-").lower()}-{digest}',
    indices=tuple(run.index for run in runs_of_sweep),
    flags=tuple(flags),
    runs=runs,
    num_cpus=sweep.num_cpus,
    num_gpus=sweep.num_gpus,
    gigabytes=sweep.run_gigabytes + sweep.store_memory_share * largest / 1e9,
  )
