"""How the runs of a sweep stand, by their directories, and what is left.

Every figure of an estimate follows from a rate that was measured; what is not
known is said.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import statistics

import tqdm

from batch_rl_dr3.config import errors, templates
from batch_rl_dr3.reporting import words
from batch_rl_dr3.runs import mirror, results, run_directory, state
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun

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
  # Until its last gradient step, at its rate; play is not counted.
  seconds_left: float | None = None
  error: str = ''
  attempts: int = 0


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
    left = None if s.rate is None else max(0, total - s.steps) / s.rate
    standings.append(
      Standing(run, word, s.steps, total, s.rate, left, s.error, s.attempts)
    )
  return standings


def to_json(standings: Iterable[Standing]) -> str:
  """Returns standings as JSON, a list of objects."""
  rows = [{'folder': one.run.folder, **vars(one)} for one in standings]
  for row in rows:
    del row['run']
  return json.dumps(rows, indent=2)


def to_text(standings: Sequence[Standing], limit: int) -> str:
  """Returns a summary, then unfinished runs, at most `limit` of each state."""
  done = sum(s.steps for s in standings)
  total = sum(s.total_steps for s in standings)
  lines = [
    f'{len(standings):,} runs: {_listed(_count(standings))}',
    f'{done:,} of {total:,} gradient steps',
  ]
  if rate := sum(s.steps_per_second or 0.0 for s in standings):
    left = tqdm.tqdm.format_interval((total - done) / rate)
    lines[1] += f'; {rate:,.0f} steps/s, {left} left at that rate'
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


def _count(standings: Iterable[Standing]) -> dict[str, int]:
  found = collections.Counter(s.state for s in standings)
  return {word: found[word] for word in STATES}


def _listed(counts: Mapping[str, int]) -> str:
  return ', '.join(f'{n:,} {word}' for word, n in counts.items() if n)


def _row(one: Standing) -> tuple[str, str, str, str]:
  """Returns the cells of a run, the last one of any length."""
  rate, last = one.steps_per_second, ''
  if one.state == FAILED or one.error:
    last = f'attempt {one.attempts}: {one.error}'
  elif one.seconds_left is not None:
    last = f'{tqdm.tqdm.format_interval(one.seconds_left)} left'
  steps = f'{one.steps:,}/{one.total_steps:,}'
  speed = '' if rate is None else f'{rate:,.1f} steps/s'
  return one.run.folder, steps, speed, last


# What is left.


@dataclasses.dataclass(frozen=True)
class Rates:
  """How fast runs are, in steps a second."""

  by_method: Mapping[str, float]  # Gradient steps; '' is any other method.
  play: float | None  # Agent steps of evaluation; None if it is not known.
  origin: str  # Where the numbers are from.

  def of(self, method: str) -> float:
    """Returns the rate of a method, the slowest known if it has none."""
    return self.by_method.get(method, min(self.by_method.values()))

  def __str__(self) -> str:
    listed = ', '.join(
      f'{words.display_name(method) + " " if method else ""}{rate:,.4g}'
      for method, rate in self.by_method.items()
    )
    play = 'play not counted'
    if self.play is not None:
      play = f'play {self.play:,.4g} agent steps/s'
    return f'{listed} gradient steps/s, {play} ({self.origin})'


def of_benchmark(path: str) -> Rates:
  """Returns what `benchmark --json` has written; DataError for other files."""
  by_quantity: dict[str, dict[str, float]] = {}
  try:
    for row in json.loads(pathlib.Path(path).read_text()):
      rates = by_quantity.setdefault(row['quantity'], {})
      rates[row['method']] = float(row['value'])
    (play,) = by_quantity['agent_steps_per_second'].values()
    by_method = by_quantity.get('gradient_steps_per_second', {})
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.DataError(
      f'{path} is not what `benchmark --json` writes: {error!r}.'
    ) from error
  return Rates(by_method, play, f'benchmark, {path}')


def of_finished(
  runs_of_sweep: Sequence[SweepRun], runs: mirror.Mirror
) -> Rates | None:
  """Returns the median rates of finished runs; None if there is none."""
  rates: dict[str, list[float]] = {}
  for run in _finished(runs_of_sweep, runs):
    rows = state.last_rows(runs.folder / run.folder / run_directory.METRICS)
    rate, _ = state.pace(rows)
    if rate is not None:
      rates.setdefault(run.method, []).append(rate)
  if not rates:
    return None
  count = sum(map(len, rates.values()))
  return Rates(
    {method: statistics.median(found) for method, found in rates.items()},
    None,
    f'median of {count} finished runs in {runs.name}',
  )


def _finished(
  runs_of_sweep: Sequence[SweepRun], runs: mirror.Mirror
) -> list[SweepRun]:
  return [
    run
    for run in runs_of_sweep
    if state.is_finished(runs.folder / run.folder, run.num_iterations)
  ]


class SweepEstimate:
  """What is left to do, and what it costs; None is what is not known."""

  def __init__(
    self,
    sweep: Sweep,
    standings: Sequence[Standing],
    runs: mirror.Mirror,
    rates: Rates | None,
  ):
    """Estimates a sweep from how its runs stand, at rates that are known."""
    self._sweep, self.rates = sweep, rates
    left = [s for s in standings if s.state != DONE]
    stores = list({s.run.store: s.run for s in left}.values())
    steps = [s.total_steps - s.steps for s in left]
    agent_steps = sum(
      (1 - s.steps / s.total_steps if s.total_steps else 0.0)
      * s.run.num_evaluation_agent_steps
      for s in left
    )
    self.num_runs = _count(standings)
    self.gradient_steps = sum(steps)
    self.agent_steps = round(agent_steps)
    self.run_hours: float | None = None  # Of runs one after the other.
    if rates is not None:
      seconds = [
        n / rates.of(s.run.method) for n, s in zip(steps, left, strict=True)
      ]
      play = 0.0 if rates.play is None else agent_steps / rates.play
      self.run_hours = (sum(seconds) + play) / 3600
    self.num_stores = len(stores)
    # Of all different stores, uncompressed, and of their logs.
    self.store_bytes = sum(map(sweep.store_bytes, stores))
    self.download_bytes = _download_bytes(sweep, stores)
    # Of a run directory in the end, and where that is from.
    self.run_bytes: float | None = None
    self.run_bytes_origin = 'Sweep.run_disk_gigabytes'
    # A few tell as much as all, and a thousand take long.
    if finished := _finished([s.run for s in standings], runs)[:20]:
      sizes = [runs.num_bytes(run.folder) for run in finished]
      self.run_bytes = statistics.mean(sizes)
      self.run_bytes_origin = f'mean of {len(finished)} finished runs'
    elif sweep.run_disk_gigabytes is not None:
      self.run_bytes = 1e9 * sweep.run_disk_gigabytes

  def describe(self, price: float | None) -> str:
    """Returns the estimate in words, a line each.

    The price is of an hour of a GPU, or of a core where no GPU is used.
    """
    texts = templates.environment(__package__, keep_trailing_newline=True)
    texts.filters |= {
      'number': format,
      'size': lambda number: tqdm.tqdm.format_sizeof(number, 'B'),
    }
    return texts.get_template('plan.txt.jinja').render(
      estimate=self,
      sweep=self._sweep,
      states=_listed(self.num_runs),
      price=price,
    )


def _download_bytes(sweep: Sweep, runs: Iterable[SweepRun]) -> float | None:
  """Returns what is read of the logs of runs, one for each store."""
  if sweep.replay_dir is not None and ':' not in sweep.replay_dir:
    return 0.0  # Neither a URL nor minari:ID.
  if sweep.log_gigabytes is None:
    return None
  # Whole files are read to draw rows from them.
  shares = (
    1.0 if run.bound.get('Subset.rule') == 'uniform' else run.fraction
    for run in runs
  )
  return 1e9 * sweep.log_gigabytes * sum(shares)
