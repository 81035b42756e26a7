"""What DR3 costs a step, beside TF-Agents' own CqlSacAgent.

  python -m benchmarks.continuous

Three agents of the same sizes take steps in turn on the same batch, so that
what else the machine does meets all of them; medians are printed.
"""

from collections.abc import Callable
import time
from typing import Any

import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)

# isort: split
import numpy as np
import tensorflow as tf
from tf_agents.agents.cql import cql_sac_agent

from batch_rl_dr3.agents import penalties
from batch_rl_dr3.control import cql_agent, networks

BATCH_SIZE, NUM_TURNS, STEPS_A_TURN = 256, 40, 3
LAYERS = (256, 256)
SPACES = networks.Spaces(17, 6)


def create(agent: Any, **kwargs: Any) -> Callable[..., Any]:
  """Returns a compiled training step of an agent."""
  made = agent(
    SPACES.time_step_spec,
    SPACES.action_spec,
    networks.create_critic(SPACES, LAYERS),
    networks.create_actor(SPACES, LAYERS),
    *(networks.adam(3e-4) for _ in range(3)),
    cql_alpha=5.0,
    num_cql_samples=10,
    include_critic_entropy_term=False,
    use_lagrange_cql_alpha=False,
    target_update_tau=0.005,
    train_step_counter=tf.Variable(0, dtype=tf.int64, trainable=False),
    **kwargs,
  )
  made.initialize()
  return tf.function(made.train)


def main() -> None:
  """Measures and prints."""
  rng = np.random.default_rng(0)

  def normal(*shape: int) -> tf.Tensor:
    return tf.constant(rng.normal(size=(BATCH_SIZE, *shape)), tf.float32)

  batch = networks.transition(
    [normal(17), tf.tanh(normal(6)), normal(), normal(17), tf.zeros(BATCH_SIZE)]
  )
  dr3 = penalties.FeatureDotPenalty(0.001)
  ours = cql_agent.DR3CqlSacAgent
  steps = {
    "TF-Agents' CqlSacAgent": create(cql_sac_agent.CqlSacAgent),
    'ours, with the same proposals': create(ours, next_proposals=False),
    'ours + DR3': create(ours, next_proposals=False, penalties=[dr3]),
  }
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for step in steps.values():
    step(batch)
  for _ in range(NUM_TURNS):
    for name, step in steps.items():
      start = time.perf_counter()
      for _ in range(STEPS_A_TURN):
        step(batch)
      seconds[name].append((time.perf_counter() - start) / STEPS_A_TURN)
  first, second, third = (np.array(seconds[name]) for name in steps)
  for name, taken in seconds.items():
    print(f'{name}: {1e3 * np.median(taken):.1f} ms a step')
  print(f"DR3 beside TF-Agents' own: {np.median(third / first):.3f} times")
  print(f"DR3's cost: {np.median(third / second):.3f} times")


if __name__ == '__main__':
  main()
