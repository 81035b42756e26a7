"""The losses and penalties of a batch, each a pure function of tensors.

Tensors are float32 unless said otherwise: B examples, A actions, K outputs per
action, D features. All but `effective_rank_penalty` return one value per
example; reduction over the batch is the agent's.
"""

import tensorflow as tf


def huber(target: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
  """Returns the Huber loss with delta 1, as in DQN (Mnih et al. 2015).

  0.5 e^2 where |e| <= 1, |e| - 0.5 elsewhere, of e = target - prediction, with
  a gradient in both.
  """
  target.shape.assert_has_rank(1)
  target.shape.assert_is_compatible_with(prediction.shape)
  return _huber(target - prediction)


def _huber(error: tf.Tensor, kappa: float = 1.0) -> tf.Tensor:
  absolute = tf.abs(error)
  quadratic = tf.minimum(absolute, kappa)
  return 0.5 * tf.square(quadratic) + kappa * (absolute - quadratic)


def bellman_target(
  rewards: tf.Tensor,
  terminals: tf.Tensor,
  next_values: tf.Tensor,
  cumulative_gamma: float,
) -> tf.Tensor:
  """Returns r + gamma^n (1 - terminal) Q'(s', a'), with no gradient.

  Rewards [B] are discounted n-step ones, terminals [B] are 1 where the episode
  ended within the n steps. Next values, and the result, are [B] or [B, N].
  """
  rewards.shape.assert_has_rank(1)
  terminals.shape.assert_is_compatible_with(rewards.shape)
  next_values.shape[:1].assert_is_compatible_with(rewards.shape)
  discounts = cumulative_gamma * (1.0 - tf.cast(terminals, tf.float32))
  if next_values.shape.rank == 2:
    rewards, discounts = rewards[:, None], discounts[:, None]
  return tf.stop_gradient(rewards + discounts * next_values)


def chosen_values(values: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """Returns [B] or [B, K]: values [B, A] or [B, A, K] of actions int [B]."""
  actions.shape.assert_has_rank(1)
  return expected_values(values, tf.one_hot(actions, values.shape.as_list()[1]))


def expected_values(values: tf.Tensor, policy: tf.Tensor) -> tf.Tensor:
  """Returns sum_a policy(a) values(a), of values [B, A] or [B, A, K]."""
  values.shape[:2].assert_is_compatible_with(policy.shape)
  if values.shape.rank == 3:
    policy = policy[:, :, None]
  return tf.reduce_sum(values * policy, axis=1)


def quantile_huber(
  target: tf.Tensor, prediction: tf.Tensor, kappa: float = 1.0
) -> tf.Tensor:
  """Returns the quantile Huber loss of QR-DQN (arXiv:1710.10044, Eq. 10).

  sum_i mean_j |tau_i - 1{u_ij < 0}| huber_kappa(u_ij) / kappa, with
  u_ij = target_j - prediction_i and tau_i = (i + 0.5) / N, of targets [B, M],
  into which gradients flow, and the chosen actions' quantiles [B, N].
  """
  target.shape.assert_has_rank(2)
  prediction.shape.assert_has_rank(2)
  target.shape[:1].assert_is_compatible_with(prediction.shape[:1])
  num_quantiles = prediction.shape.as_list()[1]
  taus = (tf.range(num_quantiles, dtype=tf.float32) + 0.5) / num_quantiles
  errors = target[:, None, :] - prediction[:, :, None]  # [B, N, M]
  weights = tf.abs(taus[None, :, None] - tf.cast(errors < 0.0, tf.float32))
  losses = weights * _huber(errors, kappa) / kappa
  return tf.reduce_sum(tf.reduce_mean(losses, axis=2), axis=1)


def conservative(q_values: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """Returns logsumexp_a Q(s, a) - Q(s, a_data), of q_values [B, A].

  The CQL(H) penalty (arXiv:2006.04779, Eq. 4), with a gradient in both terms.
  """
  q_values.shape.assert_has_rank(2)
  chosen_q = chosen_values(q_values, actions)
  return tf.reduce_logsumexp(q_values, axis=1) - chosen_q


def feature_dot_product(
  features: tf.Tensor,
  next_features: tf.Tensor,
  stop_gradient: bool = False,
) -> tf.Tensor:
  """Returns phi(s, a)^T phi(s', a') of features [B, D] each.

  Eq. 7 of Kumar et al. 2022 (arXiv:2112.04716), before the sum over the data;
  with `stop_gradient` phi(s', a') is constant (Table A.1).
  """
  features.shape.assert_has_rank(2)
  features.shape.assert_is_compatible_with(next_features.shape)
  if stop_gradient:
    next_features = tf.stop_gradient(next_features)
  return tf.reduce_sum(features * next_features, axis=1)


def feature_cosine(features: tf.Tensor, next_features: tf.Tensor) -> tf.Tensor:
  """Returns phi^T phi' / (|phi| |phi'|), and 0 where a vector is 0."""
  return feature_dot_product(
    tf.nn.l2_normalize(features, axis=1),
    tf.nn.l2_normalize(next_features, axis=1),
  )


def effective_rank_penalty(features: tf.Tensor) -> tf.Tensor:
  """Returns sigma_max(Phi)^2 - sigma_min(Phi)^2 of features [B, D]: a scalar.

  arXiv:2010.14498, Section 6. The squared singular values are the eigenvalues
  of the smaller Gram matrix, which is cheaper and has a gradient.
  """
  features.shape.assert_has_rank(2)
  batch_size, dimension = features.shape.as_list()
  gram = tf.matmul(
    features,
    features,
    transpose_a=dimension < batch_size,
    transpose_b=dimension >= batch_size,
  )
  eigenvalues = tf.linalg.eigvalsh(gram)  # In ascending order.
  return eigenvalues[-1] - eigenvalues[0]
