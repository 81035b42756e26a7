"""How a sweep stands, as lines of text."""

from collections.abc import Sequence

import tqdm

from batch_rl_dr3.sweeping import standing

# Runs of one state that are listed; waiting and finished ones are counted.
_LISTED = (standing.RUNNING, standing.FAILED, standing.STALLED)


def to_text(standings: Sequence[standing.Standing], limit: int) -> str:
  """Returns a summary, then runs that go on, have failed or have stalled.

  Args:
    standings: how each run stands.
    limit: how many runs of each state are listed.
  """
  lines = [_summary(standings)]
  for state in _LISTED:
    found = [s for s in standings if s.state == state]
    rows = [_row(s) for s in found[:limit]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ['', f'{state}:'] if rows else []
    lines += [_line(row, widths) for row in rows]
    if len(found) > limit:
      lines.append(f'  and {len(found) - limit:,} more')
  return '\n'.join(lines)


def _summary(standings: Sequence[standing.Standing]) -> str:
  counts = {
    state: sum(s.state == state for s in standings) for state in standing.STATES
  }
  listed = ', '.join(f'{n:,} {state}' for state, n in counts.items() if n)
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


def _row(one: standing.Standing) -> tuple[str, ...]:
  """Returns the cells of a run, the last one of any length."""
  left = one.seconds_left
  if one.state == standing.FAILED or one.error:
    last = f'attempt {one.attempts}: {one.error}'
  elif left is not None:
    last = f'{tqdm.tqdm.format_interval(left)} left'
  else:
    last = ''
  return (
    one.run.folder,
    f'{one.steps:,}/{one.total_steps:,}',
    '' if one.rate is None else f'{one.rate:,.1f} steps/s',
    last,
  )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
  cells = [
    row[0].ljust(widths[0]),
    row[1].rjust(widths[1]),
    row[2].rjust(widths[2]),
    row[3],
  ]
  return ('  ' + '  '.join(cells)).rstrip()
