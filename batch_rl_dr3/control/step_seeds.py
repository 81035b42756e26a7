"""Random numbers that are a function of seed, gradient step and purpose."""

from collections.abc import Iterator
import contextlib
import zlib

import tensorflow as tf


class StepSeeds:
  """Stands in for TF-Agents' stream of seeds, and needs no state of its own.

  TF-Agents samples with stateful generators, whose state no checkpoint holds:
  a run that was stopped would go on with other numbers. Each call of this
  object returns the seed of a stateless sampler, which TensorFlow Probability
  takes in the same place. It depends on the run's seed, the gradient step,
  what is sampled for, and which call for that it is; not on which function
  was traced first.
  """

  def __init__(self, seed: int, step: tf.Variable):
    """Creates the stream.

    Args:
      seed: the run's seed.
      step: int64 scalar, the number of gradient steps taken.
    """
    self._seed = seed
    self._step = step
    self._salt: int | None = None
    self._num_calls = 0

  @contextlib.contextmanager
  def purpose(self, name: str) -> Iterator[None]:
    """Says what is sampled for while the block is traced."""
    before = (self._salt, self._num_calls)
    self._salt, self._num_calls = zlib.crc32(name.encode()) & 0x7FFFFFFF, 0
    try:
      yield
    finally:
      self._salt, self._num_calls = before

  def __call__(self) -> tf.Tensor:
    """Returns the seed of the next sampler, int32 [2].

    Raises:
      RuntimeError: outside of `purpose`.
    """
    if self._salt is None:
      raise RuntimeError('random numbers are asked for without a purpose.')
    self._num_calls += 1
    seed = tf.constant([self._seed, self._salt], tf.int32)
    fold_in = tf.random.experimental.stateless_fold_in
    step = tf.cast(self._step, tf.int32)
    return fold_in(fold_in(seed, step), self._num_calls)
