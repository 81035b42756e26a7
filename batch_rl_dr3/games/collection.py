"""Playing one lane and logging the play in the DQN Replay format."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
from typing import Any, NamedTuple

import gin
import numpy as np

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.games import behaviours
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.replay.log import log_writer


class _Transition(NamedTuple):
  """One row of the log."""

  observation: lanes_lib.FrameArray
  action: int
  reward: float
  terminal: bool
  cut_before: lanes_lib.FrameArray | None  # What the game's time cut off.
  episode_return: float | None  # Not scaled, where the episode ends.


def _transitions(
  lanes: lanes_lib.Lanes,
  player: behaviours.Behaviour,
  seed: int,
  max_agent_steps_per_episode: int,
  reward_scale: float,
) -> Iterator[_Transition]:
  """Yields what happens in lane 0, without end, as Dopamine's runner plays."""
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
    yield _Transition(
      observation,
      action,
      reward,
      terminal,
      following if is_cut else None,
      episode_return if ended else None,
    )
    observation = following
    if ended:
      length, episode_return = 0, 0.0
      observation = lanes.reset(lane)[0]
    if terminal or is_cut:
      player.end_episode(reward)
      action = int(player.begin_episode(observation))
    else:
      action = int(player.step(reward, observation))


def _statistics(returns: Sequence[float]) -> dict[str, Any]:
  return {
    'num_episodes': len(returns),
    'return_mean': float(np.mean(returns)) if returns else None,
    'return_min': min(returns, default=None),
    'return_max': max(returns, default=None),
  }


def _describe_files(
  num_rows: int, rows_per_file: int, ends: list[int], returns: list[float]
) -> list[dict[str, Any]]:
  """Returns one entry per file; an episode counts where its last row is."""
  files = []
  for suffix, start in enumerate(range(0, num_rows, rows_per_file)):
    size = min(rows_per_file, num_rows - start)
    own = slice(*np.searchsorted(ends, [start, start + size], side='right'))
    files.append(
      {'suffix': suffix, 'num_rows': size, **_statistics(returns[own])}
    )
  return files


@gin.configurable(denylist=['folder', 'seed', 'should_stop', 'on_progress'])
@ranges.checked
def collect(
  folder: str | os.PathLike[str],
  seed: int,
  create_lanes: Callable[..., lanes_lib.Lanes] = gin.REQUIRED,
  behaviour: Callable[..., behaviours.Behaviour] = gin.REQUIRED,
  num_rows: int = gin.REQUIRED,
  rows_per_file: int = gin.REQUIRED,
  max_agent_steps_per_episode: int = 27_000,
  reward_scale: ranges.Positive = 1.0,
  should_stop: Callable[[], bool] = lambda: False,
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
    should_stop: asked before every step.
    on_progress: called with the rows and the unclipped returns so far.

  Raises:
    ConfigError: if a binding cannot be used.
    PreemptedError: if `should_stop` said so; the log is not whole then.
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
    folder,
    game.observation_shape,
    game.stack_size,
    rows_per_file,
    game.observation_dtype,
  )
  returns: list[float] = []
  ends: list[int] = []  # The rows up to the end of each episode.
  num_transitions = 0
  limit = max_agent_steps_per_episode
  for row in _transitions(lanes, player, seed, limit, reward_scale):
    if should_stop():
      raise errors.PreemptedError(
        f'stopped after {writer.num_rows_added} of {num_rows} rows; nothing is '
        'kept. Run the same command again to collect all of them.'
      )
    writer.add(row.observation, row.action, row.reward, row.terminal)
    num_transitions += 1
    if row.episode_return is not None:
      returns.append(row.episode_return)
      ends.append(writer.num_rows_added)
    on_progress(writer.num_rows_added, returns)
    if row.cut_before is not None and writer.num_rows_added < num_rows:
      writer.cut(row.cut_before)
    has_ended = row.terminal or row.cut_before is not None
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
    **_statistics(returns),
  }
