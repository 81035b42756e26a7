"""What makes a run this run: its bindings, data, seed and numbers' version.

Where, how fast and how long it runs is no part of it: a longer run continues a
shorter one.
"""

from collections.abc import Mapping
import fnmatch
import hashlib
import json
from typing import Any

# Bindings that may differ between two starts of one run, as patterns of
# 'name.parameter', without scope and module.
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
  '*Runner.trackers',
  '*Tracker.*',
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
  """Returns whether a binding, such as 'Runner.method', tells runs apart."""
  last_two = '.'.join(name.rpartition('/')[2].split('.')[-2:])
  return not any(fnmatch.fnmatchcase(last_two, p) for p in NOT_IDENTITY)


def run_identity(
  bindings: Mapping[str, Any],
  data: Mapping[str, Any],
  seed: int,
  version: int,
) -> str:
  """Returns the name of a run by what it is: 8 digits of a SHA-256.

  `bindings` are gin's, 'name.parameter' to value; `version` is the numbers'.
  `data` are JSON values, the same wherever a run is named or looked for, such
  as {'suite': 'atari', 'game': 'Pong', 'run': 1}, never a place on a disk.
  """
  what = {
    'bindings': {n: repr(v) for n, v in bindings.items() if is_identity(n)},
    'data': dict(data),
    'seed': seed,
    'version': _FIRST_VERSION if version == 1 else version,
  }
  text = json.dumps(what, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()[:8]
