import numpy as np
import pytest

from batch_rl_dr3 import errors
from batch_rl_dr3.evaluation import lanes as lanes_lib


class CountingLanes:
  """A game whose observation counts its steps, with lengths given per lane.

  Episode k of lane l has lengths[l][k % len(lengths[l])] steps; every step
  earns 1, and action 1 earns 10 more. With `life` a terminal comes after that
  many steps of an episode, without the game being over.
  """

  def __init__(self, lengths, life=None):
    self.num_lanes = len(lengths)
    self.game = lanes_lib.Game('fake', 'count', 2, (1,), 3, None, {})
    self._lengths = lengths
    self._life = life
    self.actions = []

  def reset_all(self, seed):
    self._seed = seed
    self._episode = np.full(self.num_lanes, -1)
    self._time = np.zeros(self.num_lanes, int)
    return self.reset(np.ones(self.num_lanes, bool))

  def reset(self, mask):
    self._episode[mask] += 1
    self._time[mask] = 0
    self.game_over = np.zeros(self.num_lanes, bool)
    return self._observe()

  def _observe(self):
    return (self._time + 1).astype(np.uint8)[:, None]

  def step(self, actions):
    self.actions.append(np.array(actions))
    self._time += 1
    ends = [
      own[episode % len(own)]
      for own, episode in zip(self._lengths, self._episode, strict=True)
    ]
    self.game_over = self._time >= ends
    terminals = self.game_over | (self._time == self._life)
    rewards = 1.0 + 10.0 * (np.asarray(actions) == 1)
    return self._observe(), rewards.astype(np.float32), terminals

  def close(self):
    pass


def zeros(states):
  return np.zeros(len(states), int)


def play(lanes, policy=zeros, num_agent_steps=10, epsilon=0.0, **kwargs):
  kwargs.setdefault('seed', 0)
  return lanes_lib.play(lanes, policy, num_agent_steps, epsilon, **kwargs)


def test_each_lane_finishes_the_episode_that_uses_up_its_share():
  # 10 steps over 2 lanes are 5 each: lane 0 plays 2+2+2, lane 1 plays 7.
  episodes = play(CountingLanes([[2], [7]]))
  assert [(e.lane, e.length) for e in episodes] == [
    (0, 2),
    (0, 2),
    (0, 2),
    (1, 7),
  ]
  assert [e.episode_return for e in episodes] == [2.0, 2.0, 2.0, 7.0]
  assert not any(e.truncated for e in episodes)


def test_one_lane_follows_dopamines_runner():
  # Runner._run_one_phase: while step_count < min_steps, one more episode.
  lengths = [3, 1, 4, 1, 5]
  for num_agent_steps in range(1, 15):
    expected, step_count = [], 0
    while step_count < num_agent_steps:
      expected.append(lengths[len(expected) % 5])
      step_count += expected[-1]
    episodes = play(CountingLanes([lengths]), num_agent_steps=num_agent_steps)
    assert [e.length for e in episodes] == expected


def test_every_lane_plays_at_least_one_episode():
  episodes = play(CountingLanes([[3], [3], [3]]), num_agent_steps=1)
  assert [e.lane for e in episodes] == [0, 1, 2]


def test_an_episode_is_cut_off_and_marked():
  episodes = play(
    CountingLanes([[3, 9]]), num_agent_steps=6, max_agent_steps_per_episode=4
  )
  assert [(e.length, e.truncated) for e in episodes] == [(3, False), (4, True)]


def test_a_game_over_at_the_limit_is_no_truncation():
  (episode,) = play(
    CountingLanes([[4]]), num_agent_steps=1, max_agent_steps_per_episode=4
  )
  assert not episode.truncated


def test_states_are_stacked_as_dopamine_does():
  seen = []

  def policy(states):
    assert states.dtype == np.uint8
    assert states.shape == (1, 1, 3)
    seen.append(states[0, 0].tolist())
    return np.array([0])

  play(CountingLanes([[4]]), policy, num_agent_steps=5)
  assert seen[:5] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 0, 1]]


def test_a_lost_life_clears_the_stack_but_ends_no_episode():
  seen = []

  def policy(states):
    seen.append(states[0, 0].tolist())
    return np.array([0])

  (episode,) = play(CountingLanes([[4]], life=2), policy, num_agent_steps=1)
  assert seen == [[0, 0, 1], [0, 1, 2], [0, 0, 3], [0, 3, 4]]
  assert (episode.length, episode.episode_return) == (4, 4.0)


def test_random_actions_of_a_lane_depend_on_seed_and_lane_only():
  def actions(lengths, seed):
    lanes = CountingLanes(lengths)
    play(lanes, epsilon=0.5, num_agent_steps=20 * len(lengths), seed=seed)
    return np.array(lanes.actions)[:20]

  both = actions([[20], [20]], seed=3)
  np.testing.assert_array_equal(both, actions([[20], [20]], seed=3))
  np.testing.assert_array_equal(both[:, 0], actions([[20]], seed=3)[:, 0])
  np.testing.assert_array_equal(
    both[:, 1], actions([[1], [20]], seed=3)[:20, 1]
  )
  assert (both[:, 0] != both[:, 1]).any()
  assert (both != actions([[20], [20]], seed=4)).any()


def test_epsilon_is_the_rate_of_uniform_actions():
  (episode,) = play(
    CountingLanes([[4000]]), epsilon=0.5, num_agent_steps=1, seed=1
  )
  # Action 1 comes with probability 0.5 * 0.5: 1000 of 4000, sd 27.
  assert abs((episode.episode_return - 4000) / 10 - 1000) < 4 * 27


def test_progress_and_stop():
  progress = []
  play(
    CountingLanes([[2], [5]]),
    num_agent_steps=4,
    on_progress=lambda played, episodes: progress.append(
      (played, len(episodes))
    ),
  )
  assert progress == [(2, 0), (4, 1), (5, 1), (6, 1), (7, 2)]
  with pytest.raises(errors.PreemptedError, match='after 0 of 4'):
    play(CountingLanes([[2]]), num_agent_steps=4, should_stop=lambda: True)


@pytest.mark.parametrize(
  'wrong',
  [
    {'num_agent_steps': 0},
    {'epsilon': 1.5},
    {'seed': -1},
    {'max_agent_steps_per_episode': 0},
  ],
)
def test_settings_out_of_range_are_refused(wrong):
  with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
    play(CountingLanes([[2]]), **wrong)


def test_lane_seeds_are_positive_and_differ():
  seeds = [lanes_lib.lane_seed(s, lane) for s in range(20) for lane in range(8)]
  assert len(set(seeds)) == 160
  assert min(seeds) > 0
  assert max(seeds) < 2**31
