"""Starting TensorFlow without what it has to say about itself."""

import os
import tempfile


def import_tensorflow() -> None:
  """Imports TensorFlow without what its C++ side writes about itself.

  The import and the first session print a few lines to file descriptor 2
  that no log level reaches. They are kept back, and shown if either fails.
  """
  with tempfile.TemporaryFile() as kept_back:
    stderr = os.dup(2)
    os.dup2(kept_back.fileno(), 2)
    try:
      import tensorflow as tf

      config = tf.compat.v1.ConfigProto(device_count={'GPU': 0})
      with (
        tf.Graph().as_default(),
        tf.compat.v1.Session(config=config) as session,
      ):
        session.run(tf.constant(0))
    except BaseException:
      kept_back.seek(0)
      os.write(stderr, kept_back.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
