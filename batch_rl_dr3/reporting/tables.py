"""What a table is, and the tables of runs: exact as CSV, rounded elsewhere."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd

from batch_rl_dr3.reporting import reference, run_reader, statistics, words
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


def score(
  mean: float, sd: float, runs: int, normalised: float, complete: bool
) -> str:
  """Returns '6.75 ± 12.94 (75.0)', with a dagger if it is incomplete."""
  if not runs:
    return MISSING
  mark = '' if complete else f' {INCOMPLETE}'
  return f'{spread(mean, sd)} ({percent(normalised)}){mark}'


def circles(finished: int, unfinished: int, expected: int) -> str:
  """Returns a circle a run: finished, unfinished and absent ones."""
  absent = max(0, expected - finished - unfinished)
  return '●' * finished + '◐' * unfinished + '○' * absent or MISSING


def _of_total(steps: int, total: float | None) -> str:
  return f'{steps:,}' + ('' if pd.isna(total) else f' of {total:,.0f}')


# The ways to show cells of words and of numbers, as columns name them.
_OF_WORDS: dict[str, Callable[..., str]] = {
  'text': str,
  'method': words.display_name,
  'line': words.line_name,
  'or_unknown': lambda value: value or 'unknown',
  'circles': circles,
}
_WAYS = _OF_WORDS | {
  'number': number,
  'signed': signed,
  'exact': '{:g}'.format,  # As somebody has chosen it, such as 0.99.
  'count': str,
  'spread': spread,
  'score': score,
  'interval': interval,
  'published': lambda *of: interval(*of) if not pd.isna(of[0]) else 'unknown',
  'p_value': lambda p: MISSING if np.isnan(p) else f'{p:.4f}',
  'effect': effect,
  'duration': duration,
  'ago': lambda seconds: f'{duration(seconds)} ago',
  'of_total': _of_total,
}


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table: of the page, and of the CSV file, which has them all.

  The page shows it 'always', 'never', if its cells 'vary', or if any is
  'known'.
  """

  # Those of the CSV file that a cell of the page is made of, between blanks.
  parts: str
  heading: str
  way: str = 'number'  # A key of `_WAYS`.
  when: str = 'always'

  @property
  def names(self) -> list[str]:
    """Its columns of the CSV file."""
    return self.parts.split()

  @property
  def is_text(self) -> bool:
    """Whether its cells are words, not numbers."""
    return self.way in _OF_WORDS

  def show(self, row: Row) -> str:
    """Returns its cell of the page."""
    return _WAYS[self.way](*(row[name] for name in self.names))

  def is_shown(self, frame: pd.DataFrame) -> bool:
    """Returns whether the page shows it of a table."""
    cells = frame[self.names]
    if self.when == 'vary':
      return len(cells.drop_duplicates()) > 1
    if self.when == 'known':
      return bool(cells.notna().any(axis=None))
    return self.when == 'always'


def columns_of(section: str, hidden: Iterable[str] = ()) -> list[Column]:
  """Returns the columns that words.toml has for a section.

  Those that are made of a `hidden` one are never shown.
  """
  found = [Column(*entry) for entry in words.entries(section, 'columns')]
  return [
    dataclasses.replace(c, when='never') if {*hidden} & {*c.names} else c
    for c in found
  ]


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
    rows = self.frame.to_dict('records')
    return [[column.show(row) for column in self.shown] for row in rows]

  def as_shown(self) -> pd.DataFrame:
    """Returns the cells under their headings."""
    return pd.DataFrame(self.cells, columns=[c.heading for c in self.shown])

  def to_csv(self) -> str:
    """Returns the whole table as CSV, an empty cell where nothing is known."""
    return str(self.frame.to_csv(index=False, lineterminator='\n'))

  def to_latex(self) -> str:
    """Returns what the page shows as LaTeX, for the package booktabs."""
    sides = ''.join('l' if column.is_text else 'r' for column in self.shown)
    latex = self.as_shown().to_latex(
      index=False, escape=True, column_format=sides
    )
    for symbol, command in _LATEX_SYMBOLS.items():
      latex = latex.replace(symbol, command)
    return f'% {self.title}. {self.caption}\n{latex}'


def build(
  section: str,
  rows: pd.DataFrame | Sequence[Row],
  columns: Sequence[Column] = (),
  name: str = '',
  **values: Any,
) -> Table:
  """Returns a table of rows of exact values by the names of its columns.

  words.toml has its title, caption and `empty` in the `section`, and the
  columns where none are given. The section names its files, too, unless there
  is a `name`; `values` stand in the braces of the texts.
  """
  columns = tuple(columns or columns_of(section))
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
    curve = collection.curve(setting, method, run_reader.RETURN)
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
  return build('final_scores', rows)


def final_metrics(collection: Collection) -> Table:
  """Returns the last logged loss, dot product, rank and Q-value."""
  rows = []
  for setting, method in collection.lines:
    found = {
      quantity: collection.curve(setting, method, quantity)
      for quantity in run_reader.METRICS
    }
    steps = [c.last_step for c in found.values() if c.last_step is not None]
    if steps:
      row: Row = {quantity: curve.last for quantity, curve in found.items()}
      row |= {'method': method, 'gradient_steps': max(steps)}
      row['seeds'] = max(curve.num_seeds for curve in found.values())
      rows.append(setting._asdict() | row)
  return build('final_metrics', rows)


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
    pair = (base, words.with_dr3(base))
    runs, with_dr3 = (collection.select(setting, method) for method in pair)
    shared = {r.replicate for r in runs} & {r.replicate for r in with_dr3}
    if not shared:
      continue
    row: Row = setting._asdict() | {'method': base, 'seeds': len(shared)}
    for prefix, quantity in _EFFECTS.items():
      curves = (collection.curve(setting, m, quantity, shared) for m in pair)
      both = run_reader.at_last_common_step(*curves)
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
  each = {f'{prefix}_gradient_steps' for prefix in _EFFECTS}
  hidden = each if agree else {'gradient_steps'}
  return build('dr3_effect', rows, columns_of('dr3_effect', hidden))


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
  return build('co_adaptation', rows)


def all_tables(collection: Collection) -> list[Table]:
  """Returns every table of a report on each game and data set on its own."""
  made = (final_scores, dr3_effect, final_metrics, co_adaptation)
  return [make(collection) for make in made]


def runs_table(collection: Collection) -> Table:
  """Returns a line for every run."""
  skipped = ''
  if names := [path.name for path in collection.skipped]:
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
  return build('runs', rows, parent=collection.parent, skipped=skipped)


def first_and_last(
  collection: Collection, names: Sequence[str], quantities: Sequence[str]
) -> pd.DataFrame:
  """Returns what quantities began and ended with, a row a method of `names`.

  Returns:
    Columns suite, game, dataset, method, quantity, num_seeds; first_step,
    first, last_step, last: means over seeds at the first and the last gradient
    step that all of them have; lowest and highest: over seeds at the last.
  """
  rows = []
  for setting, name, quantity in itertools.product(
    collection.settings, names, quantities
  ):
    curve = collection.curve(setting, name, quantity)
    if curve.steps.size:
      rows.append(
        setting._asdict()
        | {
          'method': name,
          'quantity': quantity,
          'num_seeds': curve.num_seeds,
          'first_step': int(curve.steps[0]),
          'first': curve.mean[0],
          'last_step': curve.last_step,
          'last': curve.mean[-1],
          'lowest': curve.values[:, -1].min(),
          'highest': curve.values[:, -1].max(),
        }
      )
  return pd.DataFrame(rows)


# Continuous control.


@functools.cache
def published_d4rl() -> pd.DataFrame:
  """Returns Table 2 of the paper, a row for each game and method."""
  return pd.read_csv(reference.FOLDER / 'dr3_table2.csv')


def _final_d4rl(
  runs: Iterable[Run], method: str, name: str, factor: float = 1.0
) -> Row:
  """Returns mean and deviation over the finished runs of one method.

  Of the normalised score of the last evaluation, in percent times `factor`;
  runs without one, or without D4RL's scale, do not count.
  """
  scores = []
  for run in runs:
    scale = run.recorded('protocol').get('scale')
    returns = run.evaluations[run_reader.RETURN]
    if run.method == method and run.finished and scale and len(returns):
      low, high = scale
      scores.append(float(100 * (returns.iloc[-1] - low) / (high - low)))
  found = factor * np.array(scores)
  return {
    f'{name}_mean': float(found.mean()) if len(found) else np.nan,
    f'{name}_deviation': float(found.std()) if len(found) > 1 else np.nan,
    f'{name}_runs': len(found),
  }


def table_2(runs: Sequence[Run]) -> Table:
  """Returns CQL and CQL + DR3 on the seven tasks, beside the paper's."""
  rows = []
  for game, numbers in published_d4rl().groupby('game', sort=False):
    factor = 0.01 if str(game).startswith('antmaze') else 1.0
    of_game = [run for run in runs if run.setting.game == game]
    row: Row = {'game': game}
    for method, paper in numbers.set_index('method').iterrows():
      row |= _final_d4rl(of_game, str(method), str(method), factor)
      row[f'paper_{method}_mean'] = paper['mean']
      row[f'paper_{method}_deviation'] = paper['deviation']
    rows.append(row)
  return build('table_2', rows)


def brac_table(runs: Sequence[Run]) -> Table:
  """Returns BRAC and the others on MuJoCo, and what DR3 adds to each."""
  others = set(published_d4rl()['game'])
  own = [run for run in runs if run.setting.game not in others]
  rows = []
  for setting, base in dict.fromkeys(
    (run.setting, words.base_of(run.method)) for run in own
  ):
    found = [run for run in own if run.setting == setting]
    row: Row = setting._asdict() | {'method': base}
    row |= _final_d4rl(found, base, 'base')
    row |= _final_d4rl(found, words.with_dr3(base), 'dr3')
    rows.append(row | {'gain': row['dr3_mean'] - row['base_mean']})
  here = ''
  brac = [row for row in rows if row['method'] == 'brac']
  if whole := [row for row in brac if np.isfinite(row['gain'])]:
    base, dr3 = pd.DataFrame(whole)[['base_mean', 'dr3_mean']].median()
    numbers = {'gain': signed(dr3 - base), 'base': number(base)}
    numbers['with_dr3'] = number(dr3)
    here = words.say('brac', 'here', count=len(whole), **numbers)
  return build('brac', rows, here=here)


# What COG's table compares: the name, and how it is taken from a run. Both are
# shares of successful episodes in percent, but for the dot product, which is
# over the last half of training.
_OF_COG: dict[str, Callable[[Run], float]] = {
  'average': lambda run: 100 * run.series(run_reader.RETURN).mean(),
  'final': lambda run: 100 * run.series(run_reader.RETURN).tail(5).mean(),
  'dot_product': lambda run: float(
    (dots := run.series(run_reader.DOT_PRODUCT)).iloc[len(dots) // 2 :].mean()
  ),
}


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
        row |= dataclasses.asdict(compared) | {'difference': compared.value}
      rows.append(row)
  frame = pd.DataFrame(rows)
  if 'p_value' in frame:
    frame['p_value'] = statistics.holm(frame['p_value'].to_list())
  return build('cog', frame)
