"""Starting TensorFlow and TF-Agents, and which of them a command needs.

Dopamine switches TensorFlow's v2 behaviour off for the whole process, and
TF-Agents needs it on: what a process's gin files bind says which it is.
"""

import contextlib
import errno
import io
import os
import resource
import sys
import tempfile
from typing import Any
import warnings

from batch_rl_dr3.config import errors, gin_files, signals

# What TensorFlow and an agent map before a run's first step, with a third to
# spare; with less, its libraries end in a segmentation fault.
_ADDRESS_SPACE_BYTES = 4 << 30
# What a configuration of continuous control binds.
_CONTINUOUS = ('ContinuousRunner', 'collect_control')


def is_continuous(gin_text: str) -> bool:
  """Returns whether gin text, or what it includes, is continuous control's.

  Unreadable text is not: gin itself is to say so.
  """
  try:
    return any(
      isinstance(statement, gin_files.Binding)
      and statement.selector.rpartition('.')[2] in _CONTINUOUS
      for _, statement, _ in gin_files.statements_of_text(gin_text, '')
    )
  except errors.ConfigError:
    return False


def import_tensorflow(announce: bool = False) -> None:
  """Imports TensorFlow, and says so first if it is to `announce` it.

  What its C++ side writes to file descriptor 2 is shown only if it fails. A
  signal ends the process meanwhile. ConfigError if the process may not use as
  much address space.
  """
  if 'tensorflow' not in sys.modules:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE_BYTES:
      raise errors.ConfigError(
        f'this process may use {limit / 2**30:.1f} GiB of address space, and '
        f'TensorFlow needs {_ADDRESS_SPACE_BYTES / 2**30:.0f} GiB to start. '
        'Raise the limit (`ulimit -v unlimited`, or the memory of the job).'
      )
    if announce:
      print('Starting TensorFlow...', file=sys.stderr, flush=True)
  with tempfile.TemporaryFile() as output:
    stderr = os.dup(2)
    os.dup2(output.fileno(), 2)
    try:
      with signals.leaving(stderr):
        import tensorflow as tf

        config = tf.compat.v1.ConfigProto(device_count={'GPU': 0})
        with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as s:
          s.run(tf.constant(0))
    except BaseException:
      output.seek(0)
      os.write(stderr, output.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


def import_tf_agents() -> None:
  """Imports TF-Agents; warnings about its syntax are silent from then on.

  Grappler's dependency optimiser is switched off: it drops edges that keep a
  variable's update behind a read of it within the same step. A loss's weight
  exp(x) then at times uses the updated x, and a run does not repeat itself.
  """
  warnings.filterwarnings('ignore', category=SyntaxWarning)
  # It imports the old gym, which announces its end at every start.
  with signals.leaving(), contextlib.redirect_stderr(io.StringIO()):
    import tensorflow as tf
    import tf_agents.agents  # noqa: F401

  tf.config.optimizer.set_experimental_options(
    {'dependency_optimization': False}
  )


def disk_error(error: Any) -> OSError:
  """Returns what a tf.errors.OpError says of a disk, without its graph."""
  import tensorflow as tf

  # This is what TensorFlow makes of it.
  if isinstance(error, tf.errors.ResourceExhaustedError):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return OSError(errno.EIO, error.message.partition('\n')[0])
