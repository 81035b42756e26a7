"""TF-Agents' SAC, learning online: who makes data here."""

from collections.abc import Mapping, Sequence
from typing import Any

import gin
import numpy as np
import tensorflow as tf
from tf_agents.agents.sac import sac_agent

from batch_rl_dr3.control import agent_setups, data, tasks
from batch_rl_dr3.control.environments import FloatArray


@gin.configurable(denylist=['task', 'seed'])
class OnlineSac:
  """SAC (arXiv:1801.01290) with one gradient step per step of play."""

  def __init__(
    self,
    task: tasks.Task,
    seed: int,
    layers: Sequence[int] = (256, 256),
    learning_rate: float = 3e-4,
    gamma: float = 0.99,
    batch_size: int = 256,
    num_random_steps: int = 5_000,
    steps_per_call: int = 50,
    max_steps: int = 1_000_000,
    until_return: float = float('inf'),
    num_return_episodes: int = 10,
  ):
    """Creates the agent.

    Args:
      task: what is played.
      seed: fixes batches and random play.
      layers: hidden units of critics and policy.
      learning_rate: Adam's, of all three losses.
      gamma: the discount.
      batch_size: transitions a gradient step learns from.
      num_random_steps: steps of uniform actions before it learns.
      steps_per_call: gradient steps are done so many at a time.
      max_steps: of play, then it is done.
      until_return: done as soon as the mean return of the last episodes is
        as high.
      num_return_episodes: how many episodes that mean is over.
    """
    spaces = agent_setups.Spaces(task.observation_size, task.action_size)
    self._action_size = task.action_size
    self._rng = np.random.default_rng((seed, 1))
    self._batch_size = batch_size
    self._num_random_steps = num_random_steps
    self._steps_per_call = steps_per_call
    self._max_steps = max_steps
    self._until_return = until_return
    self._num_return_episodes = num_return_episodes
    self._agent = sac_agent.SacAgent(
      spaces.time_step_spec,
      spaces.action_spec,
      agent_setups.create_critic(spaces, layers),
      agent_setups.create_actor(spaces, layers),
      *(agent_setups.adam(learning_rate) for _ in range(3)),
      target_update_tau=0.005,
      gamma=gamma,
      target_entropy=-float(task.action_size),
      train_step_counter=tf.Variable(0, dtype=tf.int64, trainable=False),
    )
    self._agent.initialize()
    self._learn = tf.function(self._learn_from)
    self._sample = tf.function(lambda states: self._distribution(states)[0])
    self._mode = tf.function(lambda states: self._distribution(states)[1])

  def _distribution(self, observations: tf.Tensor) -> Any:
    distribution = self._agent.policy.distribution(
      data.time_steps(observations)
    ).action
    return distribution.sample(), distribution.mode()

  def _learn_from(self, columns: Any) -> None:
    for index in tf.range(self._steps_per_call):
      self._agent.train(data.transition([c[index] for c in columns]))

  def is_done(self, returns: Sequence[float], num_steps: int) -> bool:
    """Returns whether it has played enough, or well enough."""
    last = returns[-self._num_return_episodes :]
    is_good = len(last) == self._num_return_episodes and (
      float(np.mean(last)) >= self._until_return
    )
    return is_good or num_steps >= self._max_steps

  def explore(self, observation: FloatArray) -> FloatArray:
    """Returns an action of the policy, uniform at first; float32 [d]."""
    if self._num_random_steps > 0:
      self._num_random_steps -= 1
      return self._rng.uniform(-1, 1, self._action_size).astype(np.float32)
    return np.asarray(self._sample(tf.constant(observation[None]))[0])

  def act(self, observation: FloatArray) -> FloatArray:
    """Returns the policy's most likely action, float32 [d]."""
    return np.asarray(self._mode(tf.constant(observation[None]))[0])

  def learn(self, columns: Mapping[str, Sequence[Any]]) -> None:
    """Learns from what was played, whenever a call's worth has come.

    Args:
      columns: lists of observations, actions, rewards, next_observations and
        terminals, by these names.
    """
    num_rows = len(columns['rewards'])
    if self._num_random_steps > 0 or num_rows % self._steps_per_call:
      return
    shape = (self._steps_per_call, self._batch_size)
    rows = self._rng.integers(num_rows, size=shape)
    self._learn(
      [
        tf.constant(
          np.array(
            [columns[name][row] for row in rows.ravel()], np.float32
          ).reshape(*shape, *np.shape(columns[name][0]))
        )
        for name in data.COLUMNS
      ]
    )
