"""A sweep as a job array: one task a run, for systems other than Ray.

A task is `sweep task`, numbered through the runs of `--only`. What each system
reads is a template in `templates/`, filled from its settings and the array.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shlex
from typing import Any

import gin
import jinja2

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.runs import atomic, place
from batch_rl_dr3.sweeping import attempt
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun

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
    return place.local_path(self.runs)

  @property
  def mebibytes(self) -> int:
    """Memory of a task."""
    return math.ceil(self.gigabytes * 1e9 / 2**20)

  def parts(self, length: int) -> list['JobArray']:
    """Returns this array cut into arrays of at most so many tasks."""
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


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Slurm:
  """How a sweep is executed by Slurm.

  Attributes:
    setup: shell lines that make `python` the one with this package.
    partition: where jobs go; None for the site's own choice.
    time: limit of a task, as Slurm writes it.
    parallelism: tasks of an array at a time.
    max_array_size: the site's MaxArraySize less 1; Slurm's own is 1001.
  """

  setup: str = 'source .venv/bin/activate || exit 78'
  partition: str | None = None
  time: str = '2-00:00:00'
  parallelism: ranges.Count = 100
  max_array_size: ranges.Count = 1000

  def files(self, array: JobArray) -> dict[str, str]:
    """Returns a script for each array that the site can take, by name."""
    return {
      f'{part.name}.sbatch': _fill('slurm.sbatch', self, part)
      for part in array.parts(self.max_array_size)
    }

  def command(self, name: str) -> str:
    """Returns the command that submits a file."""
    return f'sbatch {name}'


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class Kubernetes:
  """How a sweep is executed by Kubernetes 1.29 or later: an indexed Job.

  Attributes:
    image: the container image, built from the shipped Dockerfile.
    parallelism: pods at a time.
    node_selector: labels of the nodes that may be used.
    tolerations: taints of nodes that are tolerated, such as of spot ones.
    runs_claim: the PersistentVolumeClaim (ReadWriteMany) to mount at --runs,
      unless that is in a bucket; None mounts none.
    cache_gigabytes: of the node's disk that a pod may fill with its store.
  """

  image: str = 'REGISTRY/batch-rl-dr3:cuda'
  parallelism: ranges.Count = 100
  node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
  tolerations: Sequence[dict[str, str]] = ()
  runs_claim: str | None = 'runs'
  cache_gigabytes: ranges.Positive = 50.0

  def files(self, array: JobArray) -> dict[str, str]:  # noqa: D102
    mounts = self.runs_claim is not None and array.mount is not None
    text = _fill('kubernetes.json', self, array, mounts=mounts)
    return {f'{array.name}.json': text}

  def command(self, name: str) -> str:  # noqa: D102
    return f'kubectl create --filename={name}'


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class GcpBatch:
  """How a sweep is executed by Google Cloud Batch.

  Attributes:
    image: the container image, built from the shipped Dockerfile.
    location: the region.
    machine_type: of the virtual machines.
    gpu_type: what each of them has, if runs use one.
    provisioning_model: SPOT or STANDARD.
    parallelism: tasks at a time.
    max_run_hours: a task is ended after so many, and can go on.
    disk_gigabytes: of a machine: image, and the stores of its tasks.
    nfs: 'SERVER:/PATH' of the shared disk to mount at --runs; None for none.
  """

  image: str = 'REGION-docker.pkg.dev/PROJECT/images/batch-rl-dr3:cuda'
  location: str = 'us-central1'
  machine_type: str = 'g2-standard-8'
  gpu_type: str = 'nvidia-l4'
  provisioning_model: str = 'SPOT'
  parallelism: ranges.Count = 100
  max_run_hours: ranges.Positive = 168.0
  disk_gigabytes: ranges.Count = 200
  nfs: str | None = None

  def files(self, array: JobArray) -> dict[str, str]:
    """Returns one file by its name, which is the job's.

    Raises:
      ConfigError: if a disk is to be mounted for runs in a bucket.
    """
    if self.nfs and array.mount is None:
      raise errors.ConfigError(
        f'GcpBatch.nfs={self.nfs} mounts a disk, but --runs={array.runs} is in '
        'a bucket: leave one of them out.'
      )
    return {f'{array.name}.json': _fill('gcp_batch.json', self, array)}

  def command(self, name: str) -> str:  # noqa: D102
    return (
      f'gcloud batch jobs submit {name.removesuffix(".json")} '
      f'--location={self.location} --config={name}'
    )


# By the names that users give.
BACKENDS = {'gcp-batch': GcpBatch, 'slurm': Slurm, 'kubernetes': Kubernetes}


def write(
  backend: str, array: JobArray, folder: str | os.PathLike[str]
) -> list[str]:
  """Writes the files of a job array and returns the commands to submit them."""
  made = BACKENDS[backend]()
  files = made.files(array)
  place = atomic.make_directory(folder)
  for name, text in files.items():
    atomic.write_text(place / name, text)
  return [made.command(name) for name in files]


def _fill(template: str, backend: Any, array: JobArray, **further: Any) -> str:
  """Returns what a system reads; JSON is indented anew."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
  )
  environment.filters |= {
    'json': json.dumps,
    'quote': shlex.quote,
    'ceil': math.ceil,
  }
  text = environment.get_template(f'{template}.jinja').render(
    backend=backend,
    array=array,
    own_fault=OWN_FAULT,
    preempted=attempt.PREEMPTED,
    retries=MAX_RETRIES,
    stop_seconds=STOP_SECONDS,
    **further,
  )
  if template.endswith('.json'):
    return json.dumps(json.loads(text), indent=2) + '\n'
  return text


def create(
  sweep: Sweep,
  runs_of_sweep: Sequence[SweepRun],
  name: str,
  runs: str,
  flags: Sequence[str],
) -> JobArray:
  """Returns the job array of some runs of a sweep; flags are of `sweep task`.

  The same runs have the same name: a system that refuses to take a name twice
  does not execute them twice. `runs` is the folder of all runs for a task.
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
