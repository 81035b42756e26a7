"""CQL for continuous actions, as its authors ran it, with penalties.

Where TF-Agents' `CqlSacAgent` differs from the authors' code
(github.com/aviralkumar2907/CQL, d4rl/rlkit/torch/sac/cql.py), there is an
option: proposals from pi(.|s') beside pi(.|s) and uniform ones, the max-Q
backup, and a weight inside the Lagrange form.
"""

from collections.abc import Sequence
from typing import Any

import gin
import tensorflow as tf
from tf_agents.agents.cql import cql_sac_agent

from batch_rl_dr3.agents import penalties as penalties_lib
from batch_rl_dr3.control import critics


def sampled_conservative(
  proposal_q: tf.Tensor,
  proposal_log_densities: tf.Tensor,
  data_q: tf.Tensor,
  temperature: float = 1.0,
) -> tf.Tensor:
  """Returns log sum_i exp(T Q(s, a_i)) / mu(a_i), over T, minus Q(s, a).

  The importance-sampled CQL(H) of Kumar et al. 2020 (arXiv:2006.04779), Eq. 4
  and Appendix F. The sum is not divided by the number of proposals, as in the
  authors' code: a constant that only the Lagrange form sees.

  Args:
    proposal_q: float32 [B, N], values of actions that were sampled.
    proposal_log_densities: float32 [B, N], the log densities that each was
      sampled with. No gradient flows into them.
    data_q: float32 [B], values of the logged actions.
    temperature: T, > 0, as in TF-Agents: large T makes the sum a maximum.

  Returns:
    float32 [B].

  Raises:
    ValueError: if the shapes do not fit together.
  """
  proposal_q.shape.assert_has_rank(2)
  proposal_q.shape.assert_is_compatible_with(proposal_log_densities.shape)
  proposal_q.shape[:1].assert_is_compatible_with(data_q.shape)
  weighted = temperature * proposal_q - tf.stop_gradient(proposal_log_densities)
  return tf.reduce_logsumexp(weighted, axis=1) / temperature - data_q


@gin.configurable
class DR3CqlSacAgent(critics.PenalisedCritics, cql_sac_agent.CqlSacAgent):
  """TF-Agents' CqlSacAgent; without penalties, plain CQL."""

  def __init__(
    self,
    time_step_spec: Any,
    action_spec: Any,
    *args: Any,
    penalties: Sequence[penalties_lib.Penalty] = (),
    seed: int = 0,
    next_proposals: bool = True,
    max_q_backup: bool = False,
    num_backup_samples: int = 10,
    conservative_weight: float = 1.0,
    **kwargs: Any,
  ):
    """Creates the agent.

    Args:
      time_step_spec: of `CqlSacAgent`.
      action_spec: of `CqlSacAgent`.
      *args: of `CqlSacAgent`.
      penalties: on the critics' features.
      seed: fixes all that is sampled.
      next_proposals: sample as many proposals from pi(.|s') too, and value
        them at s, as the authors do. TF-Agents does not.
      max_q_backup: back up the smaller of the critics' maxima over sampled
        a', in place of the smaller value of one a'.
      num_backup_samples: how many a' that maximum is over; the authors' 10.
      conservative_weight: the authors' min_q_weight inside the Lagrange form,
        alpha' * (weight * gap - tau).
      **kwargs: of `CqlSacAgent`.

    Raises:
      ConfigError: see `critics.check_specs`.
      ValueError: if a penalty needs a finite set of actions, or noise is to
        be put on rewards, which could not be resumed bit for bit.
    """
    critics.check_specs(time_step_spec, action_spec)
    super().__init__(time_step_spec, action_spec, *args, **kwargs)
    if self._reward_noise_variance:
      raise ValueError('reward_noise_variance is not supported; leave it 0.')
    self._prepare(penalties, seed)
    self._action_seed_stream = self._dr3.seeds
    self._next_proposals = next_proposals
    self._max_q_backup = max_q_backup
    self._num_backup_samples = num_backup_samples
    self._conservative_weight = conservative_weight

  def _actions_and_log_probs(
    self, time_steps: Any, training: bool = False
  ) -> tuple[tf.Tensor, tf.Tensor]:
    actions, log_probs = super()._actions_and_log_probs(time_steps, training)
    self._dr3.next_actions = actions  # The critic loss asks at s' alone.
    return actions, log_probs

  def _critic_loss_with_optional_entropy_term(
    self, *args: Any, **kwargs: Any
  ) -> tf.Tensor:
    return self._penalised(self._terms(*args, **kwargs))

  def _terms(
    self,
    time_steps: Any,
    actions: tf.Tensor,
    next_time_steps: Any,
    *args: Any,
    measured: bool = False,
    **kwargs: Any,
  ) -> critics.CriticTerms:
    self._dr3.next_time_steps = next_time_steps  # For `_cql_loss`.
    parent = super()._critic_loss_with_optional_entropy_term

    def loss() -> tf.Tensor:
      if not self._max_q_backup:
        return parent(time_steps, actions, next_time_steps, *args, **kwargs)
      return self._max_q_loss(
        parent, time_steps, actions, next_time_steps, *args, **kwargs
      )

    return self._critic_terms(loss, next_time_steps, measured)

  def _max_q_loss(
    self,
    parent: Any,
    time_steps: Any,
    actions: tf.Tensor,
    next_time_steps: Any,
    td_errors_loss_fn: Any,
    gamma: float = 1.0,
    reward_scale_factor: float = 1.0,
    **kwargs: Any,
  ) -> tf.Tensor:
    """Puts the maximum into the reward and leaves the parent none to add."""
    best_actions, best_q = self._best_of_samples(next_time_steps)
    bootstrap = gamma * next_time_steps.discount * best_q
    rewards = next_time_steps.reward + bootstrap / reward_scale_factor
    loss = parent(
      time_steps,
      actions,
      next_time_steps._replace(reward=rewards),
      td_errors_loss_fn,
      gamma=0.0,
      reward_scale_factor=reward_scale_factor,
      **kwargs,
    )
    self._dr3.next_actions = best_actions
    return loss

  def _best_of_samples(self, time_steps: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a' [B, d] and min over critics of max over samples, [B]."""
    samples, _ = self._sample_and_transpose_actions_and_log_probs(
      time_steps, self._num_backup_samples
    )
    targets = (self._target_critic_network_1, self._target_critic_network_2)
    values = tf.stack(  # [B, critics, samples]
      [
        _values_of_samples(critic, time_steps.observation, samples)
        for critic in targets
      ],
      axis=1,
    )
    maxima = tf.reduce_max(values, axis=2)
    smaller = tf.argmin(maxima, axis=1)
    best = tf.gather(tf.argmax(values, axis=2), smaller, batch_dims=1)
    return (
      tf.gather(samples, best, batch_dims=1),
      tf.reduce_min(maxima, axis=1),
    )

  def _cql_loss(
    self, time_steps: Any, actions: tf.Tensor, training: bool = False
  ) -> tf.Tensor:
    """Returns the conservative loss, float32 scalar, the critics' mean.

    All proposals go through a critic in one call.
    """
    with self._dr3.seeds.purpose('conservative'):
      proposals, log_densities = self._proposals(time_steps)
    losses = []
    for critic in self.critics:
      data_q, _ = critic((time_steps.observation, actions), training=training)
      proposal_q = _values_of_samples(critic, time_steps.observation, proposals)
      losses.append(
        sampled_conservative(
          proposal_q, log_densities, data_q, self._softmax_temperature
        )
      )
    return self._conservative_weight * tf.reduce_mean(losses)

  def _proposals(self, time_steps: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns sampled actions [B, N, d] and their log densities [B, N]."""
    policies = [time_steps]
    if self._next_proposals:
      policies.append(self._dr3.next_time_steps)
    parts = [
      self._sample_and_transpose_actions_and_log_probs(
        states, self._num_cql_samples
      )
      for states in policies
    ]
    sampled, densities = parts[0]
    spec = self.action_spec
    width = tf.constant(spec.maximum - spec.minimum, tf.float32)
    uniform = spec.minimum + width * tf.random.stateless_uniform(
      tf.shape(sampled), self._dr3.seeds()
    )
    # Of every dimension, whether its bounds are given once or one by one.
    log_density = -tf.reduce_sum(tf.math.log(width * tf.ones(spec.shape)))
    parts.append((uniform, tf.fill(tf.shape(densities), log_density)))
    return (
      tf.concat([part[0] for part in parts], axis=1),
      tf.concat([part[1] for part in parts], axis=1),
    )

  def actor_loss(
    self,
    time_steps: Any,
    actions: tf.Tensor,
    weights: tf.Tensor | None = None,
    training: bool = True,
  ) -> tf.Tensor:
    """See the parent."""
    with self._dr3.seeds.purpose('actor'):
      return super().actor_loss(
        time_steps, actions=actions, weights=weights, training=training
      )

  def _loss_parts(
    self, experience: Any, weights: tf.Tensor | None, training: bool
  ) -> dict[str, tf.Tensor]:
    time_steps, policy_steps, next_time_steps = self._as_transition(experience)
    actions = policy_steps.action
    terms = self._measured_terms(
      time_steps, actions, next_time_steps, weights, training
    )
    conservative = self._cql_loss(time_steps, actions, training)
    alpha = self._get_cql_alpha()
    minimised = {
      'loss_critic': self._critic_loss_weight * self._penalised(terms)
      + alpha * conservative,
      'loss_actor': self._actor_loss_weight
      * self.actor_loss(time_steps, actions=actions, weights=weights),
      'loss_alpha': self._alpha_loss_weight
      * self.alpha_loss(time_steps, weights=weights),
    }
    if self._use_lagrange_cql_alpha:
      minimised['loss_cql_alpha'] = -alpha * (conservative - self._cql_tau)
    return {
      'loss_total': tf.add_n(list(minimised.values())),
      'loss_bellman': self._critic_loss_weight * terms.loss,
      'loss_conservative': conservative,
      **minimised,
      'cql_alpha': alpha,
      'entropy_alpha': tf.exp(self._log_alpha),
      **self._measures(terms),
    }


def _values_of_samples(
  critic: Any, observations: tf.Tensor, actions: tf.Tensor
) -> tf.Tensor:
  """Returns Q, float32 [B, N], of actions [B, N, d] at observations [B, o]."""
  num_samples = actions.shape[1]
  repeated = tf.repeat(observations, num_samples, axis=0)
  flat = tf.reshape(actions, (-1, actions.shape[-1]))
  values, _ = critic((repeated, flat), training=False)
  return tf.reshape(values, (-1, num_samples))
