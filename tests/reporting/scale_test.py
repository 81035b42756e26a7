"""A report on the whole study: 1,020 runs of 200 evaluations each."""

import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from batch_rl_dr3.reporting import reference
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.runs import run_directory, run_tables

_NUM_EVALUATIONS = 200
_NUM_EPISODES = 5


def _write_run(folder, identity, low, high, rng):
  folder.mkdir(parents=True)
  record = identity | {
    'data_hash': 'x',
    'protocol': {'epsilon_eval': 0.001},
    'rom_md5': reference.legacy_rom(identity['game']),
  }
  (folder / run_directory.PROVENANCE).write_text(json.dumps(record))
  start = ','.join(str(value) for value in identity.values())
  scores = low + (high - low) * rng.random((_NUM_EVALUATIONS, _NUM_EPISODES))
  score_rows = [','.join(run_tables.SCORE_COLUMNS)]
  metric_rows = ['gradient_steps,feature_dot_product,effective_rank,mean_q']
  for iteration, episodes in enumerate(scores):
    step = (iteration + 1) * 62_500
    metric_rows.append(f'{step},{1 + rng.random()},{300 - iteration},1.5')
    score_rows += [
      f'{start},{iteration},{step},{number},{score:.2f},1000,0'
      for number, score in enumerate(episodes)
    ]
  for name, rows in (('scores.csv', score_rows), ('metrics.csv', metric_rows)):
    (folder / name).write_text('\n'.join([*rows, '']))
    then = time.time() - 60
    os.utime(folder / name, (then, then))
  (folder / run_directory.FINISHED).write_text('{"num_iterations": 2}')


@pytest.fixture
def runs(tmp_path):
  rng = np.random.default_rng(0)
  scale = reference.scores()
  chosen = study_lib.PRESETS['dr3_atari17']
  for dataset in chosen.datasets:
    for level, method in enumerate(chosen.methods):
      for game in chosen.games:
        low = scale.loc[game, 'random']
        high = scale.loc[game, 'online_dqn']
        for run in range(1, chosen.num_runs + 1):
          identity = {
            'suite': 'atari',
            'game': game,
            'method': method,
            'dataset': dataset,
            'run': run,
            'seed': 0,
          }
          _write_run(
            tmp_path / 'runs' / dataset / method / game / str(run),
            identity,
            low,
            low + (high - low) * (level + 1) / 2,
            rng,
          )
  return tmp_path / 'runs'


@pytest.mark.slow
def test_a_report_on_a_thousand_runs(runs, tmp_path):
  command = [
    sys.executable,
    '-m',
    'batch_rl_dr3.report',
    '--preset=dr3_atari17',
    f'--runs={runs}/**',
    f'--output_dir={tmp_path}/report',
  ]
  started = time.time()
  subprocess.run(command, check=True)
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
  print(f'{time.time() - started:.0f} s, {peak:.2f} GiB')
  table = (tmp_path / 'report/tables/table_1.csv').read_text().splitlines()
  rows = [
    dict(zip(table[0].split(','), r.split(','), strict=True)) for r in table[1:]
  ]
  assert len(rows) == 12
  # Uniform between 0 and (level + 1) / 2, so (level + 1) / 4 on average.
  for level, row in enumerate(rows):
    expected = 25 * (level % 4 + 1)
    assert float(row['average_percent']) == pytest.approx(expected, rel=0.02)
    assert row['complete'] == 'True'
