"""What a run writes down while it trains: metrics.csv and TensorBoard."""

from collections.abc import Mapping, Sequence
import os
import time
from typing import Any, Protocol

from absl import logging
import tensorflow as tf

from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.runs import atomic, run_directory, run_tables
from batch_rl_dr3.training import trackers

_RATIO = 'divergence_ratio'
_COUNTS = ('iteration', run_tables.STEPS)
# TensorBoard's group of a metric, by the beginning of its name.
_GROUPS = (
  ('loss_', 'Losses/'),
  ('eval_', 'Eval/'),
  ('held_out_', 'HeldOut/'),
  ('', 'Features/'),
)


class Sample(Protocol):
  """Samples of the data, drawn once a run, that a learner is measured on."""

  @property
  def columns(self) -> Sequence[str]: ...  # noqa: D102

  @property
  def feature_columns(self) -> Sequence[str]: ...  # noqa: D102

  def measure(self) -> dict[str, float]:
    """Returns what is logged, by column.

    Among them are loss_total, feature_dot_product, feature_norm_squared and
    discounted_dot_product.
    """

  def measure_features(self) -> Mapping[str, float]:
    """Returns what takes a larger sample, such as `effective_rank`."""


class MetricsLog:
  """Measures a learner every so many gradient steps and logs the result.

  All rows are of one sample of the data: they can be compared, and a run that
  measures more often is the same run. The effective rank and what is measured
  with it are of a larger sample, at a period of their own.
  """

  def __init__(
    self,
    base_dir: str | os.PathLike[str],
    sample: Sample,
    log_period: int,
    effective_rank_period: int,
    check: atomic.Check = atomic.unchecked,
    tracking: trackers.Tracking | None = None,
  ):
    self._base_dir = base_dir
    self._tracking = tracking or trackers.Tracking()
    self._sample = sample
    self._log_period = log_period
    self._effective_rank_period = effective_rank_period
    self._csv = run_tables.CsvLog(
      os.path.join(base_dir, run_directory.METRICS),
      (
        *_COUNTS,
        *sample.columns,
        _RATIO,
        *sample.feature_columns,
        'gradient_steps_per_second',
      ),
      check,
      _COUNTS,
    )
    self._clock: tuple[int, float] | None = None
    self._has_warned = False
    self._writer: Any = None

  def start(self, steps: int) -> None:
    """Goes back to `steps` gradient steps, whatever was logged since."""
    self._csv.keep(lambda row: int(row[run_tables.STEPS]) < steps)
    self._has_warned = any(
      float(row.get(_RATIO) or 0) >= 1 for row in self._csv.rows()
    )
    with tf.Graph().as_default():  # It refuses where TensorFlow is eager.
      self._writer = tf.compat.v1.summary.FileWriter(str(self._base_dir))
    self._writer.add_session_log(
      tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
      global_step=steps,
    )

  def close(self) -> None:
    """Closes TensorBoard's file and the trackers."""
    self._tracking.close()
    if self._writer is not None:
      self._writer.close()

  def start_clock(self, steps: int) -> None:
    """Starts to measure gradient steps per second, from `steps` on."""
    self._clock = (steps, time.monotonic())

  def _rate(self, steps: int) -> float | None:
    if self._clock is None or self._clock[0] == steps:
      return None
    since, then = self._clock
    return round((steps - since) / (time.monotonic() - then), 2)

  def is_due(self, steps: int) -> bool:
    """Returns whether a row is to be written after `steps` steps."""
    return steps % self._log_period == 0

  def steps_until_due(self, steps: int) -> int:
    """Returns in how many steps the next row is due, at least 1."""
    return self._log_period - steps % self._log_period

  def log(self, iteration: int, steps: int) -> dict[str, Any]:
    """Measures, writes and returns one row."""
    rate = self._rate(steps)
    row: dict[str, Any] = dict(self._sample.measure())
    row[_RATIO] = float(
      feature_measures.divergence_ratio(
        row['discounted_dot_product'], row['feature_norm_squared']
      )
    )
    if row[_RATIO] >= 1 and not self._has_warned:
      self._has_warned = True
      # Linear TD on the features would not converge.
      logging.warning(
        "features satisfy Proposition 3.2's divergence condition at gradient "
        'step %d: %s is %.4g.',
        *(steps, _RATIO, row[_RATIO]),
      )
    if steps % self._effective_rank_period == 0:
      row |= self._sample.measure_features()
    self._write(iteration, steps, row, rate)
    self.start_clock(steps)
    return row

  def log_diverged(
    self, iteration: int, steps: int, parts: dict[str, float]
  ) -> None:
    """Writes the loss parts of a batch whose loss is not finite."""
    self._write(iteration, steps, parts, self._rate(steps))

  def _write(
    self, iteration: int, steps: int, row: dict[str, Any], rate: float | None
  ) -> None:
    self.scalars(row, steps)
    counts = dict(zip(_COUNTS, (iteration, steps), strict=True))
    self._csv.append({**counts, **row, 'gradient_steps_per_second': rate})

  def scalars(self, values: dict[str, Any], steps: int) -> None:
    """Tells TensorBoard and trackers, under Losses/, Eval/ and Features/."""
    tagged = {}
    for name, value in values.items():
      prefix, group = next(g for g in _GROUPS if name.startswith(g[0]))
      tagged[group + name.removeprefix(prefix)] = value
    summary = tf.compat.v1.Summary()
    for tag, value in tagged.items():
      summary.value.add(tag=tag, simple_value=value)
    self._tracking.log(tagged, steps, is_score='eval_return' in values)
    self._writer.add_summary(summary, steps)
    self._writer.flush()
