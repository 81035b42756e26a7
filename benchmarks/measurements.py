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
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.store import store as replay_store
from benchmarks import arithmetic, play_speed, setups, table, timing
from benchmarks.table import Row

GAME = 'Asterix'  # It has 9 actions.
STOCK = 'stock Dopamine'
_LABELS = {'rem': 'REM', 'cql': 'CQL'}


@dataclasses.dataclass(frozen=True)
class Effort:
  """How long is measured.

  Attributes:
    num_rounds: alternating bursts, of gradient steps.
    num_steps: gradient steps in a burst, on Atari.
    num_small_steps: the same on MinAtar.
    num_pairs: evaluations of each side.
    num_agent_steps: of one evaluation.
  """

  num_rounds: int
  num_steps: int
  num_small_steps: int
  num_pairs: int
  num_agent_steps: int


# Short bursts and many: on a machine that does other things too, the two sides
# of a pair then meet the same.
QUICK = Effort(15, 1, 20, 1, 3000)
FULL = Effort(51, 4, 100, 3, 6000)


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
    'sampling': ours._sess.make_callable(
      [tensor.op for tensor in ours.replay.transition.values()]
    ),
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
  seconds = timing.seconds(times, effort.num_steps)

  def row(what: str, value: float, unit: str, peer: str, **kwargs: Any) -> Row:
    return Row(
      f'{name}: {what}',
      value,
      unit,
      peer,
      timed=f'{effort.num_rounds} bursts of {effort.num_steps} steps',
      seconds=seconds,
      **kwargs,
    )

  rows = [
    row(
      'gradient steps/s',
      times['ours'].rate,
      'steps/s',
      STOCK,
      peer_value=times['stock'].rate,
      ratio=timing.ratio(times['stock'], times['ours']),
      quartiles=timing.quartiles(times['stock'], times['ours']),
      goal='at least 1.3 times' if method == 'cql' else None,
      quantity=table.GRADIENT_STEPS,
      method=f'{method}_dr3',
    ),
    Row(
      f'{_LABELS[method]}: gradient steps/s',
      times['without'].rate,
      'steps/s',
      timed=f'{effort.num_rounds} bursts of {effort.num_steps} steps',
      seconds=seconds,
      quantity=table.GRADIENT_STEPS,
      method=method,
    ),
    row(
      'processor time of a step, all cores',
      1e3 * times['ours'].median_cpu,
      'ms',
      STOCK,
      peer_value=1e3 * times['stock'].median_cpu,
      ratio=timing.cpu_ratio(times['stock'], times['ours']),
    ),
    row(
      'share of the ceiling',
      times['ours'].rate,
      'steps/s',
      'one constant batch',
      peer_value=times['ceiling'].rate,
      ratio=timing.ratio(times['ceiling'], times['ours']),
      quartiles=timing.quartiles(times['ceiling'], times['ours']),
      goal='at least 0.95',
    ),
    row(
      'sampling, as a share of a step',
      1e3 * times['sampling'].median_wall,
      'ms',
      'a step',
      peer_value=1e3 * times['ours'].median_wall,
      ratio=timing.ratio(times['sampling'], times['ours']),
      quartiles=timing.quartiles(times['sampling'], times['ours']),
      goal='at most 0.02',
    ),
    row(
      "DR3's own cost",
      1e3 * times['ours'].median_wall,
      'ms/step',
      'without DR3',
      peer_value=1e3 * times['without'].median_wall,
      ratio=timing.ratio(times['ours'], times['without']),
      quartiles=timing.quartiles(times['ours'], times['without']),
      goal='its arithmetic, 1.69',
    ),
  ]
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
    timed=f'{effort.num_rounds} products; steps as above',
    seconds=timing.seconds(times, 1),
  )


def small_network(store: replay_store.ReplayStore, effort: Effort) -> Row:
  """Returns gradient steps on MinAtar's small network."""
  problem = setups.MINATAR
  functions = {
    'ours': setups.agent(problem, store, 'rem').make_train_step(),
    'stock': setups.stock_step(setups.stock_agent(problem, store, 'rem')),
  }
  times = timing.alternate(functions, effort.num_rounds, effort.num_small_steps)
  return Row(
    'MinAtar, REM + DR3: gradient steps/s',
    times['ours'].rate,
    'steps/s',
    STOCK,
    times['stock'].rate,
    timing.ratio(times['stock'], times['ours']),
    timed=f'{effort.num_rounds} bursts of {effort.num_small_steps} steps',
    seconds=timing.seconds(times, effort.num_small_steps),
    quartiles=timing.quartiles(times['stock'], times['ours']),
  )


def evaluation(effort: Effort) -> Row:
  """Returns agent steps a second of play, the network acting."""
  gin.bind_parameter('atari_lib.create_atari_environment.game_name', GAME)
  measured = play_speed.measure(effort.num_pairs, effort.num_agent_steps)
  return Row(
    'evaluation: agent steps/s',
    statistics.median(measured.ours),
    'steps/s',
    f"{STOCK}'s, one environment",
    statistics.median(measured.dopamine),
    measured.ratio(),
    'at least 5 times',
    timed=(
      f'{effort.num_pairs} evaluations of {effort.num_agent_steps} steps, from '
      'a fresh start to the last episode'
    ),
    seconds=measured.seconds,
    quartiles=measured.quartiles(),
    quantity=table.AGENT_STEPS,
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
      '--gin_files=atari/cql_dr3_1pct.gin',
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
    timed='one run of 1 step',
    seconds=seconds,
  )
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  yield Row(
    'peak memory of that run',
    children.ru_maxrss / 2**20,
    'GiB',
    timed='the same run',
  )


def protocol(
  rates: dict[tuple[str, bool], float], agent_steps_per_second: float
) -> Iterator[Row]:
  """Yields what the paper's runs would take at the measured rates.

  4 methods, 17 games, 5 runs, on 1% (6.5 million gradient steps in 104
  iterations), 5% and the first 10% (12.5 million in 200) of the data: 1,020
  runs. Every iteration plays 125,000 agent steps. Starts, checkpoints and
  measuring are left out.

  Args:
    rates: gradient steps a second by method and whether it has DR3.
    agent_steps_per_second: of play.
  """

  def hours(rate: float, iterations: int) -> float:
    play = 125_000 / agent_steps_per_second
    return iterations * (62_500 / rate + play) / 3600

  for (method, with_dr3), rate in rates.items():
    name = _LABELS[method] + (' + DR3' if with_dr3 else '')
    yield Row(
      f'{name}: one run on 1% of the data, steps and play',
      hours(rate, 104),
      'h',
      timed='nothing: follows from the rates',
    )
  total = sum(
    85 * (hours(rate, 104) + 2 * hours(rate, 200)) for rate in rates.values()
  )
  yield Row(
    'the protocol of 1,020 runs, steps and play, on one such machine',
    total / 24 / 365,
    'years',
    timed='nothing: follows from the rates',
  )
