"""Which commands are about continuous control, told before TensorFlow starts.

A process runs Dopamine or TF-Agents, and what its gin files bind says which.
"""

import pathlib
import re

_INCLUDE = re.compile(r"^\s*include\s+['\"](.+?)['\"]", re.MULTILINE)
_OURS = re.compile(
  r'^\s*(?:ContinuousRunner|collect_control)\.\w+\s*=', re.MULTILINE
)


def is_continuous(gin_text: str, search_path: pathlib.Path) -> bool:
  """Returns whether gin text, or what it includes, binds what is here.

  Args:
    gin_text: as `cli.gin_text` gives it.
    search_path: where included files are looked for by bare name.
  """
  if _OURS.search(gin_text):
    return True
  for name in _INCLUDE.findall(gin_text):
    for path in (pathlib.Path(name), search_path / name):
      if path.is_file():
        if is_continuous(path.read_text(), search_path):
          return True
        break
  return False
