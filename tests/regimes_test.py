"""The words of results/plan.md, on runs whose numbers are known."""

import importlib.util
import pathlib

import numpy as np
import pandas as pd
import pytest

PATH = pathlib.Path(__file__).parent.parent / 'run_scripts' / 'regimes.py'
STEPS = np.arange(0, 100_001, 10_000)


@pytest.fixture(scope='module')
def regimes():
  spec = importlib.util.spec_from_file_location('regimes', PATH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


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
