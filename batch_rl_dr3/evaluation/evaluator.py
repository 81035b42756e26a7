"""Playing one checkpoint of an agent in its game."""

from collections.abc import Callable

import tensorflow as tf

from batch_rl_dr3.agents import acting
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play


class Evaluator:
  """Plays checkpoints of one network in lanes of one game, under one rule.

  It needs nothing of training but the checkpoint's files: the same function
  serves a run while it trains, another process, and a run of years ago.
  """

  def __init__(
    self,
    lanes: lanes_lib.Lanes,
    network: Callable[..., tf.keras.Model],
    rule: play.Rule,
    num_threads: int = 0,
  ):
    """Takes note of what is played, and how.

    Args:
      lanes: the games.
      network: makes the agents' network.
      rule: how long and how is played.
      num_threads: CPU threads of one call of the network; 0 is one per core.
    """
    self.lanes = lanes
    self.rule = rule
    self.network = network
    self._num_threads = num_threads

  @property
  def played(self) -> play.Played:
    """What is played, and how."""
    game = self.lanes.game
    return play.Played(
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
  def num_agent_steps(self) -> int:
    """How many agent steps an evaluation has."""
    return self.rule.num_agent_steps

  def load(self, prefix: str) -> acting.Actor:
    """Returns who acts by a checkpoint.

    Raises:
      DataError: if the checkpoint cannot be read or is of another network.
    """
    game = self.lanes.game
    return acting.Actor(
      self.network,
      prefix,
      game.num_actions,
      game.observation_shape,
      game.stack_size,
      self._num_threads,
    )

  def evaluate(
    self,
    prefix: str,
    seed: int,
    on_progress: play.ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
  ) -> list[play.Episode]:
    """Returns the episodes of a checkpoint, a function of it and the seed.

    Args:
      prefix: the checkpoint's path without `.index`.
      seed: see `play.evaluation_seed`.
      on_progress: see `play.play`.
      should_stop: see `play.play`.

    Raises:
      DataError: see `load`.
      PreemptedError: if `should_stop` said so.
    """
    actor = self.load(prefix)
    try:
      return play.play(
        self.lanes,
        actor.greedy_actions,
        self.rule,
        seed,
        on_progress,
        should_stop,
      )
    finally:
      actor.close()

  def close(self) -> None:
    """Ends the games."""
    self.lanes.close()
