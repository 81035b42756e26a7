"""What makes a run this run, and not another: a pure function of texts.

Two runs are the same if they bind the same, learn from the same data with the
same seed, and are made by versions of this package that come to the same
numbers. Where and how fast they run is no part of it, nor how long: a longer
run goes on with a shorter.
"""

from collections.abc import Mapping
import fnmatch
import hashlib
import json
from typing import Any

# Bindings that may differ between two starts of one run: what is held, run,
# kept or read where, how often it is saved, and how long it is to go on.
# Patterns of 'name.parameter', without scope and module.
NOT_IDENTITY = (
  '*.device',
  '*.max_device_bytes',
  '*.steps_per_call',
  '*Runner.async_evaluation',
  '*Runner.base_dir',
  '*Runner.cache_dir',
  '*Runner.checkpoint_every_minutes',
  '*Runner.keep_checkpoint_every',
  '*Runner.keep_last_checkpoints',
  '*Runner.num_iterations',
  '*Runner.overwrite',
  '*Runner.replay_dir',
  'FsspecSource.*',
  'Retry.*',
  'default_locations.*',
  'open_store.codec',
  'open_store.max_resident_bytes',
  'open_store.progress',
)
# What identities say of the numbers' first version: the package's, then.
_FIRST_VERSION = '0.1.0'


def is_identity(name: str) -> bool:
  """Returns whether a binding tells a run from another.

  Args:
    name: such as 'FixedReplayRunner.method', with or without its scope and
      its module.
  """
  last_two = '.'.join(name.rpartition('/')[2].split('.')[-2:])
  return not any(fnmatch.fnmatchcase(last_two, p) for p in NOT_IDENTITY)


def run_identity(
  bindings: Mapping[str, Any],
  data: Mapping[str, Any],
  seed: int,
  version: int,
) -> str:
  """Returns the name of a run by what it is: 8 hexadecimal digits.

  They are the first of the SHA-256 of its arguments as JSON, so that neither
  the order of a mapping nor the machine changes them. Whoever names a folder
  by it and whoever looks for it must say the same of the data: either what
  only a fetched store knows, {'data_hash': ...}, or what is known before, such
  as {'suite': 'atari', 'game': 'Pong', 'run': 1}; the part of the log that is
  learnt from is then in the bindings of Subset. A place on a disk is neither.

  Args:
    bindings: what gin binds, 'name.parameter' to its value; what is no literal
      counts by its repr(). Those of NOT_IDENTITY are left out.
    data: which data are learnt from; JSON values.
    seed: the run's seed.
    version: of the numbers, `_version.NUMBERS_VERSION`.
  """
  what = {
    'bindings': {n: repr(v) for n, v in bindings.items() if is_identity(n)},
    'data': dict(data),
    'seed': seed,
    'version': _FIRST_VERSION if version == 1 else version,
  }
  text = json.dumps(what, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:8]
