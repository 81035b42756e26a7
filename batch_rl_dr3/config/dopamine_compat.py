"""The only door to Dopamine: the parts the package stands on, by their names.

Four things need care, and all of them are dealt with here and nowhere else:

* dopamine-rl 4.1.2 imports `baselines.common.atari_wrappers`, which it uses
  for PPO preprocessing alone and which cannot be installed on this stack. An
  empty placeholder module stands in for it.
* Its TensorFlow agents build TF1 graphs: TF2 behaviour is switched off for
  the whole process.
* `gin.tf` is broken on TensorFlow >= 2.16, so the optimisers that Dopamine's
  gin files name (`@tf.train.AdamOptimizer()`) are registered by hand.
* Gymnasium imports the module of an environment named `module:Name`, and a
  game's name comes from a gin file: such names are refused.
"""

import contextlib
import functools
import importlib.metadata
import io
import logging
import sys
import types
from typing import Any

import gin
import tensorflow as tf

from batch_rl_dr3.config import errors, ranges

_TESTED_VERSION = '4.1.2'
_found_version = importlib.metadata.version('dopamine-rl')
if _found_version != _TESTED_VERSION:
  raise errors.ConfigError(
    f'dopamine-rl {_found_version} is installed; this package overrides '
    f'private methods of {_TESTED_VERSION} and works with no other. Run '
    'pip install -r requirements.txt.'
  )

for _part in ('', '.common', '.common.atari_wrappers'):
  _name = f'baselines{_part}'
  sys.modules.setdefault(_name, types.ModuleType(_name))
sys.modules['baselines.common'].atari_wrappers = (  # type: ignore[attr-defined]
  sys.modules['baselines.common.atari_wrappers']
)

# Dopamine imports the old gym, which announces its end at every start.
with contextlib.redirect_stderr(io.StringIO()):
  from dopamine.discrete_domains import atari_lib
from dopamine.tf.agents.dqn import dqn_agent  # noqa: E402
from dopamine.tf.replay_memory import circular_replay_buffer  # noqa: E402


class _Gym(types.ModuleType):
  """A gym that makes what is registered, and imports nothing for it."""

  def __init__(self, gym: types.ModuleType):
    super().__init__(gym.__name__)
    self._gym = gym

  def __getattr__(self, name: str) -> Any:
    return getattr(self._gym, name)

  def make(self, name: str, **kwargs: Any) -> Any:
    if ':' in name:
      raise ValueError(f'{name!r} would import a module')
    return self._gym.make(name, **kwargs)


atari_lib.gym = _Gym(atari_lib.gym)
atari_lib.legacy_gym = _Gym(atari_lib.legacy_gym)

logging.getLogger('tensorflow').setLevel(logging.ERROR)
tf.compat.v1.disable_v2_behavior()

DQNAgent = dqn_agent.DQNAgent
OutOfGraphReplayBuffer = circular_replay_buffer.OutOfGraphReplayBuffer
WrappedReplayBuffer = circular_replay_buffer.WrappedReplayBuffer
AtariPreprocessing = atari_lib.AtariPreprocessing
NatureDQNNetwork = atari_lib.NatureDQNNetwork
create_atari_environment = atari_lib.create_atari_environment
invalid_range = circular_replay_buffer.invalid_range

_OPTIMIZER_RANGES = {
  'learning_rate': ranges.Positive,
  'epsilon': ranges.Positive,
  **dict.fromkeys(('beta1', 'beta2', 'decay', 'momentum'), ranges.Share),
}


def _register_optimizer(name: str) -> None:
  optimizer = getattr(tf.compat.v1.train, name)

  @functools.wraps(optimizer, updated=())
  def create(*args: Any, **kwargs: Any) -> Any:
    return optimizer(*args, **kwargs)

  gin.external_configurable(
    ranges.checked(create, **_OPTIMIZER_RANGES), name=name, module='tf.train'
  )


_register_optimizer('AdamOptimizer')
_register_optimizer('RMSPropOptimizer')
