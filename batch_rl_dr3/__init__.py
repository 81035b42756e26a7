"""Offline deep RL with DR3 (arXiv:2112.04716) on TensorFlow and Dopamine.

Importing the package selects Keras 2 (`tf-keras`) for TensorFlow, which
Dopamine's networks and TF-Agents need. That choice has to be made before
TensorFlow is imported. `python -m batch_rl_dr3.COMMAND` ends with one line
from here on if it is stopped; nothing else happens here.

The functions of the Python API (docs/api.md) are imported when they are first
asked for, so that reading runs takes no TensorFlow.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from batch_rl_dr3._version import __version__ as __version__

if sys.version_info[:2] != (3, 11) and 'BATCH_RL_DR3_NEXT' not in os.environ:
  raise ImportError(
    'batch_rl_dr3 needs Python 3.11 (its pinned TensorFlow stack is tested '
    f'on no other); this is Python {sys.version.split()[0]}.'
  )

if 'tensorflow' in sys.modules and os.environ.get('TF_USE_LEGACY_KERAS') != '1':
  raise ImportError(
    'TensorFlow was imported first and has chosen Keras 3. Import '
    'batch_rl_dr3 before tensorflow, or set TF_USE_LEGACY_KERAS=1.'
  )
os.environ['TF_USE_LEGACY_KERAS'] = '1'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# What Python calls a program while it looks for its module.
if sys.argv[:1] == ['-m']:
  from batch_rl_dr3.config import signals

  signals.leave_until_told_otherwise()

if TYPE_CHECKING:
  from batch_rl_dr3.analysis.diagnosis import (
    measure_features as measure_features,
  )
  from batch_rl_dr3.replay.store.subset import Subset as Subset
  from batch_rl_dr3.reporting.run_reader import read_runs as read_runs
  from batch_rl_dr3.training.own_data import from_arrays as from_arrays
  from batch_rl_dr3.training.policies import (
    evaluate_policy as evaluate_policy,
  )
  from batch_rl_dr3.training.policies import load_policy as load_policy
  from batch_rl_dr3.training.policies import open_store as open_store

_API = {
  'Subset': 'replay.store.subset',
  'evaluate_policy': 'training.policies',
  'from_arrays': 'training.own_data',
  'load_policy': 'training.policies',
  'measure_features': 'analysis.diagnosis',
  'open_store': 'training.policies',
  'read_runs': 'reporting.run_reader',
}


def __getattr__(name: str) -> Any:
  if name not in _API:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_API[name]}'), name)
