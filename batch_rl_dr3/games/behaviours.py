"""Behaviours to collect data with: uniform, scripted, or learning online."""

from collections.abc import Callable, Sequence
import random
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from batch_rl_dr3.config import dopamine_compat, errors
from batch_rl_dr3.games import lanes

# (observation, agent steps since the episode began) -> action. It knows no
# more, so that a script works in any game that has the action.
Script = Callable[[lanes.FrameArray, int], int]


class Behaviour:
  """Chooses one lane's actions, as Dopamine's agents do; rewards in [-1, 1]."""

  def begin_episode(self, observation: lanes.FrameArray) -> int:
    """Returns the first action of an episode."""
    return self.step(0.0, observation)

  def step(self, reward: float, observation: lanes.FrameArray) -> int:
    """Returns the action after what the last one earned and led to."""
    raise NotImplementedError

  def end_episode(self, reward: float) -> None:
    """Ends an episode by its last reward."""


@gin.configurable
class ScriptedBehaviour(Behaviour):
  """A script overruled by random actions, at rates taken in turn by episode."""

  def __init__(
    self,
    game: lanes.Game,
    seed: int,
    script: Script = gin.REQUIRED,
    epsilons: Sequence[float] = gin.REQUIRED,
  ):
    """Seeds the random actions; epsilons out of [0, 1] are a ConfigError."""
    if not epsilons or not all(0.0 <= epsilon <= 1.0 for epsilon in epsilons):
      raise errors.ConfigError(
        f'ScriptedBehaviour.epsilons is {epsilons}; it must hold one or more '
        'numbers in [0, 1].'
      )
    self._num_actions = game.num_actions
    self._generator = np.random.default_rng((seed, lanes.EXPLORATION_STREAM))
    self._script = script
    self._epsilons = tuple(epsilons)
    self._num_episodes = 0
    self._num_agent_steps = 0

  def begin_episode(self, observation: lanes.FrameArray) -> int:  # noqa: D102
    self._num_agent_steps = 0
    return self._act(observation)

  def step(  # noqa: D102
    self, reward: float, observation: lanes.FrameArray
  ) -> int:
    del reward
    self._num_agent_steps += 1
    return self._act(observation)

  def end_episode(self, reward: float) -> None:  # noqa: D102
    del reward
    self._num_episodes += 1

  def _act(self, observation: lanes.FrameArray) -> int:
    epsilon = self._epsilons[self._num_episodes % len(self._epsilons)]
    if self._generator.random() < epsilon:
      return int(self._generator.integers(self._num_actions))
    action = self._script(observation, self._num_agent_steps)
    if not 0 <= action < self._num_actions:
      raise errors.ConfigError(
        f'the script chose action {action}; the game has the actions 0 to '
        f'{self._num_actions - 1}.'
      )
    return action


@gin.configurable
class UniformBehaviour(Behaviour):
  """Every action equally often."""

  def __init__(self, game: lanes.Game, seed: int):
    self._num_actions = game.num_actions
    self._generator = np.random.default_rng((seed, lanes.EXPLORATION_STREAM))

  def step(  # noqa: D102
    self, reward: float, observation: lanes.FrameArray
  ) -> int:
    del reward, observation
    return int(self._generator.integers(self._num_actions))


@gin.configurable
def hold_action(
  observation: lanes.FrameArray, step: int, action: int = gin.REQUIRED
) -> int:
  """Returns always the same action: a script for games such as Freeway.

  Up is action 1 in Atari's Freeway and 2 in MinAtar's.
  """
  del observation, step
  return action


@gin.configurable
class OnlineDQNBehaviour:
  """Dopamine's DQN agent, training online as it plays.

  The DQN Replay data (arXiv:1907.04543) was made so. Bind the agent's own
  parameters on DQNAgent and WrappedReplayBuffer.
  """

  def __init__(
    self, game: lanes.Game, seed: int, network: Callable[..., Any] | None = None
  ):
    """Builds the agent, in a graph of its own.

    Args:
      game: what is played.
      seed: of Python's and NumPy's global generators too, as Dopamine uses
        them.
      network: (num_actions, name=...) -> Keras model with q_values, float32 [B,
        num_actions]; None is the Nature network, for Atari's observations.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    optional = {} if network is None else {'network': network}
    with tf.Graph().as_default():
      tf.compat.v1.set_random_seed(seed)
      agent = dopamine_compat.DQNAgent(
        None,  # It makes a session that does without a GPU where none is.
        num_actions=game.num_actions,
        observation_shape=game.observation_shape,
        observation_dtype=tf.as_dtype(game.observation_dtype),
        stack_size=game.stack_size,
        **optional,
      )
    self.begin_episode = agent.begin_episode
    self.step = agent.step
    self.end_episode = agent.end_episode
