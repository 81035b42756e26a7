"""Fixtures that more than one folder of tests uses."""

import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)

# isort: split
import gin
import pytest


@pytest.fixture
def session():
  """A session on a graph of its own, as TF1 code expects it."""
  import tensorflow as tf

  from batch_rl_dr3 import dopamine_compat  # noqa: F401

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    yield session


@pytest.fixture
def clear_gin():
  """Gin without bindings, before and after."""
  gin.clear_config()
  yield
  gin.clear_config()
