"""The scores of all runs of a sweep in one table."""

from collections.abc import Iterable, Iterator
import contextlib
import importlib.util
import os
import pathlib
from typing import Any

import pandas as pd

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import mirror, run_directory
from batch_rl_dr3.sweeping.run import Run

PARQUET, CSV = '.parquet', '.csv'
# What is read of a run.
CONTENTS = mirror.Contents('scores', whole=(run_directory.SCORES,))
_COLUMNS = (*run_directory.SCORE_COLUMNS, run_directory.EPISODES)
# Columns of text; the others are numbers.
_TEXT = ('suite', 'game', 'method', 'dataset')


def has_parquet() -> bool:
  """Returns whether Parquet can be written: pyarrow has to be installed."""
  return importlib.util.find_spec('pyarrow') is not None


def find(
  run: Run, runs: str | os.PathLike[str], results_dir: str | None
) -> pathlib.Path | None:
  """Returns where the scores of a run are; None if it has none yet."""
  places = [pathlib.Path(runs) / run.folder / run_directory.SCORES]
  if results_dir is not None:
    places.append(run.scores_apart(results_dir))
  return next((place for place in places if place.exists()), None)


def write(paths: Iterable[pathlib.Path], output: str) -> int:
  """Writes the rows of many scores.csv into one file, whole or not at all.

  Args:
    paths: files of `run_directory.SCORE_COLUMNS`. The table has one column
      more, for those of which a row stands for several episodes.
    output: .parquet or .csv.

  Returns:
    The number of rows.

  Raises:
    UsageError: if the file's name has another ending, or there is no pyarrow
      for .parquet.
    DataError: if a file cannot be read.
    WriteError: if the output cannot be written.
  """
  ending = pathlib.Path(output).suffix
  if ending not in (PARQUET, CSV):
    raise errors.UsageError(
      f'--output={output} ends in neither {PARQUET} nor {CSV}.'
    )
  if ending == PARQUET and not has_parquet():
    raise errors.UsageError(
      f'--output={output} needs pyarrow, which is not installed: '
      '`pip install pyarrow`, or give a name that ends in .csv.'
    )
  temporary = f'{output}.{os.getpid()}.tmp'
  num_rows = 0
  try:
    with _writer(temporary, ending) as add:
      for path in paths:
        rows = _read(path)
        add(rows)
        num_rows += len(rows)
    os.replace(temporary, output)
  except OSError as error:
    raise run_directory.WriteError(output, error) from error
  finally:
    pathlib.Path(temporary).unlink(missing_ok=True)
  return num_rows


def _read(path: pathlib.Path) -> pd.DataFrame:
  try:
    table = pd.read_csv(
      path,
      usecols=lambda name: name in _COLUMNS,
      dtype={'run': 'Int64', **dict.fromkeys(_TEXT, 'string')},
    )
    return table.assign(**{_COLUMNS[-1]: table.get(run_directory.EPISODES, 1)})[
      list(_COLUMNS)
    ]
  except (OSError, ValueError, KeyError) as error:
    raise errors.DataError(f'cannot read {path}: {error}') from error


@contextlib.contextmanager
def _writer(path: str, ending: str) -> Iterator[Any]:
  """Yields what adds a table to a file."""
  if ending == CSV:
    with open(path, 'w', newline='') as file:
      yield lambda rows: rows.to_csv(file, index=False, header=not file.tell())
    return
  import pyarrow
  from pyarrow import parquet

  schema = pyarrow.schema(
    [
      (
        name,
        pyarrow.string()
        if name in _TEXT
        else pyarrow.float64()
        if name in ('return', 'length')
        else pyarrow.int64(),
      )
      for name in _COLUMNS
    ]
  )
  with parquet.ParquetWriter(path, schema) as writer:
    yield lambda rows: writer.write_table(
      pyarrow.Table.from_pandas(rows, schema, preserve_index=False)
    )
