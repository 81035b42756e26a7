import time

import numpy as np
import pytest

from batch_rl_dr3.config import errors
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play as play_lib


class CountingLanes:
  """A game whose observation counts its steps, with lengths given per lane.

  Episode k of lane l has lengths[l][k % len(lengths[l])] steps; every step
  earns 1, and action 1 earns 10 more. With `life` a terminal comes after that
  many steps of an episode, without the game being over.
  """

  def __init__(self, lengths, life=None, group_size=None):
    self.num_lanes = len(lengths)
    self.group_size = group_size or self.num_lanes
    self.game = lanes_lib.Game('fake', 'count', 2, (1,), 3, None, {})
    self._lengths = lengths
    self._life = life
    self._episode = np.full(self.num_lanes, -1)
    self._time = np.zeros(self.num_lanes, int)
    self.actions = [[] for _ in lengths]

  def reset(self, which, seed=None):
    self._episode[which] = 0 if seed is not None else self._episode[which] + 1
    self._time[which] = 0
    return self._observe(which)

  def _observe(self, which):
    return (self._time[which] + 1).astype(np.uint8)[:, None]

  def step(self, which, actions):
    for lane, action in zip(which, actions, strict=True):
      self.actions[lane].append(action)
    self._time[which] += 1
    ends = [
      self._lengths[lane][self._episode[lane] % len(self._lengths[lane])]
      for lane in which
    ]
    assert (self._time[which] <= ends).all(), 'a lane is played that is over'
    game_over = self._time[which] == ends
    terminals = game_over | (self._time[which] == self._life)
    rewards = 1.0 + 10.0 * (np.asarray(actions) == 1)
    return lanes_lib.Step(
      self._observe(which), rewards.astype(np.float32), terminals, game_over
    )

  def close(self):
    pass


def zeros(states):
  return np.zeros(len(states), int)


def play(lanes, policy=zeros, num_agent_steps=10, epsilon=0.0, **kwargs):
  seed = kwargs.pop('seed', 0)
  callbacks = {
    name: kwargs.pop(name)
    for name in ('on_progress', 'should_stop')
    if name in kwargs
  }
  rule = play_lib.PlayRule(num_agent_steps, epsilon, **kwargs)
  return play_lib.play(lanes, policy, rule, seed, **callbacks)


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
  def actions(lengths, seed, **kwargs):
    lanes = CountingLanes(lengths, **kwargs)
    play(lanes, epsilon=0.5, num_agent_steps=20 * len(lengths), seed=seed)
    return [lane[:20] for lane in lanes.actions]

  both = actions([[20], [20]], seed=3)
  assert both == actions([[20], [20]], seed=3)
  assert both == actions([[20], [20]], seed=3, group_size=1)
  assert both[0] == actions([[20]], seed=3)[0]
  assert both[1] == actions([[1], [20]], seed=3)[1]
  assert both[0] != both[1]
  assert both != actions([[20], [20]], seed=4)


def test_groups_play_what_lockstep_plays_episode_for_episode():
  def policy(states):
    # Depends on the state alone, and takes longer for some groups.
    time.sleep(0.0002 * len(states))
    return states.sum(axis=(1, 2)) // 3 % 2

  lengths = [[5, 3], [9], [1, 2, 4], [7], [2, 2, 6], [11], [4]]

  def episodes(group_size):
    lanes = CountingLanes(lengths, life=2, group_size=group_size)
    return play(lanes, policy, 200, epsilon=0.3, seed=5)

  lockstep = episodes(7)
  assert len(lockstep) > 20
  for group_size in (1, 2, 3, 7, 16):
    assert episodes(group_size) == lockstep


def test_lanes_that_are_done_are_neither_stepped_nor_looked_at():
  seen = []

  def policy(states):
    seen.append(len(states))
    return zeros(states)

  lanes = CountingLanes([[2], [6], [3]])
  play(lanes, policy, num_agent_steps=3)
  assert [len(actions) for actions in lanes.actions] == [2, 6, 3]
  assert seen == [3, 3, 2, 1, 1, 1]


def test_an_error_in_one_group_ends_all_of_them():
  def policy(states):
    if len(states) == 2:
      raise ValueError('broken')
    return zeros(states)

  with pytest.raises(ValueError, match='broken'):
    play(CountingLanes([[9]] * 5, group_size=3), policy, num_agent_steps=10**7)


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
    on_progress=lambda *now: progress.append(now),
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
