"""What a penalty is: a scalar of a batch, and perhaps a state of its own."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import ranges

# Tensors by name, which training carries from step to step.
State = Mapping[str, tf.Tensor]
STATELESS: State = {}


class UpdateBatch(NamedTuple):
  """The tensors of one gradient step that penalties may use.

  Attributes:
    q_values: float32 [B, A], the online network's values at s.
    features: float32 [B, D], phi(s, a) by the online network.
    next_features: float32 [B, D], phi(s', a') by the online network.
    actions: int32 [B], the logged actions.
    next_policy: float32 [B, A], the distribution of the a' that the Bellman
      backup uses: one-hot for the greedy and the logged action.
    terminals: float32 [B], 1 where the episode ends with this transition.
    discounts: float32 [B], what the backup multiplies Q(s', a') by: gamma^n,
      and 0 where the episode ends.
    step: int64 scalar, gradient steps before this one.
  """

  q_values: tf.Tensor
  features: tf.Tensor
  next_features: tf.Tensor
  actions: tf.Tensor
  next_policy: tf.Tensor
  terminals: tf.Tensor
  discounts: tf.Tensor
  step: tf.Tensor


class Penalty(abc.ABC):
  """A scalar function of a batch, with a name and a coefficient.

  A penalty that needs more than the batch at hand has a state: named tensors
  that training keeps, saves and restores with the weights. It is a function of
  the state before and of the batch, and no gradient flows into it.

  Attributes:
    name: how logs, columns and summaries call it.
    coefficient: its weight in the total loss, >= 0; where it changes, the
      first.
    moves_next_features: whether its gradient flows into phi(s', a').
  """

  name: str
  moves_next_features = False

  @ranges.checked
  def __init__(self, coefficient: ranges.NonNegative):
    self.coefficient = coefficient

  @abc.abstractmethod
  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """Returns the penalty before its coefficient: float32 scalar."""

  def weight(self, state: State) -> Any:
    """Returns what the penalty is multiplied by in the total loss."""
    del state
    return self.coefficient

  def initial_state(self, num_features: int) -> dict[str, npt.NDArray[Any]]:
    """Returns the state before the first step, as float32 arrays by name.

    Args:
      num_features: int, D.
    """
    del num_features
    return {}

  def next_state(self, batch: UpdateBatch, state: State) -> State:
    """Returns the state after the step that learns from this batch."""
    del batch
    return state

  def measures(self, batch: UpdateBatch, state: State) -> dict[str, tf.Tensor]:
    """Returns what is logged beside the penalty: float32 scalars by column."""
    del batch, state
    return {}
