"""How each run of a sweep stands by its directory, whatever executes it."""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import os
import pathlib

import tqdm

from batch_rl_dr3.runs import mirror, results, run_directory, state
from batch_rl_dr3.sweeping.grid import SweepRun

_Path = str | os.PathLike[str]

# A sweep tells fewer states apart than `state.State`, in the order in which
# they are listed. Done counts results that are kept apart, too.
RUNNING, STALLED, FAILED = 'running', 'stalled', 'failed'
WAITING, DONE = 'waiting', 'done'
STATES = (RUNNING, FAILED, STALLED, WAITING, DONE)
_WORDS = {state.State.STARTING: RUNNING, state.State.DIVERGED: STALLED}
# Runs of one state that are listed; waiting and finished ones are counted.
_LISTED = (RUNNING, FAILED, STALLED)
# What is read of a run.
CONTENTS = mirror.Contents(
  'standing',
  whole=(state.NAME, run_directory.FAILED, run_directory.FINISHED),
  ends=(run_directory.METRICS,),
  sizes=(run_directory.SCORES, state.LOG, state.BEATS),
)


@dataclasses.dataclass(frozen=True)
class Standing:
  """How one run stands, in gradient steps and gradient steps a second."""

  run: SweepRun
  state: str  # One of `STATES`.
  steps: int = 0
  total_steps: int = 0
  rate: float | None = None  # None if it does not run or none is known.
  error: str = ''
  attempts: int = 0

  @property
  def seconds_left(self) -> float | None:
    """Until its last gradient step, at its rate; play is not counted."""
    if self.rate is None:
      return None
    return max(0, self.total_steps - self.steps) / self.rate


def is_done(run: SweepRun, runs: _Path, results_dir: str | None) -> bool:
  """Returns whether a run is finished, or its results are kept apart."""
  if state.is_finished(os.path.join(runs, run.folder), run.num_iterations):
    return True
  return results_dir is not None and run.kept_folder in results.folders(
    results_dir
  )


def read(
  runs_of_sweep: Iterable[SweepRun], runs: _Path, results_dir: str | None = None
) -> list[Standing]:
  """Returns how each run stands, as read in the folder of all runs."""
  return [_read(run, runs, results_dir) for run in runs_of_sweep]


def _read(run: SweepRun, runs: _Path, results_dir: str | None) -> Standing:
  total = run.num_gradient_steps
  if is_done(run, runs, results_dir):
    return Standing(run, DONE, total, total)
  found = state.read(os.path.join(runs, run.folder), is_finished=False)
  return Standing(
    run,
    _WORDS.get(found.state, found.state.value),
    found.steps,
    total,
    found.rate,
    found.error,
    found.attempts,
  )


def measured_rates(
  runs_of_sweep: Sequence[SweepRun], runs: _Path
) -> dict[str, list[float]]:
  """Returns the rates of finished runs, in gradient steps/s, by method."""
  rates: dict[str, list[float]] = {}
  for run in runs_of_sweep:
    folder = pathlib.Path(runs) / run.folder
    if state.is_finished(folder, run.num_iterations):
      rate, _ = state.pace(state.last_rows(folder / run_directory.METRICS))
      if rate is not None:
        rates.setdefault(run.method, []).append(rate)
  return rates


def to_json(standings: Sequence[Standing]) -> str:
  """Returns standings as JSON, a list of objects."""
  return json.dumps(
    [
      {
        'folder': s.run.folder,
        'state': s.state,
        'steps': s.steps,
        'total_steps': s.total_steps,
        'steps_per_second': s.rate,
        'seconds_left': s.seconds_left,
        'error': s.error,
        'attempts': s.attempts,
      }
      for s in standings
    ],
    indent=2,
  )


def to_text(standings: Sequence[Standing], limit: int) -> str:
  """Returns a summary, then unfinished runs, at most `limit` of each state."""
  lines = [_summary(standings)]
  for word in _LISTED:
    found = [s for s in standings if s.state == word]
    rows = [_row(s) for s in found[:limit]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ['', f'{word}:'] if rows else []
    for folder, steps, rate, last in rows:
      cells = (
        folder.ljust(widths[0]),
        steps.rjust(widths[1]),
        rate.rjust(widths[2]),
        last,
      )
      lines.append(f'  {"  ".join(cells)}'.rstrip())
    if len(found) > limit:
      lines.append(f'  and {len(found) - limit:,} more')
  return '\n'.join(lines)


def _summary(standings: Sequence[Standing]) -> str:
  counts = {word: sum(s.state == word for s in standings) for word in STATES}
  listed = ', '.join(f'{n:,} {word}' for word, n in counts.items() if n)
  done = sum(s.steps for s in standings)
  total = sum(s.total_steps for s in standings)
  rate = sum(s.rate or 0.0 for s in standings)
  speed = ''
  if rate:
    left = tqdm.tqdm.format_interval((total - done) / rate)
    speed = f'; {rate:,.0f} steps/s, {left} left at that rate'
  return (
    f'{len(standings):,} runs: {listed}\n'
    f'{done:,} of {total:,} gradient steps{speed}'
  )


def _row(one: Standing) -> tuple[str, str, str, str]:
  """Returns the cells of a run, the last one of any length."""
  last = ''
  if one.state == FAILED or one.error:
    last = f'attempt {one.attempts}: {one.error}'
  elif one.seconds_left is not None:
    last = f'{tqdm.tqdm.format_interval(one.seconds_left)} left'
  return (
    one.run.folder,
    f'{one.steps:,}/{one.total_steps:,}',
    '' if one.rate is None else f'{one.rate:,.1f} steps/s',
    last,
  )
