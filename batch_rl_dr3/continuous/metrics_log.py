"""metrics.csv and TensorBoard's events of a continuous run."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import tensorflow as tf

from batch_rl_dr3.training import metric_rows


class MetricsLog:
  """Rows of measures, with the rate of gradient steps between them."""

  def __init__(self, base_dir: pathlib.Path, columns: Sequence[str]):
    """Opens the log; nothing is written yet.

    Args:
      base_dir: the run directory.
      columns: what is measured, by name.
    """
    self._rows = metric_rows.MetricRows(base_dir, columns)
    self._writer = tf.summary.create_file_writer(str(base_dir))

  def keep(self, steps: int) -> None:
    """Drops what was logged at `steps` gradient steps or later."""
    self._rows.keep(steps)

  def start_clock(self, steps: int) -> None:
    """Starts to measure gradient steps per second, from `steps` on."""
    self._rows.start_clock(steps)

  def log(self, iteration: int, steps: int, row: Mapping[str, Any]) -> None:
    """Writes one row."""
    rate = self._rows.rate(steps)
    self.scalars(row, steps)
    self._rows.append(iteration, steps, row, rate)
    self.start_clock(steps)

  def scalars(self, values: Mapping[str, Any], steps: int) -> None:
    """Writes values to TensorBoard under Losses/, Eval/ and Features/."""
    with self._writer.as_default():
      for name, value in values.items():
        tf.summary.scalar(metric_rows.tag(name), value, steps)
    self._writer.flush()

  def close(self) -> None:
    """Closes TensorBoard's file."""
    self._writer.close()
