import numpy as np
import pytest

from batch_rl_dr3.analysis import feature_measures


@pytest.mark.parametrize(
  ('singular_values', 'delta', 'expected'),
  [
    # Shares 0.6, 0.9, 0.995, 1: three reach 0.99.
    ((60.0, 30.0, 9.5, 0.5), 0.01, 3),
    # 0.98 misses 0.99: the second is needed.
    ((98.0, 2.0), 0.01, 2),
    ((98.0, 2.0), 0.05, 1),
    ((1.0, 1.0, 1.0, 1.0), 0.0, 4),
    ((0.0, 0.0), 0.01, 0),
  ],
)
def test_effective_rank_by_hand(singular_values, delta, expected):
  features = np.diag(singular_values)
  assert feature_measures.effective_rank(features, delta) == expected


def test_effective_rank_does_not_change_under_rotation():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(40, 8)) @ np.diag([50, 20, 10, 1, 0.1, 0, 0, 0])
  rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
  assert feature_measures.effective_rank(
    features
  ) == feature_measures.effective_rank(features @ rotation)


@pytest.mark.parametrize('features', [np.zeros(3), np.full((2, 2), np.nan)])
def test_effective_rank_refuses_what_is_no_finite_matrix(features):
  with pytest.raises(ValueError, match='finite'):
    feature_measures.effective_rank(features)


def test_effective_rank_refuses_a_share_outside_zero_to_one():
  with pytest.raises(ValueError, match='delta'):
    feature_measures.effective_rank(np.eye(2), delta=1.0)


def test_dormant_features_by_hand():
  # Mean activities 0, 0.02, 1, 2.98, their mean 1: scores the same.
  features = np.array([[0.0, 0.0, 2.0, 5.0], [0.0, 0.04, 0.0, 0.96]])
  assert feature_measures.dormant_fraction(features, tau=0.0) == 0.25
  assert feature_measures.dormant_fraction(features) == 0.5
  assert feature_measures.dormant_fraction(features, tau=1.0) == 0.75
  assert feature_measures.dormant_fraction(np.zeros((2, 3)), tau=0.0) == 1.0


def test_divergence_ratio_by_hand():
  # Sums 6 and 4; no features at all are the boundary.
  np.testing.assert_array_equal(
    feature_measures.divergence_ratio([6.0, -1.0, 0.0], [4.0, 2.0, 0.0]),
    [1.5, -0.5, 1.0],
  )
