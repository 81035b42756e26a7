"""Readers against files in the real layouts, whole and damaged."""

import fcntl
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
    ({'rewards': np.zeros((10, 2))}, 'another environment'),
    ({'timeouts': np.full(10, 0.5)}, 'timeouts has to hold a 0 or a 1'),
    ({'rewards': np.full(10, b'x')}, 'rewards holds no numbers'),
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


def test_columns_of_one_number_a_row_and_float_flags_are_read(write):
  """As the replay files of -v1 have them."""
  plain, changed = columns(), {}
  for name in ('rewards', 'terminals', 'timeouts'):
    changed[name] = np.float64(plain[name])[:, None]
  _, data = load(write(**changed))
  np.testing.assert_array_equal(data.rewards, [0, 1, 2, 3, 4, 5, 7, 8])
  np.testing.assert_array_equal(data.terminals, [0, 0, 0, 1, 0, 0, 0, 0])


def walk(num_rows, jumps=(), size=29):
  """Small steps in (x, y), and a jump by (9, 9) after each of some rows."""
  observations = np.random.default_rng(0).normal(size=(num_rows, size))
  steps = np.full((num_rows, 2), 0.02)
  steps[1::2] = -0.01
  for row in jumps:
    steps[row + 1] = 9.0
  observations[:, :2] = np.cumsum(steps, axis=0)
  return observations


def flags_at(num_rows, *rows):
  return np.isin(np.arange(num_rows), rows)


def ant(num_rows, timeouts, jumps=(), **changed):
  return {
    'observations': walk(num_rows, jumps),
    'actions': np.zeros((num_rows, 8)),
    'rewards': np.arange(num_rows, dtype=np.float32),
    'terminals': np.zeros(num_rows, bool),
    'timeouts': flags_at(num_rows, *timeouts),
    **changed,
  }


@pytest.mark.parametrize('early', [0, 1, 2])
def test_no_transition_crosses_a_jump(write, capsys, early):
  """Episodes of 21 rows; flags early by two rows, as in antmaze -v0."""
  path = write('data.hdf5', **ant(42, (20 - early, 41 - early), (20,)))
  _, data = load(path, 'antmaze-medium-play')
  assert 20 not in data.rewards
  assert len(data) == 40
  moved = data.next_observations[:, :2] - data.observations[:, :2]
  assert np.abs(moved).max() < 0.1
  assert data.manifest.get('flags_moved_by', 0) == early
  assert ('flags_moved_by' in capsys.readouterr().err) == bool(early)


def test_flags_are_moved_where_there_is_no_jump_too(write):
  """Three episodes; the second begins where the first ended."""
  path = write('data.hdf5', **ant(60, (17, 37, 57), (39,)))
  _, data = load(path, 'antmaze-medium-play')
  assert not {19, 39, 59} & set(data.rewards)
  assert len(data) == 57


def test_a_jump_without_a_flag_is_no_transition(write):
  path = write('data.hdf5', **ant(400, (), (99,)))
  _, data = load(path, 'antmaze-medium-play')
  assert 99 not in data.rewards
  assert len(data) == 398
  assert data.manifest['num_jumps_without_flag'] == 1


def test_timeouts_that_were_zeroed_are_noticed(write, capsys):
  """An episode of hopper has 1,000 steps at most."""
  changed = {
    'observations': walk(2100, size=11),
    'actions': np.zeros((2100, 3)),
    'rewards': np.zeros(2100),
    'terminals': np.zeros(2100, bool),
    'timeouts': np.zeros(2100, bool),
  }
  path = write('data.hdf5', **changed)
  with pytest.raises(errors.DataError, match='max_episode_steps = 1000'):
    load(path)
  _, data = load(path, max_episode_steps=1000)
  assert len(data) == 2100 - 3
  # What follows a row says itself where episodes end.
  following = np.concatenate([changed['observations'][1:], np.ones((1, 11))])
  following[[999, 1999]] = 7.0
  path = write('data.hdf5', **changed, next_observations=following)
  _, data = load(path)
  assert data.manifest['num_gaps_without_flag'] == 2
  assert 'num_gaps_without_flag 2' in capsys.readouterr().err
  np.testing.assert_array_equal(data.next_observations[999], np.full(11, 7.0))


@pytest.mark.parametrize(
  ('name', 'game', 'dataset', 'both'),
  [
    ('hopper_random-v2', 'hopper', 'medium', 'hopper-random.*hopper-medium,'),
    (
      'hopper_medium_replay-v2',
      'hopper',
      'medium',
      'hopper-medium-replay.*hopper-medium,',
    ),
    ('hopper_medium-v1', 'hopper', 'medium-v2', 'medium-v1.*medium-v2'),
    (
      'antmaze-umaze-v0',
      'antmaze-medium-play',
      'd4rl',
      'antmaze-umaze.*antmaze-medium-play',
    ),
    ('antmaze-large-play-v0', 'antmaze-medium-play', '', 'large.*medium'),
    (
      'Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse',
      'antmaze-medium-diverse',
      '',
      'large.*medium',
    ),
    ('antmaze-medium-diverse', 'antmaze-medium-play', '', 'diverse.*play'),
    ('kitchen_complete-v0', 'kitchen-mixed', '', 'complete.*mixed'),
    ('maze2d-medium-v1', 'antmaze-medium-play', '', 'maze2d.*antmaze'),
  ],
)
def test_data_of_another_name_are_refused(write, name, game, dataset, both):
  path = write(f'{name}.hdf5')
  with pytest.raises(errors.DataError, match=both):
    data_lib.ControlData().load(path, '/nowhere', game, dataset)


def test_the_right_names_are_taken(write):
  for name, dataset in (
    ('hopper_medium_replay-v2', 'medium-replay'),
    ('hopper_full_replay-v2', 'full-replay-v2-5pct'),
    ('hopper_medium-v2', 'sac-replay'),
  ):
    path = write(f'{name}.hdf5')
    _, data = data_lib.ControlData().load(path, '', 'hopper', dataset)
    assert data.manifest['version'] == 'v2'
    assert data.manifest['name'] == name.removesuffix('-v2')


def test_what_a_collection_says_of_itself_is_checked(write):
  path = write('data.hdf5', {'game': 'hopper', 'kind': 'random'})
  with pytest.raises(errors.DataError, match=r'hopper-random.*hopper-medium'):
    data_lib.ControlData().load(path, '', 'hopper', 'medium')
  data_lib.ControlData().load(path, '', 'hopper', 'random')


@pytest.mark.parametrize(
  ('reach', 'found'), [((9.0, 9.0), 'umaze'), ((36.0, 24.0), 'large')]
)
def test_a_maze_is_known_by_its_goals(write, reach, found):
  path = pathlib.Path(write('data.hdf5', **ant(40, (19,), (19,))))
  with h5py.File(path, 'a') as file:
    file['infos/goal'] = np.tile(reach, (40, 1))
  match = f'antmaze {found}, not data of antmaze-medium-play'
  with pytest.raises(errors.DataError, match=match):
    load(str(path), 'antmaze-medium-play')
  with h5py.File(path, 'a') as file:
    file['infos/goal'][...] = (20.5, 20.5)
  load(str(path), 'antmaze-medium-play')


def test_a_file_that_is_locked_says_so(write):
  path = write()
  with open(path, 'r+b') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(errors.DataError, match='HDF5_USE_FILE_LOCKING') as why:
      load(path)
  assert 'is locked' in str(why.value)
  assert 'etch it again' not in str(why.value)


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

  def write(
    dataset_id='D4RL/antmaze/medium-play-v1', size=27, missing=0, **more
  ):
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
      **more,
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
          observations.create_dataset(name, data=rows[: length + 1 - missing])
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


def test_minari_of_another_quality_is_named(minari):
  path = minari('mujoco/hopper/expert-v0')
  with pytest.raises(errors.DataError, match=r'hopper-expert.*hopper-medium,'):
    data_lib.ControlData().load(path, '', 'hopper', 'medium')


def test_minari_of_another_environment_is_named(minari):
  spec = gym.envs.registration.EnvSpec('AntMaze_Large-v4', entry_point='x:y')
  path = minari(env_spec=spec.to_json())
  with pytest.raises(errors.DataError, match=r'antmaze-large.*antmaze-medium'):
    load(path, 'antmaze-medium-play')


def test_an_episode_without_its_last_observation_is_named(minari):
  with pytest.raises(
    errors.DataError, match='episode 0 has 3 observations for 3 steps'
  ):
    load(minari(missing=1), 'antmaze-medium-play')


def test_minaris_reference_scores_are_the_scale(minari):
  path = minari(ref_min_score=-2.0, ref_max_score=6.0)
  task, data = load(path, 'antmaze-medium-play')
  assert task.normalised(0.0) == 25.0
  assert data.manifest['name'] == 'D4RL/antmaze/medium-play'
  assert data.manifest['version'] == 'v1'


def test_arrow_is_read_or_what_it_needs_is_named(tmp_path):
  """With pyarrow, equal to what was written; without, by its name."""
  folder = tmp_path / 'data'
  folder.mkdir()
  box = gym.spaces.Box(-np.inf, np.inf, (11,), np.float64)
  metadata = {
    'dataset_id': 'mujoco/hopper/medium-v0',
    'minari_version': '0.5.4',
    'data_format': 'arrow',
    'total_episodes': 2,
    'total_steps': 5,
    'observation_space': serialize_space(box),
    'action_space': serialize_space(gym.spaces.Box(-1, 1, (3,), np.float32)),
  }
  (folder / 'metadata.json').write_text(json.dumps(metadata))
  try:
    import pyarrow as pa
    import pyarrow.dataset
  except ImportError:
    with pytest.raises(errors.ConfigError, match=r'minari\[arrow\]'):
      load(str(tmp_path))
    return
  for number, length in enumerate((3, 2)):
    rows = np.arange((length + 1) * 11.0) + number
    pad = np.zeros(3 * (length + 1), np.float32)
    lists = pa.FixedSizeListArray.from_arrays
    batch = pa.RecordBatch.from_pydict(
      {
        'episode_id': np.full(length + 1, number, np.int32),
        'observations': lists(rows, 11),
        'actions': lists(pad, 3),
        'rewards': np.arange(length + 1.0),
        'terminations': np.zeros(length + 1, bool),
        'truncations': np.zeros(length + 1, bool),
      }
    )
    pyarrow.dataset.write_dataset(
      batch,
      folder,
      format='arrow',
      partitioning=['episode_id'],
      existing_data_behavior='overwrite_or_ignore',
    )
  _, data = load(str(tmp_path))
  np.testing.assert_array_equal(data.rewards, [0, 1, 2, 0, 1])
  np.testing.assert_array_equal(data.observations[:, 0], [0, 11, 22, 1, 12])
  np.testing.assert_array_equal(
    data.next_observations[:, 0], [11, 22, 33, 12, 23]
  )
  assert len(data.manifest['sha256']) == 64
