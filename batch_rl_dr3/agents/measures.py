"""What is logged of a batch."""

from collections.abc import Sequence

import tensorflow as tf

from batch_rl_dr3.agents import bellman, dr3, loss
from batch_rl_dr3.agents.penalties import UpdateBatch


def build_metrics(
  batch: UpdateBatch,
  loss_parts: loss.LossParts,
  next_target_q_values: tf.Tensor,
  gradients: Sequence[tf.Tensor],
  last_kernel: tf.Tensor,
) -> dict[str, tf.Tensor]:
  """Returns what is logged of a batch: float32 scalars by column name.

  `discounted_dot_product` is of what is backed up: a transition that ends an
  episode counts as 0. `mean_q` is of the logged actions, `mean_target_q` of
  the backup's.

  Args:
    batch: the batch.
    loss_parts: its loss.
    next_target_q_values: float32 [B, A], the target network's at s'.
    gradients: of the total loss, one per variable.
    last_kernel: float32 [D, A * K], the online network's last layer's.
  """
  squared_norms = tf.reduce_sum(tf.square(batch.features), axis=1)
  dot_products = dr3.feature_dot_product(batch.features, batch.next_features)
  chosen_q = bellman.chosen_values(batch.q_values, batch.actions)
  next_values = bellman.expected_values(next_target_q_values, batch.next_policy)
  return {
    **loss_parts.by_name(),
    'feature_dot_product': tf.reduce_mean(dot_products),
    'discounted_dot_product': tf.reduce_mean(batch.discounts * dot_products),
    'feature_norm_squared': tf.reduce_mean(squared_norms),
    'feature_norm': tf.reduce_mean(tf.sqrt(squared_norms)),
    'feature_cosine': tf.reduce_mean(
      dr3.feature_cosine(batch.features, batch.next_features)
    ),
    'last_layer_norm': tf.norm(last_kernel),
    'mean_q': tf.reduce_mean(chosen_q),
    'mean_target_q': tf.reduce_mean(next_values),
    'gradient_norm': tf.linalg.global_norm(gradients),
    **loss_parts.measures,
  }
