"""Measures the data path against Dopamine's own buffer, on the same files.

  python -m benchmarks.data --folder=runs/benchmark_data

plays Seaquest at random for 500,000 rows in 5 files, if FOLDER has no log yet
(5 minutes on two idle cores), and prints one table:

  extraction   the first 1% of each file: into a store, and by Dopamine's
               `OutOfGraphReplayBuffer.load` and a slice. Each runs in a process
               of its own; memory is the peak above what the process held after
               its imports.
  opening      the store of all rows, frames read as needed.
  sampling     batches of 32: drawing and gathering rows of the store, and
               `sample_transition_batch` of Dopamine's buffer with one file.
  checks       opening the store, and batches of 32 from frames that are read as
               needed, first touched and touched before, in turns with and
               without the store's checks of its bits.
  training     peak memory of `train` (REM + DR3, 200 gradient steps) on all
               rows, with the frames held in memory and read as needed.

With --full_game it makes a log of 50,000,000 rows too, the same 5 files 100
times over by hard links, builds its compressed store and trains on it; that
takes some 20 minutes on two idle cores.

The store and what it is compared with take turns, --pairs times; medians of
their ratios are printed, so that a busy machine tells no lies. Before
each extraction the files are read once, so that both find them in the page
cache.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any
from unittest import mock

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string(
  'folder', 'runs/benchmark_data', 'Where the log and the stores are.'
)
flags.DEFINE_integer('pairs', 5, 'Turns of each of the two.', lower_bound=1)
flags.DEFINE_boolean(
  'full_game', False, 'Measure a log of 50,000,000 rows too.'
)
flags.DEFINE_string('json', None, 'A file for the rows of the table.')

_GAME = 'Seaquest'
_NUM_ROWS = 500_000
_ROWS_PER_FILE = 100_000
_FRAME = (84, 84)
_STACK = 4
_ACTIONS = 18
_FRACTION = 0.01
_BATCH = 32
_NUM_COPIES = 100
# Seconds that each of two samplers runs for at a turn.
_TURN_SECONDS = 1.0


def _collect(log: pathlib.Path) -> None:
  if log.exists():
    return
  subprocess.run(
    [
      sys.executable,
      '-m',
      'batch_rl_dr3.collect',
      '--gin_files=collect/atari_uniform.gin',
      f"--gin_bindings=atari_lib.create_atari_environment.game_name='{_GAME}'",
      f'--gin_bindings=collect.num_rows={_NUM_ROWS}',
      f'--gin_bindings=collect.rows_per_file={_ROWS_PER_FILE}',
      f'--output_dir={log}',
    ],
    check=True,
  )


def _peak_bytes() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(work: Callable[[], Any]) -> tuple[float, int]:
  """Returns the seconds that it took, and the memory on top of what was."""
  before = _peak_bytes()
  start = time.perf_counter()
  work()
  return time.perf_counter() - start, _peak_bytes() - before


def _extract_to_store(log: str, cache: str) -> tuple[float, int]:
  from batch_rl_dr3.replay.store import store
  from batch_rl_dr3.replay.store.subset import Subset

  return _timed(
    lambda: store.open_store(
      log, cache, Subset('prefix', _FRACTION), _FRAME, _ACTIONS, _STACK
    )
  )


def _dopamine_buffer(capacity: int) -> Any:
  from batch_rl_dr3.config import dopamine_compat

  return dopamine_compat.OutOfGraphReplayBuffer(
    _FRAME, _STACK, capacity, batch_size=_BATCH
  )


def _extract_with_dopamine(log: str, cache: str) -> tuple[float, int]:
  del cache
  _dopamine_buffer(capacity=10)  # Its imports are not measured.

  def work() -> None:
    slices = []
    for suffix in range(_NUM_ROWS // _ROWS_PER_FILE):
      buffer = _dopamine_buffer(_ROWS_PER_FILE)
      buffer.load(f'{log}/replay_logs', suffix)
      count = int(_FRACTION * _ROWS_PER_FILE)
      slices.append(
        {name: rows[:count].copy() for name, rows in buffer._store.items()}
      )

  return _timed(work)


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
  """Returns what a function returns in a fresh process."""
  context = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(work, *arguments).result()


def _measure_extraction(folder: pathlib.Path, log: pathlib.Path) -> list[Any]:
  ours, theirs = [], []
  for pair in range(FLAGS.pairs):
    for path in log.rglob('*.gz'):
      path.read_bytes()
    cache = folder / f'extracted{pair}'
    shutil.rmtree(cache, ignore_errors=True)
    ours.append(_apart(_extract_to_store, str(log), str(cache)))
    theirs.append(_apart(_extract_with_dopamine, str(log), ''))
    shutil.rmtree(cache)
  return [
    _row(
      name,
      unit,
      [sample[i] / scale for sample in ours],
      [sample[i] / scale for sample in theirs],
      goal='20x less',
      less_is_better=True,
    )
    for i, (name, unit, scale) in enumerate(
      (('extracting 1%', 's', 1), ('extracting 1%, memory', 'MB', 1e6))
    )
  ]


def _row(
  name: str,
  unit: str,
  ours: list[float],
  theirs: list[float] | None = None,
  goal: str = '',
  less_is_better: bool = False,
) -> dict[str, Any]:
  row = {
    'name': name,
    'value': statistics.median(ours),
    'unit': unit,
    'peer': None,
    'peer_value': None,
    'ratio': None,
    'goal': goal,
  }
  if theirs is not None:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    if not less_is_better:
      ratios = [1 / ratio for ratio in ratios]
    row |= {
      'peer': 'Dopamine',
      'peer_value': statistics.median(theirs),
      'ratio': statistics.median(ratios),
    }
  return row


def _open(log: str, cache: str, max_resident_bytes: int, num_files: int) -> Any:
  from batch_rl_dr3.replay.store import store
  from batch_rl_dr3.replay.store.subset import Subset

  fraction = num_files * _ROWS_PER_FILE / _NUM_ROWS
  subset = Subset('all') if fraction == 1 else Subset('first', fraction)
  opened = store.open_store(
    log,
    cache,
    subset,
    _FRAME,
    _ACTIONS,
    _STACK,
    max_resident_bytes=max_resident_bytes,
  )
  opened.hold_frames()
  return opened


def _build(log: str, cache: str, num_files: int) -> None:
  _open(log, cache, 0, num_files)


def _batches_per_second(draw: Callable[[], Any]) -> float:
  count, start = 0, time.perf_counter()
  while time.perf_counter() - start < _TURN_SECONDS:
    for _ in range(10):
      draw()
    count += 10
  return count / (time.perf_counter() - start)


def _drawer(store: Any) -> Callable[[], Any]:
  import numpy as np

  rows, rng = store.valid_indices(), np.random.default_rng(0)
  return lambda: store.gather(rows[rng.integers(0, len(rows), _BATCH)])


def _sampling_rates(
  log: str, cache: str, num_pairs: int
) -> dict[str, list[float]]:
  """Returns rates of all samplers, which take turns, in one process."""
  buffer = _dopamine_buffer(_ROWS_PER_FILE)
  buffer.load(f'{log}/replay_logs', 0)
  samplers = {
    'Dopamine': buffer.sample_transition_batch,
    'held, 100,000 rows': _drawer(_open(log, cache, 1 << 40, 1)),
    'held, 500,000 rows': _drawer(_open(log, cache, 1 << 40, 5)),
    'read, 100,000 rows': _drawer(_open(log, cache, 0, 1)),
    'read, 500,000 rows': _drawer(_open(log, cache, 0, 5)),
  }
  for draw in samplers.values():
    _batches_per_second(draw)  # Files come into the page cache.
  rates: dict[str, list[float]] = {name: [] for name in samplers}
  for _ in range(num_pairs):
    for name, draw in samplers.items():
      rates[name].append(_batches_per_second(draw))
  return rates


def _measure_sampling(log: pathlib.Path, cache: pathlib.Path) -> list[Any]:
  rates = _apart(_sampling_rates, str(log), str(cache), FLAGS.pairs)
  theirs = rates.pop('Dopamine')
  return [
    _row(f'sampling, {name}', 'batches/s', ours, theirs, '20x')
    for name, ours in rates.items()
  ]


def _check_nothing(*unused: object) -> None:
  """In place of a mock, whose call takes as long as the check of a frame."""


@contextlib.contextmanager
def _without_checks() -> Iterator[None]:
  """Opens and reads stores without checking a bit of them."""
  from batch_rl_dr3.replay.store import shards

  with (
    mock.patch.object(shards, 'check_content', _check_nothing),
    mock.patch.object(shards._RawShard, '_check', _check_nothing),
  ):
    yield


def _repeat(draw: Callable[[], Any], count: int) -> None:
  for _ in range(count):
    draw()


def _check_samples(
  log: str, cache: str, num_pairs: int
) -> dict[str, dict[bool, list[float]]]:
  """Returns milliseconds of each thing, with and without checks, in turns."""
  samples: dict[str, dict[bool, list[float]]] = {
    name: {True: [], False: []}
    for name in ('opening', 'batch, first touch', 'batch, touched before')
  }
  for pair in range(num_pairs + 1):
    for is_checked in (True, False):
      context = contextlib.nullcontext() if is_checked else _without_checks()
      with context:
        seconds, _ = _timed(lambda: _open(log, cache, 0, 1))
        draw = _drawer(_open(log, cache, 0, 1))
        first, _ = _timed(functools.partial(_repeat, draw, 20))
        opened = _open(log, cache, 0, 1)
        opened.frames(range(opened.num_rows))
        rate = _batches_per_second(_drawer(opened))
      if pair:  # The first brings files into the page cache.
        samples['opening'][is_checked].append(seconds * 1e3)
        samples['batch, first touch'][is_checked].append(first / 20 * 1e3)
        samples['batch, touched before'][is_checked].append(1e3 / rate)
  return samples


def _measure_checks(log: pathlib.Path, cache: pathlib.Path) -> list[Any]:
  samples = _apart(_check_samples, str(log), str(cache), FLAGS.pairs)
  return [
    {
      **_row(f'checks, {name}', 'ms', both[True], both[False], 'near 1x', True),
      'peer': 'without checks',
    }
    for name, both in samples.items()
  ]


def _make_full_game(log: pathlib.Path, full: pathlib.Path) -> None:
  """Makes a log of 50,000,000 rows, whose files are links to a small one's."""
  logs = full / 'replay_logs'
  if logs.exists():
    return
  logs.mkdir(parents=True)
  num_files = _NUM_ROWS // _ROWS_PER_FILE
  for path in (log / 'replay_logs').glob('*.gz'):
    name, suffix, _ = path.name.rsplit('.', 2)
    for copy in range(_NUM_COPIES):
      number = int(suffix) + copy * num_files
      os.link(path, logs / f'{name}.{number}.gz')


def _measure_full_game(
  log: pathlib.Path, folder: pathlib.Path
) -> list[dict[str, Any]]:
  full = folder / f'{_GAME}_full' / '1'
  _make_full_game(log, full)
  cache = str(folder / 'cache')
  seconds, _ = _apart(_timed_opening, str(full), cache)
  opening, memory = _apart(_timed_opening, str(full), cache)
  peak = _train_peak(full, folder, 'full')
  return [
    _row('building 50,000,000 rows', 'min', [seconds / 60]),
    _row('opening 50,000,000 rows', 's', [opening]),
    _row('  its memory', 'GB', [memory / 1e9]),
    _row('training, 50,000,000 rows', 'GB', [peak]),
  ]


def _timed_opening(log: str, cache: str) -> tuple[float, int]:
  return _timed(lambda: _open(log, cache, 0, _NUM_ROWS // _ROWS_PER_FILE))


def _train_peak(log: pathlib.Path, folder: pathlib.Path, name: str) -> float:
  """Returns the peak memory of a training process in GB."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  base_dir = folder / f'run_{name}'
  bindings = {
    'atari_lib.create_atari_environment.game_name': repr(_GAME),
    'FixedReplayRunner.num_iterations': 1,
    'FixedReplayRunner.num_gradient_steps': 200,
    'FixedReplayRunner.num_evaluation_agent_steps': 0,
    'FixedReplayRunner.log_period': 100,
    'FixedReplayRunner.effective_rank_period': 100,
    'Subset.rule': "'all'",
    'Subset.fraction': 1.0,
    'open_store.max_resident_bytes': (1 << 40) if name == 'held' else 0,
  }
  subprocess.run(
    [
      sys.executable,
      '-m',
      'batch_rl_dr3.train',
      '--gin_files=atari/rem_dr3_1pct.gin',
      *(f'--gin_bindings={name}={value}' for name, value in bindings.items()),
      f'--replay_dir={log}',
      f'--base_dir={base_dir}',
      f'--cache_dir={folder / "cache"}',
      '--overwrite',
    ],
    check=True,
  )
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  if peak == before:
    raise RuntimeError('an earlier child was larger; measure in another order')
  return peak * 1024 / 1e9


def _print(rows: list[dict[str, Any]]) -> None:
  print(f'{"":<34}{"store":>10}{"other":>10}  {"":<10}{"ratio":>8}  goal')
  for row in rows:
    theirs = '' if row['peer'] is None else f'{row["peer_value"]:,.4g}'
    ratio = '' if row['ratio'] is None else f'{row["ratio"]:,.1f}x'
    print(
      f'{row["name"]:<34}{row["value"]:>10,.4g}{theirs:>10}  '
      f'{row["unit"]:<10}{ratio:>8}  {row["goal"]}'
    )


def main(arguments: list[str]) -> None:
  """Measures and prints."""
  del arguments
  folder = pathlib.Path(FLAGS.folder)
  log, cache = folder / _GAME / '1', folder / 'cache'
  _collect(log)
  for num_files in (1, 5):
    _apart(_build, str(log), str(cache), num_files)
  # The smaller process first: only the largest child's peak is known.
  read = _train_peak(log, folder, 'read')
  full = _measure_full_game(log, folder) if FLAGS.full_game else []
  held = _train_peak(log, folder, 'held')
  rows = [
    *_measure_extraction(folder, log),
    _row(
      'opening 500,000 rows',
      's',
      [
        _apart(_timed_opening, str(log), str(cache))[0]
        for _ in range(FLAGS.pairs)
      ],
      goal='under 1',
    ),
    *_measure_sampling(log, cache),
    *_measure_checks(log, cache),
    _row('training, frames read', 'GB', [read], goal='under 1.5'),
    _row('training, 3.5 GB of frames held', 'GB', [held], goal='under 5'),
    *full,
  ]
  _print(rows)
  print(
    f'Medians of {FLAGS.pairs} turns each, {os.cpu_count()} cores, load '
    f'{os.getloadavg()[0]:.1f} in the last minute.'
  )
  if FLAGS.json:
    pathlib.Path(FLAGS.json).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
