"""Rules that judge the checkpoints of a run without playing the game.

The paper's discussion hopes that understanding how co-adaptation arises "can
inspire cross-validation and model selection strategies, an important, open
challenge in offline RL" (Kumar et al. 2022, arXiv:2112.04716, Section 7), but
gives none. These are the simplest that its quantities allow. What a rule makes
of a checkpoint depends on what was logged up to it and on nothing later, least
of all on returns; which checkpoint is chosen is then a comparison of all.

No rule has a parameter that was fitted to returns.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import numpy as np
from numpy import typing as npt

from batch_rl_dr3.reporting import scores

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
    gamma: the discount factor.
  """

  steps: npt.NDArray[np.int64]
  values: dict[str, _Values]
  at: npt.NDArray[np.int64]
  gamma: float


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


def history(
  run: scores.Run, checkpoints: npt.NDArray[np.int64], gamma: float
) -> History:
  """Returns what a run has logged, lined up with its checkpoints.

  Args:
    run: the run.
    checkpoints: int64 [C], the gradient steps of its checkpoints, rising.
    gamma: its discount factor.
  """
  logged = {name: run.series(name) for name in scores.METRICS}
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
    gamma=gamma,
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
  return _lowest(h.values[scores.DOT_PRODUCT][h.at] / steps)


def _criterion(h: History) -> _Values:
  """Returns gamma times dot product over squared norm, float64 [T]."""
  dot_products = h.values[scores.DOT_PRODUCT]
  norms = h.values[scores.NORM_SQUARED]
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = h.gamma * dot_products / norms
  return np.where(np.isinf(dot_products) | np.isinf(norms), np.inf, ratio)


def _co_adaptation(h: History) -> Judgement:
  return _lowest(_criterion(h)[h.at])


def _before_violation(h: History) -> Judgement:
  ratio = _criterion(h)
  return _last_before(ratio >= 1, ratio, h)


def _rank_highest(h: History) -> Judgement:
  return _highest(h.values[scores.EFFECTIVE_RANK][h.at])


def _rank_intact(h: History) -> Judgement:
  rank = h.values[scores.EFFECTIVE_RANK]
  highest = np.fmax.accumulate(rank)
  return _last_before(rank < INTACT_SHARE * highest, rank, h)


def _td_error(h: History) -> Judgement:
  return _lowest(h.values[scores.TD_LOSS][h.at])


def _q_peak(h: History) -> Judgement:
  return _highest(h.values[scores.MEAN_Q][h.at])


def _q_settled(h: History) -> Judgement:
  """Judges by the range of mean Q since half the steps over its whole range."""
  mean_q = h.values[scores.MEAN_Q]
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
  (scores.DOT_PRODUCT,),
  _dot_growth,
)
_RANK_HIGHEST = Rule(
  'rank_highest',
  'highest effective rank',
  'ours; arXiv:2010.14498',
  (scores.EFFECTIVE_RANK,),
  _rank_highest,
)
_TD_ERROR = Rule(
  'td_error',
  'lowest TD loss on the fixed sample',
  'common practice',
  (scores.TD_LOSS,),
  _td_error,
)
_Q_PEAK = Rule(
  'q_peak',
  'highest mean Q of the data',
  'arXiv:2109.10813, for conservative methods such as CQL',
  (scores.MEAN_Q,),
  _q_peak,
)
_COMBINED = (_DOT_GROWTH, _RANK_HIGHEST, _TD_ERROR, _Q_PEAK)

LAST = Rule('last', 'last checkpoint', 'baseline', (), _last)

RULES = (
  LAST,
  _DOT_GROWTH,
  Rule(
    'co_adaptation',
    'lowest gamma x dot product / squared norm',
    'ours; the margin to Proposition 3.2 of arXiv:2112.04716',
    (scores.DOT_PRODUCT, scores.NORM_SQUARED),
    _co_adaptation,
  ),
  Rule(
    'before_violation',
    'last before gamma x dot product first reaches the squared norm',
    'Proposition 3.2 of arXiv:2112.04716',
    (scores.DOT_PRODUCT, scores.NORM_SQUARED),
    _before_violation,
  ),
  _RANK_HIGHEST,
  Rule(
    'rank_intact',
    'last before the effective rank first falls below half of its highest',
    'ours; arXiv:2010.14498',
    (scores.EFFECTIVE_RANK,),
    _rank_intact,
  ),
  _TD_ERROR,
  _Q_PEAK,
  Rule(
    'q_settled',
    'mean Q that moved least since half of the gradient steps',
    'ours; arXiv:2112.04716, Figure 1',
    (scores.MEAN_Q,),
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
