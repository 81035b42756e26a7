"""A log in another form: other files of the same format, to and from Minari.

Rows are streamed: an episode's frames are held, never a file's.
"""

from collections.abc import Iterable, Iterator
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, log_writer
from batch_rl_dr3.replay.log.sources import Source
from batch_rl_dr3.replay.store.subset import Segment

# Frames of episodes that go to Minari at a time.
_FRAMES_PER_UPDATE = 10_000


class LogEpisode(NamedTuple):
  """One episode of a log, without its padding."""

  observations: npt.NDArray[np.uint8]  # Seen before each action.
  actions: npt.NDArray[np.int32]  # [T]
  rewards: npt.NDArray[np.float32]  # [T], clipped as they were logged.
  is_whole: bool  # Else it was cut by time, or the log breaks off there.
  has_start: bool  # Whether the log holds its beginning.


def episodes(source: Source, stack_size: int) -> Iterator[LogEpisode]:
  """Yields the episodes of a log in time order, without their padding.

  They go on across files that follow each other in time. Where rows are
  missing, an episode breaks off, and another begins in its middle. A DataError
  if a file is damaged, or its rows are not in time order.
  """
  parts: list[list[npt.NDArray[Any]]] = []

  def end(is_whole: bool) -> Iterator[LogEpisode]:
    if not parts:
      return
    elements = [*map(np.concatenate, zip(*parts, strict=True))]
    parts.clear()
    has_start = not elements[0][: stack_size - 1].any()
    if has_start:
      elements = [element[stack_size - 1 :] for element in elements]
    if is_whole or len(elements[0]):
      observations, actions, rewards = elements
      yield LogEpisode(observations, actions, rewards, is_whole, has_start)

  before: Segment | None = None
  for suffix in source.suffixes():
    segment = source.segment(suffix)
    if before is not None and not before.is_followed_by(segment):
      yield from end(is_whole=False)
    before, row = segment, 0
    for *elements, terminals in _row_blocks(source, segment):
      start = 0
      for stop in (np.flatnonzero(terminals) + 1).tolist():
        parts.append([element[start:stop] for element in elements])
        yield from end(row + stop - 1 not in segment.cut_rows)
        start = stop
      parts.append([element[start:] for element in elements])
      row += len(terminals)
  yield from end(is_whole=False)


def _row_blocks(
  source: Source, segment: Segment
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
  """Yields observations, actions, rewards and terminals, block by block."""
  suffix = segment.suffix
  header = source.header('observation', suffix)
  checkpoint_format.check_frames(
    source.name, header, header.shape[1:], np.uint8
  )
  if segment.is_circular and segment.cursor:
    raise errors.DataError(
      f'file {suffix} of {source.name} was saved with its cursor at row '
      f'{segment.cursor}: its oldest rows are in the middle, and it cannot be '
      'joined to the files around it.'
    )
  columns = [
    source.column(name, suffix)[: segment.num_rows]
    for name in checkpoint_format.ELEMENT_DTYPES
  ]
  start = 0
  for frames in source.rows('observation', suffix):
    rows = [column[start:][: len(frames)] for column in columns]
    yield frames[: len(rows[0])], *rows
    start += len(frames)


def write_log(
  found: Iterable[LogEpisode],
  folder: str | os.PathLike[str],
  stack_size: int,
  rows_per_file: int,
) -> int:
  """Writes episodes as a log in the DQN Replay format; returns how many.

  Where an episode breaks off, the file ends, and what follows is in the next.
  """
  writer = None
  num_episodes = 0
  for episode in found:
    num_episodes += 1
    if writer is None:
      shape = episode.observations.shape[1:]
      writer = log_writer.LogWriter(folder, shape, stack_size, rows_per_file)
    if not episode.has_start:
      writer.break_off(at_episode_start=False)
    rows = zip(*episode[:3], strict=True)
    for row, (observation, action, reward) in enumerate(rows, 1):
      is_end = episode.is_whole and row == len(episode.actions)
      writer.add(observation, int(action), float(reward), is_end)
    if not episode.is_whole:
      writer.break_off(at_episode_start=True)
  if writer is not None:
    writer.close()
  return num_episodes


def write_minari(
  found: Iterable[LogEpisode], dataset_id: str, num_actions: int, origin: str
) -> int:
  """Writes episodes as a Minari data set; returns how many.

  Frames are stored without loss and not stacked. The observation after the last
  action, which the DQN Replay format does not hold, is all zeros. An episode
  that the log cuts off is truncated; one that a time limit ended is a terminal,
  as in the log. A ConfigError if Minari refuses the name, or has it already.
  """
  # Imported here because both belong to the d4rl extra.
  import gymnasium
  import minari

  dataset: Any = None
  waiting: list[Any] = []
  num_episodes = 0

  def write() -> Any:
    if dataset is not None:
      dataset.update_dataset_from_buffer(waiting)
      return dataset
    shape = waiting[0].observations.shape[1:]
    try:
      return minari.create_dataset_from_buffers(
        dataset_id,
        waiting,
        action_space=gymnasium.spaces.Discrete(num_actions),
        observation_space=gymnasium.spaces.Box(0, 255, shape, np.uint8),
        description=f'Logged replay in the DQN Replay format, from {origin}.',
        jpeg_encoding=False,
      )
    except ValueError as error:
      raise errors.ConfigError(f'Minari: {error}') from error

  for num_episodes, episode in enumerate(found, 1):
    waiting.append(_minari_buffer(episode, num_episodes - 1))
    if sum(len(buffer.actions) for buffer in waiting) >= _FRAMES_PER_UPDATE:
      dataset, waiting = write(), []
  if waiting:
    write()
  return num_episodes


def _minari_buffer(episode: LogEpisode, number: int) -> Any:
  from minari.data_collector import EpisodeBuffer

  length = len(episode.actions)
  ends = np.arange(length) == length - 1
  after = np.zeros_like(episode.observations[:1])
  return EpisodeBuffer(
    id=number,
    observations=np.concatenate([episode.observations, after]),
    actions=episode.actions.astype(np.int64),
    rewards=episode.rewards,
    terminations=ends & episode.is_whole,
    truncations=ends & (not episode.is_whole),
    infos={},
  )


def minari_episodes(dataset: Any, stack_size: int) -> Iterator[LogEpisode]:
  """Yields the episodes of a minari.MinariDataset, as a log holds them.

  Of stacks, `stack_size` frames along the first or last axis, the newest frame
  is taken. Rewards are clipped to [-1, 1]; the observation after the last
  action is left out. One that was truncated is not whole. A DataError if
  actions, frames or episodes are not what the format holds.
  """
  first_action = getattr(dataset.action_space, 'start', None)
  if not hasattr(dataset.action_space, 'n') or first_action is None:
    raise errors.DataError(
      f'{dataset.id} has actions of {dataset.action_space}: the DQN Replay '
      'format holds discrete ones. Train on it as it is.'
    )
  if not dataset.total_episodes:
    raise errors.DataError(f'{dataset.id} holds no episode.')
  axis: int | None = -1  # Of the stacks; the first episode tells.
  is_first = True
  for episode in dataset.iterate_episodes():
    where = f'{dataset.id}, episode {episode.id}'
    observations = np.asarray(episode.observations)
    if observations.dtype != np.uint8 or observations.ndim < 3:
      raise errors.DataError(
        f'{where}: observations are {observations.dtype} '
        f'{observations.shape[1:]}, not frames of uint8.'
      )
    length = len(episode.rewards)
    if len(observations) != length + 1:
      raise errors.DataError(
        f'{where}: {len(observations)} observations for {length} steps. Minari '
        'keeps one more, what was seen after the last step.'
      )
    if not length:
      continue
    if is_first:
      axis, is_first = _stack_axis(observations, stack_size), False
    if axis is not None:
      if not _is_stacked(observations, axis):
        raise errors.DataError(
          f'{where}: its frames are no stacks of {stack_size}, as those of the '
          'episodes before it are.'
        )
      observations = observations.take(-1, axis)
    is_terminal = np.asarray(episode.terminations, bool)
    if (is_terminal | np.asarray(episode.truncations, bool))[:-1].any():
      raise errors.DataError(f'{where} ends before its last step.')
    yield LogEpisode(
      observations[:-1],
      (np.asarray(episode.actions) - first_action).astype(np.int32),
      np.clip(np.asarray(episode.rewards, np.float32), -1.0, 1.0),
      is_whole=bool(is_terminal[-1]),
      has_start=True,
    )


def _stack_axis(
  observations: npt.NDArray[np.uint8], stack_size: int
) -> int | None:
  """Returns the axis of [T, ...] that stacks frames, None if none does."""
  if stack_size > 1 and observations.ndim > 3:
    for axis in (1, observations.ndim - 1):
      is_wide_enough = observations.shape[axis] == stack_size
      if is_wide_enough and _is_stacked(observations, axis):
        return axis
  return None


def _is_stacked(observations: npt.NDArray[np.uint8], axis: int) -> bool:
  frames = np.moveaxis(observations, axis, 1)
  return np.array_equal(frames[1:, :-1], frames[:-1, 1:])
