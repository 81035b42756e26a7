"""The nodes of a Ray cluster, each attempt there an actor.

Ray carries attempts to nodes and says who has died; its own retries, which
cannot tell a preemption from a fault, are off. The kernel ends an actor with
its raylet and a run with its actor, as Ray was seen to leave workers running.
Each actor pins its run to cores of its own.
"""

import ctypes
import itertools
import logging
import os
import signal
import sys
import time
from typing import Any

import ray
from ray import exceptions
from ray.util import scheduling_strategies

from batch_rl_dr3.config import errors
from batch_rl_dr3.sweeping import attempt

# Of a cluster that is started here. Only outcomes pass its object store.
_HERE: dict[str, Any] = {
  'include_dashboard': False,
  'object_store_memory': 80 << 20,
}
_PR_SET_PDEATHSIG = 1


class Slot:
  """What an actor is: a place for one attempt."""

  def __init__(self, job: attempt.Attempt, place: int, num_slots: int) -> None:
    # A raylet is the parent of its workers.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
      sys.exit('the raylet has died')
    self._job = job
    if hasattr(os, 'sched_getaffinity'):
      cores = os.sched_getaffinity(0)
      job.cores = attempt.cores_of_slot(place, num_slots, cores)

  def execute(self) -> attempt.Outcome:
    """Makes the attempt and returns what came of it."""
    try:
      return self._job.execute()
    except errors.BatchRLError as error:
      # The directory cannot say so itself.
      return attempt.Outcome(attempt.SET_ASIDE, error.exit_code, str(error))

  def stop(self) -> None:
    """Has the run save and end."""
    self._job.stop()


class RayCluster:
  """Ray's nodes, which execute attempts."""

  def __init__(
    self,
    address: str | None,
    num_cpus: float,
    num_gpus: float,
    slots_per_node: int = 0,
  ):
    """Connects to the cluster at an address, or starts one here for None.

    A slot takes num_cpus and num_gpus; a node has at most slots_per_node
    slots, unless that is 0. ConfigError if there is no cluster.
    """
    self._num_cpus, self._num_gpus = num_cpus, num_gpus
    self._slots_per_node = slots_per_node
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    try:
      ray.init(
        address=address or 'local',
        log_to_driver=False,
        logging_level=logging.ERROR,
        **({} if address else _HERE),
      )
    except (ConnectionError, ValueError, RuntimeError) as error:
      reason = ' '.join(str(error).split())
      raise errors.ConfigError(
        f'cannot use a Ray cluster at {address or "this machine"}: {reason}'
      ) from error
    self._num_slots: dict[str, int] = {}
    # Actor, node, place there and key of a run, by what Ray promises.
    self._running: dict[Any, tuple[Any, str, int, int]] = {}

  def close(self) -> None:
    """Ends the actors, and the cluster if it was started here."""
    ray.shutdown()

  def nodes(self) -> dict[str, tuple[int, float]]:
    """Returns the slots and the bytes for runs of each node that lives."""
    living = {
      node['NodeID']: node['Resources']
      for node in ray.nodes()  # type: ignore[no-untyped-call]
      if node['Alive']
    }
    self._num_slots = {n: self._count_slots(r) for n, r in living.items()}
    return {
      name: (self._num_slots[name], found.get('memory', 0.0))
      for name, found in living.items()
    }

  def _count_slots(self, resources: dict[str, float]) -> int:
    slots = resources.get('CPU', 0.0) / self._num_cpus
    if self._num_gpus:
      slots = min(slots, resources.get('GPU', 0.0) / self._num_gpus)
    return int(min(slots, self._slots_per_node or slots))

  def start(self, node: str, job: attempt.Attempt) -> None:
    """Begins an attempt in a free slot of a node."""
    taken = {p for _, name, p, _ in self._running.values() if name == node}
    place = next(p for p in itertools.count() if p not in taken)
    on_node = scheduling_strategies.NodeAffinitySchedulingStrategy(node, False)
    slot: Any = (
      ray.remote(Slot)
      .options(
        num_cpus=self._num_cpus,
        num_gpus=self._num_gpus,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=2,  # `stop` beside `execute`.
        scheduling_strategy=on_node,
      )
      .remote(job, place, self._num_slots[node])
    )
    self._running[slot.execute.remote()] = (slot, node, place, job.key)

  def wait(self, seconds: float) -> list[tuple[int, attempt.Outcome]]:
    """Returns attempts that are over, by key, after at most so many seconds."""
    references = list(self._running)
    if not references:
      time.sleep(seconds)  # A run is to be tried again later.
      return []
    done, _ = ray.wait(references, timeout=seconds, fetch_local=False)
    return [self._end(reference) for reference in done]

  def _end(self, reference: Any) -> tuple[int, attempt.Outcome]:
    slot, _, _, key = self._running.pop(reference)
    try:
      outcome = ray.get(reference)
    except exceptions.RayError as error:
      outcome = attempt.Outcome(attempt.LOST, attempt.PREEMPTED, _reason(error))
    ray.kill(slot)  # If it lives, it must not go on.
    return key, outcome

  def stop(self) -> None:
    """Asks all runs to save and end."""
    for slot, *_ in self._running.values():
      slot.stop.remote()


def _reason(error: exceptions.RayError) -> str:
  if isinstance(error, exceptions.OutOfMemoryError):
    return 'its node ran out of memory'
  lines = [line.strip() for line in str(error).splitlines()]
  last = next((line for line in reversed(lines) if line), '')
  return f'its node or its actor has died ({last})'
