"""The conservative penalty of CQL where actions are sampled."""

import tensorflow as tf


def sampled_conservative(
  proposal_q: tf.Tensor,
  proposal_log_densities: tf.Tensor,
  data_q: tf.Tensor,
  temperature: float = 1.0,
) -> tf.Tensor:
  """Returns log sum_i exp(T Q(s, a_i)) / mu(a_i), over T, minus Q(s, a).

  The importance-sampled CQL(H) of Kumar et al. 2020 (arXiv:2006.04779), Eq. 4
  and Appendix F. The sum is not divided by the number of proposals, as in the
  authors' code: a constant that only the Lagrange form sees.

  Args:
    proposal_q: float32 [B, N], values of actions that were sampled.
    proposal_log_densities: float32 [B, N], the log densities that each was
      sampled with. No gradient flows into them.
    data_q: float32 [B], values of the logged actions.
    temperature: T, > 0, as in TF-Agents: large T makes the sum a maximum.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the shapes do not fit together.
  """
  proposal_q.shape.assert_has_rank(2)
  proposal_q.shape.assert_is_compatible_with(proposal_log_densities.shape)
  proposal_q.shape[:1].assert_is_compatible_with(data_q.shape)
  weighted = temperature * proposal_q - tf.stop_gradient(proposal_log_densities)
  return tf.reduce_logsumexp(weighted, axis=1) / temperature - data_q
