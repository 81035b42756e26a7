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
from batch_rl_dr3.runs import mirror, state
from batch_rl_dr3.sweeping import standing
from batch_rl_dr3.sweeping.grid import Sweep, SweepRun

# Quantities of the rows that `benchmark --json` writes.
_GRADIENT_STEPS = 'gradient_steps_per_second'
_AGENT_STEPS = 'agent_steps_per_second'


@dataclasses.dataclass(frozen=True)
class Rates:
  """How fast runs are, in steps a second."""

  by_method: Mapping[str, float]  # Gradient steps; '' is any other method.
  play: float | None  # Agent steps of evaluation; None if it is not known.
  origin: str  # Where the numbers are from.

  def of(self, method: str) -> float:
    """Returns the rate of a method, the slowest known if it has none."""
    return self.by_method.get(method, min(self.by_method.values()))


def given(rate: float) -> Rates:
  """Returns a rate that a user states, for all methods."""
  return Rates({'': rate}, None, 'as given')


def of_benchmark(path: str) -> Rates:
  """Returns what `benchmark --json` has written; DataError for other files."""
  try:
    rows = json.loads(pathlib.Path(path).read_text())
    by_method = {
      row['method']: float(row['value'])
      for row in rows
      if row['quantity'] == _GRADIENT_STEPS
    }
    (play,) = (
      float(row['value']) for row in rows if row['quantity'] == _AGENT_STEPS
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.DataError(
      f'{path} is not what `benchmark --json` writes: {error!r}.'
    ) from error
  return Rates(by_method, play, f'benchmark, {path}')


def of_finished(
  runs_of_sweep: Sequence[SweepRun], runs: mirror.Runs
) -> Rates | None:
  """Returns the median rates of finished runs; None if there is none."""
  rates = standing.measured_rates(runs_of_sweep, runs.folder)
  if not rates:
    return None
  count = sum(map(len, rates.values()))
  return Rates(
    {method: statistics.median(found) for method, found in rates.items()},
    None,
    f'median of {count} finished runs in {runs.name}',
  )


@dataclasses.dataclass(frozen=True)
class SweepEstimate:
  """What is left to do, and what it costs; None is what is not known."""

  num_runs: Mapping[str, int]  # By state.
  gradient_steps: int
  agent_steps: int
  run_hours: float | None  # Of runs one after the other.
  num_stores: int
  store_bytes: int  # Of all different stores, uncompressed.
  download_bytes: float | None  # Of their logs.
  run_bytes: float | None  # Of all run directories in the end.
  run_bytes_origin: str


def estimate(
  sweep: Sweep,
  standings: Sequence[standing.Standing],
  runs: mirror.Runs,
  rates: Rates | None,
) -> SweepEstimate:
  """Returns what a sweep will cost from here, at rates that are known."""
  left = [s for s in standings if s.state != standing.DONE]
  stores = {s.run.store: s.run for s in left}
  hours = None if rates is None else sum(_hours(s, rates) for s in left)
  run_bytes, origin = _run_bytes(sweep, standings, runs)
  return SweepEstimate(
    num_runs={
      word: sum(s.state == word for s in standings) for word in standing.STATES
    },
    gradient_steps=sum(s.total_steps - s.steps for s in left),
    agent_steps=round(sum(_agent_steps(s) for s in left)),
    run_hours=hours,
    num_stores=len(stores),
    store_bytes=sum(sweep.store_bytes(run) for run in stores.values()),
    download_bytes=_download_bytes(sweep, list(stores.values())),
    run_bytes=None if run_bytes is None else run_bytes * len(standings),
    run_bytes_origin=origin,
  )


def _agent_steps(one: standing.Standing) -> float:
  share = 1 - one.steps / one.total_steps if one.total_steps else 0.0
  return share * one.run.num_evaluation_agent_steps


def _hours(one: standing.Standing, rates: Rates) -> float:
  seconds = (one.total_steps - one.steps) / rates.of(one.run.method)
  if rates.play is not None:
    seconds += _agent_steps(one) / rates.play
  return seconds / 3600


def _download_bytes(sweep: Sweep, runs: Sequence[SweepRun]) -> float | None:
  """Returns what is read of the logs of runs, one for each store."""
  if sweep.replay_dir is not None and ':' not in sweep.replay_dir:
    return 0.0  # Neither a URL nor minari:ID.
  if sweep.log_gigabytes is None:
    return None
  # Whole files are read to draw rows from them.
  return sum(
    1e9
    * sweep.log_gigabytes
    * (1 if run.bound.get('Subset.rule') == 'uniform' else run.fraction)
    for run in runs
  )


def _run_bytes(
  sweep: Sweep, standings: Sequence[standing.Standing], runs: mirror.Runs
) -> tuple[float | None, str]:
  """Returns the size of one run directory, and where that is from."""
  finished = [
    s.run.folder
    for s in standings
    if state.is_finished(runs.folder / s.run.folder, s.run.num_iterations)
  ]
  if finished:
    # A few tell as much as all, and a thousand take long.
    measured = [runs.num_bytes(folder) for folder in finished[:20]]
    return statistics.mean(measured), f'mean of {len(measured)} finished runs'
  if sweep.run_disk_gigabytes is not None:
    return 1e9 * sweep.run_disk_gigabytes, 'Sweep.run_disk_gigabytes'
  return None, 'known when one is finished, or by Sweep.run_disk_gigabytes'


def describe(
  sweep: Sweep, plan: SweepEstimate, rates: Rates | None, price: float | None
) -> list[str]:
  """Returns an estimate in words, a line each.

  The price is of an hour of a GPU, or of a core where no GPU is used.
  """
  total = sum(plan.num_runs.values())
  states = [f'{n:,} {word}' for word, n in plan.num_runs.items() if n]
  if plan.download_bytes is None:
    download = (
      'not known: bind Sweep.log_gigabytes, or ask `data plan` about one log'
    )
  elif plan.download_bytes:
    download = f'about {_size(plan.download_bytes)}'
  else:
    download = 'nothing, the logs are on this machine'
  disk = 'not known'
  if plan.run_bytes is not None:
    disk = f'about {_size(plan.run_bytes)} for all runs'
  lines = {
    'runs': f'{total:,}: {", ".join(states)}',
    'to do': f'{plan.gradient_steps:,} gradient steps, '
    f'{plan.agent_steps:,} agent steps of play',
    'rate': _describe_rates(rates),
    'time': 'not known without a rate',
    'money': 'not known without a rate',
    'stores': f'{plan.num_stores:,}, {_size(plan.store_bytes)} uncompressed',
    'download': download,
    'run disk': f'{disk} ({plan.run_bytes_origin})',
    'memory': f'{sweep.run_gigabytes:g} GB a run, and its store once a node',
  }
  if plan.run_hours is not None:
    lines |= _describe_hours(sweep, plan.run_hours, price)
  return [f'{name:<10} {line}' for name, line in lines.items()]


def _describe_rates(rates: Rates | None) -> str:
  if rates is None:
    return (
      'not known: give --rate or --benchmark, or let one run finish in --runs'
    )
  listed = ', '.join(
    f'{words.display_name(method) + " " if method else ""}{rate:,.4g}'
    for method, rate in rates.by_method.items()
  )
  play = 'play not counted'
  if rates.play is not None:
    play = f'play {rates.play:,.4g} agent steps/s'
  return f'{listed} gradient steps/s, {play} ({rates.origin})'


def _describe_hours(
  sweep: Sweep, hours: float, price: float | None
) -> dict[str, str]:
  unit = 'GPU' if sweep.num_gpus else 'core'
  gpus = f'{hours * sweep.num_gpus:,.4g} GPU-hours, ' if sweep.num_gpus else ''
  money = f'--price_per_hour, of a {unit}, tells'
  if price is not None:
    amount = hours * (sweep.num_gpus or sweep.num_cpus) * price
    money = f'{amount:,.0f} at {price:g} an hour of a {unit}'
  return {
    'time': f'{gpus}{hours * sweep.num_cpus:,.4g} core-hours, '
    f'{hours / 24:,.4g} days of one run after the other',
    'money': money,
  }


def _size(num_bytes: float) -> str:
  text: str = tqdm.tqdm.format_sizeof(num_bytes, 'B')
  return text
