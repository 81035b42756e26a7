"""Penalties: what an agent's gin list adds to its Bellman loss.

  FixedReplayREMAgent.penalties = [@FeatureDotPenalty()]
  FeatureDotPenalty.coefficient = 0.03

The agent minimises mean(Bellman loss) + sum of coefficient * penalty(batch).
One whose coefficient is 0 is measured and is no part of the training graph.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import gin
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import losses
from batch_rl_dr3.config import ranges

# Tensors by name, which training carries from step to step.
State = Mapping[str, tf.Tensor]
STATELESS: State = {}


class UpdateBatch(NamedTuple):
  """One batch of a gradient step, and what the networks say of it.

  Tensors are float32 unless said otherwise. Penalties may use those up to
  `step`; the others are for the Bellman losses of discrete agents.
  """

  q_values: tf.Tensor  # [B, A], the online network's at s.
  features: tf.Tensor  # [B, D], phi(s, a) by the online network.
  next_features: tf.Tensor  # [B, D], phi(s', a') by the online network.
  actions: tf.Tensor  # int32 [B], as logged.
  # [B, A], the distribution of the backup's a': one-hot for the greedy and the
  # logged action.
  next_policy: tf.Tensor
  terminals: tf.Tensor  # [B], 1 where the episode ends with this transition.
  # [B], what the backup multiplies Q(s', a') by: gamma^n, or 0 at an end.
  discounts: tf.Tensor
  step: tf.Tensor  # int64 scalar, gradient steps before this one.
  atoms: Any = None  # [B, A, K], the online network's at s.
  target_q_values: Any = None  # [B, A], the target network's at s'.
  target_atoms: Any = None  # [B, A, K], the target network's at s'.
  transition: Any = None  # The batch's tensors, by Dopamine's names.
  weights: Any = None  # Of every network, by its name.


class Penalty(abc.ABC):
  """A scalar function of a batch.

  One that needs more than the batch has a state: named tensors, saved with the
  weights, functions of the state before and the batch, without gradient.
  """

  name: str  # In logs and columns.
  moves_next_features = False  # Whether its gradient flows into phi(s', a').

  @ranges.checked
  def __init__(self, coefficient: ranges.NonNegative):
    """Sets its weight in the total loss; the first, if it changes."""
    self.coefficient = coefficient

  @abc.abstractmethod
  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    """Returns the penalty before its coefficient: float32 scalar."""

  def weight(self, state: State) -> Any:
    """Returns what the penalty is multiplied by in the total loss."""
    return self.coefficient

  def initial_state(self, num_features: int) -> dict[str, npt.NDArray[Any]]:
    """Returns the state before the first step: float32 arrays by name."""
    return {}

  def next_state(self, batch: UpdateBatch, state: State) -> State:
    """Returns the state after the step that learns from this batch."""
    return state

  def measures(self, batch: UpdateBatch, state: State) -> dict[str, tf.Tensor]:
    """Returns what is logged beside the penalty: float32 scalars by column."""
    return {}


@gin.configurable
class FeatureDotPenalty(Penalty):
  """DR3: the mean over the batch of phi(s,a)^T phi(s',a').

  Eq. 7 of Kumar et al. 2022 (arXiv:2112.04716), on the last layer's features.
  """

  name = 'feature_dot_product'

  def __init__(
    self,
    coefficient: float = 0.03,
    stop_gradient: bool = False,
    mask_terminals: bool = False,
    absolute: bool = False,
    same_action_only: bool = False,
  ):
    """Creates the penalty.

    The coefficient c0 is the authors' in later work on Atari with CQL. With
    `stop_gradient` none flows into phi(s', a') (Table A.1). `mask_terminals`
    counts transitions that end an episode, whose s' is no state, as 0; the
    authors' code does not. `absolute`: |phi^T phi'|, as in that code; the same
    after a ReLU. `same_action_only` weights each dot product by the probability
    that the backup's a' is a: the literal dot product of the last layer's
    gradients, which with one head per action are disjoint unless a = a'.
    """
    super().__init__(coefficient)
    self.stop_gradient = stop_gradient
    self.moves_next_features = not stop_gradient
    self.mask_terminals = mask_terminals
    self.absolute = absolute
    self.same_action_only = same_action_only

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    dot_products = losses.feature_dot_product(
      batch.features, batch.next_features, self.stop_gradient
    )
    if self.absolute:
      dot_products = tf.abs(dot_products)
    if self.mask_terminals:
      dot_products *= 1.0 - batch.terminals
    if self.same_action_only:
      dot_products *= losses.chosen_values(batch.next_policy, batch.actions)
    return tf.reduce_mean(dot_products)


@gin.configurable
class ConservativePenalty(Penalty):
  """CQL: the mean of logsumexp_a Q(s,a) - Q(s,a_data) (arXiv:2006.04779)."""

  name = 'conservative'

  # CQL's alpha: the authors' for QR-DQN on 1% of the data; on 10% it is 1.0.
  def __init__(self, coefficient: float = 4.0):
    super().__init__(coefficient)

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    return tf.reduce_mean(losses.conservative(batch.q_values, batch.actions))


@gin.configurable
class FeatureNormPenalty(Penalty):
  """The mean of |phi(s,a)|^2: size without co-adaptation. Not in the paper."""

  name = 'feature_norm_squared'

  def __init__(self, coefficient: float = 0.03):
    super().__init__(coefficient)

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    return tf.reduce_mean(tf.reduce_sum(tf.square(batch.features), axis=1))


@gin.configurable
class EffectiveRankPenalty(Penalty):
  """sigma_max^2 - sigma_min^2 of the batch's features (arXiv:2010.14498)."""

  name = 'effective_rank_penalty'

  # What third parties report for the paper's Atari runs.
  def __init__(self, coefficient: float = 0.001):
    super().__init__(coefficient)

  def __call__(self, batch: UpdateBatch, state: State = STATELESS) -> tf.Tensor:
    return losses.effective_rank_penalty(batch.features)
