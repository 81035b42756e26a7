"""The rows of metrics.csv, whatever is trained, and TensorBoard's names."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import time
from typing import Any

from batch_rl_dr3.runs import run_directory

# TensorBoard's group of a metric, by the beginning of its name.
_GROUPS = (
  ('loss_', 'Losses/'),
  ('eval_', 'Eval/'),
  ('held_out_', 'HeldOut/'),
  ('', 'Features/'),
)


def tag(name: str) -> str:
  """Returns TensorBoard's name of a metric: its group, then its name."""
  prefix, group = next(g for g in _GROUPS if name.startswith(g[0]))
  return group + name.removeprefix(prefix)


class MetricRows:
  """metrics.csv, and the rate of gradient steps between its rows."""

  def __init__(
    self,
    base_dir: str | os.PathLike[str],
    columns: Sequence[str],
    check: run_directory.Check = run_directory.unchecked,
  ):
    """Opens the file; nothing is written yet.

    Args:
      base_dir: the run directory.
      columns: what is measured, by name.
      check: asked before the file changes.
    """
    self.path = pathlib.Path(base_dir) / run_directory.METRICS
    self._csv = run_directory.CsvLog(
      self.path,
      (
        'iteration',
        'gradient_steps',
        *columns,
        'gradient_steps_per_second',
      ),
      check,
    )
    self._clock: tuple[int, float] | None = None

  def keep(self, steps: int) -> None:
    """Drops what was logged at `steps` gradient steps or later."""
    self._csv.keep(lambda row: int(row['gradient_steps']) < steps)

  def start_clock(self, steps: int) -> None:
    """Starts to measure gradient steps per second, from `steps` on."""
    self._clock = (steps, time.monotonic())

  def rate(self, steps: int) -> float | None:
    """Returns gradient steps per second since then; None without any."""
    if self._clock is None or self._clock[0] == steps:
      return None
    since, then = self._clock
    return round((steps - since) / (time.monotonic() - then), 2)

  def append(
    self,
    iteration: int,
    steps: int,
    row: Mapping[str, Any],
    rate: float | None,
  ) -> None:
    """Adds one row."""
    self._csv.append(
      {
        'iteration': iteration,
        'gradient_steps': steps,
        **row,
        'gradient_steps_per_second': rate,
      }
    )
