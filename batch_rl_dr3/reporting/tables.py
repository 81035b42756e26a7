"""What a table is, and the tables of runs: exact as CSV, rounded elsewhere."""

from collections.abc import Callable, Iterable, Sequence
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


def p_value(value: float) -> str:
  """Returns a p-value with four decimals."""
  return MISSING if np.isnan(value) else f'{value:.4f}'


def effect(value: Any, low: Any, high: Any, unit: str) -> str:
  """Returns 'x 2.00 (x 1.50, x 2.50)' of a factor, else '+2.0 (+1.5, +2.5)'."""
  if np.isnan(value):
    return MISSING
  texts = [
    f'x {number(v)}' if unit == 'factor' else f'{v:+.1f}'
    for v in (value, low, high)
  ]
  return texts[0] + ('' if np.isnan(low) else f' ({texts[1]}, {texts[2]})')


def duration(seconds: float | None) -> str:
  """Returns '40 s', '12 min', '3.5 h' or a dash."""
  if seconds is None or pd.isna(seconds):
    return MISSING
  if seconds < 120:
    return f'{seconds:.0f} s'
  return (
    f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
  )


def _of_total(steps: int, total: float | None) -> str:
  return f'{steps:,}' + ('' if pd.isna(total) else f' of {total:,.0f}')


# What words.toml calls the ways to show a cell: of numbers, and of words.
_OF_NUMBERS: dict[str, Callable[..., str]] = {
  'number': number,
  'signed': signed,
  'exact': '{:g}'.format,  # As somebody has chosen it, such as 0.99.
  'count': str,
  'spread': spread,
  'interval': interval,
  'p_value': p_value,
  'effect': effect,
  'duration': duration,
  'ago': lambda seconds: f'{duration(seconds)} ago',
  'of_total': _of_total,
}
_OF_WORDS: dict[str, Callable[..., str]] = {
  'text': str,
  'method': words.display_name,
  'line': words.line_name,
  'or_unknown': lambda value: value or 'unknown',
}


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table: of the page, and of the CSV file, which has them all.

  The page shows it 'always', 'never', if its cells 'vary', or if any is
  'known'.
  """

  # In the CSV file; several, where a cell of the page is made of them.
  name: str | tuple[str, ...]
  heading: str
  show: Callable[..., str] = number  # Of as many values as there are names.
  when: str = 'always'
  is_text: bool = False  # Whether its cells are words, not numbers.

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


def columns(section: str) -> list[Column]:
  """Returns the columns that words.toml has for a section."""
  return [_column(*entry) for entry in words.columns(section)]


def _column(
  names: str, heading: str, show: str = 'number', when: str = 'always'
) -> Column:
  shown = (_OF_NUMBERS | _OF_WORDS)[show]
  return Column(tuple(names.split()), heading, shown, when, show in _OF_WORDS)


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, for the page, for LaTeX and for a CSV file."""

  name: str  # Of the files, without their endings.
  title: str
  caption: str  # What the columns mean.
  empty: str  # What stands in place of a table without rows.
  columns: tuple[Column, ...]
  frame: pd.DataFrame  # Exact numbers.

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
  rows: pd.DataFrame | Sequence[Row],
  name: str = '',
  **values: Any,
) -> Table:
  """Returns a table of rows of exact values by the names of its columns.

  words.toml has its title, caption and `empty` in the `section`, which names
  its files, too, unless there is a `name`; `values` stand in their braces.
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
  return build('final_scores', columns('final_scores'), rows)


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
  return build('final_metrics', columns('final_metrics'), rows)


# The quantities that DR3 is compared on, by their prefix in the CSV file.
_EFFECTS = {
  'dot_product': run_reader.DOT_PRODUCT,
  'effective_rank': run_reader.EFFECTIVE_RANK,
  'return': run_reader.RETURN,
}


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
      row[f'{prefix}_ratio'] = having / without if without > 0 else np.nan
    steps = {row[f'{prefix}_gradient_steps'] for prefix in _EFFECTS} - {None}
    row['gradient_steps'] = steps.pop() if len(steps) == 1 else None
    rows.append(row)
  # One column of steps on the page, unless the quantities differ in it.
  agree = all(row['gradient_steps'] is not None for row in rows)
  hidden = {f'{prefix}_gradient_steps' for prefix in _EFFECTS}
  hidden = hidden if agree else {'gradient_steps'}
  shown = [
    dataclasses.replace(c, when='never') if hidden & {*c.names} else c
    for c in columns('dr3_effect')
  ]
  return build('dr3_effect', shown, rows)


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
  return build('co_adaptation', columns('co_adaptation'), rows)


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
  rows = [
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
  ]
  parent = collection.parent
  return build('runs', columns('runs'), rows, parent=parent, skipped=skipped)


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
  scores = [s for s in map(final_d4rl_score, of_method) if s is not None]
  found = factor * np.array(scores)
  return {
    f'{name}_mean': float(found.mean()) if len(found) else None,
    f'{name}_deviation': float(found.std()) if len(found) > 1 else None,
    f'{name}_runs': len(found),
  }


def table_2(runs: Sequence[Run]) -> Table:
  """Returns CQL and CQL + DR3 on the seven tasks, beside the paper's."""
  rows = []
  for game, numbers in published_d4rl().groupby('game', sort=False):
    factor = 0.01 if str(game).startswith('antmaze') else 1.0
    of_game = [run for run in runs if run.setting.game == game]
    row: Row = {'game': game}
    for method in ('cql', 'cql_dr3'):
      row |= _final_d4rl(of_game, method, method, factor)
      (paper,) = numbers[numbers['method'] == method].to_dict('records')
      row[f'paper_{method}_mean'] = paper['mean']
      row[f'paper_{method}_deviation'] = paper['deviation']
    rows.append(row)
  return build('table_2', columns('table_2'), rows)


def brac_table(runs: Sequence[Run]) -> Table:
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
  return build('brac', columns('brac'), rows, here=here)


# What COG's table compares: the name, and how it is taken from a run. Both are
# shares of successful episodes in percent, but for the dot product.
_OF_COG: dict[str, Callable[[Run], float]] = {
  'average': lambda run: 100 * run.evaluations[run_reader.RETURN].mean(),
  'final': lambda run: 100 * run.evaluations[run_reader.RETURN].tail(5).mean(),
  'dot_product': lambda run: _last_half(run.series(run_reader.DOT_PRODUCT)),
}


def _last_half(series: pd.Series) -> float:
  return float(series.iloc[len(series) // 2 :].mean())


def cog_table(runs: Sequence[Run]) -> Table:
  """Returns COG's success rates and dot products, without and with DR3."""
  whole = [run for run in runs if run.finished and len(run.evaluations)]
  rows: list[Row] = []
  for setting in dict.fromkeys(run.setting for run in whole):
    for quantity, measure in _OF_COG.items():
      row: Row = {**setting._asdict(), 'quantity': words.say('cog', quantity)}
      values = {}
      for method in ('cog', 'cog_dr3'):
        found = [r for r in whole if (r.setting, r.method) == (setting, method)]
        values[method] = np.array([[measure(run)] for run in found])
        row[f'{method}_runs'] = len(found)
        row[method] = values[method].mean() if found else None
      if row['cog_runs'] and row['cog_dr3_runs']:
        compared = statistics.compare(values['cog_dr3'], values['cog'])
        row |= {'difference': compared.value, 'low': compared.low}
        row |= {'high': compared.high, 'p_value': compared.p_value}
      rows.append(row)
  frame = pd.DataFrame(rows)
  if 'p_value' in frame:
    frame['p_value'] = statistics.holm(frame['p_value'].to_list())
  return build('cog', columns('cog'), frame)
