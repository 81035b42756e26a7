"""Work shared among processes: parsing and drawing hold Python's lock."""

from collections.abc import Callable, Sequence
from concurrent import futures
import multiprocessing
from typing import Any, TypeVar

from batch_rl_dr3.config import progress

Result = TypeVar('Result')

_CHUNKS_PER_PROCESS = 16
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
    indices = range(len(tasks))
    # Few tasks are long ones; of many, several are sent at a time.
    chunk = 1 + len(tasks) // (_CHUNKS_PER_PROCESS * num_processes)
    fork = multiprocessing.get_context('fork')
    with futures.ProcessPoolExecutor(num_processes, fork) as pool:
      for result in pool.map(_run_one, indices, chunksize=chunk):
        results.append(result)
        bar.update()
    _tasks = ()
  return results


def _run_one(index: int) -> Any:
  return _tasks[index]()
