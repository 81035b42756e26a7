"""How fast evaluation plays, beside Dopamine's with the same weights.

Whole evaluations are timed: reading the weights, seeding the emulators, and the
tail in which fewer and fewer lanes still finish their last episode.
"""

from collections.abc import Iterator
import contextlib
import os
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from batch_rl_dr3.agents import networks
from batch_rl_dr3.config import dopamine_compat
from batch_rl_dr3.evaluation import evaluator
from batch_rl_dr3.games import atari, play


class Speed(NamedTuple):
  """Agent steps per second, one of each per pair.

  Attributes:
    ours: this package's, all lanes together.
    dopamine: Dopamine's agent in one of its own environments.
    seconds: what all evaluations took.
  """

  ours: list[float]
  dopamine: list[float]
  seconds: float

  def ratio(self) -> float:
    """Returns the median over the pairs of ours by Dopamine's."""
    return statistics.median(np.divide(self.ours, self.dopamine).tolist())

  def quartiles(self) -> tuple[float, float]:
    """Returns the ratio's quartiles over the pairs."""
    quotients = np.divide(self.ours, self.dopamine)
    lower, upper = np.quantile(quotients, [0.25, 0.75])
    return float(lower), float(upper)


def measure(
  num_pairs: int = 3, num_agent_steps: int = 6_000, num_lanes: int = 32
) -> Speed:
  """Times both players in turn, in the game that is bound by gin.

  Dopamine's agent, with the Nature network, not trained, plays as its `Runner`
  does; then the lanes play by the same weights. Both play whole episodes until
  their agent steps are used.

  Args:
    num_pairs: pairs of evaluations.
    num_agent_steps: agent steps of each of ours; Dopamine's has a fifth.
    num_lanes: lanes of ours.

  Raises:
    ConfigError: see `atari.create_atari_lanes`.
  """
  lanes = atari.create_atari_lanes(num_lanes)
  rule = play.PlayRule(num_agent_steps, play.PUBLISHED.epsilon)
  ours = evaluator.GameEvaluator(lanes, networks.NatureNetwork, rule)
  environment = dopamine_compat.create_atari_environment()
  rates: dict[str, list[float]] = {'ours': [], 'dopamine': []}
  total = 0.0
  with _dopamine_agent(lanes.game.num_actions) as (agent, prefix):
    _play_as_dopamine(agent, environment, 1)  # Its first calls are slow.

    def play_dopamine(seed: int) -> int:
      del seed
      return _play_as_dopamine(agent, environment, num_agent_steps // 5)

    def play_ours(seed: int) -> int:
      return sum(episode.length for episode in ours.evaluate(prefix, seed))

    for seed in range(num_pairs):
      for name, player in (('dopamine', play_dopamine), ('ours', play_ours)):
        start = time.perf_counter()
        num_played = player(seed)
        seconds = time.perf_counter() - start
        rates[name].append(num_played / seconds)
        total += seconds
  lanes.close()
  environment.close()
  return Speed(rates['ours'], rates['dopamine'], total)


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


def _play_as_dopamine(
  agent: Any, environment: Any, num_agent_steps: int
) -> int:
  """Plays whole episodes as Dopamine's runner does; returns the agent steps."""
  num_played = 0
  while num_played < num_agent_steps:
    action = agent.begin_episode(environment.reset())
    terminal = False
    while not terminal:
      observation, reward, terminal, _ = environment.step(action)
      num_played += 1
      action = agent.step(np.clip(reward, -1, 1), observation)
    agent.end_episode(0.0)
  return num_played
