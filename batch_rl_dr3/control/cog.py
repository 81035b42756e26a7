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

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import atomic

FORMAT = 'cog_images'
_VERSION = 1
_MANIFEST = 'manifest.json'
_ARRAYS = (
  *('images.npy', 'actions.npy', 'rewards.npy', 'terminals.npy'),
  'trajectories.npy',
)
_HEADER_SIZE = 128  # Of a .npy file: NumPy leaves room for a growing shape.
PRIOR, TASK = 'prior', 'task'


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """T steps of a robot, between T + 1 images."""

  images: npt.NDArray[np.uint8]
  actions: npt.NDArray[np.float32]
  rewards: npt.NDArray[np.float32]
  terminals: npt.NDArray[np.float32]


class Writer:
  """Writes a store, trajectory by trajectory, as a context.

  The store appears, and `manifest` is known, when the context ends without an
  error.
  """

  manifest: dict[str, Any]

  def __init__(self, folder: pathlib.Path, made_from: Mapping[str, Any]):
    """Begins a store; its manifest is to hold `made_from`, too.

    Raises:
      WriteError: if the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
      raise errors.WriteError(f'{folder} exists; give another --output_dir.')
    folder.parent.mkdir(parents=True, exist_ok=True)
    self._folder = folder
    self._temporary = pathlib.Path(
      tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent)
    )
    self._made_from = dict(made_from)
    # Too large to hold until their number, which the header says, is known.
    self._images = open(self._temporary / 'images.npy', 'wb')  # noqa: SIM115
    self._images.write(bytes(_HEADER_SIZE))
    self._shapes: tuple[tuple[int, ...], int] | None = None
    self._columns: dict[str, list[npt.NDArray[np.float32]]] = {
      name: [] for name in ('actions', 'rewards', 'terminals')
    }
    self._lengths: list[int] = []
    self._num_prior = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      if kind is None:
        self.manifest = self._finish()
    finally:
      self._images.close()
      shutil.rmtree(self._temporary, ignore_errors=True)

  def add(self, trajectory: Trajectory, part: str) -> None:
    """Appends a trajectory of PRIOR, whose rewards are set to 0, or of TASK.

    Raises:
      DataError: if its images or actions have another shape than before.
    """
    is_prior = part == PRIOR
    shapes = (trajectory.images.shape[1:], trajectory.actions.shape[1])
    if self._shapes is None:
      self._shapes = shapes
    if shapes != self._shapes:
      raise errors.DataError(
        f'a trajectory has images {list(shapes[0])} and {shapes[1]} actions; '
        f'those before have {list(self._shapes[0])} and {self._shapes[1]}.'
      )
    self._images.write(trajectory.images.tobytes())
    self._columns['actions'].append(trajectory.actions)
    self._columns['rewards'].append(trajectory.rewards * (not is_prior))
    self._columns['terminals'].append(trajectory.terminals)
    self._lengths.append(len(trajectory.actions))
    self._num_prior += is_prior

  def _finish(self) -> dict[str, Any]:
    if self._shapes is None:
      raise errors.DataError('there is no trajectory to write.')
    lengths = np.array(self._lengths, np.int64)
    self._images.seek(0)
    np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
      self._images,
      {
        'descr': '|u1',
        'fortran_order': False,
        'shape': (int((lengths + 1).sum()), *self._shapes[0]),
      },
    )
    self._images.close()
    arrays = {name: np.concatenate(c) for name, c in self._columns.items()}
    starts = np.cumsum(lengths) - lengths
    arrays['trajectories'] = np.stack(
      [starts + np.arange(len(lengths)), starts, lengths], axis=1
    )
    for name, array in arrays.items():
      np.save(self._temporary / f'{name}.npy', array)
    manifest = {
      'format': FORMAT,
      'version': _VERSION,
      **self._made_from,
      'image_shape': list(self._shapes[0]),
      'action_size': self._shapes[1],
      'num_transitions': int(lengths.sum()),
      'num_trajectories': len(lengths),
      'num_prior_trajectories': self._num_prior,
      'files': {
        name: {
          'size': (self._temporary / name).stat().st_size,
          'sha256': _sha256(self._temporary / name),
        }
        for name in _ARRAYS
      },
    }
    (self._temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    atomic.name_folder(self._temporary, self._folder)
    return manifest


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """The arrays of a store by their files' names; images are memory-mapped."""

  images: npt.NDArray[np.uint8]
  actions: npt.NDArray[np.float32]
  rewards: npt.NDArray[np.float32]
  terminals: npt.NDArray[np.float32]
  trajectories: npt.NDArray[np.int64]
  manifest: dict[str, Any]

  @property
  def num_prior(self) -> int:
    """How many of the trajectories, the first, are prior data."""
    return int(self.manifest['num_prior_trajectories'])


def read(folder: pathlib.Path) -> Store:
  """Returns a store whose files are what its manifest says.

  Raises:
    DataError: if it is no store, is of another version, or is damaged.
  """
  try:
    manifest = json.loads((folder / _MANIFEST).read_bytes())
    version = (manifest['format'], manifest['version'])
    expected = {name: manifest['files'][name]['sha256'] for name in _ARRAYS}
    manifest['num_prior_trajectories'] += 0
  except (OSError, ValueError, KeyError, TypeError) as error:
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
    path = folder / name
    if not path.is_file() or _sha256(path) != sha256:
      raise errors.DataError(f'{path} is missing or damaged; make it anew.')
    arrays[path.stem] = np.load(
      path, 'r' if path.stem == 'images' else None, allow_pickle=False
    )
  return Store(**arrays, manifest=manifest)


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


def _empty_array(kind: Any, shape: Any, code: Any) -> npt.NDArray[Any]:
  if kind is not np.ndarray:
    raise errors.DataError('it holds an array that is no plain NumPy array.')
  del shape, code  # What follows says them again.
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
  """Yields the trajectories of one of COG's files.

  Call it in a process of its own, which a file that lies about its arrays can
  end.

  Raises:
    DataError: if it is no such file, or holds anything else.
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
  version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
  read_header: Any = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if read_header is None:
    raise errors.DataError(f'it has version {version} of the .npy format.')
  *_, kind = read_header(file)
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


def _floats(name: str, values: Any) -> npt.NDArray[np.float32]:
  try:
    array = np.asarray(values, np.float32)
  except (TypeError, ValueError) as error:
    raise errors.DataError(f'{name} are no numbers.') from error
  if not np.isfinite(array).all():
    raise errors.DataError(f'{name} hold a number that is not finite.')
  return array


def _images(observations: Any) -> npt.NDArray[np.uint8]:
  images = []
  for observation in observations:
    image = observation.get('image') if isinstance(observation, dict) else None
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
      raise errors.DataError('an observation has no uint8 image.')
    if image.ndim != 3 or image.shape[2] != 3:
      raise errors.DataError(
        f'an image has shape {list(image.shape)}, and COG has [48, 48, 3].'
      )
    images.append(image)
  if len({image.shape for image in images}) != 1:
    raise errors.DataError('its images are of several sizes, or none.')
  return np.stack(images)


def convert(
  sources: Sequence[str], output_dir: str, gigabytes: float = 32.0
) -> dict[str, Any]:
  """Makes a store of COG's files and returns its manifest.

  Args:
    sources: the .npy files: the prior data first, then those of the task.
    output_dir: the store's folder.
    gigabytes: the memory that the reading process may take.

  Raises:
    DataError: if a file cannot be used; nothing of it was executed.
    WriteError: if the store cannot be written.
  """
  for source in sources:
    if not os.path.isfile(source):
      raise errors.DataError(f'no file {source}.')
  command = [sys.executable, '-m', __name__, str(gigabytes), output_dir]
  done = subprocess.run(
    [*command, *sources], capture_output=True, text=True, check=False
  )
  last = (done.stderr.strip().splitlines() or [''])[-1]
  for kind in (errors.WriteError, errors.DataError):
    if done.returncode == kind.exit_code:
      raise kind(last)
  if done.returncode:
    raise errors.DataError(
      f'reading {", ".join(sources)} ended with {done.returncode}: the file '
      f'is damaged, or needs more than {gigabytes:g} GB of memory. {last}'
    )
  text = (pathlib.Path(output_dir) / _MANIFEST).read_bytes()
  manifest: dict[str, Any] = json.loads(text)
  return manifest


def _main(arguments: Sequence[str]) -> int:
  import resource

  gigabytes, output_dir, *sources = arguments
  limit = int(float(gigabytes) * 2**30)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  paths = [pathlib.Path(source) for source in sources]
  made_from = [
    {
      'part': TASK if number else PRIOR,
      'file': path.name,
      'sha256': _sha256(path),
    }
    for number, path in enumerate(paths)
  ]
  try:
    with Writer(pathlib.Path(output_dir), {'sources': made_from}) as writer:
      for record, path in zip(made_from, paths, strict=True):
        for trajectory in read_trajectories(path):
          writer.add(trajectory, record['part'])
  except errors.BatchRLError as error:
    print(' '.join(str(error).split()), file=sys.stderr)
    return error.exit_code
  return 0


if __name__ == '__main__':
  sys.exit(_main(sys.argv[1:]))
