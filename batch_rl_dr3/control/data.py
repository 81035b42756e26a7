"""What a run learns from: D4RL's HDF5 files and Minari's folders, checked.

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

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import sys
from typing import Any

import gin
import h5py
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors, progress, ranges
from batch_rl_dr3.control import tasks
from batch_rl_dr3.runs import atomic, place, retry

# A data set's file in its folder, where it is of D4RL's layout or one's own.
DATA = 'data.hdf5'
FloatArray = npt.NDArray[np.float32]
_Columns = dict[str, npt.NDArray[Any]]
_Flags = npt.NDArray[np.bool_]

# The columns of a transition.
COLUMNS = (
  *('observations', 'actions', 'rewards', 'next_observations', 'terminals'),
)
_MINARI_SCHEME = 'minari:'
# The policy's tanh reaches no bound: actions are kept so far inside.
_ACTION_MARGIN = 1e-5
_NEEDED = ('observations', 'actions', 'rewards', 'terminals')
_OPTIONAL = ('timeouts', 'next_observations')
# What flock answers where another holds the lock, or where there are none.
_LOCK_ERRORS = (errno.EAGAIN, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Rows that a flag may stand beside the end it means.
_FLAG_REACH = 3
# Rows in which an ant has been everywhere.
_MANY_ROWS = 20_000
# A step is a jump beside a flag if it is so many times the largest elsewhere,
# and anywhere if it is so many times the 99th percentile of a long file.
_TIMES_LARGEST = 2.0
_TIMES_PERCENTILE = 10.0
_LONG_FILE = 200
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Transitions:
  """N transitions (s, a, r, s', terminal)."""

  observations: FloatArray  # [N, o]
  actions: FloatArray  # [N, d], inside (-1, 1)
  rewards: FloatArray  # [N]
  next_observations: FloatArray  # [N, o]
  # [N], 1 where the episode ended by itself, 0 where its time ran out.
  terminals: FloatArray
  manifest: dict[str, Any]  # What the data are, for provenance.json.

  def __len__(self) -> int:
    return len(self.rewards)


@gin.configurable
@ranges.checked
@dataclasses.dataclass(frozen=True)
class ControlData:
  """How logged data are made into transitions to learn from."""

  # The share of the transitions that is kept, drawn without replacement.
  fraction: ranges.PositiveShare = 1.0
  fraction_seed: ranges.Natural = 0  # Fixes which.
  # Rewards become scale * (reward + shift); CQL's authors take 4 * (r - 0.5) on
  # antmaze.
  reward_scale: float = 1.0
  reward_shift: float = 0.0
  # A transition with a positive reward counts as the end, as D4RL's antmaze
  # files do and Minari's, which play on at the goal, do not.
  end_at_reward: bool = False
  # The episodes of a D4RL file are cut there.
  max_episode_steps: ranges.Count | None = None

  def load(
    self, path: str, cache_dir: str, game: str, dataset: str = ''
  ) -> tuple[tasks.Task, Transitions]:
    """Returns the task that the data are of, and the transitions.

    Args:
      path: an HDF5 file of D4RL's layout or its URL, the folder of a
        data.hdf5 or of a Minari data set, or minari:ID.
      cache_dir: where what is fetched is kept.
      game: what the data have to be of; gymnasium's id of data of one's own.
      dataset: which data set of it, such as medium; '' takes any.

    Raises:
      ConfigError: if there is no such game, or a package that reads the data
        is not installed.
      DataError: if the data cannot be fetched or used, or are of another game
        or data set.
      WriteError: if there is no room for what is fetched.
    """
    file = _locate(path, cache_dir)
    if (file / DATA).is_file():
      file /= DATA
    if file.is_dir() and not _is_minari(file):
      raise errors.DataError(
        f'{path} is a folder and no Minari data set; of D4RL, name the .hdf5 '
        'file.'
      )
    task = tasks.find(game, tasks.MINARI if file.is_dir() else tasks.D4RL)
    if task.layout == tasks.MINARI:
      task, columns, details = _read_minari(path, file, task, dataset)
    elif task.layout == tasks.OWN:
      columns, details = _read_own(path, file, task), {}
    else:
      limit = self.max_episode_steps
      columns, details = _read_d4rl(path, file, task, dataset, limit)
    columns = _check_columns(path, task, columns)
    manifest = {
      **_describe(path, file),
      'layout': task.layout,
      'num_transitions': len(columns['rewards']),
      **details,
    }
    return task, self._prepare(columns, manifest)

  def _prepare(
    self, columns: _Columns, manifest: dict[str, Any]
  ) -> Transitions:
    num_rows = len(columns['rewards'])
    if self.fraction < 1.0:
      rng = np.random.default_rng(self.fraction_seed)
      size = max(1, round(self.fraction * num_rows))
      rows = np.sort(rng.permutation(num_rows)[:size])
      columns = {name: column[rows] for name, column in columns.items()}
    if self.end_at_reward:
      ends = np.maximum(columns['terminals'], columns['rewards'] > 0)
      columns['terminals'] = ends.astype(np.float32)
    rewards = self.reward_scale * (columns['rewards'] + self.reward_shift)
    columns['rewards'] = rewards.astype(np.float32)
    settings = dataclasses.asdict(self)
    text = json.dumps([manifest['sha256'], settings], sort_keys=True)
    manifest |= {
      'settings': settings,
      'num_transitions_kept': len(rewards),
      'hash': hashlib.sha256(text.encode()).hexdigest(),
    }
    return Transitions(**columns, manifest=manifest)


def _locate(path: str, cache_dir: str) -> pathlib.Path:
  """Returns a file or folder of this machine, fetched if need be."""
  if path.startswith(_MINARI_SCHEME):
    return locate_minari(path)
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
  source = place.open_data(parent, retry.Retry())
  info = source.info(name)
  with (
    source.file(info).open() as stream,
    atomic.whole_file(target) as copy,
    progress.bar(info['size'], name, 'B', unit_scale=True, leave=False) as bar,
  ):
    while chunk := stream.read(_CHUNK):
      copy.write(chunk)
      bar.update(len(chunk))
  return target


def _describe(path: str, file: pathlib.Path) -> dict[str, Any]:
  """Returns the source, size and sha256 of a data file, or of a folder's."""
  main = file / 'data' / 'main_data.hdf5'
  if file.is_dir():  # Of Minari; other formats than HDF5 have many files.
    file = main if main.is_file() else main.parent
  parts = [file]
  if file.is_dir():
    parts = sorted(entry for entry in file.rglob('*') if entry.is_file())
  hashes = [atomic.sha256_of(part) for part in parts]
  if file.is_dir():
    names = [part.relative_to(file).as_posix() for part in parts]
    lines = [f'{h} {name}\n' for h, name in zip(hashes, names, strict=True)]
    hashes = [hashlib.sha256(''.join(lines).encode()).hexdigest()]
  return {
    'source': path if ':' in path else os.path.abspath(path),
    'bytes': sum(part.stat().st_size for part in parts),
    'sha256': hashes[0],
  }


def _check_columns(path: str, task: tasks.Task, columns: _Columns) -> _Columns:
  """Returns float32 columns whose every number was looked at."""
  num_rows = len(columns['rewards'])
  if not num_rows:
    raise errors.DataError(f'{path} holds no transition.')
  row_shapes = {
    'observations': (task.observation_size,),
    'next_observations': (task.observation_size,),
    'actions': (task.action_size,),
  }
  arrays = {}
  for column in COLUMNS:
    shape = (num_rows, *row_shapes.get(column, ()))
    try:
      array = np.ascontiguousarray(columns[column], np.float32)
    except (TypeError, ValueError) as error:
      raise errors.DataError(f'{path}: {column} holds no numbers.') from error
    if array.shape != shape:
      raise errors.DataError(
        f'{path}: {column} has shape {array.shape}, and the task has {shape}. '
        'It is data of another environment.'
      )
    if not np.isfinite(array).all():
      raise errors.DataError(f'{path}: {column} holds a number not finite.')
    arrays[column] = array
  largest = np.abs(arrays['actions']).max()
  if largest > 1.0 + 1e-3:
    raise errors.DataError(
      f'{path}: actions reach {largest:g}, and those of the task are in '
      '[-1, 1].'
    )
  limit = 1.0 - _ACTION_MARGIN
  arrays['actions'] = np.clip(arrays['actions'], -limit, limit)
  return arrays


@contextlib.contextmanager
def data_errors(path: str) -> Iterator[None]:
  """Says of data that HDF5 or Minari refuses what is wrong and what helps."""
  try:
    yield
  except ImportError as error:
    raise errors.ConfigError(
      f'{path} needs a package that is not installed ({error}): pip install '
      '"batch-rl-dr3[d4rl]" "minari[arrow]".'
    ) from error
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
  except (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(AssertionError, StopIteration),
  ) as error:
    raise errors.DataError(
      f'{path} is no whole data set ({type(error).__name__}: {error}).'
    ) from error


# One's own data and D4RL's.


def _read_own(path: str, file: pathlib.Path, task: tasks.Task) -> _Columns:
  """Reads what `write_hdf5` wrote: every row is a transition."""
  with data_errors(path), h5py.File(file, 'r') as opened:
    environment = opened.attrs.get('environment')
    columns = _read_columns(path, opened, COLUMNS)
  if environment != task.environment:
    raise errors.DataError(
      f'{path} is data of {environment}, not of {task.environment}.'
    )
  return columns


def write_hdf5(
  path: pathlib.Path,
  columns: Mapping[str, npt.NDArray[Any]],
  attributes: Mapping[str, Any],
) -> None:
  """Writes columns, one array each; the environment is an attribute."""
  with h5py.File(path, 'w') as file:
    for name, array in columns.items():
      file.create_dataset(name, data=array, compression='gzip')
    file.attrs.update(attributes)


def _read_d4rl(
  path: str,
  file: pathlib.Path,
  task: tasks.Task,
  dataset: str,
  max_episode_steps: int | None,
) -> tuple[_Columns, dict[str, Any]]:
  """Returns the columns and what the manifest says of this layout alone."""
  name = path.rstrip('/').rsplit('/', 1)[-1].removesuffix('.hdf5')
  tasks.check_same(path, 'its name', name, task, dataset)
  with data_errors(path), h5py.File(file, 'r') as opened:
    noted = '-'.join(str(opened.attrs.get(k, '')) for k in ('game', 'kind'))
    tasks.check_same(path, 'its attributes', noted, task, dataset)
    columns = _read_columns(path, opened, _NEEDED)
    goals = opened['infos/goal'][()] if 'infos/goal' in opened else None
  if 'timeouts' not in columns and max_episode_steps is None:
    raise errors.DataError(
      f"{path} has no timeouts, so that where an episode's time ran out is "
      "not known. Bind ControlData.max_episode_steps to cut at the game's "
      'limit, as D4RL does (1000 for gym_mujoco and antmaze, 280 for the '
      'kitchen).'
    )
  _check_maze(path, columns['observations'], goals, task)
  timeouts, mended = _find_timeouts(path, columns, task, max_episode_steps)
  observations = columns['observations']
  columns.setdefault(
    'next_observations', np.concatenate([observations[1:], observations[-1:]])
  )
  is_whole = ~timeouts
  is_whole[-1:] = False
  num_rows = len(columns['rewards'])
  details = {**_name_and_version(name), 'num_rows': num_rows, **mended}
  return {column: columns[column][is_whole] for column in COLUMNS}, details


def _name_and_version(name: str) -> dict[str, str]:
  """Returns what a report tells data sets apart by, as far as it is known."""
  version = tasks.described(name).get('version')
  if version is None:
    return {'name': name}
  return {'name': name.rsplit(f'-{version}', 1)[0], 'version': version}


def _read_columns(path: str, opened: Any, needed: Sequence[str]) -> _Columns:
  missing = [n for n in needed if not isinstance(opened.get(n), h5py.Dataset)]
  if missing:
    raise errors.DataError(
      f'{path} lacks {", ".join(missing)}: it is no such data set.'
    )
  names = {*needed, *(name for name in _OPTIONAL if name in opened)}
  columns = {name: opened[name][()] for name in names}
  for name in {'rewards', 'terminals', 'timeouts'} & names:
    if columns[name].shape[1:] == (1,):  # In the replay files of -v1.
      columns[name] = columns[name][:, 0]
    if name == 'rewards':
      continue
    array = columns[name]
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
      raise errors.DataError(
        f'{path}: {name} has to hold a 0 or a 1 for each row.'
      )
    columns[name] = array.astype(bool)
  num_rows = len(columns['rewards'])
  for name, array in columns.items():
    if len(array) != num_rows:
      raise errors.DataError(
        f'{path}: {name} has {len(array)} rows and rewards {num_rows}.'
      )
  return columns


def _find_timeouts(
  path: str, columns: _Columns, task: tasks.Task, max_episode_steps: int | None
) -> tuple[_Flags, dict[str, int]]:
  """Returns the rows whose s' is of another episode though not terminal.

  And what was mended, for the manifest.
  """
  terminals = columns['terminals']
  timeouts = columns.get('timeouts', np.zeros_like(terminals))
  shift, jumps = _find_jumps(columns, timeouts, task)
  timeouts = _shift(timeouts, shift)
  jumps &= ~terminals & ~timeouts
  timeouts = timeouts | jumps
  ends = terminals | timeouts
  if 'next_observations' in columns:
    # Of an episode that goes on, what follows is the next row.
    following = columns['next_observations'][:-1]
    ends[:-1] |= (following != columns['observations'][1:]).any(axis=1)
  if max_episode_steps is not None:
    starts = np.concatenate([[0], np.flatnonzero(ends) + 1])
    lengths = np.arange(len(ends)) - starts[np.cumsum(ends) - ends]
    cut = lengths % max_episode_steps == max_episode_steps - 1
    timeouts, ends = timeouts | cut, ends | cut
  _check_lengths(path, ends, task)
  gaps = ends[:-1] & ~terminals[:-1] & ~timeouts[:-1]
  mended = {
    'flags_moved_by': shift,
    'num_jumps_without_flag': int(jumps.sum()),
    'num_gaps_without_flag': int(gaps.sum()),
  }
  mended = {key: number for key, number in mended.items() if number}
  if mended:
    what = ', '.join(f'{key} {number}' for key, number in mended.items())
    print(
      f'{path}: timeouts do not stand where episodes end ({what}); no '
      'transition crosses an end.',
      file=sys.stderr,
    )
  return timeouts, mended


def _check_lengths(path: str, ends: _Flags, task: tasks.Task) -> None:
  """Refuses an episode that is longer than the game lets it be."""
  limit = task.max_episode_steps
  starts = np.concatenate([[0], np.flatnonzero(ends) + 1, [len(ends)]])
  lengths = np.diff(starts)
  if limit and lengths.max(initial=0) > limit + _FLAG_REACH:
    longest = int(lengths.argmax())
    raise errors.DataError(
      f'{path}: {lengths[longest]} rows from row {starts[longest]} on have no '
      f'end, but an episode of {task.game} ends after {limit} steps: its '
      'timeouts are missing. Fetch the data set anew, or bind '
      f'ControlData.max_episode_steps = {limit} to cut there, as D4RL does.'
    )


def _find_jumps(
  columns: _Columns, timeouts: _Flags, task: tasks.Task
) -> tuple[int, _Flags]:
  """Returns how far flags stand from jumps in position, and where these are."""
  observations = columns['observations']
  following = columns.get('next_observations', observations[1:])
  jumps = np.zeros(len(observations), bool)
  size = len(following)
  if observations.shape[1:] != following.shape[1:] or not size:
    return 0, jumps  # `_check_columns` says what is wrong.
  positions = slice(task.num_positions)
  moved = following[:, positions] - observations[:size, positions]
  steps = np.zeros(len(observations))
  steps[:size] = np.linalg.norm(np.asarray(moved, np.float64), axis=1)
  is_step = np.arange(len(observations)) < size
  flags = timeouts & is_step
  others = is_step & ~columns['terminals'] & ~flags
  if size >= _LONG_FILE and others.any():
    jumps = steps > _TIMES_PERCENTILE * np.percentile(steps[others], 99)
  reach = range(-_FLAG_REACH, _FLAG_REACH + 1)
  shifted = [_shift(flags, by) for by in reach]
  near = np.any(shifted, axis=0)
  elsewhere = steps[others & ~near & ~jumps]
  if len(elsewhere):
    jumps |= near & (steps > _TIMES_LARGEST * elsewhere.max())
  counts = [int((jumps & flags).sum()) for flags in shifted]
  return reach[int(np.argmax(counts))] if any(counts) else 0, jumps


def _shift(flags: _Flags, by: int) -> _Flags:
  """Returns flags so many rows later; what leaves the file is dropped."""
  rows = np.flatnonzero(flags) + by
  shifted = np.zeros_like(flags)
  shifted[rows[(rows >= 0) & (rows < len(flags))]] = True
  return shifted


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
  is_sure = goals is not None or len(observations) >= _MANY_ROWS
  if size not in holding or (found != size and is_sure):
    raise errors.DataError(
      f'{path}: starts, goals and paths reach ({reach[0]:.1f}, {reach[1]:.1f})'
      f': it is data of an antmaze {found}, not data of {task.game}.'
    )


# Minari's.


def _is_minari(folder: pathlib.Path) -> bool:
  return (folder / 'data' / 'metadata.json').is_file()


def locate_minari(name: str) -> pathlib.Path:
  """Returns the folder of a Minari data set, fetched if it is not here.

  It is named by its id, with or without `minari:`, or its folder.

  Raises:
    ConfigError: if Minari is not installed.
    DataError: if there is no such data set, or it cannot be fetched.
  """
  if _is_minari(pathlib.Path(name)):
    return pathlib.Path(name)
  dataset_id = name.removeprefix(_MINARI_SCHEME)
  with data_errors(name):
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


def _read_minari(
  path: str, folder: pathlib.Path, task: tasks.Task, dataset: str
) -> tuple[tasks.Task, _Columns, dict[str, Any]]:
  """Returns the task, on the data's own scale if any, columns and details.

  An episode holds one observation more than it has steps, so that every step
  is a transition, that of a truncation too.
  """
  with data_errors(path):
    import minari

    opened = minari.MinariDataset(folder / 'data')
    _check_minari(path, opened, task, dataset)
    parts = [_read_episode(path, part) for part in opened.iterate_episodes()]
    metadata = opened.storage.metadata
    low, high = (metadata.get(f'ref_{end}_score') for end in ('min', 'max'))
    if low is not None and high is not None and float(low) < float(high):
      task = dataclasses.replace(task, scale=(float(low), float(high)))
  if not parts:
    raise errors.DataError(f'{path} holds no episode.')
  columns = {n: np.concatenate([part[n] for part in parts]) for n in COLUMNS}
  details = {**_name_and_version(opened.id), 'minari_id': opened.id}
  return task, columns, {**details, 'num_episodes': len(parts)}


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
    name = opened.env_spec.id
    parts = tasks.described(name)
    # Its version is the environment's, and play and diverse have one maze.
    parts = {k: v for k, v in parts.items() if k not in ('version', 'kind')}
    tasks.check_same(
      path, f'its environment, {name},', '-'.join(parts.values()), task
    )


def _read_episode(path: str, episode: Any) -> _Columns:
  observations = tasks.flatten(episode.observations)
  num_observations, num_steps = len(observations), len(episode.rewards)
  if num_observations != num_steps + 1:
    raise errors.DataError(
      f'{path}: episode {episode.id} has {num_observations} observations for '
      f'{num_steps} steps. Minari keeps one more, what was seen after the last '
      'step: write the data set anew with it.'
    )
  return {
    'observations': observations[:-1],
    'actions': np.asarray(episode.actions),
    'rewards': np.asarray(episode.rewards),
    'next_observations': observations[1:],
    'terminals': np.asarray(episode.terminations),
  }


def write_minari(
  folder: pathlib.Path,
  dataset_id: str,
  environment: Any,
  columns: Mapping[str, npt.NDArray[Any]],
) -> None:
  """Writes a data set of whole episodes, observations flat as they are read.

  Minari's files go into data/ below the folder. The columns are `COLUMNS` and
  timeouts, rows in the order of play; the last row ends an episode.
  """
  import gymnasium as gym
  import minari
  from minari.data_collector import EpisodeBuffer
  from minari.dataset import minari_storage

  data = folder / 'data'
  data.mkdir(parents=True)
  spaces = [
    gym.spaces.Box(-bound, bound, columns[name].shape[1:], np.float32)
    for name, bound in (('observations', np.inf), ('actions', 1.0))
  ]
  storage = minari_storage.MinariStorage.new(data, *spaces, environment.spec)
  storage.update_metadata(
    {'dataset_id': dataset_id, 'minari_version': minari.__version__}
  )
  ends = np.flatnonzero(columns['terminals'] | columns['timeouts']) + 1
  episodes = []
  for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
    rows = {name: column[start:end] for name, column in columns.items()}
    shown = [rows['observations'], rows['next_observations'][-1:]]
    episodes.append(
      EpisodeBuffer(
        id=number,
        observations=np.concatenate(shown),
        actions=rows['actions'],
        rewards=rows['rewards'],
        terminations=rows['terminals'],
        truncations=rows['timeouts'],
      )
    )
  storage.update_episodes(episodes)
