"""Which run goes where next, and the loop that has runs executed.

`Queue` is a policy without an engine or a clock. `Executor` is the loop: a
cluster begins attempts on nodes and says what became of them. All that
outlives either is in the run directories.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
import time
from typing import TYPE_CHECKING

from batch_rl_dr3.config import errors, progress
from batch_rl_dr3.sweeping import attempt
from batch_rl_dr3.sweeping.grid import SweepRun

if TYPE_CHECKING:
  from batch_rl_dr3.sweeping import ray_cluster

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
# Seconds between looks at which nodes there are, and for a request to stop.
_NODES_SECONDS = 5.0
_POLL_SECONDS = 0.5
# Seconds without a node after which a sweep gives up.
_NO_NODE_SECONDS = 300.0


@dataclasses.dataclass
class Node:
  """A machine with slots."""

  name: str
  memory: float  # In bytes, for runs.
  running: list[SweepRun] = dataclasses.field(default_factory=list)
  num_slots: int = 0  # Runs at a time.
  # What it has on its disk, as far as is known.
  stores: set[str] = dataclasses.field(default_factory=set)
  suspended_until: float = 0.0
  num_lost: int = 0  # How often in a row jobs were lost there.

  def lose(self, now: float) -> None:
    """Records that a job was lost; several lost at once count as one."""
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
    runs: Iterable[SweepRun],
    run_bytes: float,
    store_bytes: Callable[[SweepRun], float],
  ):
    """Makes the queue; sizes are bytes of memory, a run's without its store."""
    self._ready_at = {run.index: (run, 0.0) for run in runs}
    self._run_bytes = run_bytes
    self._store_bytes = store_bytes

  def __len__(self) -> int:
    return len(self._ready_at)

  def take(
    self, node: Node, nodes: Sequence[Node], now: float
  ) -> SweepRun | None:
    """Returns the run that a free slot of a node begins, entered there.

    A run whose store the node holds comes first, then one whose store no node
    holds, then any, as long as there is memory for it and what it starts from
    is finished; None if there is none.
    """
    if now < node.suspended_until:
      return None
    held = set().union(*(other.stores for other in nodes))
    pending = {run.folder for run, _ in self._ready_at.values()}
    pending |= {run.folder for other in nodes for run in other.running}
    ready = (
      run
      for run, ready_at in self._ready_at.values()
      if ready_at <= now
      and (run.start is None or run.start.folder not in pending)
      and self._bytes([*node.running, run]) <= node.memory
    )
    run = min(
      ready,
      key=lambda run: (run.store not in node.stores, run.store in held),
      default=None,
    )
    if run is not None:
      del self._ready_at[run.index]
      node.running.append(run)
      node.stores.add(run.store)
    return run

  def _bytes(self, runs: Sequence[SweepRun]) -> float:
    stores = {run.store: self._store_bytes(run) for run in runs}
    return len(runs) * self._run_bytes + sum(stores.values())

  def check_memory(self, nodes: Iterable[Node]) -> None:
    """Raises ConfigError if a run fits no node, even an empty one."""
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

  def put_back(
    self, run: SweepRun, now: float, outcome: attempt.Outcome
  ) -> float:
    """Queues a run again and returns the seconds until it is ready."""
    delay = min(_FIRST_DELAY * 2**outcome.without_progress, _LONGEST_DELAY)
    if outcome.kind == attempt.BUSY:  # Another process works on it.
      delay = _BUSY_DELAY
    self._ready_at[run.index] = (run, now + delay)
    return delay


@dataclasses.dataclass
class Tally:
  """What became of the runs; `num_again` counts attempts made again."""

  num_done: int = 0
  set_aside: list[str] = dataclasses.field(default_factory=list)
  num_again: int = 0


@dataclasses.dataclass
class Executor:
  """Executes runs, each by one attempt at a time, until none is left."""

  cluster: 'ray_cluster.RayCluster'
  queue: Queue
  attempt_at: Callable[[SweepRun], attempt.Attempt]
  stop_requested: Callable[[], bool]
  stop_seconds: float  # How long runs have to save when asked to stop.

  def __post_init__(self) -> None:
    self._tally = Tally()
    self._known: dict[str, Node] = {}
    self._nodes: list[Node] = []  # Those of them that live.
    self._running: dict[int, tuple[Node, SweepRun]] = {}
    self._looked = -_NODES_SECONDS
    self._last_seen = -_NO_NODE_SECONDS

  def run(self) -> Tally:
    """Executes all runs and returns what became of them.

    Raises:
      ConfigError: if a run fits no node.
      PreemptedError: if asked to stop, once all runs have saved.
    """
    self._look_at_nodes()
    self.queue.check_memory(self._nodes)
    with progress.bar(len(self.queue), 'sweep', 'run') as self._bar:
      while self.queue or self._running:
        if self.stop_requested():
          self._stop()
        self._look_at_nodes()
        self._fill()
        self._wait()
    return self._tally

  def _look_at_nodes(self) -> None:
    """Brings what is known of the nodes up to date, now and then."""
    now = time.monotonic()
    if now - self._looked < _NODES_SECONDS:
      return
    self._looked = now
    found = {n: c for n, c in self.cluster.nodes().items() if c[0]}
    if found:
      self._last_seen = now
    elif now - self._last_seen > _NO_NODE_SECONDS:
      raise errors.ConfigError(
        'the cluster has no node that could execute a run.'
      )
    for name, (num_slots, memory) in found.items():
      self._known.setdefault(name, Node(name, memory)).num_slots = num_slots
    self._nodes = [self._known[name] for name in found]

  def _fill(self) -> None:
    """Begins runs in all free slots, on the emptiest nodes first."""
    for node in sorted(self._nodes, key=lambda node: len(node.running)):
      while len(node.running) < node.num_slots:
        run = self.queue.take(node, self._nodes, time.monotonic())
        if run is None:
          break
        self._running[run.index] = (node, run)
        self.cluster.start(node.name, self.attempt_at(run))
    self._bar.set_postfix_str(f'{len(self._running)} running', refresh=False)

  def _wait(self) -> None:
    """Decides what becomes of runs whose attempts are over, if some are."""
    for key, outcome in self.cluster.wait(_POLL_SECONDS):
      node, run = self._running.pop(key)
      node.running.remove(run)
      if outcome.kind in (attempt.DONE, attempt.SET_ASIDE):
        self._record_end(run, outcome)
      else:
        self._try_again(run, outcome)
      if outcome.kind != attempt.LOST:
        node.num_lost = 0
        continue
      node.lose(time.monotonic())
      if self._nodes and all(node.is_broken for node in self._nodes):
        raise errors.ConfigError(
          'every node loses all that it is given; the last time: '
          f'{outcome.error}. Is this package installed on the nodes?'
        )

  def _record_end(self, run: SweepRun, outcome: attempt.Outcome) -> None:
    self._bar.update()
    if outcome.kind == attempt.DONE:
      self._tally.num_done += 1
      return
    self._tally.set_aside.append(run.folder)
    self._bar.write(
      f'{run.folder}: set aside, exit code {outcome.exit_code}: {outcome.error}'
    )

  def _try_again(self, run: SweepRun, outcome: attempt.Outcome) -> None:
    is_lost = outcome.kind == attempt.LOST
    delay = self.queue.put_back(run, time.monotonic(), outcome)
    # That another process works on it, or that it was told to, is no news.
    if is_lost or not (outcome.kind == attempt.BUSY or self.stop_requested()):
      self._tally.num_again += 1
      ended = '' if is_lost else f'ended with {outcome.exit_code}: '
      self._bar.write(
        f'{run.folder}: {ended}{outcome.error}; again in {delay:.0f} s'
      )

  def _stop(self) -> None:
    """Has all runs save, and ends the sweep with a PreemptedError."""
    self._bar.write(f'stopping: {len(self._running)} runs save their state')
    self.cluster.stop()
    deadline = time.monotonic() + self.stop_seconds
    while self._running and time.monotonic() < deadline:
      self._wait()
    left = len(self.queue) + len(self._running)
    raise errors.PreemptedError(
      f'stopped with {left} runs left; give the same command again.'
    )
