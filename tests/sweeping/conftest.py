"""A grid of six small runs, and a train that needs no TensorFlow."""

import json
import pathlib

import gin
import pytest

from batch_rl_dr3.sweeping import grid

FAKE_TRAIN = pathlib.Path(__file__).parent / 'fake_train.py'


@pytest.fixture
def fake_train():
  return (str(FAKE_TRAIN),)


@pytest.fixture
def make_sweep():
  """Makes a sweep of MinAtar runs: 2 games x 3 methods x 1 seed."""

  def make(**bound):
    return grid.Sweep(
      **{
        'suite': 'minatar',
        'games': ['breakout', 'freeway'],
        'datasets': ['all'],
        'methods': ['dqn', 'rem', 'rem_dr3'],
        'seeds': [0],
        'gin_files': ['minatar/{method}.gin'],
        'gin_bindings': ["create_minatar_lanes.game_name='{game}'"],
        'replay_dir': 'data/{game}/{run}',
        'row_bytes': 1000,
        'log_rows': 2_000,
      }
      | bound
    )

  gin.clear_config()
  yield make
  gin.clear_config()


@pytest.fixture
def write_grid(tmp_path, replay_dir):
  """Writes a grid of runs on MinAtar Breakout and returns its path."""

  def write(methods, bindings):
    bound = {
      'suite': 'minatar',
      'games': ['breakout'],
      'datasets': ['all'],
      'methods': methods,
      'seeds': [0],
      'gin_files': ['minatar/{method}.gin'],
      'gin_bindings': bindings,
      'replay_dir': str(replay_dir),
      'row_bytes': 1000,
      'log_rows': 200,
      'run_gigabytes': 0.1,
    }
    path = tmp_path / 'grid.gin'
    lines = (f'Sweep.{name} = {value!r}\n' for name, value in bound.items())
    path.write_text(''.join(lines))
    return path

  return write


@pytest.fixture
def write_run(tmp_path):
  """Writes what a run has left in its directory."""

  def write(run, *, steps=(), rate=10.0, finished=False, scores=True, **record):
    folder = tmp_path / run.folder
    folder.mkdir(parents=True)
    (folder / 'provenance.json').write_text(
      json.dumps(
        {
          'suite': run.suite,
          'game': run.game,
          'dataset': run.dataset,
          'method': run.method,
          'run': run.logged_run,
          'seed': run.seed,
        }
      )
    )
    if steps:
      rows = ''.join(f'0,{step},{rate}\n' for step in steps)
      (folder / 'metrics.csv').write_text(
        f'iteration,gradient_steps,gradient_steps_per_second\n{rows}'
      )
    if finished:
      (folder / 'finished.json').write_text(
        json.dumps({'num_iterations': run.num_iterations})
      )
    if finished and scores:
      (folder / 'scores.csv').write_text(
        'suite,game,method,dataset,run,seed,iteration,gradient_steps,episode,'
        'return,length,truncated\n'
        f'{run.suite},{run.game},{run.method},{run.dataset},{run.logged_run},'
        f'{run.seed},0,100,0,1.5,20,0\n'
      )
    if record:
      (folder / 'attempt.json').write_text(
        json.dumps({'progress': [0, 0]} | record)
      )
    return folder

  return write
