"""Estimates the time, cost, disk and download of a sweep's remaining runs.

Every figure follows from a rate that was measured; what is not known is said.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import statistics

import tqdm

from batch_rl_dr3.config import errors
from batch_rl_dr3.reporting import words
from batch_rl_dr3.runs import mirror, run_directory, state
from batch_rl_dr3.sweeping import standing
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun


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
    standings: Sequence[standing.Standing],
    runs: mirror.Mirror,
    rates: Rates | None,
  ):
    """Estimates a sweep from how its runs stand, at rates that are known."""
    self._sweep, self._rates = sweep, rates
    left = [s for s in standings if s.state != standing.DONE]
    stores = list({s.run.store: s.run for s in left}.values())
    steps = [s.total_steps - s.steps for s in left]
    agent_steps = sum(
      (1 - s.steps / s.total_steps if s.total_steps else 0.0)
      * s.run.num_evaluation_agent_steps
      for s in left
    )
    self.num_runs = {
      word: sum(s.state == word for s in standings) for word in standing.STATES
    }
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
    self.run_bytes, self.run_bytes_origin = _run_bytes(sweep, standings, runs)

  def describe(self, price: float | None) -> list[str]:
    """Returns the estimate in words, a line each.

    The price is of an hour of a GPU, or of a core where no GPU is used.
    """
    total = sum(self.num_runs.values())
    states = [f'{n:,} {word}' for word, n in self.num_runs.items() if n]
    if self.download_bytes is None:
      download = (
        'not known: bind Sweep.log_gigabytes, or ask `data plan` about one log'
      )
    elif self.download_bytes:
      download = f'about {_size(self.download_bytes)}'
    else:
      download = 'nothing, the logs are on this machine'
    disk = 'not known'
    if self.run_bytes is not None:
      disk = f'about {_size(self.run_bytes * total)} for all runs'
    time, money = self._describe_hours(price)
    lines = {
      'runs': f'{total:,}: {", ".join(states)}',
      'to do': f'{self.gradient_steps:,} gradient steps, '
      f'{self.agent_steps:,} agent steps of play',
      'rate': self._rates
      or 'not known: give --rate or --benchmark, or let '
      'one run finish in --runs',
      'time': time,
      'money': money,
      'stores': f'{self.num_stores:,}, {_size(self.store_bytes)} uncompressed',
      'download': download,
      'run disk': f'{disk} ({self.run_bytes_origin})',
      'memory': f'{self._sweep.run_gigabytes:g} GB a run, and its store once a '
      'node',
    }
    return [f'{name:<10} {line}' for name, line in lines.items()]

  def _describe_hours(self, price: float | None) -> tuple[str, str]:
    """Returns what runs take, and what that costs."""
    hours = self.run_hours
    if hours is None:
      return ('not known without a rate',) * 2
    num_cpus, num_gpus = self._sweep.num_cpus, self._sweep.num_gpus
    gpus = f'{hours * num_gpus:,.4g} GPU-hours, ' if num_gpus else ''
    time = (
      f'{gpus}{hours * num_cpus:,.4g} core-hours, '
      f'{hours / 24:,.4g} days of one run after the other'
    )
    unit = 'GPU' if num_gpus else 'core'
    if price is None:
      return time, f'--price_per_hour, of a {unit}, tells'
    amount = hours * (num_gpus or num_cpus) * price
    return time, f'{amount:,.0f} at {price:g} an hour of a {unit}'


def _download_bytes(sweep: Sweep, runs: Sequence[SweepRun]) -> float | None:
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


def _run_bytes(
  sweep: Sweep, standings: Sequence[standing.Standing], runs: mirror.Mirror
) -> tuple[float | None, str]:
  finished = _finished([s.run for s in standings], runs)
  if finished:
    # A few tell as much as all, and a thousand take long.
    measured = [runs.num_bytes(run.folder) for run in finished[:20]]
    return statistics.mean(measured), f'mean of {len(measured)} finished runs'
  if sweep.run_disk_gigabytes is not None:
    return 1e9 * sweep.run_disk_gigabytes, 'Sweep.run_disk_gigabytes'
  return None, 'known when one is finished, or by Sweep.run_disk_gigabytes'


def _size(num_bytes: float) -> str:
  text: str = tqdm.tqdm.format_sizeof(num_bytes, 'B')
  return text
