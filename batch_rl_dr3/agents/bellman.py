"""Bellman losses: the regression of Q(s, a) on r + gamma Q'(s', a').

Every function is pure TensorFlow, stateless, and returns one value per
example; reduction over the batch is the agent's.
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

  Raises:
    ValueError: if the shapes are not the same [B].
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

  Raises:
    ValueError: if the batch sizes differ.
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

  Raises:
    ValueError: if the batch sizes differ.
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

  Raises:
    ValueError: if the batch sizes or action counts differ.
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

  Raises:
    ValueError: if the batch sizes differ or a rank is not 2.
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


def _check_shapes(first: tf.Tensor, second: tf.Tensor, rank: int) -> None:
  first.shape.assert_has_rank(rank)
  first.shape.assert_is_compatible_with(second.shape)
