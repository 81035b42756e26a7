"""Timing several things in turn, so that they share whatever disturbs them."""

from collections.abc import Callable, Mapping
import dataclasses
import statistics
import time

import numpy as np


@dataclasses.dataclass
class Times:
  """What one thing took, round for round.

  Attributes:
    wall: seconds a call by the clock.
    cpu: seconds a call of all cores together, which other processes on the
      machine disturb less.
  """

  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)

  @property
  def rate(self) -> float:
    """The median number of calls a second."""
    return 1.0 / statistics.median(self.wall)

  @property
  def median_wall(self) -> float:
    """The median seconds a call."""
    return statistics.median(self.wall)

  @property
  def median_cpu(self) -> float:
    """The median core-seconds a call."""
    return statistics.median(self.cpu)


def alternate(
  functions: Mapping[str, Callable[[], object]],
  num_rounds: int,
  num_calls: int,
  num_warm_up_calls: int = 3,
) -> dict[str, Times]:
  """Returns the times of functions that are called burst by burst in turn.

  Args:
    functions: what is timed, by name.
    num_rounds: bursts of each.
    num_calls: calls in a burst.
    num_warm_up_calls: calls before the first burst.
  """
  times = {name: Times() for name in functions}
  for function in functions.values():
    for _ in range(num_warm_up_calls):
      function()
  for _ in range(num_rounds):
    for name, function in functions.items():
      wall, cpu = time.perf_counter(), time.process_time()
      for _ in range(num_calls):
        function()
      times[name].wall.append((time.perf_counter() - wall) / num_calls)
      times[name].cpu.append((time.process_time() - cpu) / num_calls)
  return times


def seconds(times: Mapping[str, Times], num_calls: int) -> float:
  """Returns for how long all functions together were timed."""
  return num_calls * sum(sum(t.wall) for t in times.values())


def quartiles(slower: Times, faster: Times) -> tuple[float, float]:
  """Returns the quartiles over rounds of the quotient of two wall times."""
  quotients = np.divide(slower.wall, faster.wall)
  lower, upper = np.quantile(quotients, [0.25, 0.75])
  return float(lower), float(upper)


def ratio(slower: Times, faster: Times) -> float:
  """Returns the median over rounds of the quotient of two wall times."""
  return statistics.median(
    a / b for a, b in zip(slower.wall, faster.wall, strict=True)
  )


def cpu_ratio(slower: Times, faster: Times) -> float:
  """Returns the median over rounds of the quotient of two CPU times."""
  return statistics.median(
    a / b for a, b in zip(slower.cpu, faster.cpu, strict=True)
  )
