"""Gradient steps as one pure function, which is what accelerators compile.

Weights, moments, penalties' states, the step number and the data come in as
arguments, and the new ones go out; nothing else is read or written. The loop
over steps is inside, so that a compiled call runs many of them without a word
from the host. On a CPU the agent's plain graph is faster (XLA's convolutions
there take 20 times as long) and does the same arithmetic.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from batch_rl_dr3.agents import loss as loss_lib
from batch_rl_dr3.agents import update
from batch_rl_dr3.config import errors


class State(NamedTuple):
  """All that a gradient step changes: tensors, or the variables they are of.

  Attributes:
    step: int64 scalar, gradient steps so far.
    weights: of every network, by name.
    penalties: the penalties' states, by name.
    moments: Adam's first and second, each like the weights that learn.
    powers: Adam's beta_1^t and beta_2^t, float32 scalars.
  """

  step: Any
  weights: dict[str, list[Any]]
  penalties: Any
  moments: tuple[dict[str, list[Any]], dict[str, list[Any]]]
  powers: tuple[Any, Any]


# (weights, step, data, penalties' states) -> the loss of that step's batch.
Loss = Callable[
  [update.Weights, tf.Tensor, Any, loss_lib.States], loss_lib.LossParts
]


class Adam(NamedTuple):
  """Adam (arXiv:1412.6980), as TensorFlow's optimiser of that name has it."""

  learning_rate: float
  beta_1: float
  beta_2: float
  epsilon: float

  @classmethod
  def of(cls, optimizer: tf.compat.v1.train.Optimizer) -> 'Adam':
    """Returns the parameters of TensorFlow's optimiser.

    Raises:
      ConfigError: if it is not Adam.
    """
    if type(optimizer) is not tf.compat.v1.train.AdamOptimizer:
      raise errors.ConfigError(
        f'{type(optimizer).__name__} is not known to the compiled step; bind '
        "tf.train.AdamOptimizer, or OfflineAgent.device = 'cpu'."
      )
    return cls(
      *(getattr(optimizer, n) for n in ('_lr', '_beta1', '_beta2', '_epsilon'))
    )

  def step(self, state: State, gradients: dict[str, list[Any]]) -> State:
    """Returns the state after one step; the target network is not touched."""
    beta_1_power, beta_2_power = state.powers
    rate = (
      self.learning_rate * tf.sqrt(1.0 - beta_2_power) / (1.0 - beta_1_power)
    )
    firsts, seconds = state.moments
    # As float32, which TensorFlow's kernel computes them in: 1 - 0.999 is
    # 5e-5 off in it.
    decay_1, decay_2 = (
      np.float32(1) - np.float32(beta) for beta in (self.beta_1, self.beta_2)
    )
    first = tf.nest.map_structure(
      lambda m, g: m + (g - m) * decay_1, firsts, gradients
    )
    second = tf.nest.map_structure(
      lambda v, g: v + (tf.square(g) - v) * decay_2,
      seconds,
      gradients,
    )
    learnt = tf.nest.map_structure(
      lambda w, m, v: w - rate * m / (tf.sqrt(v) + self.epsilon),
      {name: state.weights[name] for name in gradients},
      first,
      second,
    )
    return state._replace(
      weights={**state.weights, **learnt},
      moments=(first, second),
      powers=(beta_1_power * self.beta_1, beta_2_power * self.beta_2),
    )


def run(
  state: State,
  data: Any,
  num_steps: tf.Tensor,
  loss: Loss,
  adam: Adam,
  target_update_period: int,
  part_names: Iterable[str],
) -> tuple[State, Mapping[str, tf.Tensor]]:
  """Returns the state after some steps, and the last step's loss in parts.

  It stops after a step whose loss is not finite.

  Args:
    state: tensors.
    data: what `loss` makes the batches of.
    num_steps: int64 scalar, at least 1.
    loss: the loss of one step.
    adam: the optimiser.
    target_update_period: gradient steps between copies of the online into the
      target network.
    part_names: what `by_name` of the loss parts has.
  """

  def step(state: State) -> tuple[State, dict[str, tf.Tensor]]:
    is_due = tf.equal(state.step % target_update_period, 0)
    target = [
      tf.where(is_due, online, old)
      for online, old in zip(
        state.weights[update.ONLINE], state.weights[update.TARGET], strict=True
      )
    ]
    state = state._replace(weights={**state.weights, update.TARGET: target})
    parts = loss(state.weights, state.step, data, state.penalties)
    learnt = {n: w for n, w in state.weights.items() if n != update.TARGET}
    gradients = tf.nest.pack_sequence_as(
      learnt, tf.gradients(parts.total, tf.nest.flatten(learnt))
    )
    state = adam.step(state, gradients)
    state = state._replace(step=state.step + 1, penalties=parts.next_states)
    return state, parts.by_name()

  def body(state: State, parts: dict[str, tf.Tensor]) -> Any:
    del parts
    return step(state)

  end = state.step + num_steps
  return tf.while_loop(
    lambda state, parts: tf.logical_and(
      state.step < end, tf.math.is_finite(parts['loss_total'])
    ),
    body,
    (state, {name: tf.zeros([]) for name in part_names}),
  )
