"""How fast evaluation plays, beside Dopamine's with the same weights."""

from collections.abc import Iterator
import contextlib
import os
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from batch_rl_dr3.agents import value_network
from batch_rl_dr3.config import dopamine_compat, errors
from batch_rl_dr3.evaluation import evaluator
from batch_rl_dr3.games import atari, play

# More than is ever played here: the clock ends the measurement.
_ENDLESS = play.PlayRule(10**9, play.PUBLISHED.epsilon)


class Speed(NamedTuple):
  """Agent steps per second, one of each per pair.

  Attributes:
    ours: this package's, all lanes together.
    dopamine: Dopamine's agent in one of its own environments.
    start_seconds: what an evaluation takes before the first step, beyond the
      first of all: to read the weights and to seed the emulators.
  """

  ours: list[float]
  dopamine: list[float]
  start_seconds: list[float]

  def ratio(self) -> float:
    """Returns the median over the pairs of ours by Dopamine's."""
    pairs = zip(self.ours, self.dopamine, strict=True)
    return statistics.median(ours / dopamine for ours, dopamine in pairs)


def measure(
  num_pairs: int = 5, num_agent_steps: int = 4_000, num_lanes: int = 32
) -> Speed:
  """Returns the speed in the game that gin names, in alternating pairs.

  Dopamine's DQN on the Nature network, not trained, plays as its `Runner`
  does; then the lanes play by the same weights.

  Args:
    num_pairs: pairs of measurements.
    num_agent_steps: agent steps of each of ours; Dopamine's has a fifth.
    num_lanes: lanes of ours.

  Raises:
    ConfigError: see `atari.create_atari_lanes`.
  """
  lanes = atari.create_atari_lanes(num_lanes)
  ours = evaluator.GameEvaluator(lanes, value_network.NatureNetwork, _ENDLESS)
  environment = dopamine_compat.create_atari_environment()
  speed = Speed([], [], [])
  with _dopamine_agent(lanes.game.num_actions) as (agent, prefix):
    _dopamine_rate(agent, environment, 50)  # Its first calls are slow.
    for _ in range(num_pairs):
      rate = _dopamine_rate(agent, environment, num_agent_steps // 5)
      speed.dopamine.append(rate)
      rate, start_seconds = _rate(ours, prefix, num_agent_steps)
      speed.ours.append(rate)
      speed.start_seconds.append(start_seconds)
  lanes.close()
  environment.close()
  return speed


@contextlib.contextmanager
def _dopamine_agent(num_actions: int) -> Iterator[tuple[Any, str]]:
  """Yields Dopamine's DQN and the prefix of a checkpoint of it."""
  with (
    tempfile.TemporaryDirectory() as folder,
    tf.Graph().as_default(),
    tf.compat.v1.Session() as session,
  ):
    agent = dopamine_compat.DQNAgent(session, num_actions=num_actions)
    agent.eval_mode = True
    prefix = os.path.join(folder, 'tf_ckpt-0')
    tf.compat.v1.train.Saver(agent.online_convnet.weights).save(session, prefix)
    yield agent, prefix


def _dopamine_rate(agent: Any, environment: Any, num_agent_steps: int) -> float:
  """Returns agent steps per second of Dopamine's own evaluation loop."""
  start = time.perf_counter()
  num_played = 0
  while num_played < num_agent_steps:
    action = agent.begin_episode(environment.reset())
    terminal = False
    while not terminal and num_played < num_agent_steps:
      observation, reward, terminal, _ = environment.step(action)
      num_played += 1
      action = agent.step(np.clip(reward, -1, 1), observation)
    agent.end_episode(0.0)
  return num_played / (time.perf_counter() - start)


def _rate(
  ours: evaluator.GameEvaluator, prefix: str, num_agent_steps: int
) -> tuple[float, float]:
  """Returns agent steps per second, and the seconds before the first."""
  clock = _Clock(20 * ours.lanes.num_lanes, num_agent_steps)
  with contextlib.suppress(errors.PreemptedError):
    ours.evaluate(prefix, 0, clock.look, clock.is_over)
  return clock.rate(), clock.start_seconds


class _Clock:
  """Times a stretch of play, without its beginning."""

  def __init__(self, num_warm: int, num_timed: int):
    self._num_warm = num_warm
    self._end = num_warm + num_timed
    self._created = time.perf_counter()
    self._first: tuple[int, float] | None = None
    self._last = (0, self._created)
    self.start_seconds = 0.0

  def look(self, num_played: int, num_episodes: int) -> None:
    """Takes note of the agent steps played so far."""
    del num_episodes
    now = time.perf_counter()
    if not self.start_seconds:
      self.start_seconds = now - self._created
    if self._first is None and num_played >= self._num_warm:
      self._first = (num_played, now)
    self._last = (num_played, now)

  def is_over(self) -> bool:
    return self._last[0] >= self._end

  def rate(self) -> float:
    """Returns the agent steps per second since the beginning was over."""
    assert self._first is not None
    return (self._last[0] - self._first[0]) / (self._last[1] - self._first[1])
