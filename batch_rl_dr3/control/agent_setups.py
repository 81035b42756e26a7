"""What a gin file builds: agents with their networks and optimisers."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import gin
import tensorflow as tf
from tf_agents.agents.sac import tanh_normal_projection_network
from tf_agents.networks import actor_distribution_network
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import time_step as ts

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.control import brac_agent, cql_agent, critics, tasks


@dataclasses.dataclass(frozen=True)
class Spaces:
  """How many numbers an observation and an action, in [-1, 1], of a task have.

  TF-Agents' specs are made of them; of images, observation_size is the shape.
  """

  observation_size: int | tuple[int, ...]
  action_size: int

  @property
  def time_step_spec(self) -> Any:
    """TF-Agents' spec of what a policy sees."""
    size = self.observation_size
    shape = [size] if isinstance(size, int) else size
    return ts.time_step_spec(tensor_spec.TensorSpec(shape, tf.float32))

  @property
  def action_spec(self) -> Any:
    """TF-Agents' spec of an action."""
    return tensor_spec.BoundedTensorSpec(
      [self.action_size], tf.float32, -1.0, 1.0
    )


def build(create_agent: Callable[..., Any], task: tasks.Task, seed: int) -> Any:
  """Returns the agent of a task; its first weights are drawn by the seed.

  Args:
    create_agent: one of the functions below, or another of (spaces, seed).
    task: what it is to play.
    seed: the run's seed.

  Raises:
    ConfigError: if a binding is wrong.
  """
  tf.keras.utils.set_random_seed(seed)
  spaces = Spaces(task.observation_shape, task.action_size)
  try:
    return create_agent(spaces=spaces, seed=seed)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(
      f'cannot build the agent: {error}. Check its gin bindings.'
    ) from error


def create_actor(spaces: Spaces, layers: Sequence[int]) -> Any:
  """Returns a network for a tanh-Normal policy, log std in [-20, 2].

  Args:
    spaces: the sizes of the task.
    layers: units of the hidden layers.
  """

  def project(spec: Any) -> Any:
    return tanh_normal_projection_network.TanhNormalProjectionNetwork(
      spec,
      std_transform=lambda log_std: tf.exp(
        tf.clip_by_value(log_std, -20.0, 2.0)
      ),
    )

  return actor_distribution_network.ActorDistributionNetwork(
    spaces.time_step_spec.observation,
    spaces.action_spec,
    fc_layer_params=tuple(layers),
    continuous_projection_net=project,
  )


def create_critic(spaces: Spaces, layers: Sequence[int]) -> Any:
  """Returns a critic; the last of its hidden layers are the features."""
  return critics.FeatureCriticNetwork(
    (spaces.time_step_spec.observation, spaces.action_spec),
    joint_fc_layer_params=tuple(layers),
    kernel_initializer='glorot_uniform',
    last_kernel_initializer='glorot_uniform',
  )


def adam(learning_rate: float) -> Any:
  """Returns an Adam whose slots a checkpoint holds."""
  return tf.keras.optimizers.legacy.Adam(learning_rate)


def arguments(
  spaces: Spaces,
  critic_network: Any,
  actor_network: Any,
  learning_rates: Sequence[float],
) -> dict[str, Any]:
  """Returns what all agents take; rates are of critics, actor and alpha."""
  critic, actor, alpha = (adam(rate) for rate in learning_rates)
  return {
    'time_step_spec': spaces.time_step_spec,
    'action_spec': spaces.action_spec,
    'critic_network': critic_network,
    'actor_network': actor_network,
    'critic_optimizer': critic,
    'actor_optimizer': actor,
    'alpha_optimizer': alpha,
    'train_step_counter': tf.Variable(0, dtype=tf.int64, trainable=False),
  }


@gin.configurable(denylist=['spaces', 'seed'])
@ranges.checked
def create_cql_agent(
  spaces: Spaces,
  seed: ranges.Natural,
  critic_layers: Sequence[int] = (256, 256, 256),
  actor_layers: Sequence[int] = (256, 256, 256),
  critic_learning_rate: ranges.Positive = 3e-4,
  actor_learning_rate: ranges.Positive = 1e-4,
  gamma: ranges.Share = 0.99,
  target_entropy_per_dimension: float = -1.0,
) -> cql_agent.DR3CqlSacAgent:
  """Returns a CQL agent; sizes and rates are those of the authors' code.

  Args:
    spaces: the sizes of the task.
    seed: fixes all that is sampled; weights are drawn by TensorFlow's seed.
    critic_layers: hidden units of the critics.
    actor_layers: hidden units of the policy.
    critic_learning_rate: Adam's, also for the Lagrange multiplier.
    actor_learning_rate: Adam's, also for the entropy's weight.
    gamma: the discount.
    target_entropy_per_dimension: of the policy; the authors take -1.
  """
  rates = (critic_learning_rate, actor_learning_rate, actor_learning_rate)
  return cql_agent.DR3CqlSacAgent(
    **arguments(
      spaces,
      create_critic(spaces, critic_layers),
      create_actor(spaces, actor_layers),
      rates,
    ),
    cql_alpha_learning_rate=critic_learning_rate,
    gamma=gamma,
    target_entropy=target_entropy_per_dimension * spaces.action_size,
    seed=seed,
  )


@gin.configurable(denylist=['spaces', 'seed'])
@ranges.checked
def create_brac_agent(
  spaces: Spaces,
  seed: ranges.Natural,
  critic_layers: Sequence[int] = (300, 300),
  actor_layers: Sequence[int] = (200, 200),
  critic_learning_rate: ranges.Positive = 1e-3,
  actor_learning_rate: ranges.Positive = 3e-4,
  alpha_learning_rate: ranges.Positive = 1e-3,
  gamma: ranges.Share = 0.99,
) -> brac_agent.DR3BracAgent:
  """Returns a BRAC agent; sizes and rates are those of the authors' code.

  Arguments are those of `create_cql_agent`; the behaviour policy has the
  actor's layers, and alpha_learning_rate counts where alpha is trained.
  """
  behaviour_network = create_actor(spaces, actor_layers)
  behaviour_network.create_variables()
  rates = (critic_learning_rate, actor_learning_rate, alpha_learning_rate)
  return brac_agent.DR3BracAgent(
    **arguments(
      spaces,
      create_critic(spaces, critic_layers),
      create_actor(spaces, actor_layers),
      rates,
    ),
    behaviour_network=behaviour_network,
    gamma=gamma,
    seed=seed,
  )
