"""How each run of a sweep stands by its directory, whatever executes it."""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import os

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
  steps_per_second: float | None = None  # None if unknown or not running.
  error: str = ''
  attempts: int = 0

  @property
  def seconds_left(self) -> float | None:
    """Until its last gradient step, at its rate; play is not counted."""
    if self.steps_per_second is None:
      return None
    return max(0, self.total_steps - self.steps) / self.steps_per_second


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
  standings = []
  for run in runs_of_sweep:
    total = run.num_gradient_steps
    if is_done(run, runs, results_dir):
      standings.append(Standing(run, DONE, total, total))
      continue
    s = state.read(os.path.join(runs, run.folder), is_finished=False)
    word = _WORDS.get(s.state, s.state.value)
    standings.append(
      Standing(run, word, s.steps, total, s.rate, s.error, s.attempts)
    )
  return standings


def to_json(standings: Sequence[Standing]) -> str:
  """Returns standings as JSON, a list of objects."""
  names = (
    *('state', 'steps', 'total_steps', 'steps_per_second', 'seconds_left'),
    *('error', 'attempts'),
  )
  rows = [
    {'folder': one.run.folder, **{name: getattr(one, name) for name in names}}
    for one in standings
  ]
  return json.dumps(rows, indent=2)


def to_text(standings: Sequence[Standing], limit: int) -> str:
  """Returns a summary, then unfinished runs, at most `limit` of each state."""
  lines = [_summary(standings)]
  for word in _LISTED:
    found = [s for s in standings if s.state == word]
    rows = [_row(s) for s in found[:limit]]
    if rows:
      a, b, c, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
      lines += ['', f'{word}:']
      lines += [
        f'  {folder:<{a}}  {steps:>{b}}  {rate:>{c}}  {last}'.rstrip()
        for folder, steps, rate, last in rows
      ]
    if len(found) > limit:
      lines.append(f'  and {len(found) - limit:,} more')
  return '\n'.join(lines)


def _summary(standings: Sequence[Standing]) -> str:
  counts = {word: sum(s.state == word for s in standings) for word in STATES}
  listed = ', '.join(f'{n:,} {word}' for word, n in counts.items() if n)
  done = sum(s.steps for s in standings)
  total = sum(s.total_steps for s in standings)
  rate = sum(s.steps_per_second or 0.0 for s in standings)
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
  rate, last = one.steps_per_second, ''
  if one.state == FAILED or one.error:
    last = f'attempt {one.attempts}: {one.error}'
  elif one.seconds_left is not None:
    last = f'{tqdm.tqdm.format_interval(one.seconds_left)} left'
  return (
    one.run.folder,
    f'{one.steps:,}/{one.total_steps:,}',
    '' if rate is None else f'{rate:,.1f} steps/s',
    last,
  )
