"""What a run was made with, and whether a directory holds the same run."""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

import tensorflow as tf

import batch_rl_dr3
from batch_rl_dr3._version import NUMBERS_VERSION
from batch_rl_dr3.config import errors, own_code
from batch_rl_dr3.runs import atomic, records, run_directory, run_identity

_PACKAGES = (
  'tensorflow',
  'dopamine-rl',
  'gin-config',
  'numpy',
  'ale-py',
  'gymnasium',
  'MinAtar',
)
# Entries of provenance.json that a run is known by, beside its gin bindings.
_IDENTITY = ('seed', 'data_hash')


def versions() -> dict[str, str]:
  """Returns the versions of Python, this package and what it stands on."""
  return {
    'python': platform.python_version(),
    'batch_rl_dr3': batch_rl_dr3.__version__,
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def git_revision() -> str | None:
  """Returns the checkout's commit, '+' if changed; None outside of one."""
  root = pathlib.Path(batch_rl_dr3.__file__).resolve().parent.parent
  if not (root / '.git').exists() or shutil.which('git') is None:
    return None

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-C', str(root), *arguments],
      capture_output=True,
      text=True,
      check=False,
    ).stdout.strip()

  revision = git('rev-parse', 'HEAD')
  changed = git('status', '--porcelain', '--untracked-files=no')
  return (revision + ('+' if changed else '')) or None


def of_process(device: str) -> dict[str, Any]:
  """Returns what runs: device, versions, commit, own code and command line."""
  found = tf.config.list_physical_devices(device.upper())
  details = tf.config.experimental.get_device_details(found[0])
  return {
    'device': device,
    'device_name': details.get('device_name', platform.machine()),
    'numbers_version': NUMBERS_VERSION,
    'versions': versions(),
    'git_revision': git_revision(),
    'imports': own_code.record(own_code.loaded()),
    'command': [os.path.basename(sys.executable), *sys.orig_argv[1:]],
  }


def run_number(source: str) -> int | None:
  """Returns which logged run of its game a source is, None if not known.

  1 for .../Pong/1, .../Pong/1/replay_logs, and, in RL Unplugged,
  .../Pong/run_1 and .../Pong_run_1/1.1.0.
  """
  path = source.rstrip('/').removesuffix('/replay_logs')
  parts = path.split('/')
  if len(parts) > 1 and re.fullmatch(r'\d+(\.\d+)+', parts[-1]):
    del parts[-1]
  match = re.fullmatch(r'(?:(?:.*_)?run_)?(\d+)', parts[-1])
  return int(match[1]) if match else None


def claim(
  base_dir: pathlib.Path,
  config: str,
  provenance: dict[str, Any],
  overwrite: bool = False,
  check: atomic.Check = atomic.unchecked,
) -> None:
  """Records in a run directory what the run is: its gin config and provenance.

  ConfigError if it holds another run; the first difference is named.
  """
  if overwrite:
    for name in run_directory.RUN_FILES:
      atomic.remove_tree(base_dir / name)
    atomic.remove_tree(base_dir / run_directory.CHECKPOINTS)
  _check_same_run(base_dir, config, provenance)
  atomic.write_json(base_dir / run_directory.PROVENANCE, provenance, check)
  atomic.write_text(base_dir / run_directory.CONFIG, config, check)


def _check_same_run(
  base_dir: pathlib.Path, config: str, provenance: dict[str, Any]
) -> None:
  mend = (
    'Restore it from a backup, choose another --base_dir, or start over with '
    '--overwrite.'
  )
  text = records.read_text(base_dir / run_directory.CONFIG, mend)
  if text is None:
    return
  recorded = records.read_provenance(base_dir, _IDENTITY)
  if recorded is None:
    raise errors.DataError(
      f'{base_dir} holds {run_directory.CONFIG} and no '
      f'{run_directory.PROVENANCE}. {mend}'
    )
  there, here = _bindings(text, recorded), _bindings(config, provenance)
  for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
      raise errors.ConfigError(
        f'{base_dir} holds another run: {name} is {there.get(name)} there and '
        f'{here.get(name)} here. Choose another --base_dir, or start over '
        'with --overwrite.'
      )


def _bindings(config: str, provenance: dict[str, Any]) -> dict[str, str]:
  """Returns what makes a run this run: bindings, seed, data, own code."""
  bindings = {name: str(provenance[name]) for name in _IDENTITY}
  bindings['numbers_version'] = str(provenance.get('numbers_version', 1))
  for name, sha256 in provenance.get('imports', {}).items():
    bindings[f'--import={name}'] = f'sha256 {sha256[:12]}'
  for line in config.replace('\\\n', ' ').splitlines():
    name, separator, value = line.partition('=')
    name = name.strip()
    if separator and name[:1] != '#' and run_identity.is_identity(name):
      bindings[name] = ' '.join(value.split())
  if 'compute_dtype' in provenance:  # What 'auto' has come to.
    bindings['OfflineAgent.compute_dtype'] = repr(provenance['compute_dtype'])
  return bindings
