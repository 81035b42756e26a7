"""The behaviour policy, cloned from the data before BRAC begins.

The authors' bc_agent: maximum likelihood with an entropy bonus that holds the
entropy at -d, actions kept 1e-3 inside their bounds.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from batch_rl_dr3.control import agent_setups, critics

_ACTION_MARGIN = 1e-3


def clone(
  network: Any,
  draw: Callable[[tf.Tensor], Any],
  num_steps: int,
  seed: int,
  learning_rate: float,
  on_step: Callable[[], None],
) -> float:
  """Fits a policy network to the data; returns its last mean log-likelihood.

  Args:
    network: the network, with variables.
    draw: returns the batch of transitions of a step, int64 scalar.
    num_steps: gradient steps.
    seed: fixes what is sampled.
    learning_rate: Adam's.
    on_step: called after every step; it may raise.
  """
  log_weight = tf.Variable(0.0)
  optimizer = agent_setups.adam(learning_rate)
  counter = tf.Variable(0, dtype=tf.int64, trainable=False)
  seeds = critics.StepSeeds(seed, counter)
  variables = [*network.trainable_variables, log_weight]

  @tf.function
  def step() -> tf.Tensor:
    time_steps, policy_steps, _ = draw(counter)
    limit = 1.0 - _ACTION_MARGIN
    actions = tf.clip_by_value(policy_steps.action, -limit, limit)
    target = -float(actions.shape[1])
    with seeds.purpose('cloning'), tf.GradientTape() as tape:
      distribution, _ = network(time_steps.observation, (), ())
      sampled = distribution.sample(seed=seeds())
      entropies = -distribution.log_prob(sampled)
      likelihood = tf.reduce_mean(distribution.log_prob(actions))
      weight = tf.stop_gradient(tf.exp(log_weight))
      loss = -likelihood - weight * tf.reduce_mean(entropies)
      # Grows while the entropy is below its target.
      loss += log_weight * tf.stop_gradient(tf.reduce_mean(entropies) - target)
    gradients = tape.gradient(loss, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    counter.assign_add(1)
    return likelihood

  likelihood = tf.constant(float('nan'))
  for _ in range(num_steps):
    likelihood = step()
    on_step()
  return float(likelihood)
