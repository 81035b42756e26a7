"""Data sets as they are found, checked: D4RL's HDF5 files, Minari's folders.

D4RL keeps one array a column, all episodes one after the other. Transitions
are those of its own `qlearning_dataset`: without `next_observations`, s' is the
next row's s; a row whose episode ran out of time is left out, since its s' is
another episode's; so is the last row. Where it deviates:

- Flags that stand beside the end of their episode (two rows early in antmaze
  -v0) are moved to it, and no transition crosses a jump in position.
- Old files have no `timeouts`. D4RL then cuts at the environment's time limit,
  which has to be asked for here. Its count starts at 1 after a terminal, so
  that it cuts such an episode a row early; here every episode gets the limit.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
import shutil
import sys
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.control import environments, tasks

MINARI_SCHEME = 'minari:'
FloatArray = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray[Any]]

# The policy's tanh reaches no bound: actions are kept so far inside.
_ACTION_MARGIN = 1e-5
_NEEDED = ('observations', 'actions', 'rewards', 'terminals')
_OPTIONAL = ('timeouts', 'next_observations')
# What flock answers where another holds the lock, or where there are none.
_LOCK_ERRORS = (errno.EAGAIN, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Rows that a flag may stand beside the end it means.
_FLAG_REACH = 3
# A step is a jump beside a flag if it is so many times the largest elsewhere,
# and anywhere if it is so many times the 99th percentile of a long file.
_TIMES_LARGEST = 2.0
_TIMES_PERCENTILE = 10.0
_LONG_FILE = 200


@dataclasses.dataclass(frozen=True)
class Transitions:
  """N transitions (s, a, r, s', terminal).

  Attributes:
    observations: float32 [N, o].
    actions: float32 [N, d], inside (-1, 1).
    rewards: float32 [N].
    next_observations: float32 [N, o].
    terminals: float32 [N], 1 where the episode ended by itself. Where its
      time ran out it is 0.
    manifest: what the data are, for provenance.json.
  """

  observations: npt.NDArray[Any]
  actions: FloatArray
  rewards: FloatArray
  next_observations: npt.NDArray[Any]
  terminals: FloatArray
  manifest: dict[str, Any]

  def __len__(self) -> int:
    return len(self.rewards)

  @property
  def columns(self) -> tuple[npt.NDArray[Any], ...]:
    """The five arrays, in the order of their names above."""
    return (
      self.observations,
      self.actions,
      self.rewards,
      self.next_observations,
      self.terminals,
    )

  def take(self, rows: npt.NDArray[np.int64]) -> 'Transitions':
    """Returns some of the transitions."""
    return Transitions(
      self.observations[rows],
      self.actions[rows],
      self.rewards[rows],
      self.next_observations[rows],
      self.terminals[rows],
      self.manifest,
    )


def checked(
  name: str, task: tasks.Task, columns: Columns, manifest: dict[str, Any]
) -> Transitions:
  """Returns transitions after a look at every number.

  Args:
    name: the file, for errors.
    task: what it has to be data of.
    columns: the arrays of `Transitions`, by name.
    manifest: what the data are.

  Raises:
    DataError: if a shape is not the task's, a number is not finite, or there
      is nothing.
  """
  num_rows = len(columns['rewards'])
  if not num_rows:
    raise errors.DataError(f'{name} holds no transition.')
  expected = {
    'observations': (num_rows, task.observation_size),
    'actions': (num_rows, task.action_size),
    'rewards': (num_rows,),
    'next_observations': (num_rows, task.observation_size),
    'terminals': (num_rows,),
  }
  arrays = {}
  for column, shape in expected.items():
    try:
      array = np.ascontiguousarray(columns[column], np.float32)
    except (TypeError, ValueError) as error:
      raise errors.DataError(f'{name}: {column} holds no numbers.') from error
    if array.shape != shape:
      raise errors.DataError(
        f'{name}: {column} has shape {array.shape}, and the task has {shape}. '
        'It is data of another environment.'
      )
    if not np.isfinite(array).all():
      raise errors.DataError(f'{name}: {column} holds a number not finite.')
    arrays[column] = array
  if np.abs(arrays['actions']).max() > 1.0 + 1e-3:
    raise errors.DataError(
      f'{name}: actions reach {np.abs(arrays["actions"]).max():g}, and those '
      'of the task are in [-1, 1].'
    )
  limit = 1.0 - _ACTION_MARGIN
  arrays['actions'] = np.clip(arrays['actions'], -limit, limit)
  return Transitions(**arrays, manifest=manifest)


def read_d4rl(
  path: str,
  file: pathlib.Path,
  task: tasks.Task,
  dataset: str = '',
  max_episode_steps: int | None = None,
) -> Transitions:
  """Returns the transitions of a D4RL file.

  Args:
    path: the file as it was asked for.
    file: the file on this machine.
    task: what it has to be data of.
    dataset: which data set of the task, such as medium; '' leaves it open.
    max_episode_steps: cut episodes there.

  Raises:
    DataError: if the file is damaged or is not data of the task.
  """
  name = path.rstrip('/').rsplit('/', 1)[-1].removesuffix('.hdf5')
  tasks.check_same(path, 'its name', name, task, dataset)
  columns, attributes, goals = _read_columns(path, file)
  noted = '-'.join(str(attributes.get(k, '')) for k in ('game', 'kind'))
  tasks.check_same(path, 'its attributes', noted, task, dataset)
  num_rows = len(columns['rewards'])
  for column, array in columns.items():
    if len(array) != num_rows:
      raise errors.DataError(
        f'{path}: {column} has {len(array)} rows and rewards {num_rows}.'
      )
    if column in ('terminals', 'timeouts'):
      columns[column] = _flags(path, column, array)
  if 'timeouts' not in columns and max_episode_steps is None:
    raise errors.DataError(
      f"{path} has no timeouts, so that where an episode's time ran out is "
      "not known. Bind ControlData.max_episode_steps to cut at the game's "
      'limit, as D4RL does (1000 for gym_mujoco and antmaze, 280 for the '
      'kitchen).'
    )
  _check_maze(path, columns['observations'], goals, task)
  manifest = {
    **describe(path, file),
    **_name_and_version(name),
    'layout': tasks.D4RL,
    'num_rows': num_rows,
  }
  timeouts = _ends_of_time(path, columns, task, max_episode_steps, manifest)
  if 'next_observations' not in columns:
    columns['next_observations'] = np.concatenate(
      [columns['observations'][1:], columns['observations'][-1:]]
    )
  kept = ~timeouts
  kept[-1:] = False
  columns = {n: a[kept] for n, a in columns.items() if n != 'timeouts'}
  return checked(
    path, task, columns, {**manifest, 'num_transitions': int(kept.sum())}
  )


def _read_columns(
  path: str, file: pathlib.Path
) -> tuple[Columns, dict[str, Any], npt.NDArray[Any] | None]:
  """Returns columns, attributes and the goals of a maze, if noted."""
  with hdf5_errors(path), h5py.File(file, 'r') as opened:
    missing = [
      n for n in _NEEDED if not isinstance(opened.get(n), h5py.Dataset)
    ]
    if missing:
      raise errors.DataError(
        f'{path} lacks {", ".join(missing)}: it is no file of D4RL.'
      )
    optional = [name for name in _OPTIONAL if name in opened]
    columns = {name: opened[name][()] for name in (*_NEEDED, *optional)}
    for name, array in columns.items():  # The replay files of -v1: [N, 1].
      if name in ('rewards', 'terminals', 'timeouts') and array.ndim == 2:
        columns[name] = array[:, 0] if array.shape[1] == 1 else array
    goals = opened['infos/goal'][()] if 'infos/goal' in opened else None
    return columns, dict(opened.attrs), goals


@contextlib.contextmanager
def hdf5_errors(path: str) -> Iterator[None]:
  """Says of a file that HDF5 refuses what is the matter and what helps."""
  try:
    yield
  except OSError as error:
    if error.errno in _LOCK_ERRORS:
      raise errors.DataError(
        f'{path} is locked: another process has it open for writing, or its '
        f'file system, such as NFS, refuses locks ({error}). Wait until it is '
        'closed; where nothing writes to it, set the environment variable '
        'HDF5_USE_FILE_LOCKING=FALSE.'
      ) from error
    if error.errno is not None:
      raise errors.DataError(f'{path} cannot be read: {error}.') from error
    raise errors.DataError(
      f'{path} is no whole HDF5 file ({error}). Fetch it again.'
    ) from error


def _flags(
  path: str, column: str, array: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
  if array.ndim != 1 or not np.isin(array, (0, 1)).all():
    raise errors.DataError(
      f'{path}: {column} has to hold a 0 or a 1 for each row.'
    )
  return array.astype(bool)


def _ends_of_time(
  path: str,
  columns: Columns,
  task: tasks.Task,
  max_episode_steps: int | None,
  manifest: dict[str, Any],
) -> npt.NDArray[np.bool_]:
  """Returns the rows whose s' is of another episode though not terminal.

  What was mended goes into the manifest.

  Raises:
    DataError: if an episode is longer than the game lets it be.
  """
  terminals = columns['terminals']
  timeouts = columns.get('timeouts', np.zeros_like(terminals))
  following = columns.get('next_observations', columns['observations'][1:])
  shift, jumps = _jumps(
    columns['observations'], following, terminals, timeouts, task
  )
  if shift:
    timeouts = _moved(timeouts, shift)
  found = jumps & ~terminals & ~timeouts
  ends = terminals | timeouts | found
  if 'next_observations' in columns:
    # Of an episode that goes on, what follows is the next row.
    gap = (following[:-1] != columns['observations'][1:]).any(axis=1)
    ends[:-1] |= gap
  timeouts = timeouts | found
  if max_episode_steps is not None:
    cut = _cut(ends, max_episode_steps)
    timeouts, ends = timeouts | cut, ends | cut
  limit = task.max_episode_steps
  starts = np.concatenate([[0], np.flatnonzero(ends) + 1, [len(ends)]])
  lengths = np.diff(starts)
  if limit is not None and lengths.max(initial=0) > limit + _FLAG_REACH:
    longest = int(lengths.argmax())
    raise errors.DataError(
      f'{path}: {lengths[longest]} rows from row {starts[longest]} on have no '
      f'end, but an episode of {task.game} ends after {limit} steps: its '
      'timeouts are missing. Fetch the data set anew, or bind '
      f'ControlData.max_episode_steps = {limit} to cut there, as D4RL does.'
    )
  unflagged = int(np.sum(ends[:-1] & ~terminals[:-1] & ~timeouts[:-1]))
  mended = {
    'flags_moved_by': shift,
    'num_jumps_without_flag': int(found.sum()),
    'num_gaps_without_flag': unflagged,
  }
  for key, number in mended.items():
    if number:
      manifest[key] = number
  if any(mended.values()):
    print(
      f'{path}: timeouts do not stand where episodes end ('
      + ', '.join(f'{k} {v}' for k, v in mended.items() if v)
      + '); no transition crosses an end.',
      file=sys.stderr,
    )
  return timeouts


def _jumps(
  observations: npt.NDArray[Any],
  following: npt.NDArray[Any],
  terminals: npt.NDArray[np.bool_],
  timeouts: npt.NDArray[np.bool_],
  task: tasks.Task,
) -> tuple[int, npt.NDArray[np.bool_]]:
  """Returns how far flags stand from jumps in position, and where these are.

  Args:
    observations: [N, o].
    following: [N, o], or [N - 1, o] without the last row's.
    terminals: bool [N].
    timeouts: bool [N].
    task: says which numbers are a position.
  """
  jumps = np.zeros(len(observations), bool)
  positions = slice(task.num_positions)
  if observations.shape[1:] != following.shape[1:] or not len(following):
    return 0, jumps  # `checked` says what is wrong.
  moved = following[:, positions] - observations[: len(following), positions]
  steps = np.linalg.norm(np.asarray(moved, np.float64), axis=1)
  flags, ends = timeouts[: len(steps)], (timeouts | terminals)[: len(steps)]
  if len(steps) >= _LONG_FILE:
    usual = np.percentile(steps[~ends], 99) if not ends.all() else np.inf
    jumps[: len(steps)] = steps > _TIMES_PERCENTILE * usual
  near = flags.copy()
  for distance in range(1, _FLAG_REACH + 1):
    near |= _moved(flags, distance) | _moved(flags, -distance)
  elsewhere = steps[~(near | ends | jumps[: len(steps)])]
  if len(elsewhere):
    jumps[: len(steps)] |= near & (steps > _TIMES_LARGEST * elsewhere.max())
  distances = [
    offset
    for row in np.flatnonzero(flags)
    for offset in sorted(range(-_FLAG_REACH, _FLAG_REACH + 1), key=abs)
    if 0 <= row + offset < len(jumps) and jumps[row + offset]
  ]
  if not distances:
    return 0, jumps
  offsets, counts = np.unique(distances, return_counts=True)
  return int(offsets[counts.argmax()]), jumps


def _moved(flags: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
  """Returns flags so many rows later; what leaves the file is dropped."""
  rows = np.flatnonzero(flags) + by
  moved = np.zeros_like(flags)
  moved[rows[(rows >= 0) & (rows < len(flags))]] = True
  return moved


def _cut(
  ends: npt.NDArray[np.bool_], max_episode_steps: int
) -> npt.NDArray[np.bool_]:
  """Returns where an episode reaches the limit."""
  cut = np.zeros(len(ends), bool)
  length = 0
  for row, end in enumerate(ends):
    cut[row] = length == max_episode_steps - 1
    length = 0 if end or cut[row] else length + 1
  return cut


def _check_maze(
  path: str,
  observations: npt.NDArray[Any],
  goals: npt.NDArray[Any] | None,
  task: tasks.Task,
) -> None:
  """Tells D4RL's mazes apart by where the ant was and was to go."""
  size = tasks.described(task.game).get('maze')
  if size is None or observations.ndim != 2 or observations.shape[1] < 2:
    return
  places = observations[:, :2]
  if goals is not None and goals.shape[1:] == (2,):
    places = np.concatenate([places, goals])
  reach = places.max(axis=0, initial=0.0)
  holding = [
    maze for maze, sides in tasks.D4RL_MAZES.items() if (reach < sides).all()
  ]
  found = holding[0] if holding else 'of another kind'
  is_sure = goals is not None or len(observations) >= tasks.MANY_ROWS
  if size not in holding or (found != size and is_sure):
    raise errors.DataError(
      f'{path}: starts, goals and paths reach ({reach[0]:.1f}, {reach[1]:.1f})'
      f': it is data of an antmaze {found}, not data of {task.game}.'
    )


def _name_and_version(name: str) -> dict[str, str]:
  """Returns what a report tells data sets apart by, as far as it is known."""
  version = tasks.described(name).get('version')
  named = name if version is None else name.rsplit(f'-{version}', 1)[0]
  return {'name': named} | ({} if version is None else {'version': version})


def is_minari(folder: pathlib.Path) -> bool:
  """Returns whether a folder is a Minari data set."""
  return (folder / 'data' / 'metadata.json').is_file()


def locate_minari(name: str) -> pathlib.Path:
  """Returns the folder of a Minari data set, fetched if it is not here.

  Args:
    name: its id, with or without `minari:` before it, or its folder.

  Raises:
    ConfigError: if Minari is not installed.
    DataError: if there is no such data set, or it cannot be fetched.
  """
  if is_minari(pathlib.Path(name)):
    return pathlib.Path(name)
  dataset_id = name.removeprefix(MINARI_SCHEME)
  with minari_errors(name):
    import minari
    from minari.storage import get_dataset_path

    folder = pathlib.Path(get_dataset_path(dataset_id))
  if not folder.is_dir():
    try:
      minari.download_dataset(dataset_id)
    except Exception as error:  # Any client library's.
      shutil.rmtree(folder, ignore_errors=True)
      raise errors.DataError(
        f'cannot fetch Minari data set {dataset_id}: {error}.'
      ) from error
  return folder


def read_minari(
  path: str, folder: pathlib.Path, task: tasks.Task, dataset: str = ''
) -> tuple[tasks.Task, Transitions]:
  """Returns the task, on the data's own scale if any, and the transitions.

  An episode holds one observation more than it has steps, so that every step
  is a transition, that of a truncation too.

  Args:
    path: the data set as it was asked for.
    folder: its folder on this machine.
    task: what it has to be data of.
    dataset: which data set of the task; see `read_d4rl`.

  Raises:
    ConfigError: if a package that reads it is not installed.
    DataError: if it is damaged or is not data of the task.
  """
  parts = []
  with minari_errors(path):
    import minari

    opened = minari.MinariDataset(folder / 'data')
    metadata = opened.storage.metadata
    _check_minari(path, opened, task, dataset)
    for episode in opened.iterate_episodes():
      observations = environments.flatten(episode.observations)
      check_steps(path, episode.id, len(observations), len(episode.rewards))
      parts.append(
        {
          'observations': observations[:-1],
          'actions': np.asarray(episode.actions),
          'rewards': np.asarray(episode.rewards),
          'next_observations': observations[1:],
          'terminals': np.asarray(episode.terminations),
        }
      )
    scale = tuple(
      float(metadata[name])
      for name in ('ref_min_score', 'ref_max_score')
      if metadata.get(name) is not None
    )
  if not parts:
    raise errors.DataError(f'{path} holds no episode.')
  if len(scale) == 2 and scale[0] < scale[1]:
    task = dataclasses.replace(task, scale=scale)
  file = folder / 'data' / 'main_data.hdf5'
  return task, checked(
    path,
    task,
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    {
      **describe(path, file if file.is_file() else folder / 'data'),
      **_name_and_version(opened.id),
      'layout': tasks.MINARI,
      'minari_id': opened.id,
      'num_episodes': len(parts),
      'num_transitions': sum(len(part['rewards']) for part in parts),
    },
  )


@contextlib.contextmanager
def minari_errors(path: str) -> Iterator[None]:
  """Says of a data set that Minari cannot read what is the matter."""
  try:
    with hdf5_errors(path):
      yield
  except ImportError as error:
    raise errors.ConfigError(
      f'{path} needs a package that is not installed ({error}): pip install '
      '"batch-rl-dr3[d4rl]" "minari[arrow]".'
    ) from error
  except (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(AssertionError, StopIteration),
  ) as error:
    raise errors.DataError(
      f'{path} is no whole Minari data set ({type(error).__name__}: {error}).'
    ) from error


def check_steps(
  path: str, episode: Any, num_observations: int, num_steps: int
) -> None:
  """Raises DataError unless an episode has an observation more than steps."""
  if num_observations != num_steps + 1:
    raise errors.DataError(
      f'{path}: episode {episode} has {num_observations} observations for '
      f'{num_steps} steps. Minari keeps one more, what was seen after the last '
      'step: write the data set anew with it.'
    )


def _check_minari(
  path: str, opened: Any, task: tasks.Task, dataset: str
) -> None:
  identity = opened.id
  if task.game.replace('-', '/', 1) not in identity:
    raise errors.DataError(
      f'{path} is {identity}, which is not data of {task.game}.'
    )
  tasks.check_same(path, f'its id, {identity},', identity, task, dataset)
  if opened.env_spec is not None:
    of_environment = tasks.described(opened.env_spec.id)
    of_environment.pop('version', None)
    of_environment.pop('kind', None)  # Play and diverse have one maze.
    tasks.check_same(
      path,
      f'its environment, {opened.env_spec.id},',
      '-'.join(of_environment.values()),
      task,
    )


def write_minari(
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


def describe(path: str, file: pathlib.Path) -> dict[str, Any]:
  """Returns the source, size and sha256 of a data file, or of a folder's.

  Args:
    path: as it was given.
    file: the file or folder on this machine.
  """
  files = [file]
  if file.is_dir():
    files = sorted(entry for entry in file.rglob('*') if entry.is_file())
  digests = []
  for part in files:
    with open(part, 'rb') as opened:
      digests.append(hashlib.file_digest(opened, 'sha256').hexdigest())
  if file.is_dir():
    listed = [
      f'{digest} {part.relative_to(file).as_posix()}\n'
      for digest, part in zip(digests, files, strict=True)
    ]
    digests = [hashlib.sha256(''.join(listed).encode()).hexdigest()]
  is_url = '://' in path or ':' in path
  return {
    'source': path if is_url else os.path.abspath(path),
    'bytes': sum(part.stat().st_size for part in files),
    'sha256': digests[0],
  }
