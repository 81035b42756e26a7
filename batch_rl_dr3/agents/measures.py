"""What an agent says of a batch: its loss in parts, and what is logged."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from batch_rl_dr3.losses import bellman, dr3
from batch_rl_dr3.penalties import UpdateBatch


class LossParts(NamedTuple):
  """The loss of one batch, whole and in parts.

  Attributes:
    total: float32 scalar, what the optimiser minimises.
    bellman: float32 scalar, the mean Bellman loss.
    auxiliary: further losses by name, each with weight 1.
    penalties: penalties by name, before their coefficients.
  """

  total: tf.Tensor
  bellman: tf.Tensor
  auxiliary: dict[str, tf.Tensor]
  penalties: dict[str, tf.Tensor]

  def by_name(self) -> dict[str, tf.Tensor]:
    """Returns every part under the name that logs use, such as loss_total."""
    parts = {'total': self.total, 'bellman': self.bellman}
    parts.update(self.auxiliary)
    parts.update(self.penalties)
    return {f'loss_{name}': value for name, value in parts.items()}


def build_metrics(
  batch: UpdateBatch,
  loss_parts: LossParts,
  next_target_q_values: tf.Tensor,
  gradients: Sequence[tf.Tensor],
) -> dict[str, tf.Tensor]:
  """Returns what is logged of a batch: float32 scalars by column name.

  Both the feature dot product and the squared feature norm are there, so
  that Proposition 3.2's criterion (gamma * the first >= the second) can be
  read off. `mean_q` is of the logged actions, `mean_target_q` of the backup's.

  Args:
    batch: the batch.
    loss_parts: its loss.
    next_target_q_values: float32 [B, A], the target network's at s'.
    gradients: of the total loss, one per variable.
  """
  squared_norms = tf.reduce_sum(tf.square(batch.features), axis=1)
  dot_products = dr3.feature_dot_product(batch.features, batch.next_features)
  chosen_q = bellman.chosen_values(batch.q_values, batch.actions)
  next_values = bellman.expected_values(next_target_q_values, batch.next_policy)
  return {
    **loss_parts.by_name(),
    'feature_dot_product': tf.reduce_mean(dot_products),
    'feature_norm_squared': tf.reduce_mean(squared_norms),
    'mean_q': tf.reduce_mean(chosen_q),
    'mean_target_q': tf.reduce_mean(next_values),
    'gradient_norm': tf.linalg.global_norm(gradients),
  }
