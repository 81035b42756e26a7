"""What the benchmark measures, one function a group of rows."""

from collections.abc import Iterator
import dataclasses
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

import gin
import numpy as np
import tensorflow as tf

from batch_rl_dr3.benchmarking import arithmetic, setups, speed, timing
from batch_rl_dr3.benchmarking.table import Row
from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import store as replay_store

GAME = 'Asterix'  # It has 9 actions.
STOCK = 'stock Dopamine'
# Measured by its users on 2 cores, with 200 quantiles where it has any.
_JAX_DR3 = 6.0
_LABELS = {'rem': 'REM', 'cql': 'CQL'}


@dataclasses.dataclass(frozen=True)
class Effort:
  """How long is measured.

  Attributes:
    num_rounds: alternating bursts, of gradient steps.
    num_steps: gradient steps in a burst, on Atari.
    num_small_steps: the same on MinAtar.
    num_agent_steps: of play, by each side.
  """

  num_rounds: int
  num_steps: int
  num_small_steps: int
  num_agent_steps: int


# Short bursts and many: on a machine that does other things too, the two sides
# of a pair then meet the same.
QUICK = Effort(15, 1, 20, 200)
FULL = Effort(51, 4, 100, 1000)


def training(
  store: replay_store.ReplayStore, method: str, effort: Effort
) -> tuple[list[Row], dict[bool, float]]:
  """Returns rows on gradient steps of one method, and its rates.

  Returns:
    The rows; gradient steps a second with and without DR3.
  """
  problem = setups.ATARI
  ours = setups.agent(problem, store, method)
  functions = {
    'ours': ours.make_train_step(),
    'without': setups.agent(
      problem, store, method, with_dr3=False
    ).make_train_step(),
    'ceiling': setups.agent(
      problem, store, method, constant_batch=True
    ).make_train_step(),
    'stock': setups.stock_step(setups.stock_agent(problem, store, method)),
  }
  times = timing.alternate(functions, effort.num_rounds, effort.num_steps)
  name = f'{_LABELS[method]} + DR3'
  rows = [
    Row(
      f'{name}: gradient steps/s',
      times['ours'].rate,
      'steps/s',
      STOCK,
      times['stock'].rate,
      timing.ratio(times['stock'], times['ours']),
      'at least 1.3 times' if method == 'cql' else None,
    ),
    Row(
      f'{name}: processor time of a step, all cores',
      1e3 * times['ours'].median_cpu,
      'ms',
      STOCK,
      1e3 * times['stock'].median_cpu,
      timing.cpu_ratio(times['stock'], times['ours']),
    ),
    Row(
      f'{name}: share of the ceiling',
      times['ours'].rate,
      'steps/s',
      'one constant batch',
      times['ceiling'].rate,
      timing.ratio(times['ceiling'], times['ours']),
      'at least 0.95',
    ),
    Row(
      f"{name}: DR3's own cost",
      1e3 * times['ours'].median_wall,
      'ms/step',
      'without DR3',
      1e3 * times['without'].median_wall,
      timing.ratio(times['ours'], times['without']),
      'at most 1.35',
    ),
  ]
  if method == 'cql':
    rows.append(
      Row(
        f"{name} against Dopamine's JAX DR3 agent",
        times['ours'].rate,
        'steps/s',
        'as measured apart',
        _JAX_DR3,
        times['ours'].rate / _JAX_DR3,
        'at least 3 times',
      )
    )
  operations = arithmetic.operations_per_step(
    problem.network,
    (84, 84),
    problem.stack_size,
    problem.num_actions * setups.NUM_ATOMS,
    setups.BATCH_SIZE,
    with_dr3=True,
  )
  rows.append(_arithmetic_row(name, operations, times['ours'], effort))
  return rows, {True: times['ours'].rate, False: times['without'].rate}


def _arithmetic_row(
  name: str, operations: int, step: timing.Times, effort: Effort
) -> Row:
  """Returns operations a core-second of a step and of a matrix product."""
  size = 2048
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    matrix = tf.compat.v1.get_variable(
      'matrix', (size, size), use_resource=True
    )
    session.run(tf.compat.v1.global_variables_initializer())
    multiply = session.make_callable(tf.matmul(matrix, matrix).op)
    times = timing.alternate({'matmul': multiply}, effort.num_rounds, 1)
  peak = 2 * size**3 / times['matmul'].median_cpu
  achieved = operations / step.median_cpu
  return Row(
    f'{name}: arithmetic of a core',
    achieved / 1e9,
    'GFLOP/s',
    f'product of {size} x {size} matrices',
    peak / 1e9,
    achieved / peak,
  )


def overhead(store: replay_store.ReplayStore, effort: Effort) -> Iterator[Row]:
  """Yields what a step costs beside the network, on MinAtar's small one."""
  problem = setups.MINATAR
  functions = {
    'ours': setups.agent(problem, store, 'rem').make_train_step(),
    'ours, constant': setups.agent(
      problem, store, 'rem', constant_batch=True
    ).make_train_step(),
  }
  for name, is_constant in (('stock', False), ('stock, constant', True)):
    functions[name] = setups.stock_step(
      setups.stock_agent(problem, store, 'rem', constant_batch=is_constant)
    )
  times = timing.alternate(functions, effort.num_rounds, effort.num_small_steps)
  beside = {
    name: float(
      np.median(np.subtract(times[name].cpu, times[f'{name}, constant'].cpu))
    )
    for name in ('ours', 'stock')
  }
  yield Row(
    'processor time of a step beside the network',
    1e3 * beside['ours'],
    'ms',
    STOCK,
    1e3 * beside['stock'],
    beside['stock'] / beside['ours'],
    'at least 10 times',
  )
  yield Row(
    'MinAtar, REM + DR3: gradient steps/s',
    times['ours'].rate,
    'steps/s',
    STOCK,
    times['stock'].rate,
    timing.ratio(times['stock'], times['ours']),
  )


def sampling(store: replay_store.ReplayStore, effort: Effort) -> Row:
  """Returns how many batches of 32 a second are sampled."""
  ours = setups.agent(setups.ATARI, store, 'cql')
  theirs = setups.stock_agent(setups.ATARI, store, 'cql')
  states = ours._sess.make_callable(
    [tensor.op for tensor in ours.replay.transition.values()]
  )
  functions = {
    'ours': states,
    'stock': lambda: theirs._replay.memory.sample_transition_batch(),
  }
  times = timing.alternate(functions, effort.num_rounds, 4 * effort.num_steps)
  return Row(
    'sampling: batches/s',
    times['ours'].rate,
    'batches/s',
    STOCK,
    times['stock'].rate,
    timing.ratio(times['stock'], times['ours']),
  )


def evaluation(effort: Effort) -> Row:
  """Returns agent steps a second of play, the network acting."""
  gin.bind_parameter('atari_lib.create_atari_environment.game_name', GAME)
  measured = speed.measure(num_agent_steps=effort.num_agent_steps)
  return Row(
    'evaluation: agent steps/s',
    statistics.median(measured.ours),
    'steps/s',
    f"{STOCK}'s, one environment",
    statistics.median(measured.dopamine),
    measured.ratio(),
    'at least 5 times',
  )


def first_step(
  log: pathlib.Path, cache: pathlib.Path, folder: pathlib.Path
) -> Iterator[Row]:
  """Yields how soon `train` has made its first step, and what memory it took.

  Args:
    log: of Atari's shape.
    cache: where its store is, built already.
    folder: where the run goes.
  """
  base_dir = folder / 'first_step'
  bindings = (
    f"atari_lib.create_atari_environment.game_name='{GAME}'",
    "FixedReplayRunner.dataset='benchmark'",
    'FixedReplayRunner.subset=@Subset()',
    "Subset.rule='all'",
    'Subset.fraction=1.0',
    'FixedReplayRunner.num_iterations=1',
    'FixedReplayRunner.num_gradient_steps=1',
    'FixedReplayRunner.num_evaluation_agent_steps=0',
  )
  started = time.perf_counter()
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'batch_rl_dr3.train'),
      '--gin_files=atari/methods/cql_dr3.gin',
      *(f'--gin_bindings={binding}' for binding in bindings),
      *(f'--replay_dir={log}', f'--cache_dir={cache}'),
      f'--base_dir={base_dir}',
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONUNBUFFERED': '1'},
  )
  checkpoint = base_dir / 'checkpoints' / 'ckpt.0.json'
  while process.poll() is None and not checkpoint.exists():
    time.sleep(0.01)
  seconds = time.perf_counter() - started
  _, stderr = process.communicate()
  if process.returncode:
    raise errors.DataError(f'the run that was to be timed failed: {stderr}')
  yield Row(
    'start to first step, measured and saved, warm store',
    seconds,
    's',
    goal='at most 12',
  )
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  yield Row('peak memory of that run', children.ru_maxrss / 2**20, 'GiB')


def protocol(
  rates: dict[tuple[str, bool], float], agent_steps_per_second: float
) -> Iterator[Row]:
  """Yields what the paper's runs would take at the measured rates.

  4 methods, 17 games, 5 runs, on 1% (6.5 million gradient steps in 104
  iterations), 5% and the first 10% (12.5 million in 200) of the data: 1,020
  runs. Every iteration plays 125,000 agent steps.

  Args:
    rates: gradient steps a second by method and whether it has DR3.
    agent_steps_per_second: of play.
  """

  def hours(rate: float, iterations: int) -> float:
    play = 125_000 / agent_steps_per_second
    return iterations * (62_500 / rate + play) / 3600

  for (method, with_dr3), rate in rates.items():
    name = _LABELS[method] + (' + DR3' if with_dr3 else '')
    yield Row(f'{name}: one run on 1% of the data', hours(rate, 104), 'h')
  total = sum(
    85 * (hours(rate, 104) + 2 * hours(rate, 200)) for rate in rates.values()
  )
  yield Row(
    'the protocol of 1,020 runs, on one such machine', total / 24 / 365, 'years'
  )
