"""Run directories with numbers that a test can check by hand."""

import csv
import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from batch_rl_dr3.reporting import reference, run_reader
from batch_rl_dr3.reporting import study as study_lib
from batch_rl_dr3.runs import run_directory, run_tables

METRIC_COLUMNS = (
  'iteration',
  'gradient_steps',
  'loss_total',
  'loss_bellman',
  'loss_feature_dot_product',
  'feature_dot_product',
  'feature_norm_squared',
  'divergence_ratio',
  'effective_rank',
  'mean_q',
  'mean_target_q',
  'gradient_norm',
  'gradient_steps_per_second',
)


def _write(path, columns, rows):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, columns, restval='')
    writer.writeheader()
    writer.writerows(rows)


@pytest.fixture
def make_run(tmp_path):
  """Makes tmp_path/runs/<name> out of metric rows and returns by step."""

  def make(
    method,
    returns=None,
    metrics=None,
    name=None,
    seed=0,
    finished=True,
    truncated=(),
    **provenance,
  ):
    folder = tmp_path / 'runs' / (name or method)
    folder.mkdir(parents=True)
    record = {
      'method': method,
      'suite': 'minatar',
      'game': 'breakout',
      'dataset': '10pct',
      'run': 1,
      'seed': seed,
      'versions': {'tensorflow': '2.18.1'},
      'git_revision': 'abc123',
      'data': {'hash': 'hash1', 'num_rows': 1000, 'subset': '10pct'},
      'protocol': {'gamma': 0.9, 'epsilon_eval': 0.001},
      'rom_md5': None,
      'device': 'cpu',
      'command': ['python', '-m', 'batch_rl_dr3.train', f'--seed={seed}'],
    } | provenance
    (folder / run_directory.PROVENANCE).write_text(json.dumps(record))
    if metrics is not None:
      _write(folder / run_directory.METRICS, METRIC_COLUMNS, metrics)
    if returns is not None:
      identity = {
        key: record[key]
        for key in ('suite', 'game', 'method', 'dataset', 'run', 'seed')
      }
      rows = [
        identity
        | {
          'iteration': iteration,
          'gradient_steps': step,
          'episode': episode,
          'return': value,
          'length': 10,
          'truncated': int((step, episode) in truncated),
        }
        for iteration, (step, values) in enumerate(returns.items())
        for episode, value in enumerate(values)
      ]
      _write(folder / run_directory.SCORES, run_tables.SCORE_COLUMNS, rows)
    if finished:
      (folder / run_directory.FINISHED).write_text('{"num_iterations": 2}')
    return folder

  return make


@pytest.fixture
def make_checkpoint():
  """Adds a checkpoint, whole by its manifest, to a run directory."""

  def make(folder, name, gradient_steps):
    inside = folder / run_directory.CHECKPOINTS
    inside.mkdir(exist_ok=True)
    data = inside / f'tf_ckpt-{name}.index'
    data.write_text('weights')
    sha256 = hashlib.sha256(b'weights').hexdigest()
    record = {
      'name': name,
      'gradient_steps': gradient_steps,
      'files': {data.name: {'bytes': 7, 'sha256': sha256}},
    }
    (inside / f'ckpt.{name}.json').write_text(json.dumps(record))

  return make


def row(step, loss, dot, norm, rank='', q=1.0):
  return {
    'iteration': 0,
    'gradient_steps': step,
    'loss_total': loss,
    'loss_bellman': loss,
    'feature_dot_product': dot,
    'feature_norm_squared': norm,
    'divergence_ratio': 0.9 * dot / norm,
    'effective_rank': rank,
    'mean_q': q,
  }


@pytest.fixture
def rem_pair(make_run, tmp_path):
  """REM and REM + DR3, one seed; returns the glob that matches them."""
  make_run(
    'rem',
    returns={100: [1, 3], 200: [4, 6], 300: [2, 4]},
    metrics=[
      row(100, 0.5, 10.0, 12.0, rank=8),
      row(200, 0.4, 20.0, 16.0),
      row(300, 0.2, 40.0, 38.0, rank=4, q=2.5),
    ],
    truncated={(300, 1)},
  )
  make_run(
    'rem_dr3',
    returns={100: [2, 2], 200: [8, 10]},
    metrics=[
      row(100, 0.5, 4.0, 10.0, rank=9),
      row(200, 0.3, 5.0, 10.0, rank=11, q=1.5),
    ],
    finished=False,
  )
  return str(tmp_path / 'runs' / '*')


SMALL_STUDY = study_lib.Preset(
  name='small',
  title='A small study',
  suite='atari',
  games=('Asterix', 'Breakout', 'Pong', 'Qbert'),
  methods=('rem', 'rem_dr3'),
  datasets={'5pct': 300},
  num_runs=2,
)


@pytest.fixture
def small_study():
  return SMALL_STUDY


@pytest.fixture
def make_collection(tmp_path):
  """Makes runs in memory out of float64 [runs, games, steps] in points."""

  def make(returns, chosen=SMALL_STUDY, metrics=None, finished=True):
    runs = []
    for (dataset, method), values in returns.items():
      steps = np.linspace(
        0, chosen.datasets.get(dataset, 300), values.shape[2] + 1
      )[1:].astype(np.int64)
      for game, name in enumerate(chosen.games[: values.shape[1]]):
        for run in range(len(values)):
          index = pd.Index(steps, name='gradient_steps')
          frame = pd.DataFrame(index=index)
          for quantity, numbers in (metrics or {}).items():
            frame[quantity] = numbers[run, game]
          evaluations = pd.DataFrame(
            {'return': values[run, game], 'episodes': 1, 'truncated': 0}, index
          )
          runs.append(
            run_reader.Run(
              folder=tmp_path,
              name=f'{dataset}/{method}/{name}/{run}',
              setting=run_reader.Setting('atari', name, dataset),
              method=method,
              logged_run=str(run + 1),
              seed='0',
              finished=finished,
              provenance={'rom_md5': reference.legacy_rom(name)},
              metrics=frame,
              evaluations=evaluations.dropna(),
            )
          )
    return run_reader.Collection(tuple(runs), tmp_path, ())

  return make


@pytest.fixture
def in_points():
  """Makes points of float64 [runs, games, steps] on DQN's scale."""

  def convert(normalised, games):
    table = reference.scores().loc[list(games)]
    low = table['random'].to_numpy()[:, np.newaxis]
    high = table['online_dqn'].to_numpy()[:, np.newaxis]
    return low + normalised * (high - low)

  return convert
