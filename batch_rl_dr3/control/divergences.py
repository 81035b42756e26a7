"""How far a policy is from the behaviour policy: BRAC's primal estimates.

Wu et al. 2019 (arXiv:1911.11361), Section 4, and the authors' code
(google-research, behavior_regularized_offline_rl/brac/divergences.py).
"""

import tensorflow as tf

# The authors' kernel width for actions in [-1, 1].
_SIGMA = 20.0


def kl(
  policy_log_densities: tf.Tensor, behaviour_log_densities: tf.Tensor
) -> tf.Tensor:
  """Returns the mean of log pi(a) - log b(a) over actions of the policy.

  Args:
    policy_log_densities: float32 [N, B], log pi(a_i|s) with a_i from pi.
    behaviour_log_densities: float32 [N, B], log b(a_i|s) of the same a_i.

  Returns:
    float32 [B]. An estimate of KL(pi || b), which can be negative.

  Raises:
    ValueError: if the shapes differ.
  """
  policy_log_densities.shape.assert_has_rank(2)
  policy_log_densities.shape.assert_is_compatible_with(
    behaviour_log_densities.shape
  )
  return tf.reduce_mean(policy_log_densities - behaviour_log_densities, axis=0)


def mmd(
  policy_actions: tf.Tensor,
  behaviour_actions: tf.Tensor,
  sigma: float = _SIGMA,
) -> tf.Tensor:
  """Returns the squared maximum mean discrepancy with a Laplacian kernel.

  mean k(a, a') - 2 mean k(a, b) + mean k(b, b'), k(x, y) = exp(-|x-y|_1 /
  sigma), means over all pairs, those of an action with itself included.

  Args:
    policy_actions: float32 [N, B, d].
    behaviour_actions: float32 [M, B, d].
    sigma: the kernel's width.

  Returns:
    float32 [B], >= 0.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  policy_actions.shape.assert_has_rank(3)
  policy_actions.shape[1:].assert_is_compatible_with(
    behaviour_actions.shape[1:]
  )

  def mean_kernel(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    distances = tf.reduce_sum(tf.abs(first[None] - second[:, None]), axis=-1)
    return tf.reduce_mean(tf.exp(-distances / sigma), axis=(0, 1))

  return (
    mean_kernel(policy_actions, policy_actions)
    - 2.0 * mean_kernel(policy_actions, behaviour_actions)
    + mean_kernel(behaviour_actions, behaviour_actions)
  )
