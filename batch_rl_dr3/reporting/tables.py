"""What a table is: exact numbers as CSV, rounded ones for page and LaTeX."""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import figures, methods, run_reader, statistics

MISSING = '\N{EN DASH}'
# Beside a number that is computed on fewer runs than there should be.
INCOMPLETE = '\N{DAGGER}'
_LATEX_SYMBOLS = {
  MISSING: '--',
  INCOMPLETE: r'$^\dagger$',
  '±': r'$\pm$',
  '²': '$^2$',
  '●': r'$\bullet$',
  '◐': r'$\odot$',
  '○': r'$\circ$',
  '\u00ad': '',
}


def number(value: Any) -> str:
  """Returns a number with about three digits, or a dash for a missing one."""
  if value is None or pd.isna(value):
    return MISSING
  size = abs(value)
  if isinstance(value, int | np.integer) or size >= 1000:
    return f'{value:,.0f}'
  if size >= 100:
    return f'{value:.1f}'
  if size >= 1 or size == 0:
    return f'{value:.2f}'
  return f'{value:.4f}' if size >= 0.01 else f'{value:.2e}'


def signed(value: Any) -> str:
  """Returns a difference, its sign always shown."""
  text = number(value)
  return text if text == MISSING or value < 0 else f'+{text}'


def exact(value: Any) -> str:
  """Returns a number that somebody has chosen, such as 0.99, as it is."""
  return f'{value:g}'


def percent(value: Any) -> str:
  """Returns a percentage as the paper prints it, with one decimal."""
  return MISSING if pd.isna(value) else f'{value:.1f}'


def interval(value: Any, low: Any, high: Any, complete: Any = True) -> str:
  """Returns '43.7 (39.6, 48.6)', with a dagger if it is incomplete.

  Without ends it is the value alone.
  """
  if pd.isna(value):
    return MISSING
  mark = '' if complete else f' {INCOMPLETE}'
  if pd.isna(low):
    return f'{percent(value)}{mark}'
  return f'{percent(value)} ({percent(low)}, {percent(high)}){mark}'


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    name: in the CSV file; several, where a cell of the page is made of them.
    heading: on the page.
    show: makes the text of a cell of as many values as there are names.
    when: whether the page shows it: 'always', 'never', if its cells 'vary',
      or if any of them is 'known'. The CSV file has every column.
    is_text: whether its cells are words, not numbers.
  """

  name: str | tuple[str, ...]
  heading: str
  show: Callable[..., str] = number
  when: str = 'always'
  is_text: bool = False

  @property
  def names(self) -> tuple[str, ...]:
    """Its columns of the CSV file."""
    return (self.name,) if isinstance(self.name, str) else self.name


def text(
  name: str | tuple[str, ...],
  heading: str,
  show: Callable[..., str] = str,
  when: str = 'always',
) -> Column:
  """Returns a column of words."""
  return Column(name, heading, show, when, is_text=True)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, for the page, for LaTeX and for a CSV file.

  Attributes:
    name: of the files, without their endings.
    title: above the table.
    caption: below it: what the columns mean.
    empty: the sentence that stands in place of a table without rows.
    columns: in order.
    frame: one row per line, exact numbers.
  """

  name: str
  title: str
  caption: str
  empty: str
  columns: tuple[Column, ...]
  frame: pd.DataFrame

  @functools.cached_property
  def shown(self) -> list[Column]:
    """The columns that the page shows."""
    return [c for c in self.columns if _is_shown(c, self.frame[[*c.names]])]

  @functools.cached_property
  def cells(self) -> list[list[str]]:
    """The rows as the page shows them."""
    return [
      [column.show(*(row[name] for name in column.names)) for column in shown]
      for shown in [self.shown]
      for row in self.frame.to_dict('records')
    ]

  def to_csv(self) -> str:
    """Returns the whole table as CSV, an empty cell where nothing is known."""
    return str(self.frame.to_csv(index=False, lineterminator='\n'))

  def to_latex(self) -> str:
    """Returns what the page shows as LaTeX, for the package booktabs."""
    frame = pd.DataFrame(self.cells, columns=[c.heading for c in self.shown])
    latex = frame.to_latex(
      index=False,
      escape=True,
      column_format=''.join('l' if c.is_text else 'r' for c in self.shown),
    )
    for symbol, command in _LATEX_SYMBOLS.items():
      latex = latex.replace(symbol, command)
    return f'% {self.title}. {self.caption}\n{latex}'


def build(
  name: str,
  title: str,
  caption: str,
  empty: str,
  columns: Iterable[Column],
  rows: list[dict[str, Any]],
) -> Table:
  """Returns a table of rows that say each name of each column."""
  columns = tuple(columns)
  names = dict.fromkeys(name for c in columns for name in c.names)
  frame = pd.DataFrame(rows, columns=list(names))
  for column in frame:
    # Steps stay whole numbers even beside a missing one.
    if str(column).endswith('gradient_steps'):
      frame[column] = frame[column].astype('Int64')
  return Table(name, title, caption, empty, columns, frame)


def _is_shown(column: Column, cells: pd.DataFrame) -> bool:
  if column.when == 'vary':
    return len(cells.drop_duplicates()) > 1
  if column.when == 'known':
    return bool(cells.notna().any(axis=None))
  return column.when == 'always'


# What is assumed of a run whose protocol does not say.
DEFAULT_GAMMA = 0.99

_SETTING = (
  text('suite', 'Suite', when='vary'),
  text('game', 'Game', when='vary'),
  text('dataset', 'Data set', when='vary'),
)
_METHOD = text('method', 'Method', methods.display_name)


def _lines(
  collection: run_reader.Collection,
) -> list[tuple[run_reader.Setting, str]]:
  return [
    (setting, method)
    for setting in collection.settings
    for method in collection.methods(setting)
  ]


def final_scores(collection: run_reader.Collection) -> Table:
  """Returns last, best and average return of each method."""
  rows = []
  for setting, method in _lines(collection):
    curve = figures.curve_of(collection, setting, method, run_reader.RETURN)
    if not curve.steps.size:
      continue
    step = curve.last_step
    last = [
      run.evaluations.loc[step]
      for run in collection.select(setting, method)
      if run.replicate in curve.replicates
    ]
    low, high = statistics.mean_interval(curve.values[:, -1]) or (None, None)
    rows.append(
      setting._asdict()
      | {
        'method': method,
        'last_return': curve.last,
        'interval_low': low,
        'interval_high': high,
        'best_return': float(curve.values.max(axis=1).mean()),
        'average_return': float(curve.values.mean()),
        'evaluations': len(curve.steps),
        'episodes': int(sum(row['episodes'] for row in last)),
        'truncated': int(sum(row['truncated'] for row in last)),
        'seeds': curve.num_seeds,
        'gradient_steps': step,
      }
    )
  return build(
    'final_scores',
    'Final scores',
    'Return: the undiscounted sum of rewards of an episode, averaged over the '
    'episodes of an evaluation. Last: at the gradient step given; best: the '
    'highest of all evaluations, which chance favours; average: over all '
    'evaluations of the training. Each is the mean over seeds, at the '
    'evaluations that every seed has. Episodes, and those of them that were '
    'cut short: in the last evaluation, over all seeds. Interval: 95% '
    'bootstrap over seeds; one seed: no interval.',
    'No run has been evaluated yet.',
    (
      *_SETTING,
      _METHOD,
      Column('last_return', 'Last return'),
      Column('interval_low', '95% from', when='known'),
      Column('interval_high', 'to', when='known'),
      Column('best_return', 'Best return'),
      Column('average_return', 'Average return'),
      Column('evaluations', 'Evalu\u00adations'),
      Column('episodes', 'Episodes'),
      Column('truncated', 'Cut short'),
      Column('seeds', 'Seeds'),
      Column('gradient_steps', 'Gradient steps'),
    ),
    rows,
  )


def final_metrics(collection: run_reader.Collection) -> Table:
  """Returns the last logged loss, dot product, rank and Q-value."""
  rows = []
  for setting, method in _lines(collection):
    found = {
      quantity: figures.curve_of(collection, setting, method, quantity)
      for quantity in run_reader.METRICS
    }
    steps = [c.last_step for c in found.values() if c.last_step is not None]
    if not steps:
      continue
    rows.append(
      setting._asdict()
      | {'method': method}
      | {quantity: curve.last for quantity, curve in found.items()}
      | {
        'seeds': max(curve.num_seeds for curve in found.values()),
        'gradient_steps': max(steps),
      }
    )
  return build(
    'final_metrics',
    'Final metrics',
    'The last logged value of each quantity, a mean over a sample of the data '
    'and over seeds. The effective rank is measured less often than the rest: '
    'its last measurement.',
    'No run has logged any metrics yet.',
    (
      *_SETTING,
      _METHOD,
      Column(run_reader.TD_LOSS, 'TD loss'),
      Column(run_reader.DOT_PRODUCT, 'Feature dot product'),
      Column(run_reader.NORM_SQUARED, 'Feature norm²'),
      Column(run_reader.EFFECTIVE_RANK, 'Effective rank'),
      Column(run_reader.MEAN_Q, 'Mean Q'),
      Column('seeds', 'Seeds'),
      Column('gradient_steps', 'Gradient steps'),
    ),
    rows,
  )


# The CSV prefix of each quantity that DR3 is compared on.
_EFFECTS = {
  'dot_product': run_reader.DOT_PRODUCT,
  'effective_rank': run_reader.EFFECTIVE_RANK,
  'return': run_reader.RETURN,
}


def dr3_effect(collection: run_reader.Collection) -> Table:
  """Returns each method with DR3 beside itself without, at equal steps."""
  rows = []
  for setting, base in _lines(collection):
    dr3 = methods.with_dr3(base)
    shared = {r.replicate for r in collection.select(setting, base)} & {
      r.replicate for r in collection.select(setting, dr3)
    }
    if not shared:
      continue
    row: dict[str, Any] = setting._asdict() | {'method': base}
    row['seeds'] = len(shared)
    for prefix, quantity in _EFFECTS.items():
      both = figures.at_last_common_step(
        figures.curve_of(collection, setting, base, quantity, shared),
        figures.curve_of(collection, setting, dr3, quantity, shared),
      )
      step, without, having = both or (None, np.nan, np.nan)
      row[f'{prefix}_gradient_steps'] = step
      row[f'{prefix}_base'] = without
      row[f'{prefix}_dr3'] = having
      row[f'{prefix}_difference'] = having - without
      if quantity == run_reader.DOT_PRODUCT:
        row[f'{prefix}_ratio'] = having / without if without > 0 else np.nan
    steps = {row[f'{prefix}_gradient_steps'] for prefix in _EFFECTS} - {None}
    row['gradient_steps'] = steps.pop() if len(steps) == 1 else None
    rows.append(row)
  # One column of steps on the page, unless the quantities differ in it.
  agree = all(row['gradient_steps'] is not None for row in rows)
  apart, together = ('never', 'always') if agree else ('always', 'never')
  return build(
    'dr3_effect',
    'Effect of DR3',
    'Each method without and with DR3, on the seeds that both have, at the '
    'last gradient step at which both were measured. Ratio: with DR3 over '
    'without; difference: with DR3 minus without; dash: no step in common, '
    'or nothing to divide by.',
    'No method was run both with and without DR3 on the same game, data set '
    'and seed, so there is nothing to compare.',
    (
      *_SETTING,
      _METHOD,
      Column('dot_product_base', 'Dot product'),
      Column('dot_product_dr3', 'with DR3'),
      Column('dot_product_ratio', 'Ratio'),
      Column('dot_product_gradient_steps', 'at step', when=apart),
      Column('effective_rank_base', 'Effective rank'),
      Column('effective_rank_dr3', 'with DR3'),
      Column('effective_rank_difference', 'Difference', signed),
      Column('effective_rank_gradient_steps', 'at step', when=apart),
      Column('return_base', 'Return'),
      Column('return_dr3', 'with DR3'),
      Column('return_difference', 'Difference', signed),
      Column('return_gradient_steps', 'at step', when=apart),
      Column('seeds', 'Seeds'),
      Column('gradient_steps', 'Gradient steps', when=together),
    ),
    rows,
  )


def gamma_of(run: run_reader.Run) -> float:
  """Returns the discount factor of a run's protocol."""
  protocol = run.provenance.get('protocol')
  value = protocol.get('gamma') if isinstance(protocol, dict) else None
  return float(value) if isinstance(value, int | float) else DEFAULT_GAMMA


def co_adaptation(collection: run_reader.Collection) -> Table:
  """Returns where the features meet the criterion of Proposition 3.2."""
  rows = []
  for setting, method in _lines(collection):
    runs = collection.select(setting, method)
    ratios = [run.series(run_reader.RATIO) for run in runs]
    ratios = [r[np.isfinite(r)] for r in ratios]
    ratios = [r for r in ratios if len(r)]
    if not ratios:
      continue
    every = pd.concat(ratios)
    meeting = every[every >= 1]
    rows.append(
      setting._asdict()
      | {
        'method': method,
        'gamma': gamma_of(runs[0]),
        'met': 'yes' if len(meeting) else 'no',
        'rows_meeting': len(meeting),
        'rows': len(every),
        'first_gradient_steps': meeting.index.min() if len(meeting) else None,
        'largest_ratio': float(every.max()),
        'last_ratio': float(np.mean([ratio.iloc[-1] for ratio in ratios])),
        'seeds': len(ratios),
      }
    )
  return build(
    'co_adaptation',
    'Co-adaptation',
    'Proposition 3.2: linear TD-learning on the features does not converge '
    'where gamma times the feature dot product reaches the squared feature '
    'norm, that is where their ratio reaches 1. Here both are means over the '
    'sample of the data, a next state after a terminal counting as 0, so the '
    'ratio is an estimate. Last: the mean over seeds.',
    'No run has logged the ratio.',
    (
      *_SETTING,
      _METHOD,
      text('met', 'Criterion met'),
      Column('rows_meeting', 'in logged steps'),
      Column('rows', 'of'),
      Column('first_gradient_steps', 'first at step', when='known'),
      Column('largest_ratio', 'Largest ratio'),
      Column('last_ratio', 'Last ratio'),
      Column('gamma', 'Gamma', exact),
      Column('seeds', 'Seeds'),
    ),
    rows,
  )


def all_tables(collection: run_reader.Collection) -> list[Table]:
  """Returns every table of the report."""
  return [
    final_scores(collection),
    dr3_effect(collection),
    final_metrics(collection),
    co_adaptation(collection),
  ]
