import gzip
from typing import NamedTuple

import gin
import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents import networks  # noqa: F401
from batch_rl_dr3.config import cli, errors
from batch_rl_dr3.games import (
  collection,
  minatar,  # noqa: F401
)
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.replay.log import checkpoint_format, sources

pytestmark = pytest.mark.usefixtures('clear_gin')


def test_scripted_behaviour_takes_the_epsilons_in_turn():
  game = lanes_lib.Game('fake', 'game', 2, (1,), 1, None, {})
  seen = []

  def script(observation, step):
    seen.append(step)
    return 1

  player = collection.ScriptedBehaviour(game, 0, script, (0.0, 1.0))
  shares = []
  for _ in range(4):
    actions = [player.begin_episode(np.zeros(1, np.uint8))]
    actions += [player.step(0.0, np.zeros(1, np.uint8)) for _ in range(199)]
    player.end_episode(0.0)
    shares.append(np.mean(actions))
  assert shares[0] == shares[2] == 1.0
  # Half of 200, with a standard deviation of 0.035.
  assert abs(shares[1] - 0.5) < 0.15
  assert abs(shares[3] - 0.5) < 0.15
  assert seen == list(range(200)) * 2


@pytest.mark.parametrize('epsilons', [(), (1.1,)])
def test_wrong_epsilons_are_refused(epsilons):
  game = lanes_lib.Game('fake', 'game', 2, (1,), 1, None, {})
  with pytest.raises(errors.ConfigError, match='epsilons'):
    collection.ScriptedBehaviour(game, 0, collection.hold_action, epsilons)


def test_a_script_may_not_leave_the_action_set():
  game = lanes_lib.Game('fake', 'game', 2, (1,), 1, None, {})
  player = collection.ScriptedBehaviour(game, 0, lambda o, t: 2, (0.0,))
  with pytest.raises(errors.ConfigError, match='actions 0 to 1'):
    player.begin_episode(np.zeros(1, np.uint8))


class Output(NamedTuple):
  q_values: tf.Tensor


def read_actions(folder, suffix):
  path = checkpoint_format.file_path(folder, 'action', suffix)
  with gzip.open(path) as file:
    return np.load(file)


def collect(folder, seed, num_rows=400):
  gin.clear_config()
  cli.load_gin(
    ['collect/minatar_online_dqn.gin'],
    [
      "create_minatar_lanes.game_name = 'breakout'",
      'collect.rows_per_file = 100',
      f'collect.num_rows = {num_rows}',
      'DQNAgent.min_replay_history = 50',
      'DQNAgent.epsilon_decay_period = 100',
      'WrappedReplayBuffer.replay_capacity = 1000',
    ],
  )
  collection.collect(folder, seed)
  return np.concatenate(
    [read_actions(folder, n) for n in sources.FolderSource(folder).suffixes()]
  )


def test_online_dqn_is_fixed_by_the_seed(tmp_path):
  first = collect(tmp_path / 'a', seed=0)
  np.testing.assert_array_equal(first, collect(tmp_path / 'b', seed=0))
  assert (first != collect(tmp_path / 'c', seed=1)).any()


def test_online_dqn_plays_atari_frames_with_dopamines_network():
  gin.parse_config('DQNAgent.min_replay_history = 2')
  gin.parse_config('WrappedReplayBuffer.replay_capacity = 50')
  gin.parse_config('WrappedReplayBuffer.batch_size = 2')
  game = lanes_lib.Game('fake', 'game', 4, (84, 84), 4, None, {})
  player = collection.OnlineDQNBehaviour(game, 0)
  frame = np.zeros((84, 84), np.uint8)
  assert 0 <= player.begin_episode(frame) < 4
  for _ in range(12):
    assert 0 <= player.step(0.0, frame) < 4
  player.end_episode(0.0)


def test_online_dqn_trains_the_given_network():
  built = []

  class Tiny(tf.keras.Model):
    def __init__(self, num_actions, name=None):
      super().__init__(name=name)
      self.dense = tf.keras.layers.Dense(num_actions)
      built.append(self)

    def call(self, state):
      flat = tf.reshape(tf.cast(state, tf.float32), [-1, 3])
      return Output(self.dense(flat))

  gin.parse_config('DQNAgent.min_replay_history = 2')
  gin.parse_config('WrappedReplayBuffer.replay_capacity = 50')
  game = lanes_lib.Game('fake', 'game', 2, (3,), 1, None, {})
  player = collection.OnlineDQNBehaviour(game, 0, network=Tiny)
  player.begin_episode(np.ones(3, np.uint8))
  player.step(1.0, np.ones(3, np.uint8))
  assert len(built) == 2
