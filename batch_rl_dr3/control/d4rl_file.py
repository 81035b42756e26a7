"""D4RL's HDF5 files.

One array per column, all episodes one after the other: `observations`,
`actions`, `rewards`, `terminals` and `timeouts`, in v2 of gym_mujoco also
`next_observations`. Transitions are those of D4RL's own `qlearning_dataset`:
without `next_observations`, s' is the next row's s; a row whose episode ran out
of time is left out, since its s' is another episode's; so is the last row.
Old files have no `timeouts`; D4RL then cuts at the environment's time limit,
which has to be asked for here.
"""

import pathlib
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import stored_data, tasks, transitions

_NEEDED = ('observations', 'actions', 'rewards', 'terminals')
_NAMES = ('halfcheetah', 'hopper', 'walker2d', 'maze', 'kitchen')


def read(
  path: str,
  file: pathlib.Path,
  task: tasks.Task,
  max_episode_steps: int | None = None,
) -> transitions.Transitions:
  """Returns the transitions of a D4RL file.

  Args:
    path: the file as it was asked for.
    file: the file on this machine.
    task: what it has to be data of.
    max_episode_steps: cut episodes there if the file has no `timeouts`.

  Raises:
    DataError: if the file is damaged or is not data of the task.
  """
  _check_name(path, task)
  columns, attributes = _read_columns(path, file)
  game = attributes.get('game', task.game)
  if game != task.game:
    raise errors.DataError(f'{path} holds data of {game}, not of {task.game}.')
  num_rows = len(columns['rewards'])
  for name, array in columns.items():
    if len(array) != num_rows:
      raise errors.DataError(
        f'{path}: {name} has {len(array)} rows and rewards {num_rows}.'
      )
  if 'timeouts' not in columns:
    if max_episode_steps is None:
      raise errors.DataError(
        f"{path} has no timeouts, so that where an episode's time ran out is "
        "not known. Bind ControlData.max_episode_steps to cut at the game's "
        'limit, as D4RL does (1000 for gym_mujoco and antmaze, 280 for the '
        'kitchen).'
      )
    columns['timeouts'] = _cut(columns['terminals'], max_episode_steps)
  if 'next_observations' not in columns:
    columns['next_observations'] = np.concatenate(
      [columns['observations'][1:], columns['observations'][-1:]]
    )
  kept = ~np.asarray(columns.pop('timeouts'), bool)
  kept[-1:] = False
  return transitions.checked(
    path,
    task.observation_size,
    task.action_size,
    {name: array[kept] for name, array in columns.items()},
    {
      **stored_data.describe(path, file),
      'layout': tasks.D4RL,
      'num_rows': num_rows,
      'num_transitions': int(kept.sum()),
    },
  )


def _check_name(path: str, task: tasks.Task) -> None:
  """Tells games apart that have the same shapes, by the names of files."""
  name = path.rsplit('/', 1)[-1].lower()
  for other in _NAMES:
    if other in name and other not in task.game:
      raise errors.DataError(
        f'{path} is by its name data of {other}, not of {task.game}.'
      )


def _read_columns(
  path: str, file: pathlib.Path
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
  try:
    with h5py.File(file, 'r') as opened:
      missing = [name for name in _NEEDED if name not in opened]
      if missing:
        raise errors.DataError(
          f'{path} lacks {", ".join(missing)}: it is no file of D4RL.'
        )
      optional = [n for n in ('timeouts', 'next_observations') if n in opened]
      columns = {name: opened[name][()] for name in (*_NEEDED, *optional)}
      return columns, dict(opened.attrs)
  except OSError as error:
    raise errors.DataError(
      f'{path} is no whole HDF5 file ({error}). Fetch it again.'
    ) from error


def _cut(
  terminals: npt.NDArray[Any], max_episode_steps: int
) -> npt.NDArray[np.bool_]:
  """Returns where an episode reaches the limit, as D4RL counts."""
  timeouts = np.zeros(len(terminals), bool)
  length = 0
  for row, terminal in enumerate(terminals):
    timeouts[row] = length == max_episode_steps - 1
    length = 0 if terminal or timeouts[row] else length + 1
  return timeouts
