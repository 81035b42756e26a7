"""What DR3 costs a gradient step of COG, and what a step takes.

  taskset -c 0 python -m benchmarks.cog           COG's networks, batches of 256
  taskset -c 0 python -m benchmarks.cog --small   cog/small.gin's, of 64

Two agents take steps in turn on the same random images of the drawer's size, so
that what else the machine does meets both. Prints medians of CPU time.
"""

from collections.abc import Callable
import resource

from absl import app, flags
import gin

import batch_rl_dr3  # noqa: F401  (first: it selects Keras for TensorFlow)

# isort: split
import numpy as np
import tensorflow as tf

from batch_rl_dr3.config import gin_files
from batch_rl_dr3.control import cql_agent, networks
from batch_rl_dr3.training import control  # noqa: F401  (gin knows its names)
from benchmarks import timing

_SMALL = flags.DEFINE_boolean('small', False, 'The sizes of cog/small.gin.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Bursts of each of the two.')
_CALLS = flags.DEFINE_integer('calls', 2, 'Steps in a burst.')
_SPACES = networks.Spaces((48, 48, 3), 4)


def create(name: str) -> Callable[[], object]:
  """Returns a compiled training step on one batch."""
  files = [f'cog/{name}.gin', *['cog/small.gin'] * _SMALL.value]
  gin.clear_config()
  gin.parse_config_files_and_bindings(files, None)
  agent = cql_agent.create_cog_agent(_SPACES, seed=0)
  agent.initialize()
  rng = np.random.default_rng(0)
  size = gin.query_parameter('ContinuousRunner.batch_size')
  states, next_states = (
    tf.constant(rng.integers(256, size=(size, 48, 48, 3)), tf.float32)
    for _ in range(2)
  )
  actions = tf.constant(rng.uniform(-0.9, 0.9, (size, 4)), tf.float32)
  rewards = tf.constant(rng.integers(2, size=size), tf.float32)
  batch = networks.transition(
    [states, actions, rewards, next_states, tf.zeros(size)]
  )
  step = tf.function(agent.train)
  return lambda: step(batch).loss.numpy()


def main(argv: list[str]) -> None:
  """Measures and prints."""
  del argv
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  gin.add_config_file_search_path(str(gin_files.shipped_configs()))
  steps = {name: create(name) for name in ('cog', 'cog_dr3')}
  times = timing.alternate(steps, _ROUNDS.value, _CALLS.value)
  for name, taken in times.items():
    print(f'{name}: {1e3 * taken.median_cpu:.1f} ms of CPU time a step')
  cost = timing.cpu_ratio(times['cog_dr3'], times['cog'])
  print(f'with DR3 a step takes {cost:.2f} times as long')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f'peak memory of both agents together: {peak:.2f} GB')


if __name__ == '__main__':
  app.run(main)
