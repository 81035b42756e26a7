"""Offline deep RL with DR3 (arXiv:2112.04716) on TensorFlow and Dopamine.

Importing the package selects Keras 2 (`tf-keras`) for TensorFlow, which
Dopamine's networks and TF-Agents need. That choice has to be made before
TensorFlow is imported. `python -m batch_rl_dr3.COMMAND` ends with one line
from here on if it is stopped; nothing else happens here.
"""

import os
import sys

from batch_rl_dr3._version import __version__ as __version__

if sys.version_info[:2] != (3, 11):
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
