"""The only door to Dopamine: the parts the package stands on, by their names.

Three things need care, and all of them are dealt with here and nowhere else:

* dopamine-rl 4.1.2 imports `baselines.common.atari_wrappers`, which it uses
  for PPO preprocessing alone and which cannot be installed on this stack. An
  empty placeholder module stands in for it.
* Its TensorFlow agents build TF1 graphs: TF2 behaviour is switched off for
  the whole process.
* `gin.tf` is broken on TensorFlow >= 2.16, so the optimisers that Dopamine's
  gin files name (`@tf.train.AdamOptimizer()`) are registered by hand.
"""

import contextlib
import importlib.metadata
import io
import logging
import sys
import types

import gin
import tensorflow as tf

from batch_rl_dr3.config import errors

_TESTED_VERSION = '4.1.2'
_found_version = importlib.metadata.version('dopamine-rl')
if _found_version != _TESTED_VERSION:
  raise errors.ConfigError(
    f'dopamine-rl {_found_version} is installed; this package overrides '
    f'private methods of {_TESTED_VERSION} and works with no other. Run '
    'pip install -r requirements.txt.'
  )

for _name in (
  'baselines',
  'baselines.common',
  'baselines.common.atari_wrappers',
):
  if _name not in sys.modules:
    sys.modules[_name] = types.ModuleType(_name)
sys.modules['baselines.common'].atari_wrappers = (  # type: ignore[attr-defined]
  sys.modules['baselines.common.atari_wrappers']
)

# Dopamine imports the old gym, which announces its end at every start.
with contextlib.redirect_stderr(io.StringIO()):
  from dopamine.discrete_domains import atari_lib
from dopamine.tf.agents.dqn import dqn_agent  # noqa: E402
from dopamine.tf.replay_memory import circular_replay_buffer  # noqa: E402

logging.getLogger('tensorflow').setLevel(logging.ERROR)
tf.compat.v1.disable_v2_behavior()

DQNAgent = dqn_agent.DQNAgent
OutOfGraphReplayBuffer = circular_replay_buffer.OutOfGraphReplayBuffer
WrappedReplayBuffer = circular_replay_buffer.WrappedReplayBuffer
AtariPreprocessing = atari_lib.AtariPreprocessing
NatureDQNNetwork = atari_lib.NatureDQNNetwork
create_atari_environment = atari_lib.create_atari_environment
invalid_range = circular_replay_buffer.invalid_range

for _optimizer in ('AdamOptimizer', 'RMSPropOptimizer'):
  gin.external_configurable(
    getattr(tf.compat.v1.train, _optimizer), module='tf.train'
  )
