"""Names that come from a file or a bucket, before they become paths.

A manifest, an index or a bucket's listing is foreign text. A name in it may
only mean a file below the folder that it speaks of.
"""

import os
import pathlib
from typing import Any

from batch_rl_dr3.config import errors


def plain(name: Any, source: object, field: str) -> str:
  """Returns `name` if it is a plain relative path, such as `a/b.npy`.

  Args:
    name: what the file says.
    source: the file or the folder of a bucket that says it, for messages.
    field: where in it, such as 'files'.

  Raises:
    DataError: if it is no text, is empty or absolute, or holds `.`, `..`, an
      empty part, a backslash or a character that no file name should hold.
  """
  if not isinstance(name, str) or not _is_plain(name):
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is no plain name of a file '
      'below its folder. The file is damaged or not from this program; '
      'restore it from where it came from.'
    )
  return name


def _is_plain(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return (
    name.isprintable()
    and '\\' not in name
    and all(part not in ('', '.', '..') for part in name.split('/'))
  )


def path_below(
  root: str | os.PathLike[str], name: Any, source: object, field: str
) -> pathlib.Path:
  """Returns the path of a plain name below a folder.

  Args:
    root: the folder.
    name: what the file says.
    source: the file that says it, for messages.
    field: where in it.

  Raises:
    DataError: if the name is not plain, or a link leads out of the folder.
  """
  path = pathlib.Path(root) / plain(name, source, field)
  if not path.resolve().is_relative_to(pathlib.Path(root).resolve()):
    raise errors.DataError(
      f'{source}: {field} names {name!r}, which is a link out of {root}. '
      'Replace the link by what it leads to.'
    )
  return path
