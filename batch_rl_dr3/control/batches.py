"""Batches of transitions as TF-Agents takes them."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tf_agents.trajectories import policy_step, trajectory
from tf_agents.trajectories import time_step as ts

# The columns of a transition, in the order of `transition`'s argument.
COLUMNS = (
  'observations',
  'actions',
  'rewards',
  'next_observations',
  'terminals',
)


def time_steps(
  observations: tf.Tensor,
  rewards: tf.Tensor | None = None,
  discounts: tf.Tensor | None = None,
) -> ts.TimeStep:
  """Returns steps in the middle of an episode.

  Args:
    observations: float32 [B, o].
    rewards: float32 [B], what led there; 0 if not given.
    discounts: float32 [B], 0 where the episode ended there; 1 if not given.
  """
  size = tf.shape(observations)[:1]
  return ts.TimeStep(
    tf.fill(size, ts.StepType.MID),
    tf.zeros(size) if rewards is None else rewards,
    tf.ones(size) if discounts is None else discounts,
    observations,
  )


def transition(columns: Sequence[tf.Tensor]) -> Any:
  """Returns a batch of transitions from their columns, each float32 [B, ...].

  Only a terminal ends the discounted sum: an episode that ran out of time is
  bootstrapped like any other.
  """
  observations, actions, rewards, next_observations, terminals = columns
  return trajectory.Transition(
    time_steps(observations),
    policy_step.PolicyStep(actions, (), ()),
    time_steps(next_observations, rewards, 1.0 - terminals),
  )
