"""metrics.csv and TensorBoard's events of a continuous run."""

from collections.abc import Mapping, Sequence
import pathlib
import time
from typing import Any

import tensorflow as tf

from batch_rl_dr3 import run_directory

# TensorBoard's group of a metric, by the beginning of its name.
_GROUPS = (('loss_', 'Losses/'), ('eval_', 'Eval/'), ('', 'Features/'))


class MetricsLog:
  """Rows of measures, with the rate of gradient steps between them."""

  def __init__(self, base_dir: pathlib.Path, columns: Sequence[str]):
    """Opens the log; nothing is written yet.

    Args:
      base_dir: the run directory.
      columns: what is measured, by name.
    """
    self._csv = run_directory.CsvLog(
      base_dir / run_directory.METRICS,
      (
        'iteration',
        'gradient_steps',
        *columns,
        'effective_rank',
        'gradient_steps_per_second',
      ),
    )
    self._writer = tf.summary.create_file_writer(str(base_dir))
    self._clock: tuple[int, float] | None = None

  def keep(self, steps: int) -> None:
    """Drops what was logged at `steps` gradient steps or later."""
    self._csv.keep(lambda row: int(row['gradient_steps']) < steps)

  def start_clock(self, steps: int) -> None:
    """Starts to measure gradient steps per second, from `steps` on."""
    self._clock = (steps, time.monotonic())

  def log(self, iteration: int, steps: int, row: Mapping[str, Any]) -> None:
    """Writes one row."""
    rate = None
    if self._clock is not None and steps > self._clock[0]:
      since, then = self._clock
      rate = round((steps - since) / (time.monotonic() - then), 2)
    self.scalars(row, steps)
    self._csv.append(
      {
        'iteration': iteration,
        'gradient_steps': steps,
        **row,
        'gradient_steps_per_second': rate,
      }
    )
    self.start_clock(steps)

  def scalars(self, values: Mapping[str, Any], steps: int) -> None:
    """Writes values to TensorBoard under Losses/, Eval/ and Features/."""
    with self._writer.as_default():
      for name, value in values.items():
        prefix, group = next(g for g in _GROUPS if name.startswith(g[0]))
        tf.summary.scalar(group + name.removeprefix(prefix), value, steps)
    self._writer.flush()

  def close(self) -> None:
    """Closes TensorBoard's file."""
    self._writer.close()
