"""Plays the checkpoints of an agent in its game: no data, no agent, no run."""

from collections.abc import Callable
import contextlib
import dataclasses
import functools

import numpy as np
import tensorflow as tf

# Everything that a run's configuration may name.
from batch_rl_dr3.agents import (
  bellman,  # noqa: F401
  checkpoint_weights,
  networks,
)
from batch_rl_dr3.config import errors
from batch_rl_dr3.evaluation import exported, pool, video
from batch_rl_dr3.games import (
  atari,  # noqa: F401
  gymnasium_lanes,  # noqa: F401
  minatar,  # noqa: F401
  play,
)
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.runs import run_tables


class ExportedActor(exported.Model):
  """A file that chooses actions, like `checkpoint_weights.Actor`."""

  def greedy_actions(self, states: exported.Array) -> exported.Array:
    """Returns int64 [n]; a DataError if the game has no such action."""
    found = self(states)
    if 'q_values' in found:
      return np.argmax(found['q_values'], axis=1)
    actions = found['action'].astype(np.int64)
    (num_actions,) = self.results['q_values']
    if not 0 <= actions.min() <= actions.max() < num_actions:
      raise errors.DataError(
        f'{self.path} chose action {actions.max()}, and the game has '
        f'{num_actions}.'
      )
    return actions

  def outputs(self, states: exported.Array) -> checkpoint_weights.Outputs:
    """Returns Q-values and features; a ConfigError if one is missing."""
    found = self(states)
    try:
      return checkpoint_weights.Outputs(found['q_values'], found['features'])
    except KeyError as error:
      raise errors.ConfigError(
        f'{self.path} does not give {error}, which a video shows.'
      ) from error


@dataclasses.dataclass(eq=False)
class GameEvaluator:
  """Plays checkpoints of one network in lanes of one game, under one rule."""

  lanes: lanes_lib.Lanes
  network: Callable[..., tf.keras.Model]
  rule: play.PlayRule
  num_threads: int = 0
  atoms: pool.Atoms | None = None

  def __post_init__(self) -> None:
    game, rule = self.lanes.game, self.rule
    self.num_agent_steps: int | None = rule.num_agent_steps
    protocol = {
      **game.protocol,
      'epsilon_eval': rule.epsilon,
      'num_evaluation_agent_steps': rule.num_agent_steps,
      'max_agent_steps_per_episode': rule.max_agent_steps_per_episode,
    }
    self.identity = play.GameIdentity(
      game.suite, game.name, game.rom_md5, protocol
    )
    self.close = self.lanes.close

  def load(self, prefix: str) -> checkpoint_weights.Actor | ExportedActor:
    """Returns who acts by a checkpoint, or by the file of an exported policy.

    Raises:
      DataError: if it cannot be read or is of another network or game.
      UsageError: if nobody has said what its outputs are.
    """
    if not pool.is_exported(prefix):
      return self._load_checkpoint(prefix)
    game = self.lanes.game
    return ExportedActor(
      prefix,
      (*game.observation_shape, game.stack_size),
      {'q_values': (game.num_actions,), 'action': ()},
      self.num_threads,
    )

  def _load_checkpoint(self, prefix: str) -> checkpoint_weights.Actor:
    game, atoms = self.lanes.game, self.atoms
    q_values_of = None
    if atoms is not None and atoms.support is not None:
      q_values_of = networks.categorical_q_values(atoms.support)
    actor = checkpoint_weights.Actor(
      self.network,
      prefix,
      game.num_actions,
      game.observation_shape,
      game.stack_size,
      self.num_threads,
      q_values_of,
      game.observation_dtype,
    )
    if atoms == pool.UNSTATED and actor.num_atoms > 1:
      actor.close()
      raise errors.UsageError(
        f'{prefix} has {actor.num_atoms} outputs per action and does not say '
        'what they are: give --atoms=heads (REM), --atoms=quantiles (QR-DQN), '
        'or --atoms=categorical --support=-10,10 (C51 and Rainbow, with the '
        'v_min and v_max that they were trained with).'
      )
    return actor

  def freeze(self, prefix: str) -> exported.FrozenGraph:
    """Returns the graph of a checkpoint; errors are those of `load`."""
    with contextlib.closing(self._load_checkpoint(prefix)) as actor:
      game = self.lanes.game
      state = (*game.observation_shape, game.stack_size)
      blank = np.zeros((1, *state), game.observation_dtype)
      values, phi = actor.outputs(blank)
      shapes = (values.shape[1:], phi.shape[1:], ())
      return exported.FrozenGraph(
        actor.graph_def,
        state,
        dict(zip(checkpoint_weights.OUTPUTS, shapes, strict=True)),
      )

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


def create(setup: pool.Setup) -> GameEvaluator:
  """Returns what plays the checkpoints of a run, from its gin text.

  Where neither protocol nor configuration says how, play is as published. A
  configuration that cannot be parsed or names no game is a ConfigError.
  """
  bound = pool.bound
  with pool.gin_config(setup.config):
    create_lanes = bound('FixedReplayRunner.create_lanes', None)
    if create_lanes is None:
      raise ValueError('FixedReplayRunner.create_lanes names no game')
    lanes = create_lanes()
  protocol = setup.protocol
  if protocol is None:
    runner, published = 'FixedReplayRunner.', play.PUBLISHED
    names = ('num_evaluation_agent_steps', 'max_agent_steps_per_episode')
    defaults = (0, published.max_agent_steps_per_episode)
    protocol = {
      'epsilon_eval': bound('OfflineAgent.epsilon_eval', published.epsilon),
      **{n: bound(runner + n, d) for n, d in zip(names, defaults, strict=True)},
    }
  rule = play.PlayRule.recorded(protocol)
  agent = bound('FixedReplayRunner.agent', None)
  network = bound('OfflineAgent.network', networks.NatureNetwork)
  if agent is not None:
    network = functools.partial(
      bound(f'{agent.__name__}.network', network), q_values=agent.q_values
    )
  return GameEvaluator(lanes, network, rule, setup.num_threads, setup.atoms)
