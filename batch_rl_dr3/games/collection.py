"""Play of one lane, logged in the DQN Replay format, and who plays.

A behaviour is uniform, scripted, or an agent that learns online.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
import random
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from batch_rl_dr3.config import dopamine_compat, errors, ranges
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play
from batch_rl_dr3.replay.log import log_writer

# (observation, agent steps since the episode began) -> action. It knows no
# more, so that a script works in any game that has the action.
Script = Callable[[lanes_lib.FrameArray, int], int]


class Behaviour:
  """Chooses one lane's actions, as Dopamine's agents do; rewards in [-1, 1]."""

  def __init__(self, game: lanes_lib.Game, seed: int):
    self._num_actions = game.num_actions
    self._generator = np.random.default_rng(
      (seed, lanes_lib.EXPLORATION_STREAM)
    )

  def begin_episode(self, observation: lanes_lib.FrameArray) -> int:
    """Returns the first action of an episode."""
    return self.step(0.0, observation)

  def step(self, reward: float, observation: lanes_lib.FrameArray) -> int:
    """Returns the action after what the last one earned and led to."""
    return int(self._generator.integers(self._num_actions))

  def end_episode(self, reward: float) -> None:
    """Ends an episode by its last reward."""


@gin.configurable
class UniformBehaviour(Behaviour):
  """Every action equally often."""


@gin.configurable
class ScriptedBehaviour(Behaviour):
  """A script overruled by random actions, at rates taken in turn by episode."""

  def __init__(
    self,
    game: lanes_lib.Game,
    seed: int,
    script: Script = gin.REQUIRED,
    epsilons: Sequence[float] = gin.REQUIRED,
  ):
    """Seeds the random actions; epsilons out of [0, 1] are a ConfigError."""
    super().__init__(game, seed)
    if not epsilons or not all(0.0 <= epsilon <= 1.0 for epsilon in epsilons):
      raise errors.ConfigError(
        f'ScriptedBehaviour.epsilons is {epsilons}; it must hold one or more '
        'numbers in [0, 1].'
      )
    self._script = script
    self._epsilons = tuple(epsilons)
    self._num_episodes = 0

  def begin_episode(self, observation: lanes_lib.FrameArray) -> int:  # noqa: D102
    self._num_agent_steps = -1
    return super().begin_episode(observation)

  def step(self, reward: float, observation: lanes_lib.FrameArray) -> int:  # noqa: D102
    self._num_agent_steps += 1
    epsilon = self._epsilons[self._num_episodes % len(self._epsilons)]
    if self._generator.random() < epsilon:
      return super().step(reward, observation)
    action = self._script(observation, self._num_agent_steps)
    if not 0 <= action < self._num_actions:
      raise errors.ConfigError(
        f'the script chose action {action}; the game has the actions 0 to '
        f'{self._num_actions - 1}.'
      )
    return action

  def end_episode(self, reward: float) -> None:  # noqa: D102
    self._num_episodes += 1


@gin.configurable
def hold_action(
  observation: lanes_lib.FrameArray, step: int, action: int = gin.REQUIRED
) -> int:
  """Returns always the same action: a script for games such as Freeway.

  Up is action 1 in Atari's Freeway and 2 in MinAtar's.
  """
  del observation, step
  return action


@gin.configurable
class OnlineDQNBehaviour:
  """Dopamine's DQN agent, training online as it plays, as in arXiv:1907.04543.

  Bind the agent's own parameters on DQNAgent and WrappedReplayBuffer.
  """

  def __init__(
    self,
    game: lanes_lib.Game,
    seed: int,
    network: Callable[..., Any] | None = None,
  ):
    """Builds the agent, in a graph of its own.

    The seed is also that of Python's and NumPy's global generators, as Dopamine
    uses them. A network is (num_actions, name=...) -> Keras model with
    q_values, float32 [B, num_actions]; None is the Nature network, for Atari.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    optional = {} if network is None else {'network': network}
    with tf.Graph().as_default():
      tf.compat.v1.set_random_seed(seed)
      agent = dopamine_compat.DQNAgent(
        None,  # It makes a session that does without a GPU where none is.
        num_actions=game.num_actions,
        observation_shape=game.observation_shape,
        observation_dtype=tf.as_dtype(game.observation_dtype),
        stack_size=game.stack_size,
        **optional,
      )
    self.begin_episode, self.step = agent.begin_episode, agent.step
    self.end_episode = agent.end_episode


def _transitions(
  lanes: lanes_lib.Lanes,
  player: Any,
  seed: int,
  max_agent_steps_per_episode: int,
  reward_scale: float,
) -> Iterator[tuple[tuple[Any, ...], Any, float | None]]:
  """Yields what happens in lane 0, without end, as Dopamine's runner plays.

  Each is the (observation, action, reward, terminal) of a row; what the game's
  time cut off behind it, or None; and the return, not scaled, of the episode
  that ended there, or None.
  """
  lane = np.array([0])
  observation = lanes.reset(lane, seed)[0]
  action = int(player.begin_episode(observation))
  length, episode_return = 0, 0.0
  while True:
    step = lanes.step(lane, np.array([action]))
    length += 1
    episode_return += float(step.rewards[0])
    reward = float(np.clip(reward_scale * step.rewards[0], -1.0, 1.0))
    following, game_over = step.observations[0], bool(step.game_over[0])
    ended = game_over or length == max_agent_steps_per_episode
    is_cut = game_over and not step.terminals[0]
    terminal = not is_cut and (ended or bool(step.terminals[0]))
    row = (observation, action, reward, terminal)
    yield row, following if is_cut else None, episode_return if ended else None
    observation = following
    if ended:
      length, episode_return = 0, 0.0
      observation = lanes.reset(lane)[0]
    if terminal or is_cut:
      player.end_episode(reward)
      action = int(player.begin_episode(observation))
    else:
      action = int(player.step(reward, observation))


def _describe_files(
  num_rows: int, rows_per_file: int, ends: list[int], returns: list[float]
) -> list[dict[str, Any]]:
  """Returns one entry per file; an episode counts where its last row is."""
  files = []
  for suffix, start in enumerate(range(0, num_rows, rows_per_file)):
    size = min(rows_per_file, num_rows - start)
    own = slice(*np.searchsorted(ends, [start, start + size], side='right'))
    files.append(
      {'suffix': suffix, 'num_rows': size, **play.statistics(returns[own])}
    )
  return files


@gin.configurable(denylist=['folder', 'seed', 'on_progress'])
@ranges.checked
def collect(
  folder: str | os.PathLike[str],
  seed: int,
  create_lanes: Callable[..., lanes_lib.Lanes] = gin.REQUIRED,
  behaviour: Callable[..., Any] = gin.REQUIRED,
  num_rows: int = gin.REQUIRED,
  rows_per_file: int = gin.REQUIRED,
  max_agent_steps_per_episode: int = 27_000,
  reward_scale: ranges.Positive = 1.0,
  on_progress: Callable[[int, list[float]], None] = lambda rows, returns: None,
) -> dict[str, Any]:
  """Logs the play of one lane and returns what was collected.

  As Dopamine's runner does for the DQN Replay data: rewards are clipped to [-1,
  1], for the behaviour too, and a time-limit end is logged as terminal. Only
  where the game itself says that its time has run out is it none. The log ends
  with the last row that fits, in the middle of an episode.

  Args:
    folder: a folder without a log.
    seed: of the game and of the behaviour; not negative.
    create_lanes: makes the game from (num_lanes=1).
    behaviour: makes who plays from (game=..., seed=...).
    num_rows: to log, padding included; fewer where only padding would fit.
    rows_per_file: 1,000,000 in the DQN Replay data.
    max_agent_steps_per_episode: the length at which one is cut off.
    reward_scale: what rewards are multiplied by before they are clipped.
    on_progress: called after every step with the rows and the unclipped returns
      so far; what it raises ends the collection, and the log is not whole then.

  Raises:
    ConfigError: if a binding cannot be used.
    WriteError: if a file cannot be written.
  """
  lanes = create_lanes(num_lanes=1)
  game = lanes.game
  if num_rows < game.stack_size:
    raise errors.ConfigError(
      f'collect.num_rows is {num_rows}; an episode of {game.name} begins with '
      f'{game.stack_size} rows.'
    )
  player = behaviour(game=game, seed=seed)
  writer = log_writer.LogWriter(
    *(folder, game.observation_shape, game.stack_size, rows_per_file),
    game.observation_dtype,
  )
  returns: list[float] = []
  ends: list[int] = []  # The rows up to the end of each episode.
  num_transitions = 0
  for row, following, episode_return in _transitions(
    lanes, player, seed, max_agent_steps_per_episode, reward_scale
  ):
    writer.add(*row)
    num_transitions += 1
    if episode_return is not None:
      returns.append(episode_return)
      ends.append(writer.num_rows_added)
    on_progress(writer.num_rows_added, returns)
    if following is not None and writer.num_rows_added < num_rows:
      writer.cut(following)
    has_ended = row[-1] or following is not None
    num_padding = game.stack_size - 1 if has_ended else 0
    if writer.num_rows_added + num_padding >= num_rows:
      break
  num_logged = writer.num_rows_added
  writer.close()
  lanes.close()
  return {
    'game': dataclasses.asdict(game),
    'behaviour': type(player).__name__,
    'num_rows': num_logged,
    'num_transitions': num_transitions,
    'max_agent_steps_per_episode': max_agent_steps_per_episode,
    'files': _describe_files(num_logged, rows_per_file, ends, returns),
    **play.statistics(returns),
  }
