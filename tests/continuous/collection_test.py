"""Collections: D4RL's layout, and that the readers take them."""

import gin
import h5py
import numpy as np
import pytest

from batch_rl_dr3 import errors
from batch_rl_dr3.continuous import collection, control_data


def collect(path, kind, num_rows, *bindings, **kwargs):
  gin.parse_config(
    [
      "collect_control.game='hopper'",
      f"collect_control.kind='{kind}'",
      f'collect_control.num_rows={num_rows}',
      *bindings,
    ]
  )
  return collection.collect_control(path, seed=0, **kwargs)


def test_random_play_is_data_of_the_game(tmp_path):
  path = tmp_path / 'data.hdf5'
  seen = []
  summary = collect(
    path, 'random', 200, on_progress=lambda rows, returns: seen.append(rows)
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
  task, data = control_data.ControlData().load(str(path), '', 'hopper')
  assert task.environment == 'Hopper-v4'
  assert len(data) == 199
  with pytest.raises(errors.DataError, match='hopper'):
    control_data.ControlData().load(str(path), '', 'walker2d')


def test_a_stopped_collection_leaves_nothing(tmp_path):
  with pytest.raises(errors.PreemptedError):
    collect(tmp_path / 'data.hdf5', 'random', 50, should_stop=lambda: True)
  assert not list(tmp_path.iterdir())


def test_an_unknown_kind_is_named(tmp_path):
  with pytest.raises(errors.ConfigError, match='kind'):
    collect(tmp_path / 'data.hdf5', 'human', 50)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['policy', 'replay'])
def test_sac_learns_and_plays(tmp_path, kind):
  summary = collect(
    tmp_path / 'data.hdf5',
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
  _, data = control_data.ControlData().load(
    str(tmp_path / 'data.hdf5'), '', 'hopper'
  )
  assert np.abs(data.actions).max() <= 1.0
