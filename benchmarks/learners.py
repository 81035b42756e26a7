"""What several learners in one program could gain on a CPU, at best.

  taskset -c 0 python -m benchmarks.learners

K learners of one program do the arithmetic of K batches at each step, and K
updates of weights of their own. A step on one batch of K * 32 transitions does
the same arithmetic with one update and one set of weights, so that no way to
write K learners is faster. Prints for MinAtar how many steps on 32 transitions
take as long as one on 4 * 32, in alternation; 4 over that is the most that four
learners in one process can be faster than four processes.
"""

import functools
import pathlib
import tempfile

from absl import app
import gin

import batch_rl_dr3  # noqa: F401

# isort: split
from benchmarks import setups, timing

_NUM_LEARNERS = 4
_ROUNDS = 25
_CALLS = 40


def measure(method: str, folder: pathlib.Path) -> dict[str, timing.Times]:
  """Returns the times of a 'small' step and of a 'great' one, on K batches."""
  problem = setups.MINATAR
  log = setups.write_log(folder, problem, 2000)
  store = setups.open_store(log, folder / 'cache', problem)
  steps = {}
  for name, size in (('small', 1), ('great', _NUM_LEARNERS)):
    gin.clear_config()
    gin.bind_parameter('FixedReplayBuffer.batch_size', size * setups.BATCH_SIZE)
    agent = setups.agent(problem, store, method)
    steps[name] = functools.partial(agent._sess.run, agent._train_op)
  return timing.alternate(steps, _ROUNDS, _CALLS)


def main(argv: list[str]) -> None:
  """Measures and prints a line a method."""
  del argv
  for method in ('rem', 'cql'):
    with tempfile.TemporaryDirectory() as folder:
      times = measure(method, pathlib.Path(folder))
    small, great = times['small'], times['great']
    gain = _NUM_LEARNERS * timing.cpu_ratio(small, great)
    print(
      f'{method} + DR3: {1e3 * small.median_cpu:.2f} ms a step, '
      f'{1e3 * great.median_cpu:.2f} ms on {_NUM_LEARNERS} batches at once; '
      f'at most x {gain:.2f} for {_NUM_LEARNERS} learners'
    )


if __name__ == '__main__':
  app.run(main)
