"""Finished runs, made small enough for version control.

What is kept of a run is a run directory in its own right, some 10 kB: `report`
reads it, and the sweep counts it as done.

    provenance.json  without the list of the data's files, and with a command
                     that says RUNS and CACHE in place of a machine's folders
    metrics.csv      the rows of the gradient steps of its evaluations, numbers
                     to 6 digits
    scores.csv       a row per evaluation: the means of its episodes, and how
                     many they are, in a column `episodes`; written last
    finished.json    as it is
"""

from collections.abc import Iterable, Iterator, Mapping
import csv
import io
import itertools
import json
import pathlib
import statistics

from batch_rl_dr3.config import errors
from batch_rl_dr3.runs import mirror, run_directory
from batch_rl_dr3.sweeping.run import Run

# What is read of a run.
CONTENTS = mirror.Contents(
  'kept',
  whole=(
    run_directory.PROVENANCE,
    run_directory.METRICS,
    run_directory.SCORES,
    run_directory.FINISHED,
  ),
)
_MEANS = ('return', 'length')


def keep(run: Run, folder: pathlib.Path, results_dir: str) -> pathlib.Path:
  """Writes what is kept of a finished run.

  Args:
    run: the run.
    folder: its run directory.
    results_dir: where results are kept, see `Run.scores_apart`.

  Returns:
    The folder of what is kept.

  Raises:
    DataError: if the run directory is damaged.
    WriteError: if a file cannot be written.
  """
  episodes = run_directory.read_csv(folder / run_directory.SCORES)
  try:
    evaluations = list(_evaluations(episodes))
    provenance = json.loads((folder / run_directory.PROVENANCE).read_text())
    finished = json.loads((folder / run_directory.FINISHED).read_text())
  except (OSError, KeyError, ValueError) as error:
    raise errors.DataError(f'cannot keep {folder}: {error!r}') from error
  provenance.pop('data', None)
  provenance['command'] = [
    *('python', '-m', 'batch_rl_dr3.train'),
    *run.arguments('RUNS', 'CACHE'),
  ]
  steps = {'0', *(row['gradient_steps'] for row in evaluations)}
  metrics = run_directory.read_csv(folder / run_directory.METRICS)
  measured = {row['gradient_steps']: row for row in metrics}  # The last counts.
  scores = run.scores_apart(results_dir)
  target = run_directory.make_directory(scores.parent)
  run_directory.write_json(target / run_directory.PROVENANCE, provenance)
  run_directory.write_json(target / run_directory.FINISHED, finished)
  run_directory.write_atomically(
    target / run_directory.METRICS,
    _to_csv(
      {name: _short(cell) for name, cell in row.items()}
      for step, row in measured.items()
      if step in steps
    ),
  )
  run_directory.write_atomically(scores, _to_csv(evaluations))
  return target


def _evaluations(
  episodes: Iterable[Mapping[str, str]],
) -> Iterator[dict[str, str]]:
  """Yields a row of means for the episodes of each evaluation."""
  for _, group in itertools.groupby(
    episodes, lambda row: row['gradient_steps']
  ):
    rows = list(group)
    means = {n: statistics.fmean(float(r[n]) for r in rows) for n in _MEANS}
    yield {
      **rows[0],
      **{name: f'{mean:.6g}' for name, mean in means.items()},
      'truncated': str(sum(int(row['truncated']) for row in rows)),
      run_directory.EPISODES: str(len(rows)),
    }


def _short(cell: str) -> str:
  try:
    return f'{float(cell):.6g}'
  except ValueError:
    return cell


def _to_csv(rows: Iterable[Mapping[str, str]]) -> str:
  rows = list(rows)
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()
