"""Rules that judge the checkpoints of a run without playing the game.

The paper's discussion hopes that understanding how co-adaptation arises "can
inspire cross-validation and model selection strategies, an important, open
challenge in offline RL" (Kumar et al. 2022, arXiv:2112.04716, Section 7), but
gives none. These are the simplest that its quantities allow. What a rule makes
of a checkpoint depends on what was logged up to it and on nothing later, least
of all on returns; which checkpoint is chosen is then a comparison of all.

No rule has a parameter that was fitted to returns.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np
from numpy import typing as npt
import pandas as pd

from batch_rl_dr3.reporting import methods, reference, run_reader, statistics
from batch_rl_dr3.reporting.tables import Column, Table, number, signed, text
from batch_rl_dr3.runs import mirror, run_directory
from batch_rl_dr3.runs.checkpoints import manifests

_Values = npt.NDArray[np.float64]

# The share of its highest effective rank below which a run has collapsed.
INTACT_SHARE = 0.5
# Mean Q has settled if it moved little since this share of the steps.
_SETTLING_SHARE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class History:
  """What a run has logged, and where in it its checkpoints are.

  Attributes:
    steps: int64 [T], gradient steps, rising: those of every row and checkpoint.
    values: by quantity of `scores.METRICS`, float64 [T]: the last measurement
      at or before each step; NaN before the first, infinity if not finite.
    at: int64 [C], the positions of the checkpoints in `steps`, rising.
  """

  steps: npt.NDArray[np.int64]
  values: dict[str, _Values]
  at: npt.NDArray[np.int64]


class Judgement(NamedTuple):
  """What a rule makes of each checkpoint.

  Attributes:
    values: float64 [C], the quantity that the rule looks at.
    scores: float64 [C], the higher the better; NaN where it cannot say.
  """

  values: _Values
  scores: _Values


@dataclasses.dataclass(frozen=True)
class Rule:
  """A way to choose a checkpoint.

  Attributes:
    name: on the command line and in files.
    choice: what it chooses, in a few words.
    source: who proposed it.
    quantities: what has to be logged for it.
    judge: how it judges the checkpoints of a run.
  """

  name: str
  choice: str
  source: str
  quantities: tuple[str, ...]
  judge: Callable[[History], Judgement]


def line_up(run: run_reader.Run, checkpoints: npt.NDArray[np.int64]) -> History:
  """Returns what a run has logged, lined up with its checkpoints.

  Args:
    run: the run.
    checkpoints: int64 [C], the gradient steps of its checkpoints, rising.
  """
  logged = {name: run.series(name) for name in run_reader.METRICS}
  logged = {name: series for name, series in logged.items() if len(series)}
  rows = [np.asarray(series.index, np.int64) for series in logged.values()]
  steps = np.unique(np.concatenate([*rows, checkpoints]))
  return History(
    steps=steps,
    values={
      name: _last_known(index, series.to_numpy(float), steps)
      for index, (name, series) in zip(rows, logged.items(), strict=True)
    },
    at=np.searchsorted(steps, checkpoints),
  )


def _last_known(
  index: npt.NDArray[np.int64], values: _Values, steps: npt.NDArray[np.int64]
) -> _Values:
  position = np.searchsorted(index, steps, side='right') - 1
  return np.where(position >= 0, values[position], np.nan)


def order(judgement: Judgement, steps: npt.NDArray[np.int64]) -> list[int]:
  """Returns the checkpoints that a rule can judge, the best first.

  Of equals, the one with more gradient steps comes first: nothing that the
  rule looks at speaks against them.

  Args:
    judgement: of the rule.
    steps: int64 [C], of the checkpoints.
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
  found = np.where(ever, -steps, steps)
  at = values[h.at]
  return Judgement(at, np.where(np.isnan(at), np.nan, found))


def _last(h: History) -> Judgement:
  return _highest(h.steps[h.at].astype(float))


def _dot_growth(h: History) -> Judgement:
  steps = np.maximum(h.steps[h.at], 1)
  return _lowest(h.values[run_reader.DOT_PRODUCT][h.at] / steps)


def _co_adaptation(h: History) -> Judgement:
  return _lowest(h.values[run_reader.RATIO][h.at])


def _before_violation(h: History) -> Judgement:
  ratio = h.values[run_reader.RATIO]
  return _last_before(ratio >= 1, ratio, h)


def _rank_highest(h: History) -> Judgement:
  return _highest(h.values[run_reader.EFFECTIVE_RANK][h.at])


def _rank_intact(h: History) -> Judgement:
  rank = h.values[run_reader.EFFECTIVE_RANK]
  highest = np.fmax.accumulate(rank)
  return _last_before(rank < INTACT_SHARE * highest, rank, h)


def _td_error(h: History) -> Judgement:
  return _lowest(h.values[run_reader.TD_LOSS][h.at])


def _q_peak(h: History) -> Judgement:
  return _highest(h.values[run_reader.MEAN_Q][h.at])


def _q_settled(h: History) -> Judgement:
  """Judges by the range of mean Q since half the steps over its whole range."""
  mean_q = h.values[run_reader.MEAN_Q]
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

  places = []
  for rule in _COMBINED:
    found = rule.judge(h).scores
    worst = np.where(np.isnan(found), -np.inf, found)
    places.append(stats.rankdata(-worst))
  return _lowest(np.mean(places, axis=0))


_DOT_GROWTH = Rule(
  'dot_growth',
  'lowest feature dot product per gradient step taken',
  'ours; arXiv:2112.04716, Figures 1 and 2',
  (run_reader.DOT_PRODUCT,),
  _dot_growth,
)
_RANK_HIGHEST = Rule(
  'rank_highest',
  'highest effective rank',
  'ours; arXiv:2010.14498',
  (run_reader.EFFECTIVE_RANK,),
  _rank_highest,
)
_TD_ERROR = Rule(
  'td_error',
  'lowest TD loss on the fixed sample',
  'common practice',
  (run_reader.TD_LOSS,),
  _td_error,
)
_Q_PEAK = Rule(
  'q_peak',
  'highest mean Q of the data',
  'arXiv:2109.10813, for conservative methods such as CQL',
  (run_reader.MEAN_Q,),
  _q_peak,
)
_COMBINED = (_DOT_GROWTH, _RANK_HIGHEST, _TD_ERROR, _Q_PEAK)

LAST = Rule('last', 'last checkpoint', 'baseline', (), _last)

RULES = (
  LAST,
  _DOT_GROWTH,
  Rule(
    'co_adaptation',
    'lowest ratio of Proposition 3.2',
    'ours; the margin to Proposition 3.2 of arXiv:2112.04716',
    (run_reader.RATIO,),
    _co_adaptation,
  ),
  Rule(
    'before_violation',
    "last before Proposition 3.2's ratio first reaches 1",
    'Proposition 3.2 of arXiv:2112.04716',
    (run_reader.RATIO,),
    _before_violation,
  ),
  _RANK_HIGHEST,
  Rule(
    'rank_intact',
    'last before the effective rank first falls below half of its highest',
    'ours; arXiv:2010.14498',
    (run_reader.EFFECTIVE_RANK,),
    _rank_intact,
  ),
  _TD_ERROR,
  _Q_PEAK,
  Rule(
    'q_settled',
    'mean Q that moved least since half of the gradient steps',
    'ours; arXiv:2112.04716, Figure 1',
    (run_reader.MEAN_Q,),
    _q_settled,
  ),
  Rule(
    'mean_rank',
    'best mean place under dot_growth, rank_highest, td_error and q_peak',
    'ours',
    tuple(quantity for rule in _COMBINED for quantity in rule.quantities),
    _mean_rank,
  ),
)


# What stands beside the rules in a table: a checkpoint drawn at random.
RANDOM = 'random'
# Below so many runs the table says that it is not to be relied on.
_FEW_RUNS = 5
_MANIFESTS = 'ckpt.*.json'
# What is read of a run.
CONTENTS = mirror.Contents(
  'selection',
  whole=(
    *run_reader.CONTENTS.whole,
    f'{run_directory.CHECKPOINTS}/{_MANIFESTS}',
  ),
  sizes=(f'{run_directory.CHECKPOINTS}/*',),
)
# Columns of `ranking`, beside 'run' and 'rule'.
_RANKED = ('place', 'checkpoint', 'gradient_steps', 'value', 'return')


def checkpoints(run: run_reader.Run) -> pd.Series:
  """Returns the names of a run's whole checkpoints by gradient steps, rising.

  Whole is one whose manifest can be read and whose files are there with the
  sizes that it states; their hashes are checked when one is restored.
  """
  found: dict[int, str] = {}
  for manifest in manifests(run.folder / run_directory.CHECKPOINTS):
    if manifest.damage(with_content=False) is None:
      found[manifest.gradient_steps] = manifest.name
  return pd.Series(found, dtype=object).sort_index()


def ranking(
  collection: run_reader.Collection, rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """Returns the checkpoints on disk of each run, as each rule ranks them.

  Args:
    collection: the runs; those with fewer than two checkpoints are left out.
    rules: the rules; one that lacks what it looks at is left out for a run.

  Returns:
    One row per run, rule and checkpoint: `run`, `folder`, `rule`, `place` (1
    is the choice), `checkpoint`, `gradient_steps`, `value` (of what the rule
    looks at; NaN if not finite) and `return` (NaN if it was never evaluated).
  """
  rows = []
  for run in collection.runs:
    names = checkpoints(run)
    steps = np.asarray(names.index, np.int64)
    if len(steps) < 2:
      continue
    returns = run.evaluations[run_reader.RETURN].reindex(steps).to_numpy(float)
    history = line_up(run, steps)
    for rule in _applicable(rules, history):
      judgement = rule.judge(history)
      for place, i in enumerate(order(judgement, steps), 1):
        cells = (place, names.iloc[i], steps[i], judgement.values[i])
        rows.append(
          {'run': run.name, 'folder': str(run.folder), 'rule': rule.name}
          | dict(zip(_RANKED, (*cells, returns[i]), strict=True))
        )
  return pd.DataFrame(rows, columns=['run', 'folder', 'rule', *_RANKED])


def _applicable(rules: Sequence[Rule], history: History) -> list[Rule]:
  return [
    rule
    for rule in rules
    if all(name in history.values for name in rule.quantities)
  ]


def outcomes(
  collection: run_reader.Collection, rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """Returns what each rule would have kept of each run's return.

  Args:
    collection: the runs; only those with two evaluations or more count, and
      of them only those whose returns differ: elsewhere nothing is to be lost.
    rules: the rules.

  Returns:
    One row per run and rule, and one for a checkpoint drawn at random:
    `suite`, `game`, `dataset`, `method`, `run`, `rule`, `gradient_steps`,
    `return` of the choice, `best`, `last`, `lost_to_best` and
    `gained_on_last` in points, and, as percentages of the range from the
    worst to the best evaluation of the run, `kept` (100 is the best, 0 the
    worst) and `gained` (on the last). `lost_normalised` is `lost_to_best` in
    percent of what separates random play from the online DQN's final score;
    NaN where these are not known.
  """
  found = [_outcomes_of(run, rules) for run in collection.runs]
  return pd.DataFrame(
    [row for rows in found for row in rows], columns=list(_OUTCOME)
  )


_OUTCOME = (
  *run_reader.Setting._fields,
  'method',
  'run',
  'rule',
  'gradient_steps',
  'return',
  'best',
  'last',
  'lost_to_best',
  'gained_on_last',
  'kept',
  'gained',
  'lost_normalised',
)


def _outcomes_of(
  run: run_reader.Run, rules: Sequence[Rule]
) -> list[dict[str, Any]]:
  """Returns the rows of `outcomes` of one run, none if nothing can be lost."""
  returns = run.evaluations[run_reader.RETURN].to_numpy(float)
  if len(returns) < 2 or np.ptp(returns) == 0:
    return []
  steps = np.asarray(run.evaluations.index, np.int64)
  history = line_up(run, steps)
  chosen: dict[str, tuple[float, float]] = {}
  for rule in _applicable(rules, history):
    best_first = order(rule.judge(history), steps)
    if best_first:
      i = best_first[0]
      chosen[rule.name] = (float(steps[i]), float(returns[i]))
  chosen[RANDOM] = (np.nan, float(returns.mean()))
  best, worst, last = returns.max(), returns.min(), returns[-1]
  share = 100 / (best - worst)
  point = _normalised_point(run.setting)
  whose = run.setting._asdict() | {'method': run.method, 'run': run.name}
  return [
    whose
    | {
      'rule': name,
      'gradient_steps': step,
      'return': value,
      'best': best,
      'last': last,
      'lost_to_best': best - value,
      'gained_on_last': value - last,
      'kept': share * (value - worst),
      'gained': share * (value - last),
      'lost_normalised': point * (best - value),
    }
    for name, (step, value) in chosen.items()
  ]


def _normalised_point(setting: run_reader.Setting) -> float:
  """Returns what a point is worth in percent, NaN without a reference."""
  if setting.game not in reference.scores().index:
    return np.nan
  scale = reference.Normalisation('dqn').points((setting.game,))
  return 100 / float(scale[0])


def measure(found: pd.DataFrame) -> pd.DataFrame:
  """Returns each rule's outcomes, averaged over runs.

  Args:
    found: `outcomes`.

  Returns:
    One row per rule, in the order of the rules, with `runs` (how many it
    could choose in), means and 95% bootstrap intervals over runs of `kept`
    and `gained`, means of the points and of `lost_normalised` (NaN unless it is
    known of all), `better`, `equal` and `worse` than the last, in runs, and
    `kept_<method>`, the mean over the runs of a method.
  """
  rows = []
  groups = dict(iter(found.groupby('rule')))
  for name in (*(rule.name for rule in RULES), RANDOM):
    if name not in groups:
      continue
    group = groups[name]
    gained = group['gained']
    row: dict[str, Any] = {'rule': name, 'runs': len(group)}
    for column in ('kept', 'gained'):
      values = group[column].to_numpy(float)
      low, high = statistics.mean_interval(values) or (np.nan, np.nan)
      row |= {
        column: values.mean(),
        f'{column}_low': low,
        f'{column}_high': high,
      }
    row |= {
      'gained_on_last': group['gained_on_last'].mean(),
      'lost_to_best': group['lost_to_best'].mean(),
      'lost_normalised': group['lost_normalised'].mean(skipna=False),
      'better': int((gained > 0).sum()),
      'equal': int((gained == 0).sum()),
      'worse': int((gained < 0).sum()),
    }
    by_method = group.groupby('method')['kept'].mean()
    rows.append(row | {f'kept_{m}': by_method[m] for m in by_method.index})
  return pd.DataFrame(rows)


def worth(
  collection: run_reader.Collection, found: pd.DataFrame | None = None
) -> Table:
  """Returns what each rule would have kept, for the page and as CSV.

  Args:
    collection: the runs.
    found: their `outcomes`, if they are known already.
  """
  found = outcomes(collection) if found is None else found
  measured = measure(found)
  rules = {rule.name: rule for rule in RULES}
  names = list(measured.get('rule', []))
  described = {
    'choice': [
      rules[n].choice if n in rules else 'any, the expectation' for n in names
    ],
    'source': [rules[n].source if n in rules else 'baseline' for n in names],
  }
  ordered = methods.ordered(found['method'])
  # Points of different games cannot be averaged.
  single = found[['suite', 'game']].drop_duplicates().shape[0] <= 1
  points = 'always' if single else 'never'
  columns = (
    text('rule', 'Rule'),
    text('choice', 'Chooses'),
    Column('kept', 'Kept, %'),
    Column('kept_low', '95% from', when='known'),
    Column('kept_high', 'to', when='known'),
    Column('gained', 'Gained on last, %', signed),
    Column('gained_low', '95% from', signed, when='known'),
    Column('gained_high', 'to', signed, when='known'),
    Column('gained_on_last', 'in points', signed, when=points),
    Column('lost_to_best', 'Lost to best, points', when=points),
    Column('lost_normalised', 'Lost to best, % DQN-normalised', when='known'),
    Column('better', 'Runs better'),
    Column('equal', 'equal'),
    Column('worse', 'worse'),
    *(
      Column(f'kept_{m}', f'Kept: {methods.display_name(m)}')
      for m in (ordered if len(ordered) > 1 else ())
    ),
    Column('runs', 'Runs'),
    text('source', 'Source', when='never'),
  )
  frame = measured.assign(**described).reindex(
    columns=[c.name for c in columns]
  )
  return Table(
    'selection',
    'Choosing a checkpoint without playing',
    _caption(collection, found),
    'No run has two evaluations that differ, so no choice of a checkpoint can '
    'be judged.',
    columns,
    frame,
  )


def _caption(collection: run_reader.Collection, found: pd.DataFrame) -> str:
  num_runs = found['run'].nunique()
  num_games = len(found[['suite', 'game']].drop_duplicates())
  few = ' So few say next to nothing.' if num_runs < _FEW_RUNS else ''
  return (
    'What each rule would have kept, had it chosen among all evaluations of a '
    'run by what was logged of the data alone. Kept: the return of its choice, '
    'from 0 at the worst to 100 at the best evaluation of the run; the best is '
    'in part luck. Gained on last: against the last evaluation, in the same '
    'unit. Random: the expectation of a choice by chance, which a rule has to '
    'beat. Better, equal, worse: against the last, in runs. Interval: 95% '
    'bootstrap over runs; runs of one game resemble each other, so for other '
    f'games it is too narrow. Measured on {num_runs} of '
    f'{len(collection.runs)} runs (those with evaluations that differ) of '
    f'{num_games} {"game" if num_games == 1 else "games"}.{few}'
  )


def choices(ranked: pd.DataFrame, top: int = 1) -> Table:
  """Returns the best `top` checkpoints of each rule, for reading.

  Args:
    ranked: `ranking`.
    top: how many of each run and rule.
  """
  columns = (
    text('run', 'Run'),
    text('rule', 'Rule'),
    Column('place', 'Place', when='always' if top > 1 else 'never'),
    text('checkpoint', 'Checkpoint'),
    Column('gradient_steps', 'Gradient steps'),
    Column('value', 'Value'),
    Column('return', 'Return', number, 'known'),
  )
  frame = ranked.loc[ranked['place'] <= top, [c.name for c in columns]]
  return Table('choices', 'Choices', '', 'Nothing to rank.', columns, frame)


CAPTION = (
  'What each rule keeps and gains, as in the table: means over runs and 95% '
  'bootstrap intervals. Dotted: the expectation of a choice by chance.'
)

_COLOUR = '#0072B2'
_BASELINE_COLOUR = '#888888'
# What is measured, and the label of its axis.
_PANELS = (
  ('kept', 'return kept, % of the range\nfrom worst to best evaluation'),
  ('gained', 'gained on the last evaluation,\n% of that range'),
)


def draw(measured: pd.DataFrame, narrow: bool = False) -> mpl_figure.Figure:
  """Returns the Matplotlib figure: a rule a line, means with their intervals.

  Args:
    measured: `selection.measure`, or the frame of `selection.table`, which
      holds the same; at least one row.
    narrow: True for two panels below each other, False for side by side.
  """
  height = 1.1 + 0.27 * len(measured)
  figure = mpl_figure.Figure(
    figsize=(4.2, 2 * height) if narrow else (8.0, height),
    layout='constrained',
  )
  grid = figure.subplots(*((2, 1) if narrow else (1, 2)), sharey=not narrow)
  for axes, (quantity, label) in zip(np.ravel(grid), _PANELS, strict=True):
    _draw_panel(axes, measured, quantity)
    axes.set_xlabel(label, fontsize=9)
  return figure


def _draw_panel(
  axes: mpl_axes.Axes, measured: pd.DataFrame, quantity: str
) -> None:
  lines = np.arange(len(measured))
  chance = (measured['rule'] == RANDOM).to_numpy()
  low, high = measured[f'{quantity}_low'], measured[f'{quantity}_high']
  colours = np.where(chance, _BASELINE_COLOUR, _COLOUR)
  axes.hlines(lines, low, high, colors=list(colours), linewidth=2)
  axes.scatter(
    measured[quantity], lines, c=list(colours), s=30, zorder=3, linewidth=0
  )
  for value in measured.loc[chance, quantity]:
    axes.axvline(value, color=_BASELINE_COLOUR, linestyle=':', linewidth=1.2)
  if quantity == 'kept':
    axes.set_xlim(-3, 103)
  else:
    axes.axvline(0, color='#bbbbbb', linewidth=0.8, zorder=0)
  axes.set_yticks(lines, list(measured['rule']))
  axes.set_ylim(len(measured) - 0.5, -0.5)
  axes.tick_params(labelsize=9)
  axes.tick_params(axis='y', length=0)
  axes.grid(visible=False, axis='y')
  axes.grid(axis='x', color='#e6e6e6', linewidth=0.6)
  axes.set_axisbelow(True)
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color('#888888')
