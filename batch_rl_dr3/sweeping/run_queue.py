"""Which run goes where next, and when a run that failed is tried again.

A policy without an engine: it knows nodes by name and memory, and no clock but
the one it is told.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math

from batch_rl_dr3.config import errors
from batch_rl_dr3.sweeping.run import Run

# Seconds until a run is tried again: doubled with each attempt without
# progress, up to the longest.
_FIRST_DELAY = 2.0
_LONGEST_DELAY = 300.0
# Seconds for which nothing begins on a node where a job was lost: it may be
# dead, which takes Ray 12 seconds to notice. After so many times it is broken.
_SUSPENDED_SECONDS = 15.0
_MAX_LOST = 5
# Until it is looked at again whether the process that works on a run has left.
_BUSY_DELAY = 60.0


@dataclasses.dataclass
class Node:
  """A machine with slots.

  Attributes:
    name: which.
    memory: bytes that runs may use.
    running: the runs that it executes.
    stores: what it has on its disk, as far as is known.
    suspended_until: no run begins on it before.
    num_lost: how often in a row jobs were lost there, and nothing came back.
  """

  name: str
  memory: float
  running: list[Run] = dataclasses.field(default_factory=list)
  stores: set[str] = dataclasses.field(default_factory=set)
  suspended_until: float = 0.0
  num_lost: int = 0

  def lose(self, now: float) -> None:
    """Notes that a job was lost here; what else is lost at once is one."""
    if now >= self.suspended_until:
      self.num_lost += 1
      self.suspended_until = now + _SUSPENDED_SECONDS
    if self.is_broken:
      self.suspended_until = math.inf

  @property
  def is_broken(self) -> bool:
    """Whether no run is to begin here any more."""
    return self.num_lost >= _MAX_LOST


class Queue:
  """The runs that are left to do."""

  def __init__(
    self,
    runs: Iterable[Run],
    run_bytes: float,
    store_bytes: Callable[[Run], float],
  ):
    """Makes the queue.

    Args:
      runs: what is to be done, first ones first.
      run_bytes: memory of a run beside its store.
      store_bytes: memory of a run's store, which runs of a node share.
    """
    self._ready_at = {run.index: (run, 0.0) for run in runs}
    self._run_bytes = run_bytes
    self._store_bytes = store_bytes

  def __len__(self) -> int:
    return len(self._ready_at)

  def take(self, node: Node, nodes: Sequence[Node], now: float) -> Run | None:
    """Returns the run that a free slot of a node begins, None for none.

    A run whose store the node holds comes first, then one whose store no node
    holds, then any, as long as there is memory for it.

    Args:
      node: where the slot is; the run is entered there.
      nodes: all nodes that live.
      now: the time in seconds.
    """
    if now < node.suspended_until:
      return None
    held = set().union(*(other.stores for other in nodes))
    best: tuple[int, Run] | None = None
    for run, ready_at in self._ready_at.values():
      if ready_at > now or not self._fits(node, run):
        continue
      rank = (
        0 if run.store in node.stores else 1 if run.store not in held else 2
      )
      if best is None or rank < best[0]:
        best = rank, run
      if rank == 0:
        break
    if best is None:
      return None
    run = best[1]
    del self._ready_at[run.index]
    node.running.append(run)
    node.stores.add(run.store)
    return run

  def _fits(self, node: Node, run: Run) -> bool:
    return self._bytes([*node.running, run]) <= node.memory

  def _bytes(self, runs: Sequence[Run]) -> float:
    stores = {run.store: self._store_bytes(run) for run in runs}
    return len(runs) * self._run_bytes + sum(stores.values())

  def check_memory(self, nodes: Sequence[Node]) -> None:
    """Checks that every run has a node that could hold it, were it empty.

    Raises:
      ConfigError: if one has none.
    """
    largest = max((node.memory for node in nodes), default=0.0)
    for run, _ in self._ready_at.values():
      needed = self._bytes([run])
      if needed > largest:
        raise errors.ConfigError(
          f'no node has the memory for {run.folder}: it needs '
          f'{needed / 1e9:.1f} GB with its store, and the largest has '
          f'{largest / 1e9:.1f}. Check Sweep.run_gigabytes and '
          'Sweep.row_bytes, or give a cluster with larger nodes.'
        )

  def put_back(self, run: Run, now: float, without_progress: int) -> float:
    """Queues a run again and returns the seconds until it is ready.

    Args:
      run: the run.
      now: the time in seconds.
      without_progress: attempts in a row that came to nothing.
    """
    delay = min(_FIRST_DELAY * 2**without_progress, _LONGEST_DELAY)
    self._ready_at[run.index] = (run, now + delay)
    return delay

  def put_back_busy(self, run: Run, now: float) -> None:
    """Queues a run that another process works on."""
    self._ready_at[run.index] = (run, now + _BUSY_DELAY)
