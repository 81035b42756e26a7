import json
import os
import pathlib

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import cog


def trajectory(length, action_size=8, reward=1.0, size=48):
  rng = np.random.default_rng(length)
  images = rng.integers(0, 256, (length + 1, size, size, 3), dtype=np.uint8)
  return {
    'observations': [{'image': i, 'state': np.zeros(3)} for i in images[:-1]],
    'next_observations': [{'image': image} for image in images[1:]],
    'actions': [rng.uniform(-1, 1, action_size) for _ in range(length)],
    'rewards': [np.float64(reward)] * length,
    'terminals': [False] * (length - 1) + [True],
    'agent_infos': [{}] * length,
    'env_infos': [{'grasp_success': True}] * length,
  }


@pytest.fixture
def save(tmp_path):
  """Writes trajectories as numpy.save does a list of dicts."""

  def write(name, content):
    array = np.empty(len(content), object)
    array[:] = content
    np.save(tmp_path / name, array, allow_pickle=True)
    return str(tmp_path / name)

  return write


def test_files_of_cog_become_one_store(save, tmp_path):
  prior = [trajectory(5), trajectory(7)]
  sources = [save('prior.npy', prior), save('task.npy', [trajectory(4)])]
  folder = tmp_path / 'store'
  manifest = cog.convert(sources, str(folder))
  assert manifest['num_transitions'] == 5 + 7 + 4
  assert manifest['num_trajectories'] == 3
  assert manifest['num_prior_trajectories'] == 2
  assert [s['part'] for s in manifest['sources']] == ['prior', 'task']
  # Of prior data the rewards are 0, whatever the file says.
  rewards = np.load(folder / 'rewards.npy')
  assert rewards.tolist() == [0.0] * 12 + [1.0] * 4
  images = np.load(folder / 'images.npy')
  assert images.shape == (6 + 8 + 5, 48, 48, 3)
  # First image, first transition, length.
  rows = np.load(folder / 'trajectories.npy')
  assert rows.tolist() == [[0, 0, 5], [6, 5, 7], [14, 12, 4]]
  assert (images[6] == prior[1]['observations'][0]['image']).all()
  assert (images[13] == prior[1]['next_observations'][-1]['image']).all()
  assert np.load(folder / 'terminals.npy').nonzero()[0].tolist() == [4, 11, 15]
  actions = np.load(folder / 'actions.npy')
  np.testing.assert_array_equal(actions[5:12], np.float32(prior[1]['actions']))
  read, arrays = cog.read(folder)
  assert read == json.loads((folder / 'manifest.json').read_text()) == manifest
  np.testing.assert_array_equal(arrays['images'], images)


class Hostile:
  """Executes a command if it is loaded."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.system, (f'touch {self._path}',)


@pytest.mark.parametrize('place', ['whole', 'value', 'key'])
def test_nothing_of_a_file_is_executed(save, tmp_path, place):
  mark = tmp_path / 'executed'
  content = trajectory(3)
  if place == 'whole':
    content = Hostile(mark)
  elif place == 'value':
    content['env_infos'] = Hostile(mark)
  else:
    content[Hostile(mark)] = 1
  with pytest.raises(errors.DataError, match=r'system.*Nothing of it was run'):
    cog.convert([save('evil.npy', [content])], str(tmp_path / 'store'))
  assert not mark.exists()
  assert not (tmp_path / 'store').exists()


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    (b"cbuiltins\neval\n(S'1'\ntR.", r'builtins\.eval'),
    (b'cnumpy.lib.npyio\nload\n.', r'numpy\.lib\.npyio\.load'),
    (b'cnumpy\nsave\n.', r'numpy\.save'),
    (b'ccopyreg\n_reconstructor\n.', r'copyreg\._reconstructor'),
    (b'cos.core.multiarray\n_reconstruct\n.', r'os\.core\.multiarray'),
  ],
)
def test_other_names_are_refused(tmp_path, name, match):
  path = tmp_path / 'names.npy'
  np.save(path, np.array([None], object), allow_pickle=True)
  header = path.read_bytes()[:128]
  path.write_bytes(header + name)
  with pytest.raises(errors.DataError, match=match):
    cog.convert([str(path)], str(tmp_path / 'store'))


def _without_rewards():
  content = trajectory(3)
  del content['rewards']
  return content


def _far_action():
  content = trajectory(3)
  content['actions'][1][0] = 1.5
  return content


def _other_images():
  content = trajectory(3)
  content['next_observations'][-1] = {'image': np.zeros((64, 64, 3), np.uint8)}
  return content


def _float_images():
  content = trajectory(3)
  content['observations'][0] = {'image': np.zeros((48, 48, 3))}
  return content


def _jump():
  content = trajectory(3)
  content['next_observations'][0] = {'image': np.zeros((48, 48, 3), np.uint8)}
  return content


@pytest.mark.parametrize(
  ('make', 'match'),
  [
    (_without_rewards, 'trajectory 0: it has no rewards'),
    (_far_action, r'actions reach 1\.5'),
    (_other_images, 'several sizes'),
    (_float_images, 'no uint8 image'),
    (_jump, 'not the one that follows'),
    (lambda: 3, 'it is a int, no dict'),
  ],
)
def test_wrong_trajectories_are_named(save, tmp_path, make, match):
  with pytest.raises(errors.DataError, match=match):
    cog.convert([save('wrong.npy', [make()])], str(tmp_path / 'store'))
  assert [p.name for p in tmp_path.iterdir()] == ['wrong.npy']


def test_files_of_two_sizes_do_not_mix(save, tmp_path):
  small = save('small.npy', [trajectory(3, size=32)])
  with pytest.raises(errors.DataError, match=r'\[48, 48, 3\]'):
    cog.convert(
      [save('prior.npy', [trajectory(3)]), small], str(tmp_path / 'store')
    )


def test_a_truncated_file_is_named(save, tmp_path):
  path = pathlib.Path(save('task.npy', [trajectory(4)]))
  path.write_bytes(path.read_bytes()[:20_000])
  with pytest.raises(errors.DataError, match='truncated or damaged'):
    cog.convert([str(path)], str(tmp_path / 'store'))


def test_no_folder_is_written_over(save, tmp_path):
  with pytest.raises(errors.WriteError, match='exists'):
    cog.convert([save('task.npy', [trajectory(4)])], str(tmp_path))


def test_the_command_converts(run_command, save, tmp_path):
  folder = tmp_path / 'store'
  done = run_command(
    *('data', 'convert', f'--output_dir={folder}'),
    f'--cog={save("prior.npy", [trajectory(3)])}',
    f'--cog={save("task.npy", [trajectory(2)])}',
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert '2 trajectories, 1 of them prior data, 5 transitions' in done.stdout
  manifest, _ = cog.read(folder)
  assert manifest['num_prior_trajectories'] == 1


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (_without_rewards, 'it has no rewards'),
    (_far_action, 'actions reach 1.5'),
  ],
)
def test_the_command_names_what_it_cannot_convert(
  run_command, save, tmp_path, make, words
):
  folder = tmp_path / 'store'
  done = run_command(
    *('data', 'convert', f'--output_dir={folder}'),
    f'--cog={save("prior.npy", [trajectory(3), make()])}',
  )
  assert done.returncode == 65
  (line,) = done.stderr.splitlines()
  assert f'prior.npy: trajectory 1: {words}' in line
  assert not folder.exists()


@pytest.mark.parametrize(
  ('size', 'simulator', 'code', 'words'),
  [
    (64, '', 65, 'images [64, 64, 3] and 8 numbers an action'),
    pytest.param(
      48,
      'def make(name, transpose_image): raise ValueError(f"no {name}")',
      78,
      'this roboverse cannot make Widow250PickTray-v0 (ValueError: no Widow250',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_train_names_what_it_cannot_learn_from_or_play(
  run_command, monkeypatch, save, tmp_path, size, simulator, code, words
):
  """Images of another size, or a roboverse of another version."""
  (tmp_path / 'roboverse.py').write_text(simulator)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  sources = [
    save(f'{part}.npy', [trajectory(4, size=size)])
    for part in ('prior', 'task')
  ]
  cog.convert(sources, str(tmp_path / 'store'))
  done = run_command(
    'train',
    *('--gin_files=cog/cog.gin', '--gin_files=cog/small.gin'),
    "--gin_bindings=ContinuousRunner.game='widow250-pick-tray'",
    "--gin_bindings=ContinuousRunner.dataset='5pct'",
    '--gin_bindings=ContinuousRunner.batch_size=2',
    '--gin_bindings=ContinuousRunner.effective_rank_num_states=2',
    f'--replay_dir={tmp_path / "store"}',
    f'--base_dir={tmp_path / "run"}',
  )
  assert done.returncode == code
  assert words in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
