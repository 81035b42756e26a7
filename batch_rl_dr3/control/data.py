"""What a run learns from: which data, which part, which rewards, in batches."""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import gin
import numpy as np
import tensorflow as tf
from tf_agents.trajectories import policy_step, trajectory
from tf_agents.trajectories import time_step as ts

from batch_rl_dr3.config import errors, progress, ranges
from batch_rl_dr3.control import data_files, tasks
from batch_rl_dr3.control.data_files import Transitions
from batch_rl_dr3.runs import atomic, storage

_CHUNK = 1 << 20
# Seconds without a byte after which a connection is given up.
_TIMEOUT = 60.0


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class ControlData:
  """How logged data are made into transitions to learn from.

  Attributes:
    fraction: the share of the transitions that is kept, drawn uniformly and
      without replacement.
    fraction_seed: fixes which.
    reward_scale: rewards become scale * (reward + shift).
    reward_shift: see above; CQL's authors take 4 * (r - 0.5) on antmaze.
    end_at_reward: count a transition with a positive reward as the end, as
      D4RL's antmaze files do and Minari's, which play on at the goal, do not.
    max_episode_steps: cut the episodes of a D4RL file there.
  """

  fraction: ranges.PositiveShare = 1.0
  fraction_seed: ranges.Natural = 0
  reward_scale: float = 1.0
  reward_shift: float = 0.0
  end_at_reward: bool = False
  max_episode_steps: ranges.Count | None = None

  def load(
    self, path: str, cache_dir: str, game: str, dataset: str = ''
  ) -> tuple[tasks.Task, Transitions]:
    """Returns the task that the data are of, and the transitions.

    Args:
      path: an HDF5 file of D4RL's layout or its URL, the folder of a Minari
        data set, or minari:ID.
      cache_dir: where what is fetched is kept.
      game: what the data have to be of.
      dataset: which data set of it, such as medium; '' takes any.

    Raises:
      ConfigError: if there is no such game.
      DataError: if the data cannot be used, or are of another game or data
        set.
    """
    file = locate(path, cache_dir)
    if file.is_dir():
      if not data_files.is_minari(file):
        raise errors.DataError(
          f'{path} is a folder and no Minari data set; of D4RL, name the '
          '.hdf5 file.'
        )
      task = tasks.find(game, tasks.MINARI)
      task, data = data_files.read_minari(path, file, task, dataset)
    else:
      task = tasks.find(game, tasks.D4RL)
      data = data_files.read_d4rl(
        path, file, task, dataset, self.max_episode_steps
      )
    return task, self._prepare(data)

  def _prepare(self, data: Transitions) -> Transitions:
    if self.fraction < 1.0:
      rng = np.random.default_rng(self.fraction_seed)
      size = max(1, round(self.fraction * len(data)))
      data = data.take(np.sort(rng.permutation(len(data))[:size]))
    terminals = data.terminals
    if self.end_at_reward:
      terminals = np.maximum(terminals, data.rewards > 0).astype(np.float32)
    rewards = self.reward_scale * (data.rewards + self.reward_shift)
    settings = dataclasses.asdict(self)
    text = json.dumps([data.manifest['sha256'], settings], sort_keys=True)
    return dataclasses.replace(
      data,
      rewards=rewards.astype(np.float32),
      terminals=terminals,
      manifest={
        **data.manifest,
        'settings': settings,
        'num_transitions_kept': len(data),
        'hash': hashlib.sha256(text.encode()).hexdigest(),
      },
    )


def locate(path: str, cache_dir: str) -> pathlib.Path:
  """Returns a file or folder of this machine; arguments are those of `load`.

  Raises:
    DataError: if it is not there or cannot be fetched, after as many attempts
      as `Retry` has.
    WriteError: if there is no room for it.
  """
  if path.startswith(data_files.MINARI_SCHEME):
    return data_files.locate_minari(path)
  if '://' in path:
    return _fetch(path, pathlib.Path(cache_dir))
  if not os.path.exists(path):
    raise errors.DataError(f'no data at {path}.')
  return pathlib.Path(path)


def _fetch(url: str, cache_dir: pathlib.Path) -> pathlib.Path:
  """Returns the cached copy of a URL, fetched whole or not at all."""
  key = hashlib.sha256(url.encode()).hexdigest()[:16]
  folder = atomic.make_directory(cache_dir / 'd4rl' / key)
  parent, _, name = url.rstrip('/').rpartition('/')
  target = folder / name
  if target.exists():
    return target
  source = storage.open_storage(parent, None, None, _TIMEOUT, storage.Retry())
  info = source.info(name)
  with (
    source.open(info) as stream,
    atomic.whole_file(target) as copy,
    progress.bar(info['size'], name, 'B', unit_scale=True, leave=False) as bar,
  ):
    while chunk := stream.read(_CHUNK):
      copy.write(chunk)
      bar.update(len(chunk))
  return target


def time_steps(
  observations: tf.Tensor,
  rewards: tf.Tensor | None = None,
  discounts: tf.Tensor | None = None,
) -> ts.TimeStep:
  """Returns steps in the middle of an episode, by rewards that led there.

  Rewards, float32 [B], are 0 and discounts, 0 where an episode ended, are 1
  unless they are given.
  """
  size = tf.shape(observations)[:1]
  return ts.TimeStep(
    tf.fill(size, ts.StepType.MID),
    tf.zeros(size) if rewards is None else rewards,
    tf.ones(size) if discounts is None else discounts,
    observations,
  )


def transition(columns: Sequence[tf.Tensor]) -> Any:
  """Returns a batch of transitions from their columns, each [B, ...].

  Only a terminal ends the discounted sum: an episode that ran out of time is
  bootstrapped like any other.
  """
  observations, actions, rewards, next_observations, terminals = columns
  return trajectory.Transition(
    time_steps(observations),
    policy_step.PolicyStep(actions, (), ()),
    time_steps(next_observations, rewards, 1.0 - terminals),
  )
