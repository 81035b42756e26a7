"""Features and Q-values of any network, measured."""

import dataclasses

import numpy as np
import pytest

from batch_rl_dr3.analysis import diagnosis

# phi and phi' of two transitions, of which the second ends its episode.
PAIR = diagnosis.LoggedOutputs(
  features=np.asarray([[3.0, 4.0], [0.0, 2.0]]),
  next_features=np.asarray([[4.0, 3.0], [0.0, 1.0]]),
  discounts=np.asarray([0.5, 0.0]),
  q_values=np.asarray([1.0, 3.0]),
  returns=np.asarray([2.0, 2.5]),
)


def test_measures_of_two_transitions_by_hand():
  found = diagnosis.diagnose(PAIR)
  # Dots 12 + 12 = 24 and 2; |phi|^2 25 and 4; cosines 24 / 25 and 1.
  expected = {
    'feature_dot_product': 13.0,
    'feature_cosine': 0.98,
    'feature_norm': 3.5,
    'feature_norm_squared': 14.5,
    'discounted_dot_product': 6.0,  # (0.5 * 24 + 0 * 2) / 2
    'divergence_ratio': 6 / 14.5,
    'dead_fraction': 0.0,
    'mean_q': 2.0,
    'mean_return': 2.25,
    'q_bias': -0.25,  # (-1 + 0.5) / 2
    'q_error': 0.75,
    'q_correlation': 1.0,
  }
  for name, value in expected.items():
    assert found.measures[name] == pytest.approx(value), name
  # G / N = [[3, 4]^T ([3, 4] - 0.5 [4, 3]) + [0, 2]^T [0, 2]] / 2
  #   = [[3, 7.5], [4, 10 + 4]] / 2: trace 8.5, determinant 3.
  np.testing.assert_allclose(found.eigenvalues.sum(), 8.5)
  np.testing.assert_allclose(found.eigenvalues.prod(), 3.0)
  lowest = (8.5 - np.sqrt(8.5**2 - 12)) / 2
  assert found.measures['lowest_eigenvalue_of_G'] == pytest.approx(lowest)


def test_the_ranks_differ_as_their_definitions_do():
  rng = np.random.default_rng(0)
  directions = np.linalg.qr(rng.normal(size=(500, 4)))[0]
  # Singular values of Phi / sqrt(N): 10, 1, 0.1 and 0.001.
  phi = directions * np.sqrt(500) * [10, 1, 0.1, 0.001]
  found = diagnosis.diagnose(
    diagnosis.LoggedOutputs(phi, phi, np.zeros(500), np.zeros(500))
  ).measures
  # Shares of the sum, 11.101: 0.9008, 0.9909; of its squares: 0.990.
  assert found['effective_rank'] == 2
  assert found['threshold_rank'] == 3
  assert found['pca_rank'] in (1, 2)  # The mean is taken off first.
  assert 'q_bias' not in found


def test_returns_of_cut_episodes_are_left_out():
  cut = dataclasses.replace(PAIR, returns=np.asarray([np.nan, 2.5]))
  found = diagnosis.diagnose(cut).measures
  assert (found['q_bias'], found['mean_return']) == (0.5, 2.5)
  assert 'q_correlation' not in found


def test_features_that_are_not_finite_are_refused():
  phi = np.asarray([[np.nan, 1.0]])
  with pytest.raises(ValueError, match='not a finite number'):
    diagnosis.diagnose(
      diagnosis.LoggedOutputs(phi, phi, np.zeros(1), np.zeros(1))
    )


def test_changes_of_predictions_by_hand():
  before = np.array([[1.0, 2.0], [4.0, -1.0]])
  after = np.array([[1.0, 0.0], [5.0, -1.0]])
  # |0|, |-2|, |1|, |0| over 1, 2, 4, 1; the first state's action changes.
  assert diagnosis.compare_outputs(before, after) == {
    'q_change': pytest.approx((3 / 4) / (8 / 4)),
    'actions_changed': 0.5,
  }
