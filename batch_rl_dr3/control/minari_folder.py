"""Minari data sets, read and written by Minari itself."""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import environments, stored_data, tasks, transitions


def is_one(folder: pathlib.Path) -> bool:
  """Returns whether a folder is a Minari data set."""
  return (folder / 'data' / 'metadata.json').is_file()


def read(
  path: str, folder: pathlib.Path, task: tasks.Task
) -> transitions.Transitions:
  """Returns the transitions of a Minari data set.

  An episode holds one observation more than it has steps, so that every step
  is a transition, that of a truncation too.

  Args:
    path: the data set as it was asked for.
    folder: its folder on this machine.
    task: what it has to be data of.

  Raises:
    DataError: if it is damaged or is not data of the task.
  """
  import minari

  parts = []
  try:
    dataset = minari.MinariDataset(folder / 'data')
    _check_id(path, dataset.id, task)
    for episode in dataset.iterate_episodes():
      observations = environments.flatten(episode.observations)
      parts.append(
        {
          'observations': observations[:-1],
          'actions': np.asarray(episode.actions),
          'rewards': np.asarray(episode.rewards),
          'next_observations': observations[1:],
          'terminals': np.asarray(episode.terminations),
        }
      )
  except (OSError, ValueError, KeyError, AssertionError) as error:
    raise errors.DataError(
      f'{path} is no whole Minari data set ({error}).'
    ) from error
  if not parts:
    raise errors.DataError(f'{path} holds no episode.')
  return transitions.checked(
    path,
    task.observation_size,
    task.action_size,
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    {
      **stored_data.describe(path, folder / 'data' / 'main_data.hdf5'),
      'layout': tasks.MINARI,
      'minari_id': dataset.id,
      'num_episodes': len(parts),
      'num_transitions': sum(len(part['rewards']) for part in parts),
    },
  )


def write(
  folder: pathlib.Path,
  dataset_id: str,
  environment: Any,
  columns: Mapping[str, npt.NDArray[Any]],
) -> None:
  """Writes a data set of whole episodes, observations flat as they are read.

  Args:
    folder: the data set's; Minari's files go into data/ below it.
    dataset_id: such as hopper/replay-v0.
    environment: the gymnasium environment that was played.
    columns: rows in the order of play: observations, actions, rewards,
      next_observations, terminals and timeouts; the last row ends an episode.
  """
  import gymnasium as gym
  import minari
  from minari.data_collector import EpisodeBuffer
  from minari.dataset import minari_storage

  def box(width: int, bound: float) -> gym.spaces.Box:
    return gym.spaces.Box(-bound, bound, (width,), np.float32)

  ends = np.flatnonzero(columns['terminals'] | columns['timeouts']) + 1
  data = folder / 'data'
  data.mkdir(parents=True)
  storage = minari_storage.MinariStorage.new(
    data,
    box(columns['observations'].shape[1], np.inf),
    box(columns['actions'].shape[1], 1.0),
    environment.spec,
  )
  storage.update_metadata(
    {'dataset_id': dataset_id, 'minari_version': minari.__version__}
  )
  storage.update_episodes(
    EpisodeBuffer(
      id=number,
      observations=np.concatenate(
        [
          columns['observations'][start:end],
          columns['next_observations'][end - 1 : end],
        ]
      ),
      actions=columns['actions'][start:end],
      rewards=columns['rewards'][start:end],
      terminations=columns['terminals'][start:end],
      truncations=columns['timeouts'][start:end],
    )
    for number, (start, end) in enumerate(
      zip([0, *ends[:-1]], ends, strict=True)
    )
  )


def _check_id(path: str, dataset_id: str, task: tasks.Task) -> None:
  wanted = task.game.replace('-', '/', 1)
  if wanted not in dataset_id:
    raise errors.DataError(
      f'{path} is {dataset_id}, which is not data of {task.game}.'
    )
