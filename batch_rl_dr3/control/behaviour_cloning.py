"""The behaviour policy, cloned from the data before BRAC begins.

The authors' bc_agent: maximum likelihood with an entropy bonus that holds the
entropy at -d, actions kept 1e-3 inside their bounds.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from batch_rl_dr3.config import errors, frameworks
from batch_rl_dr3.control import agent_setups, critics

_ACTION_MARGIN = 1e-3


class Cloning:
  """Fits a policy network to the data, step by step."""

  def __init__(
    self,
    network: Any,
    draw: Callable[[tf.Tensor], Any],
    seed: int,
    learning_rate: float,
  ):
    """Creates what is fitted beside the network; no step is taken yet.

    Args:
      network: the network, with variables.
      draw: returns the batch of transitions of a step, int64 scalar.
      seed: fixes what is sampled.
      learning_rate: Adam's.
    """
    self._network = network
    self._draw = draw
    self._log_weight = tf.Variable(0.0)
    self._counter = tf.Variable(0, dtype=tf.int64, trainable=False)
    self._likelihood = tf.Variable(float('nan'), trainable=False)
    self._seeds = critics.StepSeeds(seed, self._counter)
    self._variables = [*network.trainable_variables, self._log_weight]
    self._optimizer = agent_setups.adam(learning_rate)
    self._optimizer._create_all_weights(self._variables)
    self._checkpoint = tf.train.Checkpoint(
      network=network,
      optimizer=self._optimizer,
      log_weight=self._log_weight,
      counter=self._counter,
      likelihood=self._likelihood,
    )
    self.take_step = tf.function(self._take_step)

  @property
  def num_steps(self) -> int:
    """How many steps were taken."""
    return int(self._counter)

  @property
  def likelihood(self) -> float:
    """The mean log-likelihood of the last step's batch."""
    return float(self._likelihood)

  def _take_step(self) -> None:
    time_steps, policy_steps, _ = self._draw(self._counter)
    limit = 1.0 - _ACTION_MARGIN
    actions = tf.clip_by_value(policy_steps.action, -limit, limit)
    target = -float(actions.shape[1])
    with self._seeds.purpose('cloning'), tf.GradientTape() as tape:
      distribution, _ = self._network(time_steps.observation, (), ())
      sampled = distribution.sample(seed=self._seeds())
      entropies = -distribution.log_prob(sampled)
      likelihood = tf.reduce_mean(distribution.log_prob(actions))
      weight = tf.stop_gradient(tf.exp(self._log_weight))
      loss = -likelihood - weight * tf.reduce_mean(entropies)
      # Grows while the entropy is below its target.
      excess = tf.stop_gradient(tf.reduce_mean(entropies) - target)
      loss += self._log_weight * excess
    gradients = tape.gradient(loss, self._variables)
    self._optimizer.apply_gradients(
      zip(gradients, self._variables, strict=True)
    )
    self._likelihood.assign(likelihood)
    self._counter.assign_add(1)

  def save(self, prefix: str) -> None:
    """Writes all that the next step depends on."""
    try:
      self._checkpoint.write(prefix)
    except tf.errors.OpError as error:
      raise frameworks.disk_error(error) from error

  def restore(self, prefix: str) -> None:
    """Reads what `save` wrote.

    Raises:
      DataError: if the checkpoint is of another network.
    """
    try:
      self._checkpoint.read(prefix).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
      raise errors.DataError(
        f'{prefix} is no checkpoint of this behaviour policy: '
        f'{str(error).splitlines()[0]}'
      ) from error
