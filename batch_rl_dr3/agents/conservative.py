"""The conservative penalty of CQL."""

import tensorflow as tf

from batch_rl_dr3.agents import bellman


def conservative(q_values: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """Returns logsumexp_a Q(s, a) - Q(s, a_data), the CQL(H) penalty.

  Kumar et al. 2020 (arXiv:2006.04779), Eq. 4. It is log(A) where all Q-values
  are equal, and never negative.

  Args:
    q_values: float32 [B, A]. Gradients flow through both terms.
    actions: int [B], the logged actions.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the batch sizes differ.
  """
  q_values.shape.assert_has_rank(2)
  return tf.reduce_logsumexp(q_values, axis=1) - bellman.chosen_values(
    q_values, actions
  )
