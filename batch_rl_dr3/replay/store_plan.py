"""Decides which rows of which files of a log make up a local store."""

import pathlib
from typing import Any

from batch_rl_dr3 import errors
from batch_rl_dr3.replay import checkpoint_format
from batch_rl_dr3.replay.subset import Subset


def plan_files(
  source: pathlib.Path, subset: Subset, stack_size: int
) -> tuple[list[dict[str, Any]], list[int]]:
  """Returns which rows of which files make up the store.

  A file's rows are counted as its arrays are long. A buffer that was not full
  when it was saved (add_count below the length) holds only its first
  add_count rows; what lies behind them is never used.

  Args:
    source: the folder of the log.
    subset: the part that is used.
    stack_size: int, frames in a state.

  Returns:
    One dict per file used, as in the manifest, and the suffixes not used.

  Raises:
    DataError: if files are missing, damaged, or disagree with each other.
    ConfigError: if the subset is too small.
  """
  lengths = {
    suffix: _count_rows(source, suffix)
    for suffix in checkpoint_format.list_suffixes(source)
  }
  wanted = subset.rows_per_file(list(lengths.items()), stack_size)
  files: list[dict[str, Any]] = []
  first_row = 0
  for suffix, rows in wanted.items():
    add_count, invalid_range = _read_attributes(source, suffix)
    num_rows = min(rows, add_count)
    if num_rows == 0:
      continue
    files.append(
      {
        'suffix': suffix,
        'first_row': first_row,
        'num_rows': num_rows,
        'num_rows_in_source': lengths[suffix],
        'add_count': add_count,
        'invalid_range': invalid_range,
        'read_to_end': rows == lengths[suffix],
      }
    )
    first_row += num_rows
  if not files:
    raise errors.DataError(f'{source} holds no rows: its buffers are empty.')
  used = {file['suffix'] for file in files}
  return files, [suffix for suffix in lengths if suffix not in used]


def _count_rows(source: pathlib.Path, suffix: int) -> int:
  lengths = {}
  for name in checkpoint_format.ELEMENTS:
    path = checkpoint_format.file_path(source, name, suffix)
    shape = checkpoint_format.read_header(path).shape
    if not shape:
      raise errors.DataError(f'{path} holds a single number, not rows.')
    lengths[name] = shape[0]
  if len(set(lengths.values())) > 1:
    raise errors.DataError(
      f'the files of suffix {suffix} in {source} differ in their number of '
      f'rows: {lengths}. Fetch them again, all from the same run.'
    )
  return lengths['terminal']


def _read_attributes(
  source: pathlib.Path, suffix: int
) -> tuple[int, list[int]]:
  add_count = int(checkpoint_format.read_attribute(source, 'add_count', suffix))
  if add_count < 0:
    path = checkpoint_format.file_path(source, 'add_count', suffix)
    raise errors.DataError(f'{path} is damaged: it says {add_count}.')
  invalid_range = checkpoint_format.read_attribute(
    source, 'invalid_range', suffix
  )
  return add_count, invalid_range.tolist()
