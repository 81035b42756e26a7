"""A job array for Google Cloud Batch, as the JSON that gcloud submits."""

from collections.abc import Sequence
import dataclasses
import json
import math
from typing import Any

import gin

from batch_rl_dr3.config import errors
from batch_rl_dr3.sweeping import attempt, job_array

# Of Batch itself: a preempted virtual machine, one that does not answer, one
# that was rebooted, and one that was recreated.
_MACHINE_LOST = (50001, 50002, 50003, 50006)
# The machine's folder of stores, which its tasks share, and the image's.
_CACHE = '/var/lib/batch_rl_dr3:/cache:rw'


@gin.configurable
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
    nfs: 'SERVER:/PATH' of the shared disk that is mounted where --runs is;
      None mounts none, for images that see one, and for runs in a bucket.
  """

  image: str = 'REGION-docker.pkg.dev/PROJECT/images/batch-rl-dr3:cuda'
  location: str = 'us-central1'
  machine_type: str = 'g2-standard-8'
  gpu_type: str = 'nvidia-l4'
  provisioning_model: str = 'SPOT'
  parallelism: int = 100
  max_run_hours: float = 168.0
  disk_gigabytes: int = 200
  nfs: str | None = None

  def files(self, array: job_array.JobArray) -> dict[str, str]:
    """Returns one file, whose job's name is the file's.

    Raises:
      ConfigError: if a disk is to be mounted for runs in a bucket.
    """
    if self.nfs and array.mount is None:
      raise errors.ConfigError(
        f'GcpBatch.nfs={self.nfs} mounts a disk, but --runs={array.runs} is in '
        'a bucket: leave one of them out.'
      )
    spec: dict[str, Any] = {
      'runnables': [
        {
          'container': {
            'imageUri': self.image,
            'commands': array.command,
            'volumes': [
              _CACHE,
              *([f'{array.mount}:{array.mount}:rw'] if self.nfs else []),
            ],
          }
        }
      ],
      'computeResource': {
        'cpuMilli': array.milli_cpus,
        'memoryMib': array.mebibytes,
      },
      'maxRunDuration': f'{math.ceil(3600 * self.max_run_hours)}s',
      'maxRetryCount': job_array.MAX_RETRIES,
      # Of tasks that end with another code none is begun again.
      'lifecyclePolicies': [
        {
          'action': 'RETRY_TASK',
          'actionCondition': {'exitCodes': [*_MACHINE_LOST, attempt.PREEMPTED]},
        }
      ],
    }
    if self.nfs:
      server, _, path = self.nfs.partition(':')
      spec['volumes'] = [
        {
          'nfs': {'server': server, 'remotePath': path},
          'mountPath': array.mount,
        }
      ]
    group = {
      'taskSpec': spec,
      'taskCount': len(array.indices),
      'parallelism': min(self.parallelism, len(array.indices)),
    }
    policy: dict[str, Any] = {
      'machineType': self.machine_type,
      'provisioningModel': self.provisioning_model,
      'bootDisk': {'sizeGb': self.disk_gigabytes},
    }
    instance: dict[str, Any] = {'policy': policy}
    if array.num_gpus:
      policy['accelerators'] = [
        {'type': self.gpu_type, 'count': array.whole_gpus}
      ]
      instance['installGpuDrivers'] = True
      # Several tasks share the GPU of a machine.
      group['taskCountPerNode'] = max(1, int(1 / array.num_gpus))
    job = {
      'taskGroups': [group],
      'allocationPolicy': {'instances': [instance]},
      'labels': {'sweep': array.name},
      'logsPolicy': {'destination': 'CLOUD_LOGGING'},
    }
    return {f'{array.name}.json': json.dumps(job, indent=2) + '\n'}

  def submit(self, names: Sequence[str]) -> list[str]:
    """Returns the command of each file."""
    return [
      f'gcloud batch jobs submit {name.removesuffix(".json")} '
      f'--location={self.location} --config={name}'
      for name in names
    ]
