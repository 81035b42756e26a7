"""CQL for continuous actions, as its authors ran it, with penalties.

Where TF-Agents' `CqlSacAgent` differs from the authors' code
(github.com/aviralkumar2907/CQL, d4rl/rlkit/torch/sac/cql.py), there is an
option: proposals from pi(.|s') beside pi(.|s) and uniform ones, the max-Q
backup, and a weight inside the Lagrange form.

COG (Singh et al. 2020, arXiv:2010.14500) is the same agent with networks for
images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gin
import tensorflow as tf
from tf_agents.agents.cql import cql_sac_agent

from batch_rl_dr3.agents import penalties as penalties_lib
from batch_rl_dr3.config import ranges
from batch_rl_dr3.control import critics, networks


def sampled_conservative(
  proposal_q: tf.Tensor,
  proposal_log_densities: tf.Tensor,
  data_q: tf.Tensor,
  temperature: float = 1.0,
) -> tf.Tensor:
  """Returns log sum_i exp(T Q(s, a_i)) / mu(a_i), over T, minus Q(s, a).

  The importance-sampled CQL(H) of Kumar et al. 2020 (arXiv:2006.04779), Eq. 4
  and Appendix F. The sum is not divided by the number of proposals, as in the
  authors' code: a constant that only the Lagrange form sees. A large T makes
  the sum a maximum.

  Args:
    proposal_q: float32 [B, N], values of actions that were sampled.
    proposal_log_densities: float32 [B, N], what each was sampled with; no
      gradient flows into them.
    data_q: float32 [B], values of the logged actions.
    temperature: T, > 0.

  Raises:
    ValueError: if the shapes do not fit together.
  """
  proposal_q.shape.assert_is_compatible_with(proposal_log_densities.shape)
  proposal_q.shape[:1].assert_is_compatible_with(data_q.shape)
  weighted = temperature * proposal_q - tf.stop_gradient(proposal_log_densities)
  return tf.reduce_logsumexp(weighted, axis=1) / temperature - data_q


@gin.configurable
@ranges.checked(
  num_cql_samples=ranges.Count,
  num_bc_steps=ranges.Natural,
  cql_alpha=ranges.NonNegative,
  target_update_tau=ranges.PositiveShare,
)
class DR3CqlSacAgent(critics.PenalisedSacAgent, cql_sac_agent.CqlSacAgent):
  """TF-Agents' CqlSacAgent; without penalties, plain CQL."""

  def __init__(
    self,
    *args: Any,
    penalties: Sequence[penalties_lib.Penalty] = (),
    seed: ranges.Natural = 0,
    next_proposals: bool = True,
    max_q_backup: bool = False,
    num_backup_samples: ranges.Count = 10,
    conservative_weight: ranges.NonNegative = 1.0,
    **kwargs: Any,
  ):
    """Creates the agent; further arguments are TF-Agents'.

    Args:
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
      **kwargs: of `CqlSacAgent`. Noise on rewards, which could not be resumed
        bit for bit, is a ValueError.
    """
    super().__init__(*args, penalties=penalties, seed=seed, **kwargs)
    if self._reward_noise_variance:
      raise ValueError('reward_noise_variance is not supported; leave it 0.')
    self._action_seed_stream = self._seeds
    self._next_proposals = next_proposals
    self._max_q_backup = max_q_backup
    self._num_backup_samples = num_backup_samples
    self._conservative_weight = conservative_weight
    self._next_time_steps: Callable[[], Any]

  def _train(self, experience: Any, weights: Any) -> Any:
    # The parent's step hands `_cql_loss` no s'. A function, as tf.Module would
    # track the tensors themselves.
    next_time_steps = self._as_transition(experience).next_time_step
    self._next_time_steps = lambda: next_time_steps
    return super()._train(experience, weights)

  def _backup(self, next_time_steps: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a' and Q(s', a'), or min over critics of max over samples."""
    if not self._max_q_backup:
      return super()._backup(next_time_steps)
    samples, _ = self._sample_and_transpose_actions_and_log_probs(
      next_time_steps, self._num_backup_samples
    )
    states = next_time_steps.observation
    values = [
      _values_of_samples(c, states, samples) for c in self.target_critics
    ]
    values = tf.stack(values, axis=1)  # [B, critics, samples]
    maxima = tf.reduce_max(values, axis=2)
    smaller = tf.argmin(maxima, axis=1)
    best = tf.gather(tf.argmax(values, axis=2), smaller, batch_dims=1)
    best_actions = tf.gather(samples, best, batch_dims=1)
    return best_actions, tf.reduce_min(maxima, axis=1)

  def _cql_loss(
    self, time_steps: Any, actions: tf.Tensor, training: bool = False
  ) -> tf.Tensor:
    following = self._next_time_steps()
    return self._conservative(time_steps, actions, following, training)

  def _conservative(
    self,
    time_steps: Any,
    actions: tf.Tensor,
    next_time_steps: Any,
    training: bool = False,
  ) -> tf.Tensor:
    """Returns the conservative loss, float32 scalar, the critics' mean."""
    with self._seeds.purpose('conservative'):
      proposals, log_densities = self._proposals(time_steps, next_time_steps)
    losses = []
    for critic in self.critics:
      data_q, _ = critic((time_steps.observation, actions), training=training)
      proposal_q = _values_of_samples(critic, time_steps.observation, proposals)
      temperature = self._softmax_temperature
      losses.append(
        sampled_conservative(proposal_q, log_densities, data_q, temperature)
      )
    return self._conservative_weight * tf.reduce_mean(losses)

  def _proposals(
    self, time_steps: Any, next_time_steps: Any
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns sampled actions [B, N, d] and their log densities [B, N]."""
    states = [time_steps, next_time_steps][: 1 + self._next_proposals]
    parts = [
      self._sample_and_transpose_actions_and_log_probs(s, self._num_cql_samples)
      for s in states
    ]
    sampled, densities = parts[0]
    spec = self.action_spec
    width = tf.constant(spec.maximum - spec.minimum, tf.float32)
    uniform = spec.minimum + width * tf.random.stateless_uniform(
      tf.shape(sampled), self._seeds()
    )
    # Of every dimension, whether its bounds are given once or one by one.
    log_density = -tf.reduce_sum(tf.math.log(width * tf.ones(spec.shape)))
    parts.append((uniform, tf.fill(tf.shape(densities), log_density)))
    actions, log_densities = zip(*parts, strict=True)
    return tf.concat(actions, axis=1), tf.concat(log_densities, axis=1)

  def _loss_parts(
    self,
    transition: Any,
    critic_loss: tf.Tensor,
    weights: tf.Tensor | None,
    training: bool,
  ) -> dict[str, tf.Tensor]:
    time_steps, (actions, *_), next_time_steps = transition
    conservative = self._conservative(
      time_steps, actions, next_time_steps, training
    )
    alpha = self._get_cql_alpha()
    parts = {
      'loss_conservative': conservative,
      'loss_critic': self._critic_loss_weight * critic_loss
      + alpha * conservative,
      'loss_actor': self._actor_loss_weight
      * self.actor_loss(time_steps, actions=actions, weights=weights),
      'loss_alpha': self._alpha_loss_weight
      * self.alpha_loss(time_steps, weights=weights),
    }
    if self._use_lagrange_cql_alpha:
      parts['loss_cql_alpha'] = -alpha * (conservative - self._cql_tau)
    entropy_alpha = tf.exp(self._log_alpha)
    return {**parts, 'cql_alpha': alpha, 'entropy_alpha': entropy_alpha}


def _values_of_samples(
  critic: Any, observations: tf.Tensor, actions: tf.Tensor
) -> tf.Tensor:
  """Returns Q, float32 [B, N], of actions [B, N, d] at observations [B, o]."""
  num_samples = actions.shape[1]
  flat = tf.reshape(actions, (-1, actions.shape[-1]))
  if critic.has_encoder:  # Runs once a state, not once a sample.
    codes = tf.repeat(critic.encode(observations), num_samples, axis=0)
    values = critic.values(critic.join(codes, flat))
  else:  # Not by parts, whose gradients are added up in another order.
    repeated = tf.repeat(observations, num_samples, axis=0)
    values, _ = critic((repeated, flat), training=False)
  return tf.reshape(values, (-1, num_samples))


@gin.configurable(denylist=['spaces', 'seed'])
@ranges.checked
def create_cql_agent(
  spaces: networks.Spaces,
  seed: ranges.Natural,
  critic_layers: Sequence[int] = (256, 256, 256),
  actor_layers: Sequence[int] = (256, 256, 256),
  critic_learning_rate: ranges.Positive = 3e-4,
  actor_learning_rate: ranges.Positive = 1e-4,
  gamma: ranges.Share = 0.99,
  target_entropy_per_dimension: float = -1.0,
) -> DR3CqlSacAgent:
  """Returns a CQL agent; sizes and rates are those of the authors' code.

  The critics' rate is also that of the Lagrange multiplier, the actor's also
  that of the entropy's weight.
  """
  return DR3CqlSacAgent(
    **networks.arguments(
      spaces,
      networks.create_critic(spaces, critic_layers),
      networks.create_actor(spaces, actor_layers),
      (critic_learning_rate, actor_learning_rate, actor_learning_rate),
    ),
    cql_alpha_learning_rate=critic_learning_rate,
    gamma=gamma,
    target_entropy=target_entropy_per_dimension * spaces.action_size,
    seed=seed,
  )


@gin.configurable(denylist=['spaces', 'seed'])
@ranges.checked
def create_cog_agent(
  spaces: networks.Spaces,
  seed: ranges.Natural,
  convolutions: networks.Convolutions = networks.COGS_CONVOLUTIONS,
  critic_layers: Sequence[int] = (1024, 512, 256),
  encoder_layers: Sequence[int] = (1024, 512, 256),
  actor_layers: Sequence[int] = (256, 256, 256),
  initial_limit: ranges.Positive = 1e-4,
  critic_learning_rate: ranges.Positive = 3e-4,
  actor_learning_rate: ranges.Positive = 1e-4,
  gamma: ranges.Share = 0.99,
) -> DR3CqlSacAgent:
  """Returns CQL with image networks; the defaults are COG's.

  A convolution is its filters, stride and max-pool (1: none). The policy's
  encoder has dense layers, the last of them linear, after the convolutions and
  before `actor_layers`. Dense weights are first drawn from [-initial_limit,
  initial_limit]. The actor's rate is also that of the entropy's weight.
  """
  return DR3CqlSacAgent(
    **networks.arguments(
      spaces,
      networks.ImageCriticNetwork(
        *(spaces.pair_spec, tuple(convolutions), tuple(critic_layers)),
        initial_limit,
      ),
      networks.create_image_actor(
        spaces, convolutions, encoder_layers, actor_layers, initial_limit
      ),
      (critic_learning_rate, actor_learning_rate, actor_learning_rate),
    ),
    gamma=gamma,
    target_entropy=-float(spaces.action_size),
    seed=seed,
  )
