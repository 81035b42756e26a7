"""Offline REM: Random Ensemble Mixture (arXiv:1907.04543)."""

from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.agents import dqn, networks
from batch_rl_dr3.agents.penalties import UpdateBatch

# Keeps the mixture's random stream apart from the sampler's.
_MIXTURE_STREAM = 7_919


def mixture_weights(seed: int, step: tf.Tensor, num_heads: int) -> tf.Tensor:
  """Returns one random convex combination: float32 [K], >= 0, summing to 1.

  K uniform draws divided by their sum, a pure function of (seed, step).
  Agarwal et al. 2020 (arXiv:1907.04543), Section 3.3.
  """
  draws = dqn.stateless_fractions(seed + _MIXTURE_STREAM, step, num_heads)
  return draws / tf.reduce_sum(draws)


@gin.configurable
class FixedReplayREMAgent(dqn.FixedReplayDQNAgent):
  """DQN on one random convex combination of K heads, drawn anew each step.

  The same combination is used on both sides of the Bellman equation; acting
  uses the mean of the heads. With one head it is DQN.
  """

  initialiser = staticmethod(networks.scaled_uniform)

  def __init__(self, *args: Any, num_heads: int = 200, **kwargs: Any):
    """Creates the agent with K heads."""
    self.num_atoms = num_heads
    super().__init__(*args, **kwargs)

  def _combine(self, batch: UpdateBatch, atoms: tf.Tensor) -> tf.Tensor:
    mixture = mixture_weights(self._seed, batch.step, self.num_atoms)
    return tf.tensordot(atoms, mixture, axes=1)
