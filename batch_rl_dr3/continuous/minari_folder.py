"""Minari data sets, read by Minari itself."""

import pathlib

import numpy as np

from batch_rl_dr3 import errors
from batch_rl_dr3.continuous import (
  environments,
  stored_data,
  tasks,
  transitions,
)


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


def _check_id(path: str, dataset_id: str, task: tasks.Task) -> None:
  wanted = task.game.replace('-', '/', 1)
  if wanted not in dataset_id:
    raise errors.DataError(
      f'{path} is {dataset_id}, which is not data of {task.game}.'
    )
