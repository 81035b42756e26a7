"""COG's data: images and actions of robots, prior and task, in one store.

Singh et al. 2020 (arXiv:2010.14500) released .npy files of pickled lists of
trajectories. They are read once, into a folder of plain arrays:

  images.npy        uint8 [M, h, w, 3], the T + 1 images of each trajectory
  actions.npy       float32 [N, d], in [-1, 1]
  rewards.npy       float32 [N], 0 in prior data
  terminals.npy     float32 [N]
  trajectories.npy  int64 [K, 3]: first image, first transition, length T;
                    those of the prior data come first
  manifest.json     what it was made of, sizes and SHA-256 of the files

A pickle can execute anything. These are read in a process of their own, by an
unpickler that knows arrays and plain values alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import pickle
from typing import Any, BinaryIO, NamedTuple

import gin
import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.control import tasks
from batch_rl_dr3.runs import atomic

FloatArray = npt.NDArray[np.float32]

FORMAT = 'cog_images'
_VERSION = 1
_MANIFEST = 'manifest.json'
_ARRAYS = ('images', 'actions', 'rewards', 'terminals', 'trajectories')
_HEADER_SIZE = 128  # Of a .npy file: NumPy leaves room for a growing shape.
_GIGABYTES = 32  # Of memory that the process which reads pickles may take.
PRIOR, TASK = 'prior', 'task'


class Trajectory(NamedTuple):
  """T steps of a robot, between T + 1 images."""

  images: npt.NDArray[np.uint8]  # [T + 1, h, w, 3]
  actions: FloatArray  # [T, d]
  rewards: FloatArray  # [T]
  terminals: FloatArray  # [T]


def write(
  folder: pathlib.Path,
  trajectories: Iterable[tuple[str, Trajectory]],
  **made_from: Any,
) -> dict[str, Any]:
  """Writes a store, whole or not at all, and returns its manifest.

  Args:
    folder: the store's, which holds nothing yet.
    trajectories: PRIOR, whose rewards are set to 0, or TASK, and the
      trajectory; those of PRIOR come first.
    **made_from: what the manifest is to hold, too.

  Raises:
    DataError: if there are none, or their images or actions differ in shape.
    WriteError: if the folder is not empty, or cannot be written.
  """
  if folder.exists() and any(folder.iterdir()):
    raise errors.WriteError(f'{folder} exists; give another --output_dir.')
  with atomic.whole_folder(folder) as staging:
    manifest = {
      'format': FORMAT,
      'version': _VERSION,
      **made_from,
      **_write_arrays(staging, trajectories),
      'files': {
        path.name: {
          'size': path.stat().st_size,
          'sha256': atomic.sha256_of(path),
        }
        for path in (staging / f'{name}.npy' for name in _ARRAYS)
      },
    }
    (staging / _MANIFEST).write_text(json.dumps(manifest, indent=1))
  return manifest


def _write_arrays(
  folder: pathlib.Path, trajectories: Iterable[tuple[str, Trajectory]]
) -> dict[str, Any]:
  """Writes the arrays and returns what the manifest says of them."""
  columns: dict[str, list[Any]] = {name: [] for name in _ARRAYS[1:-1]}
  shapes: list[tuple[list[int], int]] = []
  num_prior = 0
  # Too large to hold until their number, which the header says, is known.
  with open(folder / 'images.npy', 'wb') as file:
    file.write(bytes(_HEADER_SIZE))
    for part, (images, *rows) in trajectories:
      shapes.append((list(images.shape[1:]), rows[0].shape[1]))
      if shapes[-1] != shapes[0]:
        (image, size), (first_image, first_size) = shapes[-1], shapes[0]
        raise errors.DataError(
          f'a trajectory has images {image} and {size} actions; those before '
          f'have {first_image} and {first_size}.'
        )
      file.write(images.tobytes())
      num_prior += part == PRIOR
      rows[1] = rows[1] * (part != PRIOR)
      for column, array in zip(columns.values(), rows, strict=True):
        column.append(array)
    if not shapes:
      raise errors.DataError('there is no trajectory to write.')
    lengths = np.array([len(rows) for rows in columns['rewards']], np.int64)
    header = {'descr': '|u1', 'fortran_order': False}
    header['shape'] = (int((lengths + 1).sum()), *shapes[0][0])
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
  for name, arrays in columns.items():
    np.save(folder / f'{name}.npy', np.concatenate(arrays))
  starts = np.cumsum(lengths) - lengths
  places = (starts + np.arange(len(lengths)), starts, lengths)
  np.save(folder / 'trajectories.npy', np.stack(places, axis=1))
  return {
    'image_shape': shapes[0][0],
    'action_size': shapes[0][1],
    'num_transitions': int(lengths.sum()),
    'num_trajectories': len(lengths),
    'num_prior_trajectories': num_prior,
  }


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the manifest of a store and its arrays, images memory-mapped.

  Raises:
    DataError: if it is no store, is of another version, or is damaged.
  """
  try:
    manifest = json.loads((folder / _MANIFEST).read_bytes())
    version = (manifest['format'], manifest['version'])
    manifest['num_prior_trajectories'] += 0
    expected = {n: manifest['files'][f'{n}.npy']['sha256'] for n in _ARRAYS}
  except (OSError, *errors.MALFORMED_JSON) as error:
    raise errors.DataError(
      f'{folder} is no store of images: make one with `data convert --cog` or '
      '`collect`.'
    ) from error
  if version != (FORMAT, _VERSION):
    raise errors.DataError(
      f'{folder} is {version[0]} {version[1]}, not {FORMAT} {_VERSION}.'
    )
  arrays: dict[str, Any] = {}
  for name, sha256 in expected.items():
    path = folder / f'{name}.npy'
    if not path.is_file() or atomic.sha256_of(path) != sha256:
      raise errors.DataError(f'{path} is missing or damaged; make it anew.')
    arrays[name] = np.load(path, 'r' if name == 'images' else None)
  return manifest, arrays


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

  def read(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], ...]:
    """Returns the columns of `data.COLUMNS` in some rows; images are uint8."""
    first = self.positions[rows]
    acted = (self.actions[rows], self.rewards[rows])
    following = (self.images[first + 1], self.terminals[rows])
    return self.images[first], *acted, *following


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
    stored, arrays = read(pathlib.Path(path))
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


# Reading COG's pickles.


class _Unpickler(pickle.Unpickler):
  """Knows arrays and plain values; anything else is an error by its name."""

  def find_class(self, module: str, name: str) -> Any:
    """See pickle."""
    known = {
      ('multiarray', '_reconstruct'): _empty_array,
      ('multiarray', 'scalar'): _number,
      ('numpy', 'ndarray'): np.ndarray,
      ('numpy', 'dtype'): np.dtype,
      ('_codecs', 'encode'): _bytes,
    }.get((module.rpartition('core.')[2], name))
    if known is None or module.split('.')[0] not in ('numpy', '_codecs'):
      raise errors.DataError(
        f'it names {module}.{name}, which a file of trajectories has no use '
        'for, and would execute it if it were loaded. Nothing of it was run.'
      )
    return known


def _empty_array(kind: Any, *_: Any) -> npt.NDArray[Any]:
  """Returns what a pickle then says the shape, the type and the rest of."""
  if kind is not np.ndarray:
    raise errors.DataError('it holds an array that is no plain NumPy array.')
  return np.empty(0, np.uint8)


def _number(kind: np.dtype[Any], content: bytes) -> Any:
  if kind.hasobject or len(content) != kind.itemsize:
    raise errors.DataError('it holds a number that is none.')
  return np.frombuffer(content, kind)[0]


def _bytes(text: str, encoding: str) -> bytes:
  if encoding != 'latin1':
    raise errors.DataError(f'it holds bytes encoded as {encoding!r}.')
  return text.encode('latin1')


def read_trajectories(path: pathlib.Path) -> Iterator[Trajectory]:
  """Yields the trajectories of one of COG's files, else a DataError.

  Call it in a process of its own, which a file that lies about its arrays can
  end.
  """
  place = str(path)
  try:
    with open(path, 'rb') as file:
      content = _unpickled(file)
    for number, trajectory in enumerate(content):
      place = f'{path}: trajectory {number}'
      yield _trajectory(trajectory)
  except errors.DataError as error:
    raise errors.DataError(f'{place}: {error}') from error
  except Exception as error:  # A damaged pickle raises anything.
    raise errors.DataError(
      f'{place} is truncated or damaged ({type(error).__name__}: {error}); '
      'fetch it again.'
    ) from error


def _unpickled(file: BinaryIO) -> npt.NDArray[Any]:
  npy: Any = np.lib.format
  version = npy.read_magic(file)
  if version not in ((1, 0), (2, 0)):
    raise errors.DataError(f'it has version {version} of the .npy format.')
  *_, kind = getattr(npy, f'read_array_header_{version[0]}_0')(file)
  if not kind.hasobject:
    raise errors.DataError(
      f"it holds an array of {kind}, and COG's files a list of trajectories."
    )
  content = _Unpickler(file, encoding='latin1').load()
  if not isinstance(content, np.ndarray) or content.dtype != object:
    raise errors.DataError('it holds no list of trajectories.')
  return content.ravel()


def _trajectory(content: Any) -> Trajectory:
  if not isinstance(content, dict):
    raise errors.DataError(f'it is a {type(content).__name__}, no dict.')
  wanted = ('observations', 'next_observations', 'actions', 'rewards')
  missing = [name for name in wanted if name not in content]
  if missing:
    raise errors.DataError(
      f'it has no {", ".join(missing)}; it has '
      f'{", ".join(sorted(map(str, content)))}.'
    )
  actions = _floats('actions', content['actions'])
  if actions.ndim != 2 or not len(actions):
    raise errors.DataError(f'actions have shape {list(actions.shape)}.')
  largest = float(np.abs(actions).max())
  if largest > 1.0 + 1e-3:
    raise errors.DataError(
      f'actions reach {largest:g}, and those of the task are in [-1, 1].'
    )
  terminals = content.get('terminals', np.zeros(len(actions)))
  columns: dict[str, npt.NDArray[Any]] = {
    'observations': _images(content['observations']),
    'next_observations': _images(content['next_observations']),
    'rewards': _floats('rewards', content['rewards']).reshape(-1),
    'terminals': _floats('terminals', terminals).reshape(-1),
  }
  for name, array in columns.items():
    if len(array) != len(actions):
      raise errors.DataError(
        f'it has {len(actions)} actions and {len(array)} {name}.'
      )
  images, next_images, rewards, terminals = columns.values()
  if not np.array_equal(images[1:], next_images[:-1]):
    raise errors.DataError('a next observation is not the one that follows.')
  return Trajectory(
    np.concatenate([images, next_images[-1:]]), actions, rewards, terminals
  )


def _floats(name: str, values: Any) -> FloatArray:
  try:
    array = np.asarray(values, np.float32)
  except (TypeError, ValueError) as error:
    raise errors.DataError(f'{name} are no numbers.') from error
  if not np.isfinite(array).all():
    raise errors.DataError(f'{name} hold a number that is not finite.')
  return array


def _images(observations: Any) -> npt.NDArray[np.uint8]:
  images: list[Any] = [
    o.get('image') if isinstance(o, dict) else None for o in observations
  ]
  for image in images:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
      raise errors.DataError('an observation has no uint8 image.')
    if image.ndim != 3 or image.shape[2] != 3:
      raise errors.DataError(
        f'an image has shape {list(image.shape)}, and COG has [48, 48, 3].'
      )
  if len({image.shape for image in images}) != 1:
    raise errors.DataError('its images are of several sizes, or none.')
  return np.stack(images)


def convert(sources: Sequence[str], output_dir: str) -> dict[str, Any]:
  """Makes a store of COG's .npy files and returns its manifest.

  The first is the prior data, the others those of the task.

  Raises:
    DataError: if a file cannot be used; nothing of it was executed.
    WriteError: if the store cannot be written.
  """
  for source in sources:
    if not os.path.isfile(source):
      raise errors.DataError(f'no file {source}.')
  spawn = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(1, spawn) as process:
    try:
      return process.submit(_convert, sources, output_dir).result()
    except futures.process.BrokenProcessPool as error:
      raise errors.DataError(
        f'reading {", ".join(sources)} ended its process: the file is damaged, '
        f'or needs more than {_GIGABYTES} GB of memory.'
      ) from error


def _convert(sources: Sequence[str], output_dir: str) -> dict[str, Any]:
  import resource

  limit = _GIGABYTES << 30
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  paths = [pathlib.Path(source) for source in sources]
  parts = [(TASK if i else PRIOR, path) for i, path in enumerate(paths)]
  records = [
    {'part': part, 'file': path.name, 'sha256': atomic.sha256_of(path)}
    for part, path in parts
  ]
  trajectories = (
    (part, trajectory)
    for part, path in parts
    for trajectory in read_trajectories(path)
  )
  try:
    return write(pathlib.Path(output_dir), trajectories, sources=records)
  except errors.BatchRLError as error:
    raise errors.picklable(error) from error
