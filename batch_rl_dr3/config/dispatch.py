"""Which commands are about continuous control, told before TensorFlow starts.

A process runs Dopamine or TF-Agents, and what its gin files bind says which.
"""

import pathlib

from batch_rl_dr3.config import errors, gin_statements

_OURS = ('ContinuousRunner', 'collect_control')


def is_continuous(gin_text: str, search_path: pathlib.Path) -> bool:
  """Returns whether gin text, or what it includes, binds what is here.

  What cannot be read does not: gin itself is to say so.

  Args:
    gin_text: as `cli.gin_text` gives it.
    search_path: where included files are looked for by bare name.
  """
  try:
    return any(
      isinstance(statement, gin_statements.Binding)
      and statement.selector.rpartition('.')[2] in _OURS
      for _, statement in gin_statements.of_text(gin_text, '', [search_path])
    )
  except errors.ConfigError:
    return False
