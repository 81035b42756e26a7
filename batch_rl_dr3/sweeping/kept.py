"""What is taken of finished runs: into a study, and into one table of scores.

A study (see `runs.results`) is small enough for version control, some 10 kB a
run. `report` reads it, and the sweep counts its runs as done. Of a run it holds

    provenance.json  without the list of the data's files, and with RUNS and
                     CACHE for a machine's folders in the command
    finished.json    as it is
    metrics.csv      the rows of the gradient steps of its evaluations, numbers
                     to 6 digits
    scores.csv       a row per evaluation: the means of its episodes, and their
                     number in a column `episodes`
"""

from collections.abc import Iterable, Iterator
import importlib.util
import itertools
import os
import pathlib
import statistics
from typing import TYPE_CHECKING

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import (
  atomic,
  mirror,
  records,
  results,
  run_directory,
  run_tables,
  state,
)
from batch_rl_dr3.sweeping.grid import SweepRun

if TYPE_CHECKING:
  import pandas as pd

# What is read of a run to keep it, and for the table.
CONTENTS = mirror.Contents(
  'kept',
  whole=(
    *(run_directory.PROVENANCE, run_directory.METRICS),
    *(run_directory.SCORES, run_directory.FINISHED),
  ),
)
SCORE_CONTENTS = mirror.Contents('scores', whole=(run_directory.SCORES,))
PARQUET, CSV = '.parquet', '.csv'
_MEANS = ('return', 'length')
# The columns of the table, and their types: mostly whole numbers.
_TYPES = {
  **dict.fromkeys((*run_tables.SCORE_COLUMNS, run_tables.EPISODES), 'int64'),
  **dict.fromkeys(('suite', 'game', 'method', 'dataset'), 'string'),
  **dict.fromkeys(_MEANS, 'float64'),
  'run': 'Int64',  # Perhaps unknown.
}


def keep(
  runs_of_sweep: Iterable[SweepRun], runs: pathlib.Path, results_dir: str
) -> list[str]:
  """Adds finished runs that a study lacks to it, and returns their folders.

  DataError if a run directory or the study is damaged.
  """
  study = results.read(results_dir)
  added = {
    run.kept_folder: _condense(run, runs / run.folder)
    for run in runs_of_sweep
    if run.kept_folder not in study
    and state.is_finished(runs / run.folder, run.num_iterations)
  }
  if added:
    results.write(results_dir, {**study, **added})
  return sorted(added)


def _condense(run: SweepRun, folder: pathlib.Path) -> results.KeptRun:
  try:
    episodes = run_tables.read_rows(folder / run_directory.SCORES)
    by_steps = itertools.groupby(episodes, lambda row: row['gradient_steps'])
    evaluations = [_mean(list(rows)) for _, rows in by_steps]
    partial = run_tables.ScoreLog(folder).partial()
    provenance = records.read_provenance(folder)
    finished = records.read_finished(folder)
  except (KeyError, ValueError, errors.DataError) as error:
    raise errors.DataError(f'cannot keep {folder}: {error}') from error
  if partial or provenance is None or finished is None:
    raise errors.DataError(
      f'cannot keep {folder}: it is no finished run with all of its scores. '
      'Rerun `train`, which finishes it.'
    )
  provenance.pop('data', None)
  provenance['command'] = [
    *('python', '-m', 'batch_rl_dr3.train'),
    *run.arguments('RUNS', 'CACHE', local=False),
  ]
  steps = {'0', *(row['gradient_steps'] for row in evaluations)}
  metrics = run_tables.read_rows(folder / run_directory.METRICS)
  measured = {row['gradient_steps']: row for row in metrics}  # The last counts.
  return results.KeptRun(
    {run_directory.PROVENANCE: provenance, run_directory.FINISHED: finished},
    {
      run_directory.SCORES: evaluations,
      run_directory.METRICS: [
        {name: _short(cell) for name, cell in row.items()}
        for step, row in measured.items()
        if step in steps
      ],
    },
  )


def _mean(episodes: list[dict[str, str]]) -> dict[str, str]:
  """Returns a row of means for the episodes of an evaluation."""
  row = {k: v for k, v in episodes[0].items() if k != run_tables.NUM_EPISODES}
  for name in _MEANS:
    row[name] = f'{statistics.fmean(float(e[name]) for e in episodes):.6g}'
  row['truncated'] = str(sum(int(e['truncated']) for e in episodes))
  return {**row, run_tables.EPISODES: str(len(episodes))}


def _short(cell: str) -> str:
  try:
    return f'{float(cell):.6g}'
  except ValueError:
    return cell


def has_parquet() -> bool:
  """Returns whether pyarrow, which writes Parquet, is installed."""
  return importlib.util.find_spec('pyarrow') is not None


def collect(
  runs_of_sweep: Iterable[SweepRun],
  runs: str | os.PathLike[str],
  results_dir: str | None,
) -> 'Iterator[pd.DataFrame]':
  """Yields the scores of each run that has some, kept or not."""
  import pandas as pd  # --help needs none.

  study = {} if results_dir is None else results.read(results_dir)
  for run in runs_of_sweep:
    path = pathlib.Path(runs) / run.folder / run_directory.SCORES
    try:
      if path.exists():
        rows = pd.read_csv(path, dtype='string')
      elif run.kept_folder in study:
        kept_run = study[run.kept_folder]
        rows = pd.DataFrame(kept_run.tables[run_directory.SCORES])
      else:
        continue
      if run_tables.EPISODES not in rows:
        rows[run_tables.EPISODES] = '1'
      columns = {
        name: rows[name] if kind == 'string' else pd.to_numeric(rows[name])
        for name, kind in _TYPES.items()
      }
      yield pd.DataFrame(columns).astype(_TYPES)
    except (OSError, ValueError, KeyError) as error:
      raise errors.DataError(f'cannot read {path}: {error}') from error


def write(tables: 'Iterable[pd.DataFrame]', output: str) -> int:
  """Writes the tables of `collect` into one file; returns the number of rows.

  Raises:
    UsageError: if the file ends in neither .parquet nor .csv, or there is no
      pyarrow for .parquet.
  """
  import pandas as pd

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
  rows = pd.concat(tables)
  with atomic.whole_path(output) as temporary:
    if ending == CSV:
      rows.to_csv(temporary, index=False)
    else:
      rows.to_parquet(temporary, index=False)
  return len(rows)
