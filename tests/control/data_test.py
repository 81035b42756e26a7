"""Readers against files in the real layouts, whole and damaged."""

import functools
import http.server
import json
import pathlib
import threading

import gin
import gymnasium as gym
import h5py
from minari.serialization import serialize_space
import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import data as data_lib
from batch_rl_dr3.control import tasks

SIZES = {'hopper': (11, 3), 'antmaze-medium-play': (29, 8)}
SIZES['kitchen-mixed'] = (60, 9)


def columns(game='hopper', num_rows=10):
  """Ten rows: an episode that ends in row 3, one out of time in row 6."""
  observation_size, action_size = SIZES[game]
  rng = np.random.default_rng(0)
  flags = np.zeros((2, num_rows), bool)
  flags[0, 3] = flags[1, 6] = True
  return {
    'observations': rng.normal(size=(num_rows, observation_size)),
    'actions': rng.uniform(-1, 1, (num_rows, action_size)),
    'rewards': np.arange(num_rows, dtype=np.float32),
    'terminals': flags[0],
    'timeouts': flags[1],
  }


@pytest.fixture
def write(tmp_path):
  def write(name='hopper_medium.hdf5', attributes=(), drop=(), **changed):
    path = tmp_path / name
    with h5py.File(path, 'w') as file:
      for column, array in {**columns(), **changed}.items():
        if column not in drop:
          file.create_dataset(column, data=array)
      file.attrs.update(dict(attributes))
      file.create_group('infos')
    return str(path)

  return write


def load(path, game='hopper', cache_dir='/nowhere', **kwargs):
  return data_lib.ControlData(**kwargs).load(path, str(cache_dir), game)


@pytest.mark.parametrize('game', SIZES)
def test_transitions_are_those_of_qlearning_dataset(write, game):
  """Rows 6 (out of time) and 9 (the last) have no s' in the file."""
  logged = columns(game)
  path = write('data.hdf5', **logged)
  task, data = load(path, game)
  assert (task.layout, len(data)) == (tasks.D4RL, 8)
  rows = [0, 1, 2, 3, 4, 5, 7, 8]
  np.testing.assert_array_equal(data.rewards, rows)
  observations = logged['observations'].astype(np.float32)
  np.testing.assert_array_equal(data.observations, observations[rows])
  following = observations[[row + 1 for row in rows]]
  np.testing.assert_array_equal(data.next_observations, following)
  # The timeout is no terminal.
  np.testing.assert_array_equal(data.terminals, [0, 0, 0, 1, 0, 0, 0, 0])
  assert data.manifest['bytes'] > 0
  assert len(data.manifest['sha256']) == 64


def test_next_observations_of_v2_are_taken(write):
  _, data = load(write(next_observations=np.full((10, 11), 5.0)))
  assert (data.next_observations == 5.0).all()


def test_old_files_are_cut_where_asked(write):
  """Row 3 is terminal; a limit of 3 cuts rows 2, 6 and 9."""
  path = write(drop=['timeouts'])
  with pytest.raises(errors.DataError, match='max_episode_steps'):
    load(path)
  _, data = load(path, max_episode_steps=3)
  np.testing.assert_array_equal(data.rewards, [0, 1, 3, 4, 5, 7, 8])


def test_rewards_and_ends_of_antmaze(write):
  rewards = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0, 0], np.float32)
  path = write(
    'data.hdf5', **{**columns('antmaze-medium-play'), 'rewards': rewards}
  )
  _, data = load(
    path,
    'antmaze-medium-play',
    reward_scale=4.0,
    reward_shift=-0.5,
    end_at_reward=True,
  )
  np.testing.assert_array_equal(data.rewards, [-2, -2, 2, -2, -2, 2, -2, -2])
  np.testing.assert_array_equal(data.terminals, [0, 0, 1, 1, 0, 1, 0, 0])


def test_a_part_is_drawn_without_replacement(write):
  path = write()
  _, half = load(path, fraction=0.5)
  _, again = load(path, fraction=0.5)
  _, other = load(path, fraction=0.5, fraction_seed=1)
  assert len(set(half.rewards)) == len(half) == 4
  np.testing.assert_array_equal(half.rewards, again.rewards)
  assert half.manifest['hash'] == again.manifest['hash']
  assert half.manifest['hash'] != other.manifest['hash']
  with pytest.raises(errors.ConfigError, match='fraction'):
    data_lib.ControlData(fraction=0.0)


def broken(column, row, value):
  array = np.array(columns()[column], np.float64)
  array[row] = value
  return {column: array}


@pytest.mark.parametrize(
  ('written', 'message'),
  [
    ({'observations': np.zeros((10, 17))}, 'another environment'),
    ({'actions': np.zeros((10, 6))}, 'another environment'),
    ({'rewards': np.zeros((10, 1))}, 'another environment'),
    ({'actions': np.zeros((9, 3))}, '9 rows'),
    ({'drop': ['terminals']}, 'lacks terminals'),
    ({'name': 'walker2d_medium-v2.hdf5'}, 'walker2d'),
    ({'attributes': {'game': 'walker2d'}}, 'walker2d'),
    (broken('rewards', 1, np.nan), 'rewards'),
    (broken('actions', 1, 3.0), 'actions reach 3'),
  ],
)
def test_what_is_wrong_is_named(write, written, message):
  path = write(**written)
  with pytest.raises(errors.DataError, match=message) as caught:
    load(path)
  assert path in str(caught.value)
  assert caught.value.exit_code == 65


def test_truncated_and_missing_files_are_named(write, tmp_path):
  path = write()
  with open(path, 'r+b') as file:
    file.truncate(2000)
  with pytest.raises(errors.DataError, match='no whole HDF5 file'):
    load(path)
  with pytest.raises(errors.DataError, match='no data at'):
    load(str(tmp_path / 'gone.hdf5'))
  with pytest.raises(errors.DataError, match='no Minari data set'):
    load(str(tmp_path))


def test_a_url_is_fetched_once(write, tmp_path):
  path = write()
  cache = tmp_path / 'cache'
  _, data = load(f'file://{path}', cache_dir=cache)
  (copy,) = (p for p in cache.rglob('*.hdf5'))
  write(rewards=np.full(10, 7.0))  # The original changes; the copy is used.
  _, again = load(f'file://{path}', cache_dir=cache)
  np.testing.assert_array_equal(data.rewards, again.rewards)
  assert copy.stat().st_size == data.manifest['bytes']
  with pytest.raises(errors.DataError, match=r'hdf5\.gone is refused'):
    load(f'file://{path}.gone', cache_dir=cache)


class Faltering(http.server.SimpleHTTPRequestHandler):
  """Refuses every other request for the moment."""

  count = 0

  def do_GET(self):
    Faltering.count += 1
    if Faltering.count % 2:
      self.send_error(503)
    else:
      super().do_GET()

  def log_message(self, *args):
    pass


def test_a_server_that_falters_is_asked_again(write, tmp_path):
  path = pathlib.Path(write())
  cache = tmp_path / 'cache'
  serve = functools.partial(Faltering, directory=str(path.parent))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), serve)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_address[1]}/{path.name}'
  gin.parse_config('Retry.first_delay = 0.0')
  _, data = load(url, cache_dir=cache)
  assert Faltering.count >= 2
  (copy,) = (p for p in cache.rglob('*.hdf5'))
  assert copy.read_bytes() == path.read_bytes()
  assert data.manifest['source'] == url
  with pytest.raises(errors.DataError, match=r'gone\.hdf5 is refused'):
    load(url.replace(path.name, 'gone.hdf5'), cache_dir=cache)
  server.shutdown()


@pytest.fixture
def minari(tmp_path):
  """Writes a Minari data set of AntMaze's spaces: two episodes of 3 and 2."""

  def write(dataset_id='D4RL/antmaze/medium-play-v1', size=27):
    def box(*shape):
      return gym.spaces.Box(-np.inf, np.inf, shape, np.float64)

    space = gym.spaces.Dict(
      achieved_goal=box(2), desired_goal=box(2), observation=box(size)
    )
    folder = tmp_path / 'data'
    folder.mkdir()
    metadata = {
      'dataset_id': dataset_id,
      'minari_version': '0.5.4',
      'data_format': 'hdf5',
      'total_episodes': 2,
      'total_steps': 5,
      'observation_space': serialize_space(space),
      'action_space': serialize_space(gym.spaces.Box(-1, 1, (8,), np.float32)),
    }
    (folder / 'metadata.json').write_text(json.dumps(metadata))
    with h5py.File(folder / 'main_data.hdf5', 'w') as file:
      for number, length in enumerate((3, 2)):
        episode = file.create_group(f'episode_{number}')
        observations = episode.create_group('observations')
        for name, width in (
          ('achieved_goal', 2),
          ('desired_goal', 2),
          ('observation', size),
        ):
          value = {'achieved_goal': 1.0, 'desired_goal': 9.0}.get(name, 2.0)
          rows = np.full((length + 1, width), value)
          rows += np.arange(length + 1)[:, None]
          observations.create_dataset(name, data=rows)
        episode.create_dataset('actions', data=np.zeros((length, 8)))
        episode.create_dataset('rewards', data=np.arange(length) / 10)
        episode.create_dataset('terminations', data=[False] * length)
        last = [False] * (length - 1) + [True]
        episode.create_dataset('truncations', data=last)
    return str(tmp_path)

  return write


def test_minari_is_read(minari):
  """[achieved goal, observation]; every step has its s', no end is one."""
  task, data = load(minari(), 'antmaze-medium-play')
  assert (task.layout, len(data)) == (tasks.MINARI, 5)
  assert data.observations.shape == (5, 29)
  np.testing.assert_array_equal(data.observations[:, 0], [1, 2, 3, 1, 2])
  np.testing.assert_array_equal(data.next_observations[:, 2], [3, 4, 5, 3, 4])
  np.testing.assert_allclose(data.rewards, [0, 0.1, 0.2, 0, 0.1])
  assert not data.terminals.any()
  assert data.manifest['minari_id'] == 'D4RL/antmaze/medium-play-v1'


def test_minari_of_something_else_is_named(minari):
  with pytest.raises(errors.DataError, match='not data of kitchen-mixed'):
    load(minari(), 'kitchen-mixed')


def test_minari_of_another_shape_is_named(minari):
  with pytest.raises(errors.DataError, match='another environment'):
    load(minari(size=20), 'antmaze-medium-play')
