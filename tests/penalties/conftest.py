"""A batch of two transitions, and penalties on it."""

import batch_rl_dr3  # noqa: F401

# isort: split
import pytest
import tensorflow as tf

from batch_rl_dr3 import penalties


@pytest.fixture
def batch():
  """Makes the batch; its parts can be given."""

  def make(**changes):
    values = {
      'q_values': tf.constant([[1.0, 1.0], [0.0, 2.0]]),
      'features': tf.constant([[1.0, 2.0], [3.0, 0.0]]),
      'next_features': tf.constant([[1.0, 1.0], [-4.0, 1.0]]),
      'actions': tf.constant([0, 1]),
      'next_policy': tf.constant([[0.25, 0.75], [1.0, 0.0]]),
      'terminals': tf.constant([1.0, 0.0]),
      'discounts': tf.constant([0.0, 0.5]),
      'step': tf.constant(0, tf.int64),
    }
    return penalties.UpdateBatch(**{**values, **changes})

  return make
