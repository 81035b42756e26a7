"""Data of one's own, as `train` reads them.

Transitions for discrete agents become a log in the DQN Replay format, whose
next state is the next row's: where s' is not the next transition's s, a row is
added that holds it and is never sampled (see `LogWriter.cut`). Those for
continuous control become one HDF5 file, actions in [-1, 1].
"""

import dataclasses
import os
import pathlib
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import data, tasks
from batch_rl_dr3.games import gymnasium_lanes
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.replay.log import checkpoint_format, log_writer
from batch_rl_dr3.runs import atomic

_Columns = dict[str, npt.NDArray[Any]]
# Each may add a row to be cut before, of which a file names 65,536 at most.
_TRANSITIONS_PER_FILE = 50_000
_FILE_BYTES = 256 << 20


def from_arrays(
  states: npt.ArrayLike,
  actions: npt.ArrayLike,
  rewards: npt.ArrayLike,
  next_states: npt.ArrayLike,
  dones: npt.ArrayLike,
  *,
  folder: str | os.PathLike[str],
  environment: str,
  reward_scale: float = 1.0,
) -> pathlib.Path:
  """Writes transitions as a data set, --replay_dir of `train`; returns folder.

  States are [N, ...] as the environment (gymnasium's id, such as CartPole-v1)
  gives them, flattened if they are no array (FlattenObservation). Actions are
  int [N], numbered from 0, or for continuous control float [N, d] in the
  environment's units. Rewards [N] are multiplied by `reward_scale`; those of
  discrete agents have to be in [-1, 1] then. `dones`, bool [N], says that the
  episode ended by itself, so that the value of s' is not backed up: where its
  time ran out it is False.

  Raises:
    ConfigError: if gymnasium does not know the environment.
    DataError: if the arrays do not fit together, or not the environment.
    WriteError: if the folder is there already, or cannot be written.
  """
  folder = pathlib.Path(folder)
  if folder.exists():
    raise errors.WriteError(f'{folder} is there already. Choose another name.')
  names = (*data.COLUMNS[:3], 'next_observations', 'terminals')
  values = (states, actions, rewards, next_states, dones)
  env = gymnasium_lanes.make(environment)
  space = env.action_space
  env.close()
  game: lanes_lib.Game | None = None
  shape: tuple[int, ...]
  if isinstance(space, gymnasium.spaces.Discrete):
    lanes = gymnasium_lanes.create_gymnasium_lanes(environment, num_lanes=1)
    lanes.close()
    game, shape = lanes.game, lanes.game.observation_shape
    low, high = np.array(0), np.array(lanes.game.num_actions - 1)
  else:
    task = tasks.find(environment, tasks.OWN)
    shape, low, high = task.observation_shape, space.low, space.high
  columns = _check_columns(
    dict(zip(names, map(np.asarray, values), strict=True)),
    dict(zip(names, (shape, low.shape, (), shape, ()), strict=True)),
  )
  taken = columns['actions']
  if not ((low <= taken) & (taken <= high)).all():
    raise errors.DataError(
      f'actions reach from {taken.min():g} to {taken.max():g}, and those of '
      f'{environment} are {space}.'
    )
  columns['rewards'] = reward_scale * columns['rewards']
  with atomic.whole_folder(folder) as staging:
    if game is not None:
      _write_log(staging / 'replay_logs', game, columns)
    else:
      columns['actions'] = 2.0 * (taken - low) / (high - low) - 1.0
      attributes = {'game': task.game, 'environment': environment}
      data.write_hdf5(staging / data.DATA, columns, attributes)
    atomic.write_json(
      staging / checkpoint_format.COLLECTION,
      {
        'game': dataclasses.asdict(game) if game else task.game,
        'behaviour': 'from_arrays',
        'reward_scale': reward_scale,
        'num_transitions': len(taken),
      },
    )
  return folder


def _check_columns(
  columns: _Columns, row_shapes: dict[str, tuple[int, ...]]
) -> _Columns:
  """Returns columns whose shapes agree and that hold nothing but numbers."""
  num_rows = len(columns['rewards']) if columns['rewards'].ndim else 0
  for name, column in columns.items():
    shape = (num_rows, *row_shapes[name])
    if column.shape != shape or not num_rows:
      raise errors.DataError(
        f'{name} has shape {column.shape}, and {shape} is needed: as many rows '
        'as there are rewards, one at least, each of the environment.'
      )
    if column.dtype.kind not in 'biuf' or not np.isfinite(column).all():
      raise errors.DataError(
        f'{name} holds what is no finite number; leave such rows out.'
      )
  if not row_shapes['actions'] and columns['actions'].dtype.kind not in 'iu':
    raise errors.DataError(
      f'actions are {columns["actions"].dtype}; those of the environment are '
      'whole numbers.'
    )
  if not np.isin(columns['terminals'], (0, 1)).all():
    raise errors.DataError('dones has to hold a 0 or a 1 for each row.')
  return {**columns, 'terminals': columns['terminals'].astype(bool)}


def _write_log(
  folder: pathlib.Path, game: lanes_lib.Game, columns: _Columns
) -> None:
  """Writes files of which every transition can be sampled."""
  states, following = columns['observations'], columns['next_observations']
  dtype = np.dtype(game.observation_dtype)
  if dtype == np.uint8 and not np.array_equal(states, states.astype(dtype)):
    raise errors.DataError(
      'observations are not all whole numbers from 0 to 255, as those of the '
      'environment are.'
    )
  largest = np.abs(columns['rewards']).max()
  if largest > 1.0:
    raise errors.DataError(
      f'rewards reach {largest:g}, and discrete agents learn from rewards in '
      f'[-1, 1]: give reward_scale={1 / largest:.2g}.'
    )
  num_rows = len(states)
  goes_on = np.zeros(num_rows, bool)
  same = following[:-1] == states[1:]
  goes_on[:-1] = same.reshape(num_rows - 1, -1).all(axis=1)
  row_bytes = max(1, states[0].size * dtype.itemsize)
  size = min(_TRANSITIONS_PER_FILE, max(1_000, _FILE_BYTES // row_bytes))
  # Dopamine samples neither the first row of a file nor the last.
  blank = np.zeros(game.observation_shape, dtype)
  writer = log_writer.LogWriter(
    folder, blank.shape, game.stack_size, 2 * size + 2, dtype
  )
  for start in range(0, num_rows, size):
    end = min(start + size, num_rows)
    writer.cut(blank)
    for row in range(start, end):
      is_end = bool(columns['terminals'][row])
      action, reward = int(columns['actions'][row]), columns['rewards'][row]
      writer.add(states[row], action, float(reward), is_end)
      if not is_end and (row == end - 1 or not goes_on[row]):
        writer.cut(following[row])
    if columns['terminals'][end - 1]:
      writer.cut(blank)
    writer.break_off(at_episode_start=True)
