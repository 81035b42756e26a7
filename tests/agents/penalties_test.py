import numpy as np
import pytest

import batch_rl_dr3  # noqa: F401

# isort: split
import tensorflow as tf

from batch_rl_dr3.agents import penalties
from batch_rl_dr3.config import errors


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    # Dot products 1*1 + 2*1 = 3 and 3*-4 = -12.
    ({}, (3 - 12) / 2),
    ({'absolute': True}, (3 + 12) / 2),
    # The first transition ends its episode.
    ({'mask_terminals': True}, -12 / 2),
    # a' is a with probability 0.25 and 0.
    ({'same_action_only': True}, 0.25 * 3 / 2),
    ({'stop_gradient': True}, (3 - 12) / 2),
  ],
)
def test_feature_dot_penalty_by_hand(session, batch, options, expected):
  penalty = penalties.FeatureDotPenalty(**options)
  np.testing.assert_allclose(session.run(penalty(batch())), expected)


@pytest.mark.parametrize('stop_gradient', [False, True])
def test_feature_dot_penalty_gradient_by_finite_differences(
  session, batch, stop_gradient
):
  # phi = W s and phi' = W s': the gradient by W has two paths.
  rng = np.random.default_rng(0)
  states, next_states = rng.normal(size=(2, 6, 3)).astype(np.float32)
  weights = rng.normal(size=(3, 4)).astype(np.float32)
  live = tf.compat.v1.placeholder(tf.float32, [3, 4])
  frozen = tf.compat.v1.placeholder(tf.float32, [3, 4])
  penalty = penalties.FeatureDotPenalty(stop_gradient=stop_gradient)

  def value(second):
    return penalty(
      batch(
        features=tf.matmul(states, live),
        next_features=tf.matmul(next_states, second),
      )
    )

  gradient = session.run(tf.gradients(value(live), live)[0], {live: weights})
  # With the gradient stopped, the second factor's weights stay put.
  probed = value(frozen if stop_gradient else live)
  for index in ((0, 0), (1, 3), (2, 2)):
    step = np.zeros((3, 4), np.float32)
    step[index] = 1e-2
    up, down = (
      session.run(probed, {live: weights + sign * step, frozen: weights})
      for sign in (1, -1)
    )
    np.testing.assert_allclose(gradient[index], (up - down) / 2e-2, rtol=1e-2)


def test_conservative_penalty_by_hand(session, batch):
  # log 2, and log(1 + e^2) - 2.
  value = session.run(penalties.ConservativePenalty()(batch()))
  expected = (np.log(2) + np.log(1 + np.exp(2)) - 2) / 2
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_effective_rank_penalty_is_of_the_features(session, batch):
  features = tf.constant([[3.0, 0.0], [0.0, 2.0]])
  value = penalties.EffectiveRankPenalty()(batch(features=features))
  np.testing.assert_allclose(session.run(value), 5.0, rtol=1e-6)


def test_a_negative_coefficient_is_refused():
  with pytest.raises(errors.ConfigError, match='coefficient'):
    penalties.FeatureDotPenalty(coefficient=-1.0)


def test_feature_norm_penalty_by_hand(session, batch):
  # Features (1, 2) and (3, 0): (5 + 9) / 2; its gradient is 2 phi / B.
  made = batch()
  value = penalties.FeatureNormPenalty()(made)
  np.testing.assert_allclose(session.run(value), 7.0)
  np.testing.assert_allclose(
    session.run(tf.gradients(value, made.features)[0]), [[1.0, 2.0], [3.0, 0.0]]
  )
