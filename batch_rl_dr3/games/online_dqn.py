"""Dopamine's online DQN as a behaviour to collect logged data with."""

from collections.abc import Callable
import random
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from batch_rl_dr3.config import dopamine_compat
from batch_rl_dr3.games import lanes


@gin.configurable
class OnlineDQNBehaviour:
  """Dopamine's DQN agent, training online as it plays.

  The DQN Replay data (Agarwal et al., 2020, arXiv:1907.04543) was made so.
  Bind the agent's own parameters on DQNAgent and WrappedReplayBuffer.
  """

  def __init__(
    self,
    game: lanes.Game,
    seed: int,
    network: Callable[..., Any] | None = None,
  ):
    """Builds the agent, in a graph of its own.

    Args:
      game: what is played.
      seed: int; seeds the global generators of Python and NumPy too, which
        Dopamine draws from.
      network: makes a Keras model from (num_actions, name=...); its output
        has q_values, float32 [B, num_actions]. None is Dopamine's default,
        the Nature network, which needs Atari's observations.
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
        stack_size=game.stack_size,
        **optional,
      )
    self.begin_episode = agent.begin_episode
    self.step = agent.step
    self.end_episode = agent.end_episode
