"""Arrays of one's own become data sets, transition by transition."""

import json

import h5py
import numpy as np
import pytest

import batch_rl_dr3
from batch_rl_dr3.config import errors
from batch_rl_dr3.control import data, tasks
from batch_rl_dr3.replay.log import sources
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store.subset import Subset
from batch_rl_dr3.training import own_data


def discrete(**changed):
  """Transitions 0 -> 1 -> end, 5 -> 6 and 7 -> 8, which go on unseen."""

  def vectors(*numbers):
    return np.outer(numbers, np.ones(4)) / 16

  arrays = {
    'states': vectors(0, 1, 5, 7),
    'actions': np.array([1, 0, 1, 1]),
    'rewards': np.array([1.0, -1.0, 0.5, 2.0]),
    'next_states': vectors(1, 2, 6, 8),
    'dones': np.array([False, True, False, False]),
    'environment': 'CartPole-v1',
    **changed,
  }
  return arrays


def continuous(**changed):
  """Three transitions of Pendulum, whose actions are in [-2, 2]."""
  arrays = {
    'states': np.arange(9.0).reshape(3, 3),
    'actions': np.array([[-2.0], [0.0], [1.0]]),
    'rewards': np.array([-1.0, -2.0, -8.0]),
    'next_states': np.arange(9.0).reshape(3, 3) + 1,
    'dones': np.array([0, 1, 0]),
    'environment': 'Pendulum-v1',
    **changed,
  }
  return arrays


@pytest.mark.parametrize('transitions_per_file', [50_000, 2])
def test_a_log_holds_every_transition_and_no_other(
  tmp_path, monkeypatch, transitions_per_file
):
  monkeypatch.setattr(own_data, '_TRANSITIONS_PER_FILE', transitions_per_file)
  folder = batch_rl_dr3.from_arrays(
    **discrete(), folder=tmp_path / 'data', reward_scale=0.5
  )
  collection = json.loads((folder / 'collection.json').read_text())
  assert collection['game']['observation_shape'] == [4]
  assert collection['num_transitions'] == 4
  source = sources.FolderSource(folder)
  # 50,000 a file: blank 0 1 5 [6] 7 [8]; 2 a file: blank 0 1 blank, blank 5 ...
  expected = {50_000: [[0, 4, 6]], 2: [[0, 3], [0, 2, 4]]}
  assert [[*source.segment(s).cut_rows] for s in source.suffixes()] == (
    expected[transitions_per_file]
  )
  store = replay_store.open_store(
    source, tmp_path / 'cache', Subset(), (4,), 2, 1, np.float32
  )
  batch = store.gather(store.valid_indices())
  np.testing.assert_array_equal(batch.states[:, 0, 0] * 16, [0, 1, 5, 7])
  np.testing.assert_array_equal(batch.actions, [1, 0, 1, 1])
  np.testing.assert_array_equal(batch.rewards, [0.5, -0.5, 0.25, 1.0])
  np.testing.assert_array_equal(batch.terminals, [0, 1, 0, 0])
  following = batch.next_states[:, 3, 0] * 16
  np.testing.assert_array_equal(following[[0, 2, 3]], [1, 6, 8])


def test_a_file_for_continuous_control_holds_every_transition(tmp_path):
  folder = own_data.from_arrays(
    **continuous(), folder=tmp_path / 'data', reward_scale=0.5
  )
  settings = data.ControlData(reward_shift=1.0)
  task, loaded = settings.load(str(folder), '', 'Pendulum-v1')
  assert (task.layout, task.suite) == (tasks.OWN, 'gymnasium_control')
  assert task.normalised(-100.0) is None
  assert tasks.played_in('Pendulum-v1', 'Pendulum-v1') == task
  limit = 1.0 - 1e-5  # No policy reaches the bounds.
  np.testing.assert_allclose(loaded.actions, [[-limit], [0.0], [0.5]])
  np.testing.assert_array_equal(loaded.rewards, [0.5, 0.0, -3.0])
  np.testing.assert_array_equal(loaded.observations[:, 0], [0, 3, 6])
  np.testing.assert_array_equal(loaded.next_observations[:, 2], [3, 6, 9])
  np.testing.assert_array_equal(loaded.terminals, [0, 1, 0])
  with h5py.File(folder / data.DATA, 'a') as file:
    file.attrs['environment'] = 'Another-v1'
  with pytest.raises(errors.DataError, match='is data of Another-v1, not of P'):
    settings.load(str(folder), '', 'Pendulum-v1')


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    (discrete(rewards=np.zeros(3)), r'observations has shape \(4, 4\)'),
    (discrete(states=np.zeros((4, 5))), r'observations .*\(4, 4\) is needed'),
    (discrete(dones=np.full(4, 2)), 'dones'),
    (discrete(rewards=np.array([0, np.nan, 0, 0])), 'rewards holds what is no'),
    (discrete(rewards=np.full(4, 4.0)), r'reach 4, .*reward_scale=0\.25'),
    (discrete(actions=np.full(4, 2)), r'from 2 to 2, .*Discrete\(2\)'),
    (discrete(actions=np.full(4, 0.5)), 'actions are float64'),
    (discrete(states=np.full((4, 4), 'x')), 'observations holds what is no'),
    (continuous(actions=np.full((3, 1), 2.5)), r'from 2\.5 to 2\.5'),
    (continuous(actions=np.zeros(3)), r'actions .*\(3, 1\) is needed'),
    (continuous(next_states=np.full((3, 3), np.inf)), 'next_obs.* no finite'),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, arrays, message):
  with pytest.raises(errors.DataError, match=message) as refused:
    own_data.from_arrays(**arrays, folder=tmp_path / 'data')
  assert '\n' not in str(refused.value)
  assert not list(tmp_path.iterdir())


def test_other_places_and_environments_are_refused(tmp_path):
  with pytest.raises(errors.WriteError, match='is there already'):
    own_data.from_arrays(**discrete(), folder=tmp_path)
  folder = tmp_path / 'data'
  unknown = discrete(environment='Nope-v1')
  with pytest.raises(errors.ConfigError, match="cannot make 'Nope-v1'"):
    own_data.from_arrays(**unknown, folder=folder)
