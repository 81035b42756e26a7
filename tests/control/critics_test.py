"""DR3 on two critics: features, gradients, exactly c0 times R."""

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from batch_rl_dr3.agents import penalties, stateful_penalties
from batch_rl_dr3.config import errors
from batch_rl_dr3.control import critics, networks

COEFFICIENT = 0.3


def critic_loss(agent, batch):
  time_steps, policy_steps, next_time_steps = batch
  name = (
    '_critic_loss_with_optional_entropy_term'
    if hasattr(agent, '_cql_loss')
    else 'critic_loss'
  )
  return getattr(agent, name)(
    time_steps,
    policy_steps.action,
    next_time_steps,
    td_errors_loss_fn=tf.math.squared_difference,
    gamma=0.9,
    training=True,
  )


def backup_actions(agent, batch):
  """Returns the a' of the backup, which its seeds fix."""
  with agent._seeds.purpose('critic'):
    return agent._backup(batch[2])[0]


def critic_variables(agent):
  return [v for c in agent.critics for v in c.trainable_variables]


def dot_products(agent, batch, next_actions):
  """Returns R by hand: one sum over both critics, mean over the batch."""
  total = 0.0
  for critic in agent.critics:
    features = critic.features((batch[0].observation, batch[1].action))
    following = critic.features((batch[2].observation, next_actions))
    total += tf.reduce_mean(tf.reduce_sum(features * following, axis=1))
  return total


def test_features_are_what_the_last_layer_takes(batch):
  spaces = networks.Spaces(3, 2)
  critic = networks.create_critic(spaces, (5, 4))
  critic.create_variables()
  pairs = (batch[0].observation, batch[1].action)
  features = critic.features(pairs)
  kernel, bias = critic.variables[-2:]
  assert features.shape == (6, 4)
  np.testing.assert_allclose(
    critic(pairs)[0], (features @ kernel + bias)[:, 0], rtol=1e-6
  )


def test_copies_share_no_weights():
  spaces = networks.Spaces(3, 2)
  critic = networks.create_critic(spaces, (4,))
  copy = critic.copy(name='copy')
  critic.create_variables()
  copy.create_variables()
  mine = {id(v) for v in critic.variables}
  assert len(mine) == 4
  assert not mine & {id(v) for v in copy.variables}


def test_a_shared_last_layer_is_refused():
  with pytest.raises(ValueError, match='last_layer'):
    networks.FeatureCriticNetwork(
      (None, None), last_layer=tf.keras.layers.Dense(1)
    )


def test_one_sgd_step_moves_the_critics_by_c0_times_the_gradient(
  make_agent, batch
):
  """SGD with rate 0.1 twice from the same weights and the same samples."""
  penalty = penalties.FeatureDotPenalty(COEFFICIENT)
  plain, penalised = make_agent(), make_agent(penalties=[penalty])
  next_actions = backup_actions(penalised, batch)
  before = [v.numpy() for v in critic_variables(penalised)]
  with tf.GradientTape() as tape:
    value = dot_products(penalised, batch, next_actions)
  gradients = tape.gradient(
    value, critic_variables(penalised), unconnected_gradients='zero'
  )
  plain.train(batch)
  penalised.train(batch)
  moved = False
  for first, base, with_dr3, gradient in zip(
    before,
    critic_variables(plain),
    critic_variables(penalised),
    gradients,
    strict=True,
  ):
    np.testing.assert_allclose(
      with_dr3.numpy() - base.numpy(),
      -0.1 * COEFFICIENT * gradient.numpy(),
      atol=2e-6,
    )
    moved = moved or bool(np.abs(base.numpy() - first).max() > 1e-4)
  assert moved


def test_gradients_flow_into_both_features_or_stop(make_agent, batch):
  for stopped in (False, True):
    penalty = penalties.FeatureDotPenalty(1.0, stop_gradient=stopped)
    agent = make_agent(penalties=[penalty])
    with tf.GradientTape(persistent=True) as tape:
      difference = 0.5 * critic_loss(agent, batch)
      next_actions = backup_actions(agent, batch)
      agent.penalties = ()
      difference -= 0.5 * critic_loss(agent, batch)
      by_hand = 0.0
      for critic in agent.critics:
        features = critic.features((batch[0].observation, batch[1].action))
        following = critic.features((batch[2].observation, next_actions))
        if stopped:
          following = tf.stop_gradient(following)
        by_hand += tf.reduce_mean(tf.reduce_sum(features * following, axis=1))
    np.testing.assert_allclose(difference, by_hand, rtol=1e-4)
    found, expected = (
      tape.gradient(
        value, critic_variables(agent), unconnected_gradients='zero'
      )
      for value in (difference, by_hand)
    )
    for one, other in zip(found, expected, strict=True):
      np.testing.assert_allclose(one, other, atol=1e-5)


def test_terminals_can_be_masked(make_agent, batch):
  """The last of the six transitions ends its episode: it counts as 0."""
  penalty = penalties.FeatureDotPenalty(1.0, mask_terminals=True)
  agent = make_agent(penalties=[penalty])
  parts = agent.loss(batch).extra
  masked = float(parts['loss_feature_dot_product'])
  whole = float(parts['feature_dot_product']) * 2
  unmasked = make_agent(penalties=[penalties.FeatureDotPenalty(1.0)])
  assert masked < whole
  np.testing.assert_allclose(
    unmasked.loss(batch).extra['loss_feature_dot_product'], whole, rtol=1e-5
  )


@pytest.mark.slow
def test_a_coefficient_of_zero_changes_no_bit(make_agent, batch):
  plain = make_agent()
  zero = make_agent(penalties=[penalties.FeatureDotPenalty(0.0)])
  for agent in (plain, zero):
    for _ in range(2):
      agent.train(batch)
  for one, other in zip(plain.variables, zero.variables, strict=True):
    np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.slow
def test_the_loss_holds_every_term(make_agent, batch):
  penalty = penalties.FeatureDotPenalty(COEFFICIENT)
  agent = make_agent(penalties=[penalty])
  info = agent.loss(batch)
  parts = {name: float(value) for name, value in info.extra.items()}
  critic = (
    parts['loss_bellman'] + COEFFICIENT * (parts['loss_feature_dot_product'])
  )
  if 'loss_conservative' in parts:
    critic += 1.5 * parts['loss_conservative']
  np.testing.assert_allclose(parts['loss_critic'], critic, rtol=1e-5)
  np.testing.assert_allclose(
    float(info.loss),
    parts['loss_critic'] + parts['loss_actor'] + parts['loss_alpha'],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    parts['loss_critic'],
    float(agent.train(batch).extra.critic_loss)
    + (1.5 * parts['loss_conservative'] if 'loss_conservative' in parts else 0),
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ('penalty', 'message'),
  [
    (penalties.ConservativePenalty(1.0), 'finite'),
    (penalties.FeatureDotPenalty(same_action_only=True), 'finite'),
    (stateful_penalties.AdaptiveFeatureDotPenalty(), 'keeps a state'),
    (stateful_penalties.LabelNoiseFeatureDotPenalty(), 'keeps a state'),
  ],
)
def test_penalties_that_do_not_fit_are_refused(make_cql, penalty, message):
  with pytest.raises(ValueError, match=message):
    make_cql(penalties=[penalty])


@pytest.mark.slow
def test_the_dot_product_falls_with_c0(make_agent, batch):
  """After 300 steps on one batch, for c0 from 1e-3 to 1."""
  ends = []
  for coefficient in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
    penalty = penalties.FeatureDotPenalty(coefficient)
    agent = make_agent(learning_rate=0.01, penalties=[penalty])
    step = tf.function(agent.train)
    for _ in range(300):
      step(batch)
    ends.append(float(agent.loss(batch).extra['feature_dot_product']))
  assert ends == sorted(ends, reverse=True), ends


@pytest.mark.parametrize('make', ['make_brac', 'make_cql'])
def test_uint8_specs_with_scalar_bounds_are_refused(make, request):
  """NumPy 2 makes TF-Agents' `maximum + 1` a 0, and nothing to draw from."""
  scalar = tensor_spec.BoundedTensorSpec([3], tf.uint8, 0, 255)
  with pytest.raises(tf.errors.InvalidArgumentError):
    tensor_spec.sample_spec_nest(scalar)
  steps = ts.time_step_spec(scalar)
  make_agent = request.getfixturevalue(make)
  with pytest.raises(errors.ConfigError, match='observation spec is uint8'):
    make_agent(time_step_spec=steps)
  with pytest.raises(errors.ConfigError, match='action spec is uint8'):
    make_agent(action_spec=scalar)
  critics.check_specs(
    ts.time_step_spec(
      tensor_spec.BoundedTensorSpec([3], tf.uint8, np.zeros(3), np.full(3, 255))
    ),
    tensor_spec.BoundedTensorSpec([2], tf.float32, -1.0, 1.0),
  )
