"""Work that is shared among processes, since drawing holds Python's lock."""

from collections.abc import Callable, Sequence
from concurrent import futures
import multiprocessing
from typing import Any, TypeVar

from batch_rl_dr3 import progress

Result = TypeVar('Result')

# Seconds until a progress bar appears.
_PATIENCE = 3.0
# What the processes are to do. They are forked, so they find it here, and
# nothing has to be sent to them.
_tasks: Sequence[Callable[[], Any]] = ()


def run(
  tasks: Sequence[Callable[[], Result]],
  num_processes: int,
  desc: str,
  unit: str,
) -> list[Result]:
  """Returns the results of tasks, in their order.

  Args:
    tasks: what is done; a result is pickled on its way back.
    num_processes: how many tasks are done at a time; 1 forks no process.
    desc: what is under way.
    unit: what a task makes.
  """
  global _tasks
  with progress.bar(len(tasks), desc, unit, delay=_PATIENCE) as bar:
    results: list[Result] = []
    if num_processes == 1:
      for task in tasks:
        results.append(task())
        bar.update()
      return results
    _tasks = tasks
    fork = multiprocessing.get_context('fork')
    with futures.ProcessPoolExecutor(num_processes, fork) as pool:
      for result in pool.map(_run_one, range(len(tasks))):
        results.append(result)
        bar.update()
    _tasks = ()
  return results


def _run_one(index: int) -> Any:
  return _tasks[index]()
