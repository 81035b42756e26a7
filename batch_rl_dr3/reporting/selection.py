"""Rules that judge the checkpoints of a run without playing the game.

The paper's discussion hopes that understanding how co-adaptation arises "can
inspire cross-validation and model selection strategies, an important, open
challenge in offline RL" (Kumar et al. 2022, arXiv:2112.04716, Section 7), but
gives none. These are the simplest that its quantities allow. What a rule makes
of a checkpoint depends on what was logged up to it, never on returns, and no
rule has a parameter that was fitted to them.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any, NamedTuple

from matplotlib import figure as mpl_figure
import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.reporting import (
  figures,
  reference,
  run_reader,
  statistics,
  words,
)
from batch_rl_dr3.reporting.run_reader import (
  DOT_PRODUCT,
  EFFECTIVE_RANK,
  MEAN_Q,
  RATIO,
  TD_LOSS,
  Collection,
  Run,
)
from batch_rl_dr3.reporting.tables import Column, Row, Table, build, columns_of
from batch_rl_dr3.runs import mirror, run_directory
from batch_rl_dr3.runs.checkpoints import manifests

_Values = npt.NDArray[np.float64]
_Steps = npt.NDArray[np.int64]

# The share of its highest effective rank below which a run has collapsed.
INTACT_SHARE = 0.5
# Mean Q has settled if it moved little since this share of the steps.
_SETTLING_SHARE = 0.5
# Of a gain on the last evaluation.
_SIGNS = {'better': 1, 'equal': 0, 'worse': -1}
# The rules that `mean_rank` is of.
_COMBINED = ('dot_growth', 'rank_highest', 'td_error', 'q_peak')
# What stands beside the rules in a table: a checkpoint drawn at random.
RANDOM = 'random'
# Columns in points, which have a meaning in one game alone.
_POINTS = ('gained_on_last', 'lost_to_best')
# Below so many runs the table says that it is not to be relied on.
_FEW_RUNS = 5
# What is read of a run.
CONTENTS = mirror.Contents(
  'selection',
  whole=(
    *run_reader.CONTENTS.whole,
    f'{run_directory.CHECKPOINTS}/ckpt.*.json',
  ),
  sizes=(f'{run_directory.CHECKPOINTS}/*',),
)
_RANKED = (
  *('run', 'folder', 'rule'),
  *('place', 'checkpoint', 'gradient_steps', 'value', 'return'),
)
_CHOSEN = (
  *(*run_reader.Setting._fields, 'method', 'run', 'rule', 'gradient_steps'),
  *('return', 'best', 'last', 'worst'),
)


class History(NamedTuple):
  """What a run has logged, and where in it its checkpoints are.

  A value is the last measurement at or before a step: NaN before the first,
  infinity if not finite.
  """

  steps: _Steps  # [T], rising: those of every row and checkpoint.
  values: dict[str, _Values]  # [T], by quantity of `run_reader.METRICS`.
  at: _Steps  # [C], the positions of the checkpoints in `steps`, rising.


class Judgement(NamedTuple):
  """What a rule makes of each checkpoint."""

  values: _Values  # [C], of what the rule looks at.
  scores: _Values  # [C], the higher the better; NaN where it cannot say.


@dataclasses.dataclass(frozen=True)
class Rule:
  """A way to choose a checkpoint."""

  name: str  # On the command line, in files and in words.toml.
  judge: Callable[[History], Judgement]
  quantities: tuple[str, ...] = ()  # What has to be logged for it.

  @property
  def choice(self) -> str:
    """What it chooses, in a few words."""
    return words.say('rules', self.name)

  @property
  def source(self) -> str:
    """Who proposed it."""
    return words.say('rule_sources', self.name)


def line_up(run: Run, checkpoints: _Steps) -> History:
  """Returns a run's history at its log steps and checkpoints, int64 [C]."""
  logged = {
    name: series
    for name in run_reader.METRICS
    if len(series := run.series(name))
  }
  steps = np.unique(
    np.concatenate([checkpoints, *(s.index for s in logged.values())])
  )
  values = {
    name: series.reindex(steps, method='ffill').to_numpy(float)
    for name, series in logged.items()
  }
  return History(steps, values, np.searchsorted(steps, checkpoints))


def order(judgement: Judgement, steps: _Steps) -> list[int]:
  """Returns the checkpoints that a rule can judge, the best first.

  Of equals, the one with more gradient steps, `steps` [C], comes first.
  """
  known = np.flatnonzero(np.isfinite(judgement.scores))
  best_last = np.lexsort((steps[known], judgement.scores[known]))
  return [int(i) for i in known[best_last][::-1]]


def _lowest(values: _Values) -> Judgement:
  return Judgement(values, np.where(np.isfinite(values), -values, np.nan))


def _highest(values: _Values) -> Judgement:
  return Judgement(values, np.where(np.isfinite(values), values, np.nan))


def _last_before(
  violated: npt.NDArray[np.bool_], values: _Values, h: History
) -> Judgement:
  """Prefers the last checkpoint before `violated` [T] is first true.

  A value that is not finite is a violation too. If there is one before the
  first checkpoint, the first checkpoint is preferred.
  """
  steps = h.steps[h.at].astype(float)
  ever = np.logical_or.accumulate(violated | np.isinf(values))[h.at]
  at = values[h.at]
  return Judgement(
    at, np.where(np.isnan(at), np.nan, np.where(ever, -steps, steps))
  )


def _before_violation(h: History) -> Judgement:
  ratio = h.values[RATIO]
  return _last_before(ratio >= 1, ratio, h)


def _rank_intact(h: History) -> Judgement:
  rank = h.values[EFFECTIVE_RANK]
  highest = np.fmax.accumulate(rank)
  return _last_before(rank < INTACT_SHARE * highest, rank, h)


def _q_settled(h: History) -> Judgement:
  """Judges by the range of mean Q since half the steps over its whole range."""
  mean_q = h.values[MEAN_Q]
  half = np.searchsorted(h.steps, _SETTLING_SHARE * h.steps[h.at])
  # reduceat takes starts and ends by turns; the last end needs a place.
  bounds = np.column_stack([half, h.at + 1]).ravel()
  padded = np.append(mean_q, np.nan)
  with np.errstate(divide='ignore', invalid='ignore'):
    whole = np.fmax.accumulate(mean_q) - np.fmin.accumulate(mean_q)
    since = np.fmax.reduceat(padded, bounds) - np.fmin.reduceat(padded, bounds)
    return _lowest(since[::2] / whole[h.at])


def _mean_rank(h: History) -> Judgement:
  """Judges by the mean of a checkpoint's places under the `_COMBINED` rules.

  The best has place 1, equals share the mean of theirs, and what a rule cannot
  judge comes last.
  """
  # Imported here because SciPy's statistics take a second.
  from scipy import stats

  rules = [rule for rule in RULES if rule.name in _COMBINED]
  scores = np.array([rule.judge(h).scores for rule in rules])
  worst = np.where(np.isnan(scores), -np.inf, scores)
  return _lowest(stats.rankdata(-worst, axis=1).mean(axis=0))


def _simple(
  name: str, prefer: Callable[[_Values], Judgement], quantity: str
) -> Rule:
  """Returns a rule that compares a quantity as it is."""
  return Rule(name, lambda h: prefer(h.values[quantity][h.at]), (quantity,))


def _dot_growth(h: History) -> Judgement:
  return _lowest((h.values[DOT_PRODUCT] / np.maximum(h.steps, 1))[h.at])


RULES = (
  Rule('last', lambda h: _highest(h.steps[h.at].astype(float))),
  Rule('dot_growth', _dot_growth, (DOT_PRODUCT,)),
  _simple('co_adaptation', _lowest, RATIO),
  Rule('before_violation', _before_violation, (RATIO,)),
  _simple('rank_highest', _highest, EFFECTIVE_RANK),
  Rule('rank_intact', _rank_intact, (EFFECTIVE_RANK,)),
  _simple('td_error', _lowest, TD_LOSS),
  _simple('q_peak', _highest, MEAN_Q),
  Rule('q_settled', _q_settled, (MEAN_Q,)),
  Rule('mean_rank', _mean_rank, (DOT_PRODUCT, EFFECTIVE_RANK, TD_LOSS, MEAN_Q)),
)


def checkpoints(run: Run) -> pd.Series:
  """Returns the names of a run's whole checkpoints by gradient steps, rising.

  Their files have the sizes that their manifests state; hashes are checked when
  one is restored.
  """
  found = {
    checkpoint.gradient_steps: checkpoint.name
    for checkpoint in manifests(run.folder / run_directory.CHECKPOINTS)
    if checkpoint.damage(with_content=False) is None
  }
  return pd.Series(found, dtype=object).sort_index()


def _judged(
  run: Run, steps: _Steps, rules: Sequence[Rule]
) -> Iterator[tuple[Rule, Judgement, list[int]]]:
  """Yields the rules that have what they look at, how they order `steps`."""
  history = line_up(run, steps)
  for rule in rules:
    if all(name in history.values for name in rule.quantities):
      judgement = rule.judge(history)
      yield rule, judgement, order(judgement, steps)


def ranking(
  collection: Collection, rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """Returns the checkpoints on disk of each run, as each rule ranks them.

  Runs with fewer than two checkpoints are left out, and, for a run, rules that
  lack what they look at. `place` 1 is the choice; `value` is of what the rule
  looks at, NaN if not finite; `return` is NaN if it was never evaluated.
  """
  rows: list[tuple[Any, ...]] = []
  for run in collection.runs:
    names = checkpoints(run)
    if len(names) < 2:
      continue
    steps = names.index.to_numpy(np.int64)
    returns = run.series(run_reader.RETURN).reindex(steps).to_numpy(float)
    for rule, judgement, best_first in _judged(run, steps, rules):
      who = (run.name, str(run.folder), rule.name)
      rows += [
        (*who, place, names.iloc[i], steps[i], judgement.values[i], returns[i])
        for place, i in enumerate(best_first, 1)
      ]
  return pd.DataFrame(rows, columns=list(_RANKED))


def outcomes(
  collection: Collection, rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """Returns what each rule would have kept of each run's return.

  Only runs with evaluations that differ count: elsewhere nothing is to be lost.
  A row per run and rule, and one for a checkpoint drawn at random. `kept` and
  `gained` (on the last) are percentages of the range from the worst to the best
  evaluation of the run; `lost_normalised` is `lost_to_best` in percent of what
  separates random play from the online DQN's final score, NaN if unknown;
  others are points.
  """
  rows: list[tuple[Any, ...]] = []
  for run in collection.runs:
    returns = run.series(run_reader.RETURN).to_numpy(float)
    if len(returns) < 2 or np.ptp(returns) == 0:
      continue
    steps = run.evaluations.index.to_numpy(np.int64)
    choices = [
      (rule.name, float(steps[best[0]]), float(returns[best[0]]))
      for rule, _, best in _judged(run, steps, rules)
      if best
    ]
    choices.append((RANDOM, np.nan, float(returns.mean())))
    who = (*run.setting, run.method, run.name)
    ends = (returns.max(), returns[-1], returns.min())
    rows += [(*who, *choice, *ends) for choice in choices]
  found = pd.DataFrame(rows, columns=list(_CHOSEN))
  worst = found.pop('worst')
  share = 100 / (found['best'] - worst)
  scale = reference.scores()
  points = 100 / (scale[reference.ONLINE_DQN] - scale['random'])
  found['lost_to_best'] = found['best'] - found['return']
  found['gained_on_last'] = found['return'] - found['last']
  found['kept'] = share * (found['return'] - worst)
  found['gained'] = share * found['gained_on_last']
  found['lost_normalised'] = found['game'].map(points) * found['lost_to_best']
  return found


def measure(found: pd.DataFrame) -> pd.DataFrame:
  """Returns each rule's `outcomes`, averaged over runs, a row per rule.

  `runs` is in how many it could choose; `better`, `equal` and `worse` than the
  last are runs, too. `lost_normalised` is NaN unless it is known of all.
  """
  rows = []
  groups = dict(iter(found.groupby('rule')))
  for name in (*(rule.name for rule in RULES), RANDOM):
    if name not in groups:
      continue
    group = groups[name]
    row: Row = {'rule': name, 'runs': len(group)}
    for column in ('kept', 'gained'):
      values = group[column].to_numpy(float)
      ends = statistics.mean_interval(values) or (np.nan, np.nan)
      row[column] = values.mean()
      row[f'{column}_low'], row[f'{column}_high'] = ends
    for column in ('gained_on_last', 'lost_to_best', 'lost_normalised'):
      row[column] = group[column].mean(skipna=False)
    signs = np.sign(group['gained']).value_counts()
    row |= {n: signs.get(s, 0) for n, s in _SIGNS.items()}
    by_method = group.groupby('method')['kept'].mean()
    rows.append(row | by_method.add_prefix('kept_').to_dict())
  return pd.DataFrame(rows, columns=None if rows else ['rule'])


def worth(collection: Collection, found: pd.DataFrame | None = None) -> Table:
  """Returns what each rule would have kept, for the page and as CSV.

  `found` are the collection's `outcomes`, if they are known already.
  """
  found = outcomes(collection) if found is None else found
  measured = measure(found)
  measured['choice'] = measured['rule'].map(words.parts('rules'))
  measured['source'] = measured['rule'].map(words.parts('rule_sources'))
  methods = words.ordered(found['method'])
  num_games = len(found[['suite', 'game']].drop_duplicates())
  by_method = [
    Column(f'kept_{m}', f'Kept: {words.display_name(m)}')
    for m in (methods if len(methods) > 1 else ())
  ]
  num_measured = found['run'].nunique()
  few = words.say('selection', 'few') if num_measured < _FEW_RUNS else ''
  return build(
    'selection',
    measured,
    [
      # Points of several games cannot be averaged.
      *columns_of('selection', _POINTS if num_games > 1 else ()),
      *by_method,
      *columns_of('selection_extent'),
    ],
    num_measured=num_measured,
    num_runs=len(collection.runs),
    games=f'{num_games} {"game" if num_games == 1 else "games"}',
    few=few,
  )


def choices(ranked: pd.DataFrame, top: int = 1) -> Table:
  """Returns the best `top` checkpoints of a `ranking`, for reading."""
  columns = columns_of('choices' if top == 1 else 'top_choices')
  return build('choices', ranked[ranked['place'] <= top], columns)


_COLOUR, _BASELINE_COLOUR = figures.PALETTE[0], '#888888'


def draw(measured: pd.DataFrame, narrow: bool = False) -> mpl_figure.Figure:
  """Returns the figure: a rule a line, means with their intervals.

  `measured` is `measure`, or the frame of `worth`; at least one row. Its two
  panels are below each other if `narrow`.
  """
  height = 1.1 + 0.27 * len(measured)
  size = (4.2, 2 * height) if narrow else (8.0, height)
  figure, panels = figures.pair(narrow, size, sharey=not narrow)
  lines = np.arange(len(measured))
  chance = (measured['rule'] == RANDOM).to_numpy()
  colours = list(np.where(chance, _BASELINE_COLOUR, _COLOUR))
  for axes, quantity in zip(panels, ('kept', 'gained'), strict=True):
    low, high = measured[f'{quantity}_low'], measured[f'{quantity}_high']
    axes.hlines(lines, low, high, colors=colours, linewidth=2)
    axes.scatter(
      measured[quantity], lines, c=colours, s=30, zorder=3, linewidth=0
    )
    for value in measured.loc[chance, quantity]:
      axes.axvline(value, color=_BASELINE_COLOUR, linestyle=':', linewidth=1.2)
    if quantity == 'kept':
      axes.set_xlim(-3, 103)
    else:
      axes.axvline(0, color='#bbbbbb', linewidth=0.8, zorder=0)
    axes.set_yticks(lines, list(measured['rule']))
    axes.set_ylim(len(measured) - 0.5, -0.5)
    axes.tick_params(axis='y', length=0)
    axes.grid(visible=False, axis='y')
    axes.spines['left'].set_visible(False)
    axes.set_xlabel('\n'.join(words.entries('selection', quantity)))
  return figure
