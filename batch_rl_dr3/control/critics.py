"""What the agents share: a critic loss with penalties, and seeds.

The critics minimise L_ALG + sum over penalties of coefficient * R, where L_ALG
is the loss as TF-Agents' training step minimises it (with the 0.5 that it puts
on the squared errors) and R is the penalty summed over the two critics. For
DR3, R = sum over critics of mean phi(s,a)^T phi(s',a') (Eq. 7 of
arXiv:2112.04716), phi of the online critic at the very a' of the backup.
"""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any, NamedTuple
import zlib

import numpy as np
import tensorflow as tf
from tf_agents.agents import tf_agent
from tf_agents.agents.sac import sac_agent
from tf_agents.specs import tensor_spec
from tf_agents.utils import common

from batch_rl_dr3.agents import losses
from batch_rl_dr3.agents import penalties as penalties_lib
from batch_rl_dr3.config import errors

# What a step minimises, of the columns that `loss` returns.
_MINIMISED = ('loss_critic', 'loss_actor', 'loss_alpha', 'loss_cql_alpha')


class StepSeeds:
  """Stands in for TF-Agents' stream of seeds, whose state no checkpoint holds.

  A call returns the seed of a stateless sampler, a function of the run's seed,
  the gradient step, the purpose and the number of the call within it; not of
  which TensorFlow function was traced first.
  """

  def __init__(self, seed: int, step: tf.Variable):
    self._seed = seed
    self._step = step  # int64 scalar, the steps taken so far.
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
    """Returns the seed of the next sampler, int32 [2]."""
    if self._salt is None:
      raise RuntimeError('random numbers are asked for without a purpose.')
    self._num_calls += 1
    seed = tf.constant([self._seed, self._salt], tf.int32)
    fold_in = tf.random.experimental.stateless_fold_in
    step = tf.cast(self._step, tf.int32)
    return fold_in(fold_in(seed, step), self._num_calls)


class CriticTerms(NamedTuple):
  """What one pass of the critics' loss gives."""

  loss: tf.Tensor  # float32 scalar, without penalties, before its weight.
  # One a critic, without Q of every action, as there are infinitely many; none
  # if nothing asks for them.
  batches: list[penalties_lib.UpdateBatch]
  q_values: list[tf.Tensor]  # float32 [B] a critic, at the logged actions.

  def penalty(self, penalty: penalties_lib.Penalty) -> tf.Tensor:
    """Returns the sum of a penalty over the critics, float32 scalar."""
    return tf.add_n([penalty(batch) for batch in self.batches])


def check_specs(time_step_spec: Any, action_spec: Any) -> None:
  """Refuses uint8 specs with scalar bounds, before TF-Agents' constructor does.

  It computes their upper bound plus one in uint8, which NumPy 2 wraps to
  nothing; a ConfigError.
  """
  specs = {'observation': time_step_spec.observation, 'action': action_spec}
  for name, spec in specs.items():
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


class PenalisedSacAgent(sac_agent.SacAgent):
  """SAC with `penalties` on the features of two `FeatureCriticNetwork`s."""

  _include_critic_entropy_term = True

  def __init__(
    self,
    time_step_spec: Any,
    action_spec: Any,
    *args: Any,
    penalties: Sequence[penalties_lib.Penalty],
    seed: int,
    **kwargs: Any,
  ):
    """Creates the agent; further arguments are TF-Agents'.

    Raises:
      ConfigError: see `check_specs`.
      ValueError: if a penalty needs a finite set of actions, or a state.
    """
    check_specs(time_step_spec, action_spec)
    super().__init__(time_step_spec, action_spec, *args, **kwargs)
    for penalty in penalties:
      name = type(penalty).__name__
      if penalty.initial_state(num_features=1):
        raise ValueError(
          f'{name} keeps a state, which continuous control has no place for.'
        )
      is_conservative = isinstance(penalty, penalties_lib.ConservativePenalty)
      if is_conservative or getattr(penalty, 'same_action_only', False):
        raise ValueError(
          f'{name}, as it is configured, is for a finite set of actions.'
        )
    self.penalties = tuple(penalties)
    self._seeds = StepSeeds(seed, self.train_step_counter)

  @property
  def critics(self) -> tuple[Any, Any]:
    """The two online critics."""
    return self._critic_network_1, self._critic_network_2

  @property
  def target_critics(self) -> tuple[Any, Any]:
    """The two target critics."""
    return self._target_critic_network_1, self._target_critic_network_2

  def _backup(self, next_time_steps: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a', float32 [B, d], and what is backed up, float32 [B]."""
    actions, log_probs = self._actions_and_log_probs(next_time_steps)
    pairs = (next_time_steps.observation, actions)
    values = tf.minimum(*(critic(pairs)[0] for critic in self.target_critics))
    if self._include_critic_entropy_term:
      values -= tf.exp(self._log_alpha) * log_probs
    return actions, values

  def _critic_terms(
    self,
    time_steps: Any,
    actions: tf.Tensor,
    next_time_steps: Any,
    td_errors_loss_fn: Any,
    gamma: float = 1.0,
    reward_scale_factor: float = 1.0,
    weights: tf.Tensor | None = None,
    training: bool = False,
    measured: bool = False,
  ) -> CriticTerms:
    """Returns the critics' loss; arguments are those of SAC's `critic_loss`.

    `measured` asks for features at s' though no penalty is on.
    """
    with self._seeds.purpose('critic'):
      next_actions, next_values = self._backup(next_time_steps)
    discounts = gamma * next_time_steps.discount
    targets = tf.stop_gradient(
      reward_scale_factor * next_time_steps.reward + discounts * next_values
    )
    pairs = (time_steps.observation, actions)
    features = [critic.features(pairs, training) for critic in self.critics]
    q_values = [
      c.values(f) for c, f in zip(self.critics, features, strict=True)
    ]
    loss = common.aggregate_losses(
      per_example_loss=td_errors_loss_fn(targets, q_values[0])
      + td_errors_loss_fn(targets, q_values[1]),
      sample_weight=weights,
      regularization_loss=[x for critic in self.critics for x in critic.losses],
    ).total_loss
    batches = []
    if measured or any(penalty.coefficient for penalty in self.penalties):
      pairs = (next_time_steps.observation, next_actions)
      batches = [
        penalties_lib.UpdateBatch(
          q_values=None,
          features=phi,
          next_features=critic.features(pairs, training=True),
          actions=None,
          next_policy=None,
          terminals=1.0 - next_time_steps.discount,
          discounts=discounts,
          step=self.train_step_counter,
        )
        for critic, phi in zip(self.critics, features, strict=True)
      ]
    return CriticTerms(loss, batches, q_values)

  def _penalised(self, terms: CriticTerms) -> tf.Tensor:
    """Returns the critic loss, such that its weight leaves penalties whole."""
    active = [p for p in self.penalties if p.coefficient]
    if not active:
      return terms.loss
    total = tf.add_n([p.coefficient * terms.penalty(p) for p in active])
    return terms.loss + total / self._critic_loss_weight

  def critic_loss(self, *args: Any, **kwargs: Any) -> tf.Tensor:
    """Returns SAC's critic loss with the penalties, float32 scalar."""
    return self._penalised(self._critic_terms(*args, **kwargs))

  # CqlSacAgent's name of it.
  _critic_loss_with_optional_entropy_term = critic_loss

  def actor_loss(self, *args: Any, **kwargs: Any) -> tf.Tensor:  # noqa: D102
    with self._seeds.purpose('actor'):
      return super().actor_loss(*args, **kwargs)

  def alpha_loss(self, *args: Any, **kwargs: Any) -> tf.Tensor:  # noqa: D102
    with self._seeds.purpose('alpha'):
      return super().alpha_loss(*args, **kwargs)

  def _loss(
    self,
    experience: Any,
    weights: tf.Tensor | None = None,
    training: bool = False,
  ) -> tf_agent.LossInfo:
    """Returns all that a step minimises and measures, by column name."""
    transition = self._as_transition(experience)
    time_steps, policy_steps, next_time_steps = transition
    terms = self._critic_terms(
      time_steps,
      policy_steps.action,
      next_time_steps,
      self._td_errors_loss_fn,
      self._gamma,
      self._reward_scale_factor,
      weights,
      training,
      measured=True,
    )
    dot = losses.feature_dot_product
    batches = terms.batches
    dots = [dot(b.features, b.next_features) for b in batches]
    discounted = [b.discounts * d for b, d in zip(batches, dots, strict=True)]
    norms = [dot(b.features, b.features) for b in batches]
    parts = {
      'loss_bellman': self._critic_loss_weight * terms.loss,
      **self._loss_parts(transition, self._penalised(terms), weights, training),
      **{f'loss_{p.name}': terms.penalty(p) for p in self.penalties},
      'feature_dot_product': tf.reduce_mean(dots),
      'discounted_dot_product': tf.reduce_mean(discounted),
      'feature_norm_squared': tf.reduce_mean(norms),
      'mean_q': tf.reduce_mean(terms.q_values),
    }
    total = tf.add_n([parts[name] for name in _MINIMISED if name in parts])
    return tf_agent.LossInfo(loss=total, extra={'loss_total': total, **parts})

  def _loss_parts(
    self,
    transition: Any,
    critic_loss: tf.Tensor,
    weights: tf.Tensor | None,
    training: bool,
  ) -> dict[str, tf.Tensor]:
    """Returns what is minimised and the agent's own measures, by column."""
    raise NotImplementedError
