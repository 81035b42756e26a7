"""Transitions between images, from a store that `cog` describes."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.control import cog, tasks

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTransitions:
  """N transitions whose observations are rows of one array of images."""

  images: npt.NDArray[np.uint8]  # [M, h, w, 3], in memory or memory-mapped.
  positions: npt.NDArray[np.int64]  # [N], the image of s; the next is of s'.
  actions: FloatArray  # [N, d]
  rewards: FloatArray  # [N]
  terminals: FloatArray  # [N]
  manifest: dict[str, Any]  # What the data are, for provenance.json.
  padding: int  # Pixels by which an image is moved at most.

  def __len__(self) -> int:
    return len(self.rewards)

  def gather(
    self, rows: tf.Tensor, seed: tf.Tensor | None = None
  ) -> list[tf.Tensor]:
    """Returns the columns of `networks.transition`; images in [0, 255].

    Args:
      rows: int64 [B].
      seed: int32 [2], by which images are cropped; None crops none.
    """
    columns = tf.numpy_function(
      self._read, [rows], [tf.uint8, *[tf.float32] * 2, tf.uint8, tf.float32]
    )
    image, action = self.images.shape[1:], self.actions.shape[1:]
    for column, shape in zip(
      columns, (image, action, (), image, ()), strict=True
    ):
      column.set_shape(rows.shape[:1] + shape)
    for number, place in enumerate((0, 3)):
      if seed is not None and self.padding:
        folded = tf.random.experimental.stateless_fold_in(seed, number)
        columns[place] = random_crops(columns[place], folded, self.padding)
      columns[place] = tf.cast(columns[place], tf.float32)
    return list(columns)

  def _read(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
    first = self.positions[rows]
    acted = (self.actions[rows], self.rewards[rows])
    following = (self.images[first + 1], self.terminals[rows])
    return self.images[first], *acted, *following


def random_crops(images: tf.Tensor, seed: tf.Tensor, padding: int) -> tf.Tensor:
  """Returns each image moved by up to `padding` pixels, black where it was.

  Images are [B, h, w, 3] of any number type; a seed, int32 [2], always moves
  them the same way.
  """
  _, height, width, _ = images.shape
  corners = tf.random.stateless_uniform(
    [tf.shape(images)[0], 2], seed, maxval=2 * padding + 1, dtype=tf.int32
  )
  edges = [padding, padding]
  padded = tf.pad(images, [[0, 0], edges, edges, [0, 0]])
  rows = tf.gather(padded, corners[:, :1] + tf.range(height), batch_dims=1)
  columns = corners[:, 1:] + tf.range(width)
  cropped = tf.gather(rows, columns, axis=2, batch_dims=1)
  return tf.ensure_shape(cropped, images.shape)


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class ImageData:
  """How a store of images is made into transitions to learn from."""

  # Of the trajectories, what is kept, of prior and task data alike,
  fraction: ranges.PositiveShare = 1.0
  fraction_seed: ranges.Natural = 0  # which fixes which.
  # Pixels by which images are moved at most while training.
  padding: ranges.Natural = 4
  # Images that take more are memory-mapped.
  max_resident_gigabytes: ranges.NonNegative = 4.0

  def load(
    self, path: str, cache_dir: str, game: str, dataset: str = ''
  ) -> tuple[tasks.Task, ImageTransitions]:
    """Returns the task that the data are of, and the transitions of a store.

    A store is on this machine, and does not say which data set it is.

    Raises:
      ConfigError: if there is no such game.
      DataError: if it is no such store, is damaged, or is of another task.
    """
    del cache_dir, dataset
    task = tasks.find(game, tasks.COG)
    stored, arrays = cog.read(pathlib.Path(path))
    _check_task(path, task, stored, arrays)
    rng = np.random.default_rng(self.fraction_seed)
    num_prior = stored['num_prior_trajectories']
    parts = np.split(np.arange(len(arrays['trajectories'])), [num_prior])
    sizes = [max(1, round(self.fraction * len(part))) for part in parts]
    chosen = np.concatenate(
      [
        np.sort(rng.permutation(part)[:size])
        for part, size in zip(parts, sizes, strict=True)
      ]
    )
    trajectories = arrays['trajectories'][chosen]
    first_images, first_rows, lengths = trajectories.T
    steps = np.concatenate([np.arange(length) for length in lengths])
    rows = np.repeat(first_rows, lengths) + steps
    images = arrays['images']
    num_bytes = (lengths + 1).sum() * int(np.prod(images.shape[1:]))
    if num_bytes <= self.max_resident_gigabytes * 1e9:
      images = np.concatenate(
        [images[first : first + size + 1] for first, _, size in trajectories]
      )
      first_images = np.cumsum(lengths + 1) - lengths - 1
    settings = dataclasses.asdict(self)
    text = json.dumps([stored['files'], settings], sort_keys=True)
    manifest = {
      **stored,
      'version': str(stored['version']),
      'settings': settings,
      'num_transitions_kept': len(rows),
      'num_prior_trajectories_kept': int((chosen < num_prior).sum()),
      'num_trajectories_kept': len(chosen),
      'hash': hashlib.sha256(text.encode()).hexdigest(),
    }
    return task, ImageTransitions(
      images=images,
      positions=np.repeat(first_images, lengths) + steps,
      actions=arrays['actions'][rows],
      rewards=arrays['rewards'][rows],
      terminals=arrays['terminals'][rows],
      manifest=manifest,
      padding=self.padding,
    )


def _check_task(
  path: str,
  task: tasks.Task,
  manifest: dict[str, Any],
  arrays: dict[str, npt.NDArray[Any]],
) -> None:
  game = task.game
  played = manifest.get('scripts', {}).get('game', game)
  if played != game:
    raise errors.DataError(f'{path} holds play of {played}, not of {game}.')
  sizes = (*arrays['images'].shape[1:], arrays['actions'].shape[1])
  expected = (*task.observation_shape, task.action_size)
  if sizes != expected:
    raise errors.DataError(
      f'{path} has images {list(sizes[:3])} and {sizes[3]} numbers an '
      f'action, and {game} has {list(expected[:3])} and {expected[3]}.'
    )
