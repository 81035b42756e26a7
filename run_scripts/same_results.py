r"""Shows whether two checkouts train to the same bits.

  python run_scripts/same_results.py --old=CHECKOUT --new=CHECKOUT \
    --output_dir=DIR

Each checkout has its own `.venv`. In each, a small log of MinAtar is collected
and every method is trained on it for a few hundred gradient steps, with one
thread; then the weights of the last checkpoint, the columns of metrics.csv and
scores.csv and the tables of a report are compared. A column that only one of
the two has is named and is no difference. Weights differ from machine to
machine, so hashes are not kept; both sides are made here, some 10 minutes
each. What a checkout has finished in DIR is not made again.

Exits with 1 if anything differs.
"""

import argparse
from collections.abc import Iterator, Sequence
import csv
import hashlib
import json
import os
import pathlib
import subprocess
import sys

_DQN = ['minatar/dqn.gin']
_BACKUPS = {
  **{name: name for name in ('q_learning', 'td', 'sarsa')},
  'regression': 'monte_carlo',
}
# What is trained, each from one folder of settings: name, gin files, bindings.
_DISCRETE: dict[str, tuple[list[str], list[str]]] = {
  **{
    f'dqn_{name}': (_DQN, [f"FixedReplayDQNAgent.backup='{backup}'"])
    for name, backup in _BACKUPS.items()
  },
  **{
    method: ([f'minatar/{method}.gin'], [])
    for method in ('dqn_dr3', 'rem', 'rem_dr3', 'cql', 'cql_dr3')
  },
  'cql_raw': (['minatar/cql.gin'], ["open_store.codec='raw'"]),
  'label_noise': (
    ['minatar/cql.gin'],
    [
      (
        'FixedReplayQRCQLAgent.penalties='
        '[@ConservativePenalty(), @LabelNoiseFeatureDotPenalty()]'
      ),
      'LabelNoiseFeatureDotPenalty.coefficient=0.03',
      'LabelNoiseFeatureDotPenalty.refresh_period=20',
    ],
  ),
  'adaptive': (
    _DQN,
    [
      'FixedReplayDQNAgent.penalties=[@AdaptiveFeatureDotPenalty()]',
      'AdaptiveFeatureDotPenalty.target=0.5',
      'AdaptiveFeatureDotPenalty.rate=0.001',
      'AdaptiveFeatureDotPenalty.normalised=True',
    ],
  ),
}
_SMALL = [
  "create_minatar_lanes.game_name='breakout'",
  'FixedReplayRunner.num_threads=1',
  'FixedReplayRunner.num_iterations=2',
  'FixedReplayRunner.num_gradient_steps=110',
  'FixedReplayRunner.num_evaluation_agent_steps=200',
  'FixedReplayRunner.log_period=25',
  'FixedReplayRunner.effective_rank_period=50',
  'FixedReplayRunner.effective_rank_num_states=64',
  # At no row of metrics.csv: when a copy is measured has changed once.
  'OfflineAgent.target_update_period=60',
]
_CONTINUOUS: dict[str, tuple[str, list[str]]] = {
  'hopper_cql': (
    'd4rl/cql_dr3_full-replay.gin',
    ["ContinuousRunner.method='cql'", 'DR3CqlSacAgent.penalties=[]'],
  ),
  'hopper_cql_dr3': ('d4rl/cql_dr3_full-replay.gin', []),
  'hopper_brac': (
    'd4rl/brac_dr3_mujoco.gin',
    ["ContinuousRunner.method='brac'", 'DR3BracAgent.penalties=[]'],
  ),
  'hopper_brac_dr3': ('d4rl/brac_dr3_mujoco.gin', []),
}
# What older checkouts call them.
_OLD_FILES = {
  'd4rl/brac_dr3_mujoco.gin': [
    'd4rl/methods/brac.gin',
    'd4rl/methods/brac_penalty.gin',
  ],
}
_SMALL_CONTINUOUS = [
  'ControlData.fraction=1.0',
  'DR3CqlSacAgent.num_bc_steps=10',
  'DR3BracAgent.num_warm_start_steps=10',
  'ContinuousRunner.effective_rank_period=20',
  'ContinuousRunner.effective_rank_num_states=64',
  'ContinuousRunner.num_iterations=2',
  'ContinuousRunner.num_gradient_steps=30',
  'ContinuousRunner.num_evaluation_episodes=2',
  'ContinuousRunner.log_period=10',
]

_CLONING = ['ContinuousRunner.num_cloning_steps=10']


class Checkout:
  """A working tree with its environment, and what it makes."""

  def __init__(self, root: pathlib.Path, output: pathlib.Path):
    """Names the folders; nothing is made yet."""
    self.root = root.resolve()
    self.output = output.resolve()

  def run(self, command: str, *flags: str) -> None:
    """Runs a command of the package, whose output goes to a log."""
    self.output.mkdir(parents=True, exist_ok=True)
    with open(self.output / 'log.txt', 'a') as log:
      subprocess.run(
        [
          *(self.root / '.venv/bin/python', '-m', f'batch_rl_dr3.{command}'),
          *flags,
        ],
        cwd=self.root,
        env={
          **os.environ,
          'OMP_NUM_THREADS': '1',
          'TF_NUM_INTRAOP_THREADS': '1',
          'TF_NUM_INTEROP_THREADS': '1',
        },
        stdout=log,
        stderr=log,
        check=True,
      )

  def make(self) -> None:
    """Trains everything that is not there yet and writes a report of it."""
    breakout = self._collect(
      'breakout',
      'collect/minatar_uniform.gin',
      [
        "create_minatar_lanes.game_name='breakout'",
        'collect.num_rows=3000',
        'collect.rows_per_file=1000',
      ],
    )
    hopper = self._collect(
      'hopper',
      'd4rl/collect_hopper.gin',
      ["collect_control.kind='random'", 'collect_control.num_rows=3000'],
    )
    for name, (files, bindings) in _DISCRETE.items():
      method = f"FixedReplayRunner.method='{name}'"
      self._train(name, breakout, files, [*_SMALL, *bindings, method])
    for name, (file, bindings) in _CONTINUOUS.items():
      is_old = not (self.root / 'gin_configs' / file).exists()
      files = _OLD_FILES[file] if is_old else [file]
      self._train(
        name,
        hopper / 'data.hdf5',
        [*files, 'd4rl/tasks/hopper_smoke.gin'],
        [
          *bindings,
          *_SMALL_CONTINUOUS,
          *(_CLONING if 'brac' in name else []),
        ],
      )
    self.run(
      'report',
      f'--runs={self.output}/runs/*',
      f'--output_dir={self.output}/report',
    )

  def _collect(
    self, name: str, file: str, bindings: Sequence[str]
  ) -> pathlib.Path:
    folder = self.output / 'data' / name
    if not (folder / 'collection.json').exists():
      self.run(
        'collect',
        f'--gin_files={file}',
        *(f'--gin_bindings={binding}' for binding in bindings),
        f'--output_dir={folder}',
      )
    return folder

  def _train(
    self,
    name: str,
    data: pathlib.Path,
    files: Sequence[str],
    bindings: Sequence[str],
  ) -> None:
    run = self.output / 'runs' / name
    if (run / 'finished.json').exists():
      return
    print(f'{self.root}: {name}', flush=True)
    self.run(
      'train',
      *(f'--gin_files={file}' for file in files),
      *(f'--gin_bindings={binding}' for binding in bindings),
      f'--replay_dir={data}',
      f'--cache_dir={self.output / "cache"}',
      *('--seed=3', f'--base_dir={run}'),
    )

  def weights(self, name: str) -> dict[str, str]:
    """Returns the SHA-256 of each variable of a run's last checkpoint."""
    folder = self.output / 'runs' / name / 'checkpoints'
    code = (
      'import hashlib, json, sys, tensorflow as tf\n'
      'reader = tf.train.load_checkpoint(tf.train.latest_checkpoint('
      'sys.argv[1]) or sys.argv[2])\n'
      'names = reader.get_variable_to_shape_map()\n'
      'print(json.dumps({n: hashlib.sha256(bytes(str(reader.get_tensor(n)'
      '.dtype), "ascii") + reader.get_tensor(n).tobytes()).hexdigest()'
      ' for n in names if "OBJECT_GRAPH" not in n}))'
    )
    newest = max(folder.glob('*.index'), key=lambda path: path.stat().st_mtime)
    done = subprocess.run(
      [
        *(self.root / '.venv/bin/python', '-c', code),
        *(str(folder), str(newest.with_suffix(''))),
      ],
      env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
      capture_output=True,
      check=True,
    )
    hashes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return hashes


def columns(path: pathlib.Path) -> dict[str, str]:
  """Returns the SHA-256 of each column of a CSV file."""
  with open(path, newline='') as file:
    header, *rows = list(csv.reader(file))
  return {
    name: hashlib.sha256('\n'.join(row[i] for row in rows).encode()).hexdigest()
    for i, name in enumerate(header)
  }


def differences(
  what: str, old: dict[str, str], new: dict[str, str]
) -> Iterator[str]:
  """Yields what differs between hashes by name; prints what one side lacks."""
  for names, side in (
    (old.keys() - new.keys(), 'old'),
    (new.keys() - old.keys(), 'new'),
  ):
    if names:
      print(f'{what}: only the {side} has {", ".join(sorted(names))}')
  common = old.keys() & new.keys()
  if not common:
    yield f'{what}: nothing in common'
  for name in sorted(common - {'gradient_steps_per_second'}):
    if old[name] != new[name]:
      yield f'{what}: {name} differs'


def main() -> None:
  """Makes both sides and compares them."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for flag in ('--old', '--new', '--output_dir'):
    parser.add_argument(flag, type=pathlib.Path, required=True)
  flags = parser.parse_args()
  old = Checkout(flags.old, flags.output_dir / 'old')
  new = Checkout(flags.new, flags.output_dir / 'new')
  for side in (old, new):
    side.make()
  found = []
  for run in sorted((new.output / 'runs').iterdir()):
    name = run.name
    found += differences(
      f'{name}, weights', old.weights(name), new.weights(name)
    )
    for table in ('metrics.csv', 'scores.csv'):
      pair = [columns(s.output / 'runs' / name / table) for s in (old, new)]
      found += differences(f'{name}, {table}', *pair)
  for path in sorted((old.output / 'report/tables').glob('*.csv')):
    other = new.output / 'report/tables' / path.name
    if not other.exists():
      found.append(f'report: {path.name} is missing')
    else:
      found += differences(
        f'report, {path.name}', columns(path), columns(other)
      )
  print(*found or ['everything that both have is equal'], sep='\n')
  sys.exit(bool(found))


if __name__ == '__main__':
  main()
