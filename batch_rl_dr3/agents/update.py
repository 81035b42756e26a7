"""What one gradient step computes with, as a pure function of its arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from batch_rl_dr3.networks import value_network

# The variables of each network by its name, or tensors in their place.
Weights = Mapping[str, Sequence[Any]]

ONLINE = 'online'
TARGET = 'target'


class Update(NamedTuple):
  """One batch, and what the networks say of it.

  Attributes:
    weights: of every network.
    step: int64 scalar, the number of the gradient step.
    transition: the batch's tensors, by Dopamine's names.
    outputs: the online network's, at s.
    next_features: float32 [B, D], the online network's, at s'.
    next_target_outputs: the target network's, at s'.
  """

  weights: Weights
  step: tf.Tensor
  transition: Mapping[str, tf.Tensor]
  outputs: value_network.NetworkOutput
  next_features: tf.Tensor
  next_target_outputs: value_network.NetworkOutput


def build(
  online: value_network.ValueNetwork,
  target: value_network.ValueNetwork,
  weights: Weights,
  step: tf.Tensor,
  transition: Mapping[str, tf.Tensor],
  learns_from_next_features: bool,
) -> Update:
  """Runs the networks on one batch.

  Args:
    online: the online network.
    target: the target network.
    weights: of both, by ONLINE and TARGET, and of any others.
    step: see Update.
    transition: see Update.
    learns_from_next_features: whether a gradient flows through the online
      network at s'. It then runs once on [s; s'], so that its kernels are
      read, and their gradients written, once.
  """
  states, next_states = transition['state'], transition['next_state']
  if learns_from_next_features:
    both = online.features(
      weights[ONLINE], tf.concat([states, next_states], axis=0)
    )
    features, next_features = tf.split(both, 2)
  else:
    features, next_features = (
      online.features(weights[ONLINE], s) for s in (states, next_states)
    )
  return Update(
    weights,
    step,
    transition,
    online.output(weights[ONLINE], features),
    next_features,
    target.output(
      weights[TARGET], target.features(weights[TARGET], next_states)
    ),
  )
