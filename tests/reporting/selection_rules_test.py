import hypothesis
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pytest

from batch_rl_dr3.reporting import run_reader, selection

RULES = {rule.name: rule for rule in selection.RULES}


class _Run:
  def __init__(self, **logged):
    self._logged = logged

  def series(self, quantity):
    return pd.Series(self._logged.get(quantity, {}), dtype=float)


def _history(run, checkpoints):
  return selection.line_up(run, np.asarray(checkpoints))


STEPS = [100, 200, 300, 400, 500]


def _logged(*values):
  return dict(zip(STEPS, values, strict=True))


RUN = _Run(
  loss_bellman=_logged(0.5, 0.4, 0.3, 0.35, 0.2),
  feature_dot_product=_logged(10, 12, 15, 40, 100),
  divergence_ratio=_logged(0.45, 0.54, 0.675, 1.2, 1.125),
  effective_rank=_logged(10, 12, 8, 5, 7),
  mean_q=_logged(1, 3, 3.2, 3.3, 2),
)


@pytest.mark.parametrize(
  ('name', 'values', 'best_first'),
  [
    ('last', STEPS, [500, 400, 300, 200, 100]),
    # 10/100, 12/200, 15/300, 40/400, 100/500; of equals the later.
    ('dot_growth', [0.1, 0.06, 0.05, 0.1, 0.2], [300, 200, 400, 100, 500]),
    (
      'co_adaptation',
      [0.45, 0.54, 0.675, 1.2, 1.125],
      [100, 200, 300, 500, 400],
    ),
    # First at least 1 at 400; among those after it, the earlier.
    (
      'before_violation',
      [0.45, 0.54, 0.675, 1.2, 1.125],
      [300, 200, 100, 400, 500],
    ),
    ('rank_highest', [10, 12, 8, 5, 7], [200, 100, 300, 500, 400]),
    # Below 12/2 at 400; 7 at 500 is after that.
    ('rank_intact', [10, 12, 8, 5, 7], [300, 200, 100, 400, 500]),
    ('td_error', [0.5, 0.4, 0.3, 0.35, 0.2], [500, 300, 400, 200, 100]),
    ('q_peak', [1, 3, 3.2, 3.3, 2], [400, 300, 200, 500, 100]),
    # One row has no range. Then 2/2; 0.2/2.2; 0.3/2.3; 1.3/2.3.
    (
      'q_settled',
      [np.nan, 1, 1 / 11, 3 / 23, 13 / 23],
      [300, 400, 500, 200],
    ),
    # Places under dot_growth (3.5, 2, 1, 3.5, 5), rank_highest (2, 1, 3, 5,
    # 4), td_error (5, 4, 2, 3, 1) and q_peak (5, 3, 2, 1, 4).
    (
      'mean_rank',
      [3.875, 2.5, 2.0, 3.125, 3.5],
      [300, 200, 400, 500, 100],
    ),
  ],
)
def test_values_and_order(name, values, best_first):
  judgement = RULES[name].judge(_history(RUN, STEPS))
  np.testing.assert_allclose(judgement.values, values)
  found = selection.order(judgement, np.asarray(STEPS))
  assert [STEPS[i] for i in found] == best_first


def test_every_rule_is_tested_above_and_says_what_it_is():
  assert len(RULES) == 10
  for rule in RULES.values():
    assert rule.choice
    assert rule.source
    assert set(rule.quantities) <= set(run_reader.METRICS)


def test_a_checkpoint_has_the_last_measurement_before_it():
  run = _Run(effective_rank={0: 9, 100: 7}, mean_q={50: 2.0, 260: 3.0})
  history = _history(run, [40, 150, 260])
  assert list(history.steps) == [0, 40, 50, 100, 150, 260]
  assert list(history.at) == [1, 4, 5]
  assert list(history.values['effective_rank'][history.at]) == [9, 7, 7]
  assert np.isnan(history.values['mean_q'][1])
  assert list(history.values['mean_q'][history.at[1:]]) == [2, 3]


def test_a_step_in_between_counts_as_a_violation():
  run = _Run(divergence_ratio={10: 0.2, 15: 1.8, 20: 0.2})
  judgement = RULES['before_violation'].judge(_history(run, [10, 20]))
  assert list(judgement.scores) == [10, -20]


@pytest.mark.parametrize('name', [n for n in RULES if n != 'last'])
def test_what_is_not_finite_is_never_chosen(name):
  run = _Run(
    **{quantity: {1: 4.0, 2: 3.0, 3: np.inf} for quantity in run_reader.METRICS}
  )
  judgement = RULES[name].judge(_history(run, [2, 3]))
  found = selection.order(judgement, np.asarray([2, 3]))
  assert found[0] == 0


@pytest.mark.parametrize('name', [n for n in RULES if n != 'mean_rank'])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_rule_looks_at_nothing_after_the_checkpoint(name, data):
  size = data.draw(st.integers(2, 12))
  cut = data.draw(st.integers(1, size - 1))
  number = st.floats(0.01, 100)
  logged = {
    quantity: dict(
      enumerate(data.draw(st.lists(number, min_size=size, max_size=size)), 1)
    )
    for quantity in run_reader.METRICS
  }
  whole = RULES[name].judge(_history(_Run(**logged), np.arange(1, size + 1)))
  early = {
    quantity: {step: value for step, value in series.items() if step <= cut}
    for quantity, series in logged.items()
  }
  part = RULES[name].judge(_history(_Run(**early), np.arange(1, cut + 1)))
  np.testing.assert_array_equal(whole.values[:cut], part.values)
  np.testing.assert_array_equal(whole.scores[:cut], part.scores)
