"""BRAC, with penalties: SAC whose entropy is a distance from the behaviour.

Wu et al. 2019 (arXiv:1911.11361). Put the divergence D(pi(.|s), b(.|s)) in the
place of log pi(a|s), and TF-Agents' SAC is BRAC: the backup becomes
min Q'(s', a') - alpha D(s') (the value penalty, BRAC-v; without it BRAC-p), the
policy minimises alpha D(s) - min Q(s, a), and the rule for alpha holds D at a
target. The divergences are the primal estimates of Section 4, as in the
authors' code. Two deviations from the authors' code: alpha is learnt as its
logarithm, and it is not clipped at 500.
"""

from collections.abc import Sequence
import math
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.agents import penalties as penalties_lib
from batch_rl_dr3.config import ranges
from batch_rl_dr3.control import critics, networks

# The authors' margin: densities of the behaviour policy are asked for no
# closer to the bounds of the actions, where a tanh-Normal has none.
_ACTION_MARGIN = 1e-3


def kl(
  policy_log_densities: tf.Tensor, behaviour_log_densities: tf.Tensor
) -> tf.Tensor:
  """Returns an estimate of KL(pi || b), which can be negative, float32 [B].

  The mean of log pi(a_i|s) - log b(a_i|s), both float32 [N, B], a_i from pi.
  """
  return tf.reduce_mean(policy_log_densities - behaviour_log_densities, axis=0)


def mmd(
  policy_actions: tf.Tensor, behaviour_actions: tf.Tensor, sigma: float = 20.0
) -> tf.Tensor:
  """Returns the squared maximum mean discrepancy, Laplacian, float32 [B].

  mean k(a, a') - 2 mean k(a, b) + mean k(b, b'), k(x, y) = exp(-|x-y|_1 /
  sigma), means over all pairs of the actions, float32 [N, B, d] and [M, B, d],
  those of an action with itself included. The authors' sigma is 20.
  """

  def mean_kernel(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    distances = tf.reduce_sum(tf.abs(first[None] - second[:, None]), axis=-1)
    return tf.reduce_mean(tf.exp(-distances / sigma), axis=(0, 1))

  return (
    mean_kernel(policy_actions, policy_actions)
    - 2.0 * mean_kernel(policy_actions, behaviour_actions)
    + mean_kernel(behaviour_actions, behaviour_actions)
  )


@gin.configurable
@ranges.checked(target_update_tau=ranges.PositiveShare)
class DR3BracAgent(critics.PenalisedSacAgent):
  """BRAC on TF-Agents' SacAgent; without penalties, plain BRAC."""

  def __init__(
    self,
    *args: Any,
    behaviour_network: Any,
    penalties: Sequence[penalties_lib.Penalty] = (),
    seed: ranges.Natural = 0,
    divergence: str = 'kl',
    alpha: ranges.Positive = 0.1,
    train_alpha: bool = False,
    target_divergence: float = 0.0,
    value_penalty: bool = True,
    num_divergence_samples: ranges.Count = 4,
    num_warm_start_steps: ranges.Natural = 20_000,
    **kwargs: Any,
  ):
    """Creates the agent; defaults are those of the authors' code.

    Args:
      *args: these and further ones are `SacAgent`'s.
      behaviour_network: b(.|s), cloned from the data, like the actor.
      penalties: on the critics' features.
      seed: fixes all that is sampled.
      divergence: 'kl' or 'mmd', both in their primal form.
      alpha: the weight of the divergence; where it is trained, at first.
      train_alpha: whether alpha is adapted to hold D at target_divergence.
      target_divergence: see above.
      value_penalty: BRAC-v; without it BRAC-p, whose backup is not penalised.
      num_divergence_samples: actions of each policy that D is estimated on.
      num_warm_start_steps: of the policy by the divergence alone.
      **kwargs: see above.
    """
    if divergence not in ('kl', 'mmd'):
      raise ValueError(f"divergence is 'kl' or 'mmd', not {divergence!r}.")
    super().__init__(
      *args,
      penalties=penalties,
      seed=seed,
      initial_log_alpha=math.log(alpha),
      target_entropy=-target_divergence,
      alpha_loss_weight=float(train_alpha),
      **kwargs,
    )
    self.behaviour_network = behaviour_network
    self._divergence = divergence
    self._include_critic_entropy_term = value_penalty
    self._num_divergence_samples = num_divergence_samples
    self._num_warm_start_steps = num_warm_start_steps

  def _actions_and_log_probs(
    self, time_steps: Any, training: bool = False
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns actions, and D(s) where the parent has log pi(a|s)."""
    policy = self._train_policy if training else self._policy
    distribution = policy.distribution(time_steps).action
    actions = distribution.sample(seed=self._seeds())
    return actions, self.divergence(time_steps, distribution)

  def divergence(self, time_steps: Any, distribution: Any) -> tf.Tensor:
    """Returns D(pi(.|s), b(.|s)), float32 [B], at s with pi(.|s)."""
    behaviour, _ = self.behaviour_network(time_steps.observation, (), ())
    number = self._num_divergence_samples
    samples = distribution.sample(number, seed=self._seeds())
    if self._divergence == 'mmd':
      return mmd(samples, behaviour.sample(number, seed=self._seeds()))
    spec = self.action_spec
    inside = tf.clip_by_value(
      samples, spec.minimum + _ACTION_MARGIN, spec.maximum - _ACTION_MARGIN
    )
    return kl(distribution.log_prob(samples), behaviour.log_prob(inside))

  def actor_loss(
    self,
    time_steps: Any,
    weights: tf.Tensor | None = None,
    training: bool = True,
  ) -> tf.Tensor:
    """Returns mean of alpha D(s) - min Q(s, a), without Q in the warm start."""
    with self._seeds.purpose('actor'):
      actions, divergence = self._actions_and_log_probs(time_steps, training)
    pairs = (time_steps.observation, actions)
    values = tf.minimum(*(critic(pairs)[0] for critic in self.critics))
    counts = tf.cast(
      self.train_step_counter >= self._num_warm_start_steps, tf.float32
    )
    losses = tf.exp(self._log_alpha) * divergence - counts * values
    return tf.reduce_mean(losses if weights is None else weights * losses)

  def _loss_parts(
    self,
    transition: Any,
    critic_loss: tf.Tensor,
    weights: tf.Tensor | None,
    training: bool,
  ) -> dict[str, tf.Tensor]:
    time_steps = transition.time_step
    with self._seeds.purpose('measured'):
      distribution = self._policy.distribution(time_steps).action
      divergence = self.divergence(time_steps, distribution)
    return {
      'loss_critic': self._critic_loss_weight * critic_loss,
      'loss_actor': self._actor_loss_weight
      * self.actor_loss(time_steps, weights=weights),
      'loss_alpha': self._alpha_loss_weight
      * self.alpha_loss(time_steps, weights=weights),
      'divergence': tf.reduce_mean(divergence),
      'alpha': tf.exp(self._log_alpha),
    }


@gin.configurable(denylist=['spaces', 'seed'])
@ranges.checked
def create_brac_agent(
  spaces: networks.Spaces,
  seed: ranges.Natural,
  critic_layers: Sequence[int] = (300, 300),
  actor_layers: Sequence[int] = (200, 200),
  critic_learning_rate: ranges.Positive = 1e-3,
  actor_learning_rate: ranges.Positive = 3e-4,
  alpha_learning_rate: ranges.Positive = 1e-3,
  gamma: ranges.Share = 0.99,
) -> DR3BracAgent:
  """Returns a BRAC agent; sizes and rates are those of the authors' code.

  The behaviour policy has the actor's layers.
  """
  behaviour_network = networks.create_actor(spaces, actor_layers)
  behaviour_network.create_variables()
  return DR3BracAgent(
    **networks.arguments(
      spaces,
      networks.create_critic(spaces, critic_layers),
      networks.create_actor(spaces, actor_layers),
      (critic_learning_rate, actor_learning_rate, alpha_learning_rate),
    ),
    behaviour_network=behaviour_network,
    gamma=gamma,
    seed=seed,
  )
