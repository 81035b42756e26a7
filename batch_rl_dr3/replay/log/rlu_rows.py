"""Turns episodes of RL Unplugged into rows of the DQN Replay format."""

from collections.abc import Iterable, Iterator
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.replay.log import checkpoint_format, rlu_episode

LAST_STEPS = ('observation', 'transition')
_BLOCK_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Reading:
  """How episodes are read as rows.

  Attributes:
    last_step: str, one of LAST_STEPS: what an episode's last step is.
    num_padding: int, rows of zeros before each episode.
  """

  last_step: str
  num_padding: int

  def num_kept(self, episode: rlu_episode.Episode) -> int:
    """Returns how many of an episode's steps become rows."""
    num_steps = len(episode.actions)
    if episode.is_terminal and self.last_step == 'observation':
      return num_steps - 1
    return num_steps


def _check_sum(
  episode: rlu_episode.Episode, reading: Reading, name: str
) -> None:
  """Checks an episode's rewards against its return.

  Raises:
    DataError: if they do not add up, or if the last step's reward shows that
      it is read wrongly.
  """
  rewards = episode.rewards.astype(np.float64)
  tolerance = 1e-3 * max(1.0, abs(episode.clipped_return))
  if not abs(rewards.sum() - episode.clipped_return) <= tolerance:
    raise errors.DataError(
      f'{name}: the clipped rewards of episode {episode.number} sum up to '
      f'{rewards.sum()}; the file states {episode.clipped_return}.'
    )
  if reading.num_kept(episode) < len(rewards) and rewards[-1] != 0:
    raise errors.DataError(
      f'{name}: the last step of episode {episode.number} has the reward '
      f'{rewards[-1]}, which counts in its return, so it is more than an '
      "observation. Set RluSource.last_step = 'transition'."
    )


def _check_order(
  episode: rlu_episode.Episode, before: rlu_episode.Episode | None, name: str
) -> None:
  if before is None:
    return
  if episode.checkpoint != before.checkpoint:
    raise errors.DataError(
      f'{name} mixes the checkpoints {before.checkpoint} and '
      f'{episode.checkpoint}; a file of one checkpoint is needed.'
    )
  if episode.number <= before.number:
    raise errors.DataError(
      f'{name} holds episode {episode.number} after episode {before.number}; '
      'they are needed in the order in which they were played.'
    )


def index(
  episodes: Iterable[rlu_episode.Episode], reading: Reading, name: str
) -> dict[str, npt.NDArray[Any]]:
  """Returns all rows but the frames of one file.

  Args:
    episodes: the file's episodes.
    reading: how they are read as rows.
    name: what messages call the file.

  Returns:
    action, reward and terminal with Dopamine's dtypes, [num_rows] each;
    cut, int64 [any], the rows that are no transitions because their episode
    was cut there; frame_shape, int64 [2].

  Raises:
    DataError: if there is no episode, or one is not as it should be.
  """
  parts: dict[str, list[npt.NDArray[Any]]] = {
    element: [] for element in checkpoint_format.ELEMENT_DTYPES
  }
  cut = []
  num_rows = 0
  before = None
  shape = None
  for episode in episodes:
    _check_order(episode, before, name)
    _check_sum(episode, reading, name)
    before = episode
    if shape is None:
      shape = rlu_episode.frame_shape(episode.frames[0], name)
    num_kept = reading.num_kept(episode)
    if not num_kept:
      continue
    terminals = np.zeros(num_kept, np.uint8)
    terminals[-1] = 1
    rows: dict[str, npt.NDArray[Any]] = {
      'action': episode.actions[:num_kept],
      'reward': episode.rewards[:num_kept],
      'terminal': terminals,
    }
    for element, values in rows.items():
      parts[element].append(np.zeros(reading.num_padding, values.dtype))
      parts[element].append(values)
    num_rows += reading.num_padding + num_kept
    if not episode.is_terminal:
      cut.append(num_rows - 1)
  if not num_rows:
    raise errors.DataError(f'{name} holds no transition.')
  arrays = {element: np.concatenate(found) for element, found in parts.items()}
  arrays['cut'] = np.array(cut, np.int64)
  arrays['frame_shape'] = np.array(shape, np.int64)
  return arrays


def frame_blocks(
  episodes: Iterable[rlu_episode.Episode],
  reading: Reading,
  shape: tuple[int, int],
  name: str,
) -> Iterator[npt.NDArray[np.uint8]]:
  """Yields the frames of the rows that `index` counts, block by block.

  Args:
    episodes: the file's episodes.
    reading: how they are read as rows.
    shape: height and width of a frame.
    name: what messages call the file.

  Yields:
    uint8 [block_rows, *shape].

  Raises:
    DataError: if a frame is damaged.
  """
  for episode in episodes:
    num_kept = reading.num_kept(episode)
    if not num_kept:
      continue
    yield np.zeros((reading.num_padding, *shape), np.uint8)
    for start in range(0, num_kept, _BLOCK_ROWS):
      frames = episode.frames[start : min(num_kept, start + _BLOCK_ROWS)]
      yield np.stack(
        [rlu_episode.decode_frame(frame, shape, name) for frame in frames]
      )
