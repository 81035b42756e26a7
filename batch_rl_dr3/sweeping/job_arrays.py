"""A sweep as a job array: one task a run, for systems other than Ray.

A task is `sweep task`, numbered through the runs of `--only`. What each system
reads is a template in `templates/`, filled from its settings and the array.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import hashlib
import json
import math
import os
import shlex
import sys
from typing import ClassVar

import gin

from batch_rl_dr3.config import errors, ranges, templates
from batch_rl_dr3.replay.log import checkpoint_format
from batch_rl_dr3.runs import atomic, place
from batch_rl_dr3.sweeping import attempt
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun

# How often a task that was preempted is begun again by the system; beyond
# that, `sweep reconcile` emits what is left. It is the most that Google Cloud
# Batch takes.
_MAX_RETRIES = 10
# Seconds that a task has to save between SIGTERM and SIGKILL.
_STOP_SECONDS = 180


def format_ranges(indices: Iterable[int]) -> str:
  """Returns '0-2,5' for 0, 1, 2, 5."""
  words = checkpoint_format.format_suffixes(sorted(indices))
  return words.replace(' ', '')


def parse_ranges(text: str) -> list[int]:
  """Returns 0, 1, 2, 5 for '0-2,5'; raises UsageError for other text."""
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
  """What every system has to be told."""

  name: str
  indices: tuple[int, ...]  # The runs, by their place in the sweep.
  flags: tuple[str, ...]
  runs: str
  num_cpus: float
  num_gpus: float
  mebibytes: int  # Memory of a task.

  @property
  def command(self) -> list[str]:
    """What a task executes."""
    # An image of the shipped Dockerfile calls Python `python`.
    return [
      *('python', '-m', 'batch_rl_dr3.sweep', 'task'),
      *self.flags,
      f'--only={format_ranges(self.indices)}',
    ]

  @property
  def mount(self) -> str | None:
    """Where a shared disk has to be mounted; None if runs are in a bucket."""
    return place.local_path(self.runs)

  def parts(self, length: int) -> Iterator['JobArray']:
    """Yields arrays of at most `length` tasks, itself if it is none longer."""
    starts = range(0, len(self.indices), length)
    for number, start in enumerate(starts):
      yield dataclasses.replace(
        self,
        name=self.name if len(starts) == 1 else f'{self.name}-{number}',
        indices=self.indices[start : start + length],
      )


@dataclasses.dataclass(frozen=True)
class _Backend:
  """A system: what it reads, and what a user may say of it.

  Attributes:
    parallelism: tasks at a time.
  """

  template: ClassVar[str]  # Ends as its files do.
  submit: ClassVar[str]  # The command, with {name}, {file} and {backend}.
  max_array_size = sys.maxsize  # Tasks that it takes at once.
  parallelism: ranges.Count = 100

  def files(self, array: JobArray) -> dict[str, str]:
    """Returns what the system reads, by file name.

    ConfigError if the settings do not fit the array.
    """
    texts = templates.environment(__package__, keep_trailing_newline=True)
    filters = {'json': json.dumps, 'quote': shlex.quote, 'ceil': math.ceil}
    texts.filters |= filters
    template = texts.get_template(f'{self.template}.jinja')
    _, ending = os.path.splitext(self.template)
    files = {}
    for part in array.parts(self.max_array_size):
      text = template.render(
        backend=self,
        array=part,
        own_fault=sorted(attempt.OWN_FAULT),
        preempted=attempt.PREEMPTED,
        retries=_MAX_RETRIES,
        stop_seconds=_STOP_SECONDS,
      )
      if ending == '.json':
        text = json.dumps(json.loads(text), indent=2) + '\n'
      files[part.name + ending] = text
    return files

  def write(self, array: JobArray, folder: str | os.PathLike[str]) -> list[str]:
    """Writes an array's files and returns the commands to submit them."""
    path = atomic.make_directory(folder)
    commands = []
    for file, text in self.files(array).items():
      atomic.write_text(path / file, text)
      name, _ = os.path.splitext(file)
      commands.append(self.submit.format(file=file, name=name, backend=self))
    return commands


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Slurm(_Backend):
  """How a sweep is executed by Slurm.

  Attributes:
    setup: shell lines that make `python` the one with this package.
    partition: None is the site's own choice.
    max_array_size: the site's MaxArraySize less 1; Slurm's own is 1001.
  """

  template = 'slurm.sbatch'
  submit = 'sbatch {file}'
  setup: str = 'source .venv/bin/activate || exit 78'
  partition: str | None = None
  time: str = '2-00:00:00'
  max_array_size: ranges.Count = 1000


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Kubernetes(_Backend):
  """How a sweep is executed by Kubernetes 1.29 or later: an indexed Job.

  Attributes:
    image: the container image, built from the shipped Dockerfile.
    runs_claim: the PersistentVolumeClaim (ReadWriteMany) to mount at --runs,
      unless that is in a bucket; None mounts none.
    cache_gigabytes: of the node's disk that a pod may fill with its store.
  """

  template = 'kubernetes.json'
  submit = 'kubectl create --filename={file}'
  image: str = 'REGISTRY/batch-rl-dr3:cuda'
  node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
  tolerations: Sequence[dict[str, str]] = ()
  runs_claim: str | None = 'runs'
  cache_gigabytes: ranges.Positive = 50.0


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class GcpBatch(_Backend):
  """How a sweep is executed by Google Cloud Batch.

  Attributes:
    image: the container image, built from the shipped Dockerfile.
    gpu_type: what each machine has, if runs use one.
    provisioning_model: SPOT or STANDARD.
    max_run_hours: a task is ended after so many, and can go on.
    disk_gigabytes: of a machine: image, and the stores of its tasks.
    nfs: 'SERVER:/PATH' of the shared disk to mount at --runs; None for none.
  """

  template = 'gcp_batch.json'
  submit = (
    'gcloud batch jobs submit {name} --location={backend.location} '
    '--config={file}'
  )
  image: str = 'REGION-docker.pkg.dev/PROJECT/images/batch-rl-dr3:cuda'
  location: str = 'us-central1'
  machine_type: str = 'g2-standard-8'
  gpu_type: str = 'nvidia-l4'
  provisioning_model: str = 'SPOT'
  max_run_hours: ranges.Positive = 168.0
  disk_gigabytes: ranges.Count = 200
  nfs: str | None = None

  def files(self, array: JobArray) -> dict[str, str]:  # noqa: D102
    if self.nfs and array.mount is None:
      raise errors.ConfigError(
        f'GcpBatch.nfs={self.nfs} mounts a disk, but --runs={array.runs} is in '
        'a bucket: leave one of them out.'
      )
    return super().files(array)


# By the names that users give.
BACKENDS = {'gcp-batch': GcpBatch, 'slurm': Slurm, 'kubernetes': Kubernetes}


def create(
  sweep: Sweep,
  runs_of_sweep: Sequence[SweepRun],
  name: str,
  runs: str,
  flags: Sequence[str],
) -> JobArray:
  """Returns the job array of some runs of a sweep; flags are of `sweep task`.

  The same runs have the same name: a system that refuses to take a name twice
  does not execute them twice.
  """
  identities = ' '.join(run.identity for run in runs_of_sweep)
  digest = hashlib.sha256(identities.encode()).hexdigest()[:8]
  largest = max(sweep.store_bytes(run) for run in runs_of_sweep)
  gigabytes = sweep.run_gigabytes + sweep.store_memory_share * largest / 1e9
  return JobArray(
    name=f'{name.replace("_", "-").lower()}-{digest}',
    indices=tuple(run.index for run in runs_of_sweep),
    flags=tuple(flags),
    runs=runs,
    num_cpus=sweep.num_cpus,
    num_gpus=sweep.num_gpus,
    mebibytes=math.ceil(gigabytes * 1e9 / 2**20),
  )
