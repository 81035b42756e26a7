"""What the agents share: critics with features, penalties on them, seeds.

The critics minimise L_ALG + sum over penalties of coefficient * R, where L_ALG
is the loss as TF-Agents' training step minimises it (with the 0.5 that it puts
on the squared errors) and R is the penalty summed over the two critics. For
DR3, R = sum over critics of mean phi(s,a)^T phi(s',a') (Eq. 7 of
arXiv:2112.04716), phi of the online critic at the very a' of the backup.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import types
from typing import Any, NamedTuple
import zlib

import numpy as np
import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.agents.ddpg import critic_network
from tf_agents.specs import tensor_spec

from batch_rl_dr3.agents import losses
from batch_rl_dr3.agents import penalties as penalties_lib
from batch_rl_dr3.config import errors


class StepSeeds:
  """Stands in for TF-Agents' stream of seeds, and needs no state of its own.

  TF-Agents samples with stateful generators, whose state no checkpoint holds:
  a run that was stopped would go on with other numbers. Each call of this
  object returns the seed of a stateless sampler, which TensorFlow Probability
  takes in the same place. It depends on the run's seed, the gradient step,
  what is sampled for, and which call for that it is; not on which function
  was traced first.
  """

  def __init__(self, seed: int, step: tf.Variable):
    """Creates the stream.

    Args:
      seed: the run's seed.
      step: int64 scalar, the number of gradient steps taken.
    """
    self._seed = seed
    self._step = step
    self._salt: int | None = None
    self._num_calls = 0

  @contextlib.contextmanager
  def purpose(self, name: str) -> Iterator[None]:
    """Says what is sampled for while the block is traced."""
    before = (self._salt, self._num_calls)
    self._salt, self._num_calls = zlib.crc32(name.encode()) & 0x7FFFFFFF, 0
    try:
      yield
    finally:
      self._salt, self._num_calls = before

  def __call__(self) -> tf.Tensor:
    """Returns the seed of the next sampler, int32 [2].

    Raises:
      RuntimeError: outside of `purpose`.
    """
    if self._salt is None:
      raise RuntimeError('random numbers are asked for without a purpose.')
    self._num_calls += 1
    seed = tf.constant([self._seed, self._salt], tf.int32)
    fold_in = tf.random.experimental.stateless_fold_in
    step = tf.cast(self._step, tf.int32)
    return fold_in(fold_in(seed, step), self._num_calls)


class FeatureCriticNetwork(critic_network.CriticNetwork):
  """A critic Q(s, a) whose features phi(s, a) can be asked for.

  The features are what its last layer, a linear one, takes. Everything else
  is TF-Agents' `CriticNetwork`.
  """

  def __init__(
    self, input_tensor_spec: Any, name: str = 'FeatureCritic', **kwargs: Any
  ):
    """Creates the network; its variables appear when it is first called.

    Args:
      input_tensor_spec: the specs of (observation, action).
      name: the network's name.
      **kwargs: further arguments of `CriticNetwork`.

    Raises:
      ValueError: if `last_layer` is given: `copy()` would share it between
        the online and the target network.
    """
    if kwargs.get('last_layer') is not None:
      raise ValueError(
        'FeatureCriticNetwork takes no last_layer: copies would share it.'
      )
    super().__init__(input_tensor_spec, name=name, **kwargs)
    # A callable, not a list: Keras would wrap and track a list.
    self._on_features: Callable[[tf.Tensor], None] | None = None

  def features(self, inputs: Any, training: bool = False) -> tf.Tensor:
    """Returns phi(s, a), float32 [B, D], for inputs (s, a)."""
    observations, actions = (
      tf.cast(tf.nest.flatten(part)[0], tf.float32) for part in inputs
    )
    for layer in self._observation_layers:
      observations = layer(observations, training=training)
    for layer in self._action_layers:
      actions = layer(actions, training=training)
    joint = tf.concat([observations, actions], 1)
    for layer in self._joint_layers[:-1]:
      joint = layer(joint, training=training)
    return joint

  def values(self, features: tf.Tensor) -> tf.Tensor:
    """Returns Q, float32 [B], of features, float32 [B, D]."""
    return tf.reshape(self._joint_layers[-1](features), [-1])

  def call(
    self,
    inputs: Any,
    step_type: Any = (),
    network_state: Any = (),
    training: bool = False,
  ) -> tuple[tf.Tensor, Any]:
    """Returns Q, float32 [B], and the network state as it came."""
    del step_type
    features = self.features(inputs, training)
    if self._on_features is not None:
      self._on_features(features)
    return self.values(features), network_state

  @contextlib.contextmanager
  def recording(self) -> Iterator[list[tf.Tensor]]:
    """Yields a list that takes the features of every call in the block."""
    recorded: list[tf.Tensor] = []
    self._on_features = recorded.append
    try:
      yield recorded
    finally:
      self._on_features = None


class CriticTerms(NamedTuple):
  """What one pass of the critics' loss gives.

  Attributes:
    loss: float32 scalar, the parent's critic loss, before its weight.
    batches: one per critic, with features and terminals; no Q of every
      action, as there are infinitely many.
    q_values: float32 [B] per critic, at the logged actions.
  """

  loss: tf.Tensor
  batches: list[penalties_lib.UpdateBatch]
  q_values: list[tf.Tensor]


def check_specs(time_step_spec: Any, action_spec: Any) -> None:
  """Refuses what TF-Agents cannot sample from; before its constructor does.

  Raises:
    ConfigError: if a uint8 spec is bounded by scalars. TF-Agents computes their
      upper bound plus one in uint8, which NumPy 2 wraps to nothing.
  """
  for name, spec in (
    ('observation', time_step_spec.observation),
    ('action', action_spec),
  ):
    for part in tf.nest.flatten(spec):
      if (
        isinstance(part, tensor_spec.BoundedTensorSpec)
        and part.dtype == tf.uint8
        and not (np.ndim(part.minimum) and np.ndim(part.maximum))
      ):
        raise errors.ConfigError(
          f'the {name} spec is uint8 with scalar bounds, which TF-Agents '
          'cannot handle on NumPy 2: give the bounds as arrays of its shape, '
          'or make it float32.'
        )


class PenalisedCritics:
  """Mixin of agents whose two critics are `FeatureCriticNetwork`s."""

  def _prepare(
    self, penalties: Sequence[penalties_lib.Penalty], seed: int
  ) -> None:
    """Sets up what the methods below use; after the parent's constructor.

    Raises:
      ValueError: if a penalty needs a finite set of actions, or a state.
    """
    for penalty in penalties:
      if penalty.initial_state(num_features=1):
        raise ValueError(
          f'{type(penalty).__name__} keeps a state, which continuous control '
          'has no place for.'
        )
      if isinstance(penalty, penalties_lib.ConservativePenalty) or getattr(
        penalty, 'same_action_only', False
      ):
        raise ValueError(
          f'{type(penalty).__name__}, as it is configured, is for a finite '
          'set of actions.'
        )
    # A namespace, since tf.Module would wrap and track lists and tensors.
    self._dr3 = types.SimpleNamespace(
      penalties=tuple(penalties),
      seeds=StepSeeds(seed, self.train_step_counter),  # type: ignore[attr-defined]
      next_actions=None,
      next_time_steps=None,
    )

  @property
  def penalties(self) -> tuple[penalties_lib.Penalty, ...]:
    """The penalties on the critics' features."""
    return tuple(self._dr3.penalties)

  @property
  def critics(self) -> tuple[Any, Any]:
    """The two online critics."""
    return self._critic_network_1, self._critic_network_2  # type: ignore[attr-defined]

  def _critic_terms(
    self,
    parent_loss: Callable[[], tf.Tensor],
    next_time_steps: Any,
    measured: bool = False,
  ) -> CriticTerms:
    """Runs the parent's critic loss and notes what goes through the critics.

    Args:
      parent_loss: computes the loss, and leaves the backup's action in
        `self._dr3.next_actions`.
      next_time_steps: s' and what came with it.
      measured: whether features at s' are wanted though no penalty is on.
    """
    first, second = self.critics
    with (
      self._dr3.seeds.purpose('critic'),
      first.recording() as first_features,
      second.recording() as second_features,
    ):
      loss = parent_loss()
    batches, q_values = [], []
    is_used = measured or any(p.coefficient for p in self.penalties)
    for critic, (features,) in zip(
      self.critics, (first_features, second_features), strict=True
    ):
      q_values.append(critic.values(features))
      if is_used:
        pairs = (next_time_steps.observation, self._dr3.next_actions)
        batches.append(
          penalties_lib.UpdateBatch(
            q_values=None,
            features=features,
            next_features=critic.features(pairs, training=True),
            actions=None,
            next_policy=None,
            terminals=1.0 - next_time_steps.discount,
            discounts=self._gamma * next_time_steps.discount,  # type: ignore[attr-defined]
            step=self.train_step_counter,  # type: ignore[attr-defined]
          )
        )
    return CriticTerms(loss, batches, q_values)

  def _terms(
    self,
    time_steps: Any,
    actions: tf.Tensor,
    next_time_steps: Any,
    *args: Any,
    measured: bool = False,
    **kwargs: Any,
  ) -> CriticTerms:
    """Returns `_critic_terms` of the parent's loss; takes its arguments."""
    raise NotImplementedError

  def _measured_terms(
    self,
    time_steps: Any,
    actions: tf.Tensor,
    next_time_steps: Any,
    weights: tf.Tensor | None,
    training: bool,
  ) -> CriticTerms:
    """Returns the terms with the arguments of the parent's training step."""
    return self._terms(
      time_steps,
      actions,
      next_time_steps,
      td_errors_loss_fn=self._td_errors_loss_fn,  # type: ignore[attr-defined]
      gamma=self._gamma,  # type: ignore[attr-defined]
      reward_scale_factor=self._reward_scale_factor,  # type: ignore[attr-defined]
      weights=weights,
      training=training,
      measured=True,
    )

  def _penalised(self, terms: CriticTerms) -> tf.Tensor:
    """Returns the critic loss, such that its weight leaves penalties whole."""
    active = [p for p in self.penalties if p.coefficient]
    if not active:
      return terms.loss
    total = tf.add_n([p.coefficient * _over_critics(p, terms) for p in active])
    return terms.loss + total / self._critic_loss_weight  # type: ignore[attr-defined]

  def alpha_loss(self, *args: Any, **kwargs: Any) -> tf.Tensor:
    """See the agent's parent."""
    with self._dr3.seeds.purpose('alpha'):
      return super().alpha_loss(*args, **kwargs)  # type: ignore[misc]

  def _loss(
    self,
    experience: Any,
    weights: tf.Tensor | None = None,
    training: bool = False,
  ) -> tf_agent.LossInfo:
    """Returns all that a training step minimises, whole and by part."""
    parts = self._loss_parts(experience, weights, training)
    return tf_agent.LossInfo(loss=parts['loss_total'], extra=parts)

  def _loss_parts(
    self, experience: Any, weights: tf.Tensor | None, training: bool
  ) -> dict[str, tf.Tensor]:
    """Returns what is minimised and measured, scalars by column name."""
    raise NotImplementedError

  def _measures(self, terms: CriticTerms) -> dict[str, tf.Tensor]:
    """Returns what is logged of the critics, float32 scalars by column."""
    dots, discounted, norms = [], [], []
    for batch in terms.batches:
      dots.append(
        losses.feature_dot_product(batch.features, batch.next_features)
      )
      discounted.append(batch.discounts * dots[-1])
      norms.append(losses.feature_dot_product(batch.features, batch.features))
    return {
      **{
        f'loss_{penalty.name}': _over_critics(penalty, terms)
        for penalty in self.penalties
      },
      'feature_dot_product': tf.reduce_mean(dots),
      'discounted_dot_product': tf.reduce_mean(discounted),
      'feature_norm_squared': tf.reduce_mean(norms),
      'mean_q': tf.reduce_mean(terms.q_values),
    }


def _over_critics(
  penalty: penalties_lib.Penalty, terms: CriticTerms
) -> tf.Tensor:
  return tf.add_n([penalty(batch) for batch in terms.batches])
