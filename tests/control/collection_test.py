"""Collections: D4RL's layout, and that the readers take them."""

import json

import gin
import h5py
import minari
import numpy as np
import pytest

from batch_rl_dr3 import collect as collect_command
from batch_rl_dr3.config import errors
from batch_rl_dr3.control import collection, tasks
from batch_rl_dr3.control import data as data_lib


def collect(folder, kind, num_rows, *bindings, **kwargs):
  gin.parse_config(
    [
      "collect_control.game='hopper'",
      f"collect_control.kind='{kind}'",
      f'collect_control.num_rows={num_rows}',
      *bindings,
    ]
  )
  return collection.collect_control(folder, seed=0, **kwargs)


def test_random_play_is_data_of_the_game(tmp_path):
  path = tmp_path / data_lib.DATA
  seen = []
  summary = collect(
    tmp_path, 'random', 200, on_progress=lambda rows, returns: seen.append(rows)
  )
  assert (summary['num_rows'], seen[-1]) == (200, 200)
  with h5py.File(path) as file:
    logged = {name: file[name][()] for name in file}
  ends = np.flatnonzero(logged['terminals'] | logged['timeouts'])
  assert ends[-1] == 199
  assert summary['num_episodes'] in (len(ends), len(ends) - 1)
  # Within an episode, s' is the next row's s.
  inside = np.setdiff1d(np.arange(199), ends)
  np.testing.assert_array_equal(
    logged['next_observations'][inside], logged['observations'][inside + 1]
  )
  starts = [0, *(ends[:-1] + 1)]
  returns = np.add.reduceat(logged['rewards'], starts)
  np.testing.assert_allclose(
    returns[: summary['num_episodes']].mean(), summary['return_mean'], rtol=1e-4
  )
  task, data = data_lib.ControlData().load(str(path), '', 'hopper')
  assert task.environment == 'Hopper-v4'
  assert len(data) == 199
  with pytest.raises(errors.DataError, match='hopper'):
    data_lib.ControlData().load(str(path), '', 'walker2d')


def test_a_stopped_collection_leaves_nothing(tmp_path):
  def stop(num_rows, returns):
    if num_rows == 20:
      raise errors.PreemptedError

  with pytest.raises(errors.PreemptedError):
    collect(tmp_path, 'random', 50, on_progress=stop)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('game', 'environment', 'size'),
  [
    ('hopper', 'Hopper-v5', 11),
    ('antmaze-medium-play', 'AntMaze_Medium-v4', 29),
  ],
)
def test_minari_reads_back_what_was_played(
  tmp_path, monkeypatch, game, environment, size
):
  played = []
  write = data_lib.write_minari
  monkeypatch.setattr(
    data_lib, 'write_minari', lambda *a: (played.append(a[3]), write(*a))
  )
  summary = collect(
    tmp_path,
    'random',
    120,
    "collect_control.layout='minari'",
    f"collect_control.game='{game}'",
  )
  assert summary['environment'] == environment
  (columns,) = played
  task, data = data_lib.ControlData().load(str(tmp_path), '', game)
  assert (task.environment, task.layout) == (environment, tasks.MINARI)
  # Every row is a transition, that of a truncation too.
  for name in ('observations', 'next_observations', 'rewards', 'terminals'):
    np.testing.assert_array_equal(getattr(data, name), columns[name])
  np.testing.assert_allclose(data.actions, columns['actions'], atol=1e-5)
  dataset = minari.MinariDataset(tmp_path / 'data')
  assert (dataset.total_steps, dataset.env_spec.id) == (120, environment)
  ends = np.flatnonzero(columns['terminals'] | columns['timeouts'])
  assert dataset.total_episodes == len(ends)
  assert dataset.observation_space.shape == (size,)
  row = 0
  for episode in dataset.iterate_episodes():
    rows = slice(row, row + len(episode))
    row = rows.stop
    np.testing.assert_array_equal(
      episode.observations[:-1], columns['observations'][rows]
    )
    np.testing.assert_array_equal(episode.actions, columns['actions'][rows])
    np.testing.assert_array_equal(
      episode.truncations, columns['timeouts'][rows]
    )
    assert dataset.observation_space.contains(episode.observations[-1])
  assert row == 120


def test_the_command_makes_what_train_reads(tmp_path, monkeypatch):
  """With the shipped file, smaller; given again it does nothing."""
  bindings = [
    "collect_control.kind='random'",
    'collect_control.num_rows=60',
    "collect_control.layout='minari'",
  ]
  for _ in range(2):
    gin.clear_config()
    collect_command.collect_into(
      tmp_path / 'hopper', ['d4rl/collect_hopper.gin'], bindings, seed=0
    )
  summary = json.loads((tmp_path / 'hopper' / 'collection.json').read_text())
  assert (summary['num_rows'], summary['layout']) == (60, 'minari')
  assert 'minari' in summary['simulators']
  _, data = data_lib.ControlData().load(str(tmp_path / 'hopper'), '', 'hopper')
  assert len(data) == 60


def test_an_unknown_layout_is_named(tmp_path):
  with pytest.raises(errors.ConfigError, match='layout'):
    collect(tmp_path, 'random', 50, "collect_control.layout='rlds'")


def test_an_unknown_kind_is_named(tmp_path):
  with pytest.raises(errors.ConfigError, match='kind'):
    collect(tmp_path, 'human', 50)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['policy', 'replay'])
def test_sac_learns_and_plays(tmp_path, kind):
  summary = collect(
    tmp_path,
    kind,
    120,
    'OnlineSac.layers=(8,)',
    'OnlineSac.batch_size=8',
    'OnlineSac.num_random_steps=20',
    'OnlineSac.steps_per_call=10',
    'OnlineSac.max_steps=120',
    'collect_control.noise=0.1',
  )
  assert summary['num_rows'] == 120
  _, data = data_lib.ControlData().load(
    str(tmp_path / 'data.hdf5'), '', 'hopper'
  )
  assert np.abs(data.actions).max() <= 1.0
