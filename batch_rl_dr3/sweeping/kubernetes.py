"""A job array for Kubernetes 1.29 or later: an indexed Job, as JSON."""

from collections.abc import Sequence
import dataclasses
import json
import math
from typing import Any

import gin

from batch_rl_dr3.sweeping import attempt, job_array

_CONTAINER = 'run'


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Kubernetes:
  """How a sweep is executed by Kubernetes.

  Attributes:
    image: the container image, built from the shipped Dockerfile.
    parallelism: pods at a time.
    node_selector: labels of the nodes that may be used.
    tolerations: taints of nodes that are put up with, such as of spot ones.
    runs_claim: the PersistentVolumeClaim (ReadWriteMany) that is mounted where
      --runs is, unless that is in a bucket; None mounts none, for nodes that
      see a shared disk.
    cache_gigabytes: of the node's disk that a pod may fill with its store.
  """

  image: str = 'REGISTRY/batch-rl-dr3:cuda'
  parallelism: int = 100
  node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
  tolerations: Sequence[dict[str, str]] = ()
  runs_claim: str | None = 'runs'
  cache_gigabytes: float = 50.0

  def files(self, array: job_array.JobArray) -> dict[str, str]:
    """Returns one file."""
    count = len(array.indices)
    job = {
      'apiVersion': 'batch/v1',
      'kind': 'Job',
      'metadata': {'name': array.name},
      'spec': {
        'completionMode': 'Indexed',
        'completions': count,
        'parallelism': min(self.parallelism, count),
        'backoffLimitPerIndex': job_array.MAX_RETRIES,
        'maxFailedIndexes': count,
        'podFailurePolicy': {'rules': _rules()},
        'template': {'spec': self._pod(array)},
      },
    }
    return {f'{array.name}.json': json.dumps(job, indent=2) + '\n'}

  def _pod(self, array: job_array.JobArray) -> dict[str, Any]:
    amounts: dict[str, Any] = {
      'cpu': f'{array.milli_cpus}m',
      'memory': f'{array.mebibytes}Mi',
      'ephemeral-storage': f'{math.ceil(self.cache_gigabytes)}G',
    }
    limits = {'memory': amounts['memory']}
    if array.num_gpus:
      limits['nvidia.com/gpu'] = str(array.whole_gpus)
    container: dict[str, Any] = {
      'name': _CONTAINER,
      'image': self.image,
      'command': array.command,
      'resources': {'requests': amounts, 'limits': limits},
    }
    pod: dict[str, Any] = {
      'restartPolicy': 'Never',
      'terminationGracePeriodSeconds': job_array.STOP_SECONDS,
      'containers': [container],
    }
    if self.node_selector:
      pod['nodeSelector'] = dict(self.node_selector)
    if self.tolerations:
      pod['tolerations'] = [dict(one) for one in self.tolerations]
    if self.runs_claim is not None and array.mount is not None:
      container['volumeMounts'] = [{'name': 'runs', 'mountPath': array.mount}]
      pod['volumes'] = [
        {
          'name': 'runs',
          'persistentVolumeClaim': {'claimName': self.runs_claim},
        }
      ]
    return pod

  def submit(self, names: Sequence[str]) -> list[str]:
    """Returns the command of each file."""
    return [f'kubectl create --filename={name}' for name in names]


def _rules() -> list[dict[str, Any]]:
  """Returns what becomes of a pod that failed; the first that applies does.

  Ignored failures do not count, and the pod is made again.
  """

  def on_exit(action: str, codes: Sequence[int]) -> dict[str, Any]:
    return {
      'action': action,
      'onExitCodes': {
        'containerName': _CONTAINER,
        'operator': 'In',
        'values': list(codes),
      },
    }

  return [
    on_exit('FailIndex', job_array.OWN_FAULT),
    {
      'action': 'Ignore',
      'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
    },
    on_exit('Ignore', [attempt.PREEMPTED]),
  ]
