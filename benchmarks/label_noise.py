"""Measures what Sigma of label noise costs, beside DR3 with Sigma = I.

  python -m benchmarks.label_noise

prints, for MinAtar's network (128 features) and Atari's (512), CQL on QR-DQN
with batches of 32: gradient steps with LabelNoiseFeatureDotPenalty over those
with FeatureDotPenalty, in turn, medians of the rounds' ratios by the clock and
by CPU time; the time of one solution for Sigma; and what it adds to a step at
the default period of 2,000. Data are random; they do not change the work,
except for how often the solver doubles, which is printed.
"""

from collections.abc import Callable
import pathlib
import tempfile
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 15, 'Turns of each of the two.', lower_bound=1)

_REFRESH_PERIOD = 2000


def main(_: list[str]) -> None:
  """Measures and prints."""
  from batch_rl_dr3.config import frameworks

  logging.set_verbosity(logging.WARNING)
  frameworks.import_tensorflow()
  from benchmarks import setups

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for problem, num_steps in ((setups.MINATAR, 50), (setups.ATARI, 4)):
      log = setups.write_log(folder, problem, 2000)
      store = setups.open_store(log, folder / 'cache', problem)
      _measure(problem, store, num_steps)


def _measure(problem: Any, store: Any, num_steps: int) -> None:
  import tensorflow as tf

  from batch_rl_dr3.agents import bellman, penalties, stateful_penalties
  from benchmarks import timing

  def step(penalty: Any) -> Callable[[], Any]:
    with tf.Graph().as_default():
      agent = bellman.FixedReplayQRCQLAgent(
        None,
        problem.num_actions,
        store,
        penalties=[penalties.ConservativePenalty(1.0), penalty],
        network=problem.network,
        observation_shape=problem.observation_shape,
        stack_size=problem.stack_size,
        optimizer=tf.compat.v1.train.AdamOptimizer(5e-5, epsilon=3.125e-4),
      )
    return agent.make_train_step()

  times = timing.alternate(
    {
      'label_noise': step(
        # Solutions are timed apart.
        stateful_penalties.LabelNoiseFeatureDotPenalty(refresh_period=1 << 40)
      ),
      'dr3': step(penalties.FeatureDotPenalty()),
    },
    FLAGS.rounds,
    num_steps,
  )
  noise, dr3 = times['label_noise'], times['dr3']
  solve, doublings = _solver(problem.network.num_features)
  solved = timing.alternate({'solve': solve}, 5, 1)['solve']
  added = solved.median_wall / _REFRESH_PERIOD / dr3.median_wall
  print(
    f'{problem.name}: step {1e3 * noise.median_wall:.2f} ms against '
    f'{1e3 * dr3.median_wall:.2f} ms, ratio {timing.ratio(noise, dr3):.3f} '
    f'(CPU {timing.cpu_ratio(noise, dr3):.3f}); one Sigma '
    f'{1e3 * solved.median_wall:.0f} ms ({doublings} doublings), '
    f'{100 * added:.1f}% of a step at one in {_REFRESH_PERIOD:,}'
  )


def _solver(dimension: int) -> tuple[Callable[[], Any], int]:
  """Returns a function that solves for Sigma, and how often it doubles."""
  import numpy as np
  import tensorflow as tf

  from batch_rl_dr3.agents import stateful_penalties

  rng = np.random.default_rng(0)
  phi = rng.normal(size=(4096, dimension)) * np.geomspace(1, 1e-3, dimension)
  noise = phi.T @ phi / len(phi)
  hessian = phi.T @ (phi - 0.9 * np.roll(phi, 1, axis=0)) / len(phi)
  trace = np.trace(noise)
  hessian += 0.1 * trace / dimension * np.eye(dimension)
  with tf.Graph().as_default() as graph:
    # Held by variables: constants would be folded.
    hessian_tensor, noise_tensor = (
      tf.compat.v1.get_variable(
        name, initializer=value, use_resource=True
      ).read_value()
      for name, value in (('hessian', hessian), ('noise', noise))
    )
    solution = stateful_penalties.lyapunov_fixed_point(
      hessian_tensor,
      noise_tensor,
      tf.constant(0.1 / trace, tf.float64),
    )
    session = tf.compat.v1.Session(graph=graph)
    session.run(tf.compat.v1.global_variables_initializer())
  contraction = np.linalg.norm(np.eye(dimension) - 0.1 / trace * hessian, 2)
  doublings = int(np.ceil(np.log2(np.log(1e-6) / np.log(contraction))))
  return session.make_callable(solution.covariance), doublings


if __name__ == '__main__':
  app.run(main)
