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
  """N transitions whose observations are rows of one array of images.

  Attributes:
    images: uint8 [M, h, w, 3], in memory or memory-mapped.
    positions: int64 [N], the image of s; that of s' is the next.
    actions: float32 [N, d].
    rewards: float32 [N].
    terminals: float32 [N].
    manifest: what the data are, for provenance.json.
    padding: pixels by which an image is moved at most.
  """

  images: npt.NDArray[np.uint8]
  positions: npt.NDArray[np.int64]
  actions: FloatArray
  rewards: FloatArray
  terminals: FloatArray
  manifest: dict[str, Any]
  padding: int

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
    images, next_images, *rest = tf.numpy_function(
      self._read, [rows], [tf.uint8, tf.uint8, *[tf.float32] * 3]
    )
    actions, rewards, terminals = rest
    size = (rows.shape[0],)
    actions.set_shape(size + self.actions.shape[1:])
    rewards.set_shape(size)
    terminals.set_shape(size)
    observations = []
    for number, column in enumerate((images, next_images)):
      column.set_shape(size + self.images.shape[1:])
      if seed is not None and self.padding:
        fold_in = tf.random.experimental.stateless_fold_in
        column = random_crops(column, fold_in(seed, number), self.padding)
      observations.append(tf.cast(column, tf.float32))
    return [observations[0], actions, rewards, observations[1], terminals]

  def _read(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
    positions = self.positions[rows]
    return (
      self.images[positions],
      self.images[positions + 1],
      self.actions[rows],
      self.rewards[rows],
      self.terminals[rows],
    )


def random_crops(images: tf.Tensor, seed: tf.Tensor, padding: int) -> tf.Tensor:
  """Returns each image moved by up to `padding` pixels, black where it was.

  Args:
    images: [B, h, w, 3] of any number type.
    seed: int32 [2]; the same seed moves them the same way.
    padding: pixels.
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
  """How a store of images is made into transitions to learn from.

  Attributes:
    fraction: the share of the trajectories that is kept, of prior and task
      data alike.
    fraction_seed: fixes which.
    padding: pixels by which images are moved at most while training.
    max_resident_gigabytes: images that take more are memory-mapped.
  """

  fraction: ranges.PositiveShare = 1.0
  fraction_seed: ranges.Natural = 0
  padding: ranges.Natural = 4
  max_resident_gigabytes: ranges.NonNegative = 4.0

  def load(
    self, path: str, cache_dir: str, game: str, dataset: str = ''
  ) -> tuple[tasks.Task, ImageTransitions]:
    """Returns the task that the data are of, and the transitions.

    Args:
      path: the folder of a store.
      cache_dir: unused; a store is on this machine.
      game: the game.
      dataset: unused; a store does not say which data set it is.

    Raises:
      ConfigError: if there is no such game.
      DataError: if it is no such store, is damaged, or is of another task.
    """
    del cache_dir, dataset
    task = tasks.find(game, tasks.COG)
    store = cog.read(pathlib.Path(path))
    played = store.manifest.get('scripts', {}).get('game', game)
    if played != game:
      raise errors.DataError(f'{path} holds play of {played}, not of {game}.')
    sizes = (*store.images.shape[1:], store.actions.shape[1])
    expected = (*task.observation_shape, task.action_size)
    if sizes != expected:
      raise errors.DataError(
        f'{path} has images {list(sizes[:3])} and {sizes[3]} numbers an '
        f'action, and {game} has {list(expected[:3])} and {expected[3]}.'
      )
    return task, self._transitions(store)

  def _transitions(self, store: cog.Store) -> ImageTransitions:
    chosen = self._choose(store)
    trajectories = store.trajectories[chosen]
    steps = np.concatenate([np.arange(t) for *_, t in trajectories])
    lengths = trajectories[:, 2]
    rows = np.repeat(trajectories[:, 1], lengths) + steps
    images, starts = store.images, trajectories[:, 0]
    num_bytes = (lengths + 1).sum() * int(np.prod(images.shape[1:]))
    if num_bytes <= self.max_resident_gigabytes * 1e9:
      ends = starts + lengths + 1
      parts = [images[i:j] for i, j in zip(starts, ends, strict=True)]
      images = np.concatenate(parts)
      starts = np.cumsum(lengths + 1) - lengths - 1
    settings = dataclasses.asdict(self)
    text = json.dumps([store.manifest['files'], settings], sort_keys=True)
    return ImageTransitions(
      images,
      np.repeat(starts, lengths) + steps,
      store.actions[rows],
      store.rewards[rows],
      store.terminals[rows],
      {
        **store.manifest,
        'version': str(store.manifest['version']),
        'settings': settings,
        'num_transitions_kept': len(rows),
        'num_prior_trajectories_kept': int((chosen < store.num_prior).sum()),
        'num_trajectories_kept': len(chosen),
        'hash': hashlib.sha256(text.encode()).hexdigest(),
      },
      self.padding,
    )

  def _choose(self, store: cog.Store) -> npt.NDArray[np.int64]:
    """Returns which trajectories are kept, in order."""
    rng = np.random.default_rng(self.fraction_seed)
    parts = np.split(np.arange(len(store.trajectories)), [store.num_prior])
    chosen = []
    for part in (part for part in parts if len(part)):
      size = max(1, round(self.fraction * len(part)))
      chosen.append(np.sort(rng.permutation(part)[:size]))
    return np.concatenate(chosen)
