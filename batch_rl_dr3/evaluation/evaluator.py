"""Plays the checkpoints of an agent in its game: no data, no agent, no run."""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
from typing import Any

import gin
import tensorflow as tf

# Everything that a run's configuration may name.
from batch_rl_dr3.agents import (
  acting,
  categorical,  # noqa: F401
  cloning,  # noqa: F401
  dqn,  # noqa: F401
  networks,
  quantile,  # noqa: F401
  rem,  # noqa: F401
)
from batch_rl_dr3.config import errors
from batch_rl_dr3.evaluation import pool, video
from batch_rl_dr3.games import (
  atari,  # noqa: F401
  minatar,  # noqa: F401
  play,
)
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.runs import run_tables


class GameEvaluator:
  """Plays checkpoints of one network in lanes of one game, under one rule."""

  def __init__(
    self,
    lanes: lanes_lib.Lanes,
    network: Callable[..., tf.keras.Model],
    rule: play.PlayRule,
    num_threads: int = 0,
    atoms: pool.Atoms | None = None,
  ):
    self.lanes = lanes
    self.rule = rule
    self.network = network
    self._num_threads = num_threads
    self._atoms = atoms

  @property
  def identity(self) -> play.GameIdentity:  # noqa: D102
    game = self.lanes.game
    return play.GameIdentity(
      game.suite,
      game.name,
      game.rom_md5,
      {
        **game.protocol,
        'epsilon_eval': self.rule.epsilon,
        'num_evaluation_agent_steps': self.rule.num_agent_steps,
        'max_agent_steps_per_episode': self.rule.max_agent_steps_per_episode,
      },
    )

  @property
  def num_agent_steps(self) -> int:  # noqa: D102
    return self.rule.num_agent_steps

  def load(self, prefix: str) -> acting.Actor:
    """Returns who acts by a checkpoint.

    Raises:
      DataError: if the checkpoint cannot be read or is of another network.
      UsageError: if nobody has said what its outputs are.
    """
    game = self.lanes.game
    support = None if self._atoms is None else self._atoms.support
    actor = acting.Actor(
      self.network,
      prefix,
      game.num_actions,
      game.observation_shape,
      game.stack_size,
      self._num_threads,
      None if support is None else acting.categorical_q_values(support),
    )
    if self._atoms == pool.UNSTATED and actor.num_atoms > 1:
      actor.close()
      raise errors.UsageError(
        f'{prefix} has {actor.num_atoms} outputs per action and does not say '
        'what they are: give --atoms=heads (REM), --atoms=quantiles (QR-DQN), '
        'or --atoms=categorical --support=-10,10 (C51 and Rainbow, with the '
        'v_min and v_max that they were trained with).'
      )
    return actor

  def evaluate(  # noqa: D102
    self,
    prefix: str,
    seed: int,
    on_progress: play.ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
  ) -> list[run_tables.Episode]:
    with contextlib.closing(self.load(prefix)) as actor:
      policy = actor.greedy_actions
      return play.play(
        self.lanes, policy, self.rule, seed, on_progress, should_stop
      )

  def record_video(  # noqa: D102
    self,
    prefix: str,
    seed: int,
    path: str,
    should_stop: Callable[[], bool] | None = None,
  ) -> run_tables.Episode:
    rule = dataclasses.replace(self.rule, num_agent_steps=1)
    with (
      contextlib.closing(self.load(prefix)) as actor,
      video.writing(path) as write,
    ):
      lane = video.FilmedLane(self.lanes, actor.outputs, write)
      (episode,) = play.play(
        lane, lane.act, rule, seed, should_stop=should_stop
      )
    return episode

  def close(self) -> None:  # noqa: D102
    self.lanes.close()


def create(setup: pool.Setup) -> GameEvaluator:
  """Returns what plays the checkpoints of a run, from its gin text.

  Where neither protocol nor configuration says how, play is as published.

  Raises:
    ConfigError: if the configuration cannot be parsed or names no game.
  """
  with pool.gin_config(setup.config):
    create_lanes = _bound('FixedReplayRunner.create_lanes', None)
    if create_lanes is None:
      raise ValueError('FixedReplayRunner.create_lanes names no game')
    lanes = create_lanes()
  if setup.protocol is not None:
    rule = play.PlayRule.recorded(setup.protocol)
  else:
    published = play.PUBLISHED
    rule = play.PlayRule(
      # A run that was trained without evaluation says 0.
      _bound('FixedReplayRunner.num_evaluation_agent_steps', 0)
      or published.num_agent_steps,
      _bound('OfflineAgent.epsilon_eval', published.epsilon),
      _bound(
        'FixedReplayRunner.max_agent_steps_per_episode',
        published.max_agent_steps_per_episode,
      ),
    )
  return GameEvaluator(lanes, _network(), rule, setup.num_threads, setup.atoms)


def _bound(name: str, default: Any) -> Any:
  """Returns what gin binds to a parameter, else the default."""
  try:
    value = gin.query_parameter(name)
  except ValueError:
    return default
  return getattr(value, 'scoped_configurable_fn', value)


def _network() -> Callable[..., tf.keras.Model]:
  """Returns the network of the configuration's agent."""
  agent = _bound('FixedReplayRunner.agent', None)
  default = _bound('OfflineAgent.network', networks.NatureNetwork)
  if agent is None:
    return default
  network = _bound(f'{agent.__name__}.network', default)
  return functools.partial(network, q_values=agent.q_values)
