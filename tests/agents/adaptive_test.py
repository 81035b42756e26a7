import math

import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents.stateful_penalties import AdaptiveFeatureDotPenalty
from batch_rl_dr3.config import errors

# (1, 2).(1, 1) / sqrt(5 * 2) and (3, 0).(-4, 1) / (3 * sqrt(17)).
COSINES = (3 / math.sqrt(10), -4 / math.sqrt(17))


def state_at(coefficient):
  return {'log_coefficient': tf.constant(math.log(coefficient))}


@pytest.mark.parametrize(
  ('normalised', 'expected'), [(True, np.mean(COSINES)), (False, -4.5)]
)
def test_value_by_hand(session, batch, normalised, expected):
  penalty = AdaptiveFeatureDotPenalty(normalised=normalised)
  value = session.run(penalty(batch(), state_at(0.5)))
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_the_weight_is_the_states(session):
  penalty = AdaptiveFeatureDotPenalty(coefficient=0.02)
  assert math.exp(penalty.initial_state(3)['log_coefficient']) == (
    pytest.approx(0.02)
  )
  assert session.run(penalty.weight(state_at(0.5))) == pytest.approx(0.5)


@pytest.mark.parametrize(('target', 'sign'), [(-0.5, 1), (0.5, -1)])
def test_dual_ascent_by_hand(session, batch, target, sign):
  penalty = AdaptiveFeatureDotPenalty(target=target, rate=0.1)
  after = session.run(penalty.next_state(batch(), state_at(0.5)))
  excess = np.mean(COSINES) - target
  assert excess * sign > 0
  np.testing.assert_allclose(
    after['log_coefficient'], math.log(0.5) + 0.1 * excess, rtol=1e-5
  )


def test_it_stays_within_its_bounds(session, batch):
  penalty = AdaptiveFeatureDotPenalty(
    coefficient=0.5, target=-1.0, rate=100.0, bounds=(0.1, 2.0)
  )
  after = session.run(penalty.next_state(batch(), state_at(0.5)))
  assert math.exp(after['log_coefficient']) == pytest.approx(2.0)


def test_no_gradient_flows_into_the_multiplier(session, batch):
  penalty = AdaptiveFeatureDotPenalty()
  made = batch()
  after = penalty.next_state(made, state_at(0.5))
  assert tf.gradients(after['log_coefficient'], made.features) == [None]


def test_features_that_are_zero_have_a_cosine_of_zero(session, batch):
  penalty = AdaptiveFeatureDotPenalty()
  made = batch(features=tf.zeros([2, 2]))
  measured = session.run(penalty.measures(made, state_at(0.5)))
  assert measured['feature_cosine'] == 0
  assert measured['adaptive_coefficient'] == pytest.approx(0.5)


@pytest.mark.parametrize(
  ('wrong', 'named', 'error'),
  [
    ({'coefficient': 0.0}, 'coefficient', ValueError),
    ({'coefficient': 20.0}, 'bounds', ValueError),
    ({'bounds': (0.0, 1.0)}, 'bounds', ValueError),
    ({'target': 1.5}, 'target', errors.ConfigError),
    ({'rate': 0.0}, 'rate', errors.ConfigError),
  ],
)
def test_numbers_out_of_range_are_refused(wrong, named, error):
  with pytest.raises(error, match=named):
    AdaptiveFeatureDotPenalty(**wrong)
