"""The losses and penalties of a batch, each a pure function of tensors.

Bellman losses (the regression of Q(s, a) on r + gamma Q'(s', a')), CQL's, DR3's
and the effective-rank penalty. All but the last return one value per example;
reduction over the batch is the agent's.
"""

import tensorflow as tf


def huber(target: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
  """Returns the Huber loss with delta 1, as in DQN.

  With e = target - prediction: 0.5 e^2 where |e| <= 1, |e| - 0.5 elsewhere.
  Mnih et al. 2015; the same as `tf.compat.v1.losses.huber_loss`.

  Args:
    target: float32 [B]. Gradients flow into it: stop them where it is a
      bootstrap target.
    prediction: float32 [B].

  Returns:
    float32 [B].
  """
  _check_shapes(target, prediction, rank=1)
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

  Args:
    rewards: float32 [B], the n-step discounted reward.
    terminals: any numeric [B], 1 where the episode ended within the n steps.
    next_values: float32 [B] or [B, N] (N quantiles), the value at s'.
    cumulative_gamma: gamma^n.

  Returns:
    float32, the shape of `next_values`.
  """
  rewards.shape.assert_has_rank(1)
  terminals.shape.assert_is_compatible_with(rewards.shape)
  next_values.shape[:1].assert_is_compatible_with(rewards.shape)
  discounts = cumulative_gamma * (1.0 - tf.cast(terminals, tf.float32))
  if next_values.shape.rank == 2:
    rewards, discounts = rewards[:, None], discounts[:, None]
  return tf.stop_gradient(rewards + discounts * next_values)


def chosen_values(values: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """Returns the values of the given actions.

  Args:
    values: float32 [B, A] or [B, A, K].
    actions: int [B], each in [0, A).

  Returns:
    float32 [B] or [B, K].
  """
  actions.shape.assert_has_rank(1)
  return expected_values(values, tf.one_hot(actions, values.shape.as_list()[1]))


def expected_values(values: tf.Tensor, policy: tf.Tensor) -> tf.Tensor:
  """Returns sum_a policy(a) values(a).

  Args:
    values: float32 [B, A] or [B, A, K].
    policy: float32 [B, A], rows summing to 1.

  Returns:
    float32 [B] or [B, K].
  """
  values.shape[:2].assert_is_compatible_with(policy.shape)
  if values.shape.rank == 3:
    policy = policy[:, :, None]
  return tf.reduce_sum(values * policy, axis=1)


def quantile_huber(
  target: tf.Tensor, prediction: tf.Tensor, kappa: float = 1.0
) -> tf.Tensor:
  """Returns the quantile Huber loss of QR-DQN.

  sum_i mean_j |tau_i - 1{u_ij < 0}| huber_kappa(u_ij) / kappa, with
  u_ij = target_j - prediction_i and tau_i = (i + 0.5) / N.
  Dabney et al. 2018 (arXiv:1710.10044), Eq. 10 and Algorithm 1.

  Args:
    target: float32 [B, M], target quantiles. Gradients flow into it.
    prediction: float32 [B, N], quantiles of the chosen actions.
    kappa: where the Huber loss turns linear, > 0.

  Returns:
    float32 [B].
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
  """Returns logsumexp_a Q(s, a) - Q(s, a_data), the CQL(H) penalty.

  Kumar et al. 2020 (arXiv:2006.04779), Eq. 4. It is log(A) where all Q-values
  are equal, and never negative.

  Args:
    q_values: float32 [B, A]. Gradients flow through both terms.
    actions: int [B], the logged actions.

  Returns:
    float32 [B].
  """
  q_values.shape.assert_has_rank(2)
  return tf.reduce_logsumexp(q_values, axis=1) - chosen_values(
    q_values, actions
  )


def feature_dot_product(
  features: tf.Tensor,
  next_features: tf.Tensor,
  stop_gradient: bool = False,
) -> tf.Tensor:
  """Returns phi(s, a)^T phi(s', a') of every transition.

  Eq. 7 of Kumar et al. 2022 (arXiv:2112.04716), before the sum over the data.

  Args:
    features: float32 [B, D], penultimate-layer features of (s, a).
    next_features: float32 [B, D], features of (s', a') by the same online
      network.
    stop_gradient: whether the second factor is a constant for the gradient
      (Table A.1's ablation). By default gradients flow into both, as the
      paper's DR3 has it.

  Returns:
    float32 [B].
  """
  features.shape.assert_has_rank(2)
  features.shape.assert_is_compatible_with(next_features.shape)
  if stop_gradient:
    next_features = tf.stop_gradient(next_features)
  return tf.reduce_sum(features * next_features, axis=1)


def feature_cosine(features: tf.Tensor, next_features: tf.Tensor) -> tf.Tensor:
  """Returns phi^T phi' / (|phi| |phi'|) of every transition.

  It is 0 where a feature vector is 0.

  Args:
    features: float32 [B, D].
    next_features: float32 [B, D]. Gradients flow into both.

  Returns:
    float32 [B].
  """
  return feature_dot_product(
    tf.nn.l2_normalize(features, axis=1),
    tf.nn.l2_normalize(next_features, axis=1),
  )


def effective_rank_penalty(features: tf.Tensor) -> tf.Tensor:
  """Returns sigma_max(Phi)^2 - sigma_min(Phi)^2 of a batch of features.

  Kumar et al. 2021 (arXiv:2010.14498), Section 6. The squared singular values
  are the eigenvalues of the smaller Gram matrix, [B, B] or [D, D], which is
  cheaper than a singular value decomposition of [B, D] and has a gradient.

  Args:
    features: float32 [B, D].

  Returns:
    float32 scalar, >= 0.
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


def _check_shapes(first: tf.Tensor, second: tf.Tensor, rank: int) -> None:
  first.shape.assert_has_rank(rank)
  first.shape.assert_is_compatible_with(second.shape)
