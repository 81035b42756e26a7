"""The words of results/plan.md, on runs whose numbers are known."""

import importlib.util
import pathlib
import sys
import types

import numpy as np
import pandas as pd
import pytest

SCRIPTS = pathlib.Path(__file__).parent.parent / 'run_scripts'
STEPS = np.arange(0, 100_001, 10_000)


@pytest.fixture(scope='module', autouse=True)
def scripts_find_each_other():
  sys.path.insert(0, str(SCRIPTS))
  yield
  sys.path.remove(str(SCRIPTS))


def load(name):
  spec = importlib.util.spec_from_file_location(name, SCRIPTS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def regimes():
  return load('regimes')


@pytest.fixture(scope='module')
def effects():
  return load('effects')


@pytest.fixture(scope='module')
def choices():
  return load('choices')


def run(mean_q, dot_product):
  return pd.DataFrame(
    {
      'gradient_steps': STEPS,
      'mean_q': mean_q,
      'feature_dot_product': dot_product,
      'feature_norm_squared': 8.0 ** (STEPS / 50_000),
      'feature_cosine': 0.9 - STEPS / 1_000_000,
      'divergence_ratio': 0.9,
    }
  )


def test_settled_values_and_a_dot_product_that_doubles(regimes):
  # From 50,000 steps on, over which a run is judged, it doubles once.
  found = regimes.judge(run(2.0, 2.0 ** (STEPS / 50_000)), [10.0] * 20)
  assert found['settled']
  assert found['candidate']
  assert found['growth_factor'] == pytest.approx(2.0)
  assert found['q_factor'] == pytest.approx(1.0)
  assert found['norm_squared_factor'] == pytest.approx(8.0)
  assert found['cosine_change'] == pytest.approx(-0.05)
  assert found['lost'] == 0


def test_values_that_rise_by_a_tenth_each_10000_steps_have_not_settled(regimes):
  # Mean Q is 5, 6, ..., 10 in the second half: slope 1 on a mean of 7.5.
  found = regimes.judge(run(STEPS / 10_000, 1.0), [10.0] * 20)
  assert found['q_slope_per_10000'] == pytest.approx(1 / 7.5)
  assert not found['settled']
  assert not found['candidate']
  assert found['growth_factor'] == pytest.approx(1.0)


def test_what_is_lost_is_of_means_of_five_evaluations(regimes):
  returns = [0.0] * 5 + [50.0] * 5 + [90.0] + [20.0] * 9
  found = regimes.judge(run(2.0, 1.0), returns)
  # The best five are 50, 50, 50, 50 and 90.
  assert found['best_five'] == pytest.approx(58.0)
  assert found['final'] == pytest.approx(20.0)
  assert found['lost'] == pytest.approx(38.0)


def tables(dot_products):
  """Returns what read_runs does, of methods 'a' and 'b' with given metrics."""
  scores, metrics = [], []
  for (method, seed), dot_product in dot_products.items():
    key = {'method': method, 'game': 'freeway', 'seed': seed}
    for step in range(1, 11):
      scores.append(key | {'gradient_steps': step, 'return': float(step)})
      metrics.append(
        key
        | {
          'gradient_steps': step,
          'feature_dot_product': dot_product if step >= 5 else 1e9,
          'feature_norm_squared': 2.0 * dot_product,
          'effective_rank': 3.0,
          'mean_q': 1.0,
          'feature_cosine': dot_product * step / 100,
        }
      )
  return types.SimpleNamespace(
    scores=pd.DataFrame(scores), metrics=pd.DataFrame(metrics)
  )


def test_effects_by_hand(effects, monkeypatch):
  # A return is a point here.
  monkeypatch.setattr(
    effects.reference, 'Normalisation', lambda: lambda x, _: x / 100
  )
  table = effects.measure(
    tables({('a', 0): 8.0, ('a', 1): 2.0, ('b', 0): 4.0, ('b', 1): 1.0})
  )
  run = table.loc[('a', 'freeway', 0)]
  # Returns 1 to 10: their mean, that of the last five, and nothing lost.
  assert (run.average, run.final, run.lost) == (5.5, 8.0, 0.0)
  # The second half begins at step 5 of 10; earlier rows do not count.
  assert run.feature_dot_product_factor == pytest.approx(np.log(8.0))
  assert run.alignment == pytest.approx(0.5)
  found = effects.effects(table, ['a:b']).set_index('measure')
  assert found.difference['average'] == 0
  # Geometric means of 4 and 2.
  assert found.difference['feature_dot_product_factor'] == pytest.approx(2.0)
  assert (found.runs == 2).all()
  # From step 5 to 10 a dot product stays, and the cosine rises by 5% of it: by
  # (0.40 + 0.10) / 2 in the one and (0.20 + 0.05) / 2 in the other.
  assert found.difference['growth_factor'] == pytest.approx(1.0)
  assert found.difference['cosine_change'] == pytest.approx(0.25 - 0.125)
  with pytest.raises(KeyError):
    effects.effects(table, ['a:c'])
  found = effects.effects(table, ['a:b:final,lost', 'b:a:average'])
  assert list(found.measure) == ['final', 'lost', 'average']


def test_a_checkpoint_is_worth_the_evaluations_around_it(choices):
  # Of 1, 2, 4, 8: (2+4)/2, (1+4+8)/3, (1+2+8)/3, (2+4)/2.
  assert choices.worths(np.array([1.0, 2.0, 4.0, 8.0])) == pytest.approx(
    [3.0, 13 / 3, 11 / 3, 3.0]
  )


def test_what_is_drawn_at_random_is_worth_by_hand(choices):
  # Of three, the best of one is any; of two it is the best in two pairs of
  # three and the middle one in the third; of three it is the best.
  found = choices.at_random(
    np.array([5.0, 9.0, 7.0]), np.array([3.0, 6.0, 0.0])
  )
  assert found == pytest.approx([3.0, 4.0, 6.0])


def test_rules_see_training_and_held_out_rows_apart(choices, monkeypatch):
  monkeypatch.setattr(
    choices.reference, 'Normalisation', lambda: lambda x, _: x / 100
  )
  key = {'dataset': '10pct', 'method': 'cql', 'game': 'freeway', 'seed': 0}
  steps = [1, 2, 3, 4, 5]
  runs = types.SimpleNamespace(
    scores=pd.DataFrame(
      key | {'gradient_steps': step, 'return': 10.0 * step} for step in steps
    ),
    metrics=pd.DataFrame(
      key
      | {
        'gradient_steps': step,
        'loss_bellman': float(step),  # Least at first.
        'held_out_loss_bellman': 9.0 - step,  # Least at last.
      }
      for step in steps
    ),
  )
  judged = choices.judge(runs)
  first = judged[judged.k == 1].set_index(['source', 'rule'])
  # Worths are 25, 80/3, 30, 100/3, 35.
  assert first.regret['training', 'td_error'] == pytest.approx(10.0)
  assert first.regret['held_out', 'td_error'] == 0
  assert first.regret['training', 'last'] == 0
  assert first.worth['none', 'any'] == pytest.approx(30.0)
  # Who plays all five takes the one that plays best, whatever the rule.
  assert set(judged[judged.k == 5].worth) == {35.0}
  assert set(judged.rule) == {'any', 'last', 'td_error'}
