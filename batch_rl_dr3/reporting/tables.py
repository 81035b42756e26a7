"""What a table is, and the tables of runs: exact as CSV, rounded elsewhere."""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
  statistics,
  words,
)
from batch_rl_dr3.reporting.run_reader import Collection, Run

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
# What is assumed of a run whose protocol does not say.
DEFAULT_GAMMA = 0.99

Row = dict[str, Any]


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
  ends = '' if pd.isna(low) else f' ({percent(low)}, {percent(high)})'
  return f'{percent(value)}{ends}' + ('' if complete else f' {INCOMPLETE}')


def spread(mean: Any, deviation: Any) -> str:
  """Returns '37.50 ± 12.50', or the mean alone."""
  if pd.isna(mean) or pd.isna(deviation):
    return number(mean)
  return f'{number(mean)} ± {number(deviation)}'


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

  def is_shown(self, frame: pd.DataFrame) -> bool:
    """Returns whether the page shows it of a table."""
    cells = frame[[*self.names]]
    if self.when == 'vary':
      return len(cells.drop_duplicates()) > 1
    if self.when == 'known':
      return bool(cells.notna().any(axis=None))
    return self.when == 'always'


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
    return [column for column in self.columns if column.is_shown(self.frame)]

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
  section: str,
  columns: Iterable[Column],
  rows: pd.DataFrame | list[Row],
  name: str = '',
  **values: Any,
) -> Table:
  """Returns a table of rows that say each name of each column.

  Args:
    section: where words.toml has its title, its caption and `empty`.
    columns: in order.
    rows: exact values by name.
    name: of the files; '' for the section.
    **values: what stands in braces in the caption and the title.
  """
  columns = tuple(columns)
  names = dict.fromkeys(name for c in columns for name in c.names)
  frame = pd.DataFrame(rows, columns=list(names))
  for column in frame:
    # Steps stay whole numbers even beside a missing one.
    if str(column).endswith('gradient_steps'):
      frame[column] = frame[column].astype('Int64')
  title, caption, empty = (
    words.say(section, part, **values) for part in ('title', 'caption', 'empty')
  )
  return Table(name or section, title, caption, empty, columns, frame)


_SETTING = (
  text('suite', 'Suite', when='vary'),
  text('game', 'Game', when='vary'),
  text('dataset', 'Data set', when='vary'),
)
_METHOD = text('method', 'Method', words.display_name)
_SEEDS = Column('seeds', 'Seeds')
_STEPS = Column('gradient_steps', 'Gradient steps')


def final_scores(collection: Collection) -> Table:
  """Returns last, best and average return of each method."""
  rows = []
  for setting, method in collection.lines:
    curve = figures.curve_of(collection, setting, method, run_reader.RETURN)
    if not curve.steps.size:
      continue
    last = pd.DataFrame(
      run.evaluations.loc[curve.last_step]
      for run in collection.select(setting, method)
      if run.replicate in curve.replicates
    )
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
        'episodes': int(last['episodes'].sum()),
        'truncated': int(last['truncated'].sum()),
        'seeds': curve.num_seeds,
        'gradient_steps': curve.last_step,
      }
    )
  return build(
    'final_scores',
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
      _SEEDS,
      _STEPS,
    ),
    rows,
  )


def final_metrics(collection: Collection) -> Table:
  """Returns the last logged loss, dot product, rank and Q-value."""
  rows = []
  for setting, method in collection.lines:
    found = {
      quantity: figures.curve_of(collection, setting, method, quantity)
      for quantity in run_reader.METRICS
    }
    steps = [c.last_step for c in found.values() if c.last_step is not None]
    if steps:
      rows.append(
        setting._asdict()
        | {quantity: curve.last for quantity, curve in found.items()}
        | {
          'method': method,
          'seeds': max(curve.num_seeds for curve in found.values()),
          'gradient_steps': max(steps),
        }
      )
  return build(
    'final_metrics',
    (
      *_SETTING,
      _METHOD,
      Column(run_reader.TD_LOSS, 'TD loss'),
      Column(run_reader.DOT_PRODUCT, 'Feature dot product'),
      Column(run_reader.NORM_SQUARED, 'Feature norm²'),
      Column(run_reader.EFFECTIVE_RANK, 'Effective rank'),
      Column(run_reader.MEAN_Q, 'Mean Q'),
      _SEEDS,
      _STEPS,
    ),
    rows,
  )


# The quantities that DR3 is compared on: prefix in the CSV file, heading, and
# how with and without are compared.
_EFFECTS = {
  run_reader.DOT_PRODUCT: ('dot_product', 'Dot product', 'ratio'),
  run_reader.EFFECTIVE_RANK: ('effective_rank', 'Effective rank', 'difference'),
  run_reader.RETURN: ('return', 'Return', 'difference'),
}
_COMPARED = {'ratio': number, 'difference': signed}


def dr3_effect(collection: Collection) -> Table:
  """Returns each method with DR3 beside itself without, at equal steps."""
  rows = []
  for setting, base in collection.lines:
    dr3 = words.with_dr3(base)
    shared = {r.replicate for r in collection.select(setting, base)} & {
      r.replicate for r in collection.select(setting, dr3)
    }
    if not shared:
      continue
    row: Row = setting._asdict() | {'method': base, 'seeds': len(shared)}
    for quantity, (prefix, _, _) in _EFFECTS.items():
      both = figures.at_last_common_step(
        figures.curve_of(collection, setting, base, quantity, shared),
        figures.curve_of(collection, setting, dr3, quantity, shared),
      )
      step, without, having = both or (None, np.nan, np.nan)
      row[f'{prefix}_gradient_steps'] = step
      row[f'{prefix}_base'] = without
      row[f'{prefix}_dr3'] = having
      row[f'{prefix}_difference'] = having - without
      row[f'{prefix}_ratio'] = having / without if without > 0 else np.nan
    steps = {row[f'{p}_gradient_steps'] for p, *_ in _EFFECTS.values()} - {None}
    row['gradient_steps'] = steps.pop() if len(steps) == 1 else None
    rows.append(row)
  # One column of steps on the page, unless the quantities differ in it.
  agree = all(row['gradient_steps'] is not None for row in rows)
  apart, together = ('never', 'always') if agree else ('always', 'never')
  columns = [*_SETTING, _METHOD]
  for prefix, heading, how in _EFFECTS.values():
    columns += [
      Column(f'{prefix}_base', heading),
      Column(f'{prefix}_dr3', 'with DR3'),
      Column(f'{prefix}_{how}', how.capitalize(), _COMPARED[how]),
      Column(f'{prefix}_gradient_steps', 'at step', when=apart),
    ]
  steps_column = dataclasses.replace(_STEPS, when=together)
  return build('dr3_effect', (*columns, _SEEDS, steps_column), rows)


def gamma_of(run: Run) -> float:
  """Returns the discount factor of a run's protocol."""
  value = run.recorded('protocol').get('gamma')
  return float(value) if isinstance(value, int | float) else DEFAULT_GAMMA


def co_adaptation(collection: Collection) -> Table:
  """Returns where the features meet the criterion of Proposition 3.2."""
  rows = []
  for setting, method in collection.lines:
    runs = collection.select(setting, method)
    found = [run.series(run_reader.RATIO) for run in runs]
    ratios = [r for r in (r[np.isfinite(r)] for r in found) if len(r)]
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
      _SEEDS,
    ),
    rows,
  )


def all_tables(collection: Collection) -> list[Table]:
  """Returns every table of a report on each game and data set on its own."""
  made = (final_scores, dr3_effect, final_metrics, co_adaptation)
  return [make(collection) for make in made]


def runs_table(collection: Collection) -> Table:
  """Returns a line for every run."""
  names = [path.name for path in collection.skipped]
  skipped = ''
  if names:
    part = 'skipped_one' if len(names) == 1 else 'skipped'
    listed = words.listed(names)
    skipped = '. ' + words.say('runs', part, count=len(names), names=listed)
  return build(
    'runs',
    (
      text('folder', 'Folder'),
      _METHOD,
      text('suite', 'Suite', when='never'),
      text('game', 'Game'),
      text('dataset', 'Data set', _or_unknown),
      text('run', 'Logged run', _or_unknown),
      text('seed', 'Seed', _or_unknown),
      _STEPS,
      Column('evaluations', 'Evaluations'),
      text('finished', 'Finished'),
      text('data_hash', 'Data', when='never'),
      text('rom_md5', 'ROM (MD5)', when='never'),
      text('version', 'Version', when='never'),
    ),
    [
      run.setting._asdict()
      | {
        'folder': run.name,
        'method': run.method,
        'run': run.logged_run,
        'seed': run.seed,
        'gradient_steps': run.num_gradient_steps,
        'evaluations': len(run.evaluations),
        'finished': 'yes' if run.finished else 'no',
        'data_hash': run.data_hash,
        'rom_md5': run.provenance.get('rom_md5'),
        'version': run.recorded('versions').get('batch_rl_dr3'),
      }
      for run in collection.runs
    ],
    parent=collection.parent,
    skipped=skipped,
  )


def _or_unknown(value: str) -> str:
  return value or 'unknown'


@functools.cache
def published_d4rl() -> pd.DataFrame:
  """Returns Table 2 of the paper, a row for each game and method."""
  return pd.read_csv(reference.FOLDER / 'dr3_table2.csv')


def final_d4rl_score(run: Run) -> float | None:
  """Returns the normalised score of the last evaluation, in percent.

  None without an evaluation, or where D4RL's scale does not apply.
  """
  scale = run.recorded('protocol').get('scale')
  returns = run.evaluations[run_reader.RETURN]
  if scale is None or returns.empty:
    return None
  low, high = scale
  return float(100 * (returns.iloc[-1] - low) / (high - low))


def _final_d4rl(
  runs: Iterable[Run], method: str, name: str, factor: float = 1.0
) -> Row:
  """Returns mean and deviation over the finished runs of one method."""
  of_method = [r for r in runs if r.method == method and r.finished]
  found = [s for s in map(final_d4rl_score, of_method) if s is not None]
  return {
    f'{name}_mean': factor * float(np.mean(found)) if found else None,
    f'{name}_deviation': factor * float(np.std(found))
    if len(found) > 1
    else None,
    f'{name}_runs': len(found),
  }


def table_2(runs: Iterable[Run]) -> Table:
  """Returns CQL and CQL + DR3 on the seven tasks, beside the paper's."""
  rows = []
  compared = ('cql', 'cql_dr3')
  for game, numbers in published_d4rl().groupby('game', sort=False):
    factor = 0.01 if str(game).startswith('antmaze') else 1.0
    of_game = [run for run in runs if run.setting.game == game]
    row: Row = {'game': game}
    for method in compared:
      row |= _final_d4rl(of_game, method, method, factor)
      (paper,) = numbers[numbers['method'] == method].to_dict('records')
      row[f'paper_{method}_mean'] = paper['mean']
      row[f'paper_{method}_deviation'] = paper['deviation']
    rows.append(row)
  columns = [text('game', 'Task')]
  for method in compared:
    name = words.display_name(method)
    ends = (f'{method}_mean', f'{method}_deviation')
    paper_ends = tuple(f'paper_{end}' for end in ends)
    columns += [
      Column(ends, name, spread),
      Column(f'{method}_runs', 'Runs', str),
      Column(paper_ends, f'{name}, paper', spread),
    ]
  return build('table_2', columns, rows)


def brac_table(runs: Iterable[Run]) -> Table:
  """Returns BRAC and the others on MuJoCo, and what DR3 adds to each."""
  groups: dict[tuple[run_reader.Setting, str], list[Run]] = {}
  others = set(published_d4rl()['game'])
  for run in runs:
    if run.setting.game not in others:
      key = run.setting, words.base_of(run.method)
      groups.setdefault(key, []).append(run)
  rows = []
  for (setting, base), found in groups.items():
    row: Row = setting._asdict() | {'method': base}
    row |= _final_d4rl(found, base, 'base')
    row |= _final_d4rl(found, words.with_dr3(base), 'dr3')
    both = row['base_mean'] is not None and row['dr3_mean'] is not None
    row['gain'] = row['dr3_mean'] - row['base_mean'] if both else None
    rows.append(row)
  whole = [r for r in rows if r['method'] == 'brac' and r['gain'] is not None]
  here = ''
  if whole:
    medians = pd.DataFrame(whole)[['base_mean', 'dr3_mean']].median()
    here = words.say(
      'brac',
      'here',
      count=len(whole),
      gain=signed(medians['dr3_mean'] - medians['base_mean']),
      base=number(medians['base_mean']),
      with_dr3=number(medians['dr3_mean']),
    )
  return build(
    'brac',
    (
      text('game', 'Game'),
      text('dataset', 'Data set'),
      _METHOD,
      Column(('base_mean', 'base_deviation'), 'Without DR3', spread),
      Column('base_runs', 'Runs', str),
      Column(('dr3_mean', 'dr3_deviation'), 'With DR3', spread),
      Column('dr3_runs', 'Runs with', str),
      Column('gain', 'DR3 adds', signed),
    ),
    rows,
    here=here,
  )


# What COG's table compares: the name, and how it is taken from a run. Both are
# shares of successful episodes in percent, but for the dot product.
_OF_COG: dict[str, Callable[[Run], float]] = {
  'average': lambda run: 100 * run.evaluations[run_reader.RETURN].mean(),
  'final': lambda run: 100 * run.evaluations[run_reader.RETURN].tail(5).mean(),
  'dot_product': lambda run: _last_half(run.series('feature_dot_product')),
}


def _last_half(series: pd.Series) -> float:
  return float(series.iloc[len(series) // 2 :].mean())


def cog_table(runs: Iterable[Run]) -> Table:
  """Returns COG's success rates and dot products, without and with DR3."""
  groups: dict[run_reader.Setting, list[Run]] = {}
  for run in runs:
    if run.finished and len(run.evaluations):
      groups.setdefault(run.setting, []).append(run)
  rows: list[Row] = []
  for setting, found in groups.items():
    for quantity, measure in _OF_COG.items():
      base, dr3 = (
        np.array([[measure(run)] for run in found if run.method == method])
        for method in ('cog', 'cog_dr3')
      )
      row: Row = setting._asdict() | {
        'quantity': words.say('cog', quantity),
        **{'cog_runs': len(base), 'cog_dr3_runs': len(dr3)},
        'cog': base.mean() if len(base) else None,
        'cog_dr3': dr3.mean() if len(dr3) else None,
      }
      if len(base) and len(dr3):
        compared = statistics.compare(dr3, base)
        names = ('difference', 'low', 'high', 'p_value')
        row |= zip(names, dataclasses.astuple(compared), strict=True)
      rows.append(row)
  frame = pd.DataFrame(rows)
  if 'p_value' in frame:
    frame['p_value'] = statistics.holm(frame['p_value'].to_list())
  columns = (
    *_SETTING,
    text('quantity', 'Quantity'),
    Column('cog', words.display_name('cog')),
    Column('cog_runs', 'Runs', str),
    Column('cog_dr3', words.display_name('cog_dr3')),
    Column('cog_dr3_runs', 'Runs', str),
    Column(('difference', 'low', 'high'), 'DR3 adds', interval),
    Column('p_value', 'p (Holm)'),
  )
  return build('cog', columns, frame)
