"""What one gradient step computes with, as a pure function of its arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from batch_rl_dr3.agents import value_network

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
    is_compiled: whether XLA compiles what is built.
  """

  weights: Weights
  step: tf.Tensor
  transition: Mapping[str, tf.Tensor]
  outputs: value_network.NetworkOutput
  next_features: tf.Tensor
  next_target_outputs: value_network.NetworkOutput
  is_compiled: bool


def build(
  online: value_network.ValueNetwork,
  target: value_network.ValueNetwork,
  weights: Weights,
  step: tf.Tensor,
  transition: Mapping[str, tf.Tensor],
  learns_from_next_features: bool,
  is_compiled: bool = False,
  dtype: tf.DType = tf.float32,
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
    is_compiled: see Update.
    dtype: what the networks compute in. Weights, outputs, losses and the
      optimiser are float32 all the same.
  """
  states, next_states = transition['state'], transition['next_state']
  online_weights = [tf.cast(w, dtype) for w in weights[ONLINE]]
  target_weights = [tf.cast(w, dtype) for w in weights[TARGET]]
  if learns_from_next_features:
    both = online.features(
      online_weights, tf.concat([states, next_states], axis=0)
    )
    features, next_features = tf.split(both, 2)
  else:
    features, next_features = (
      online.features(online_weights, s) for s in (states, next_states)
    )
  outputs = online.output(online_weights, features)
  target_outputs = target.output(
    target_weights, target.features(target_weights, next_states)
  )
  return Update(
    weights,
    step,
    transition,
    _float32(outputs),
    tf.cast(next_features, tf.float32),
    _float32(target_outputs),
    is_compiled,
  )


def _float32(outputs: value_network.NetworkOutput) -> Any:
  atoms = tf.cast(outputs.atoms, tf.float32)
  return value_network.NetworkOutput(
    tf.reduce_mean(atoms, axis=2), tf.cast(outputs.features, tf.float32), atoms
  )
