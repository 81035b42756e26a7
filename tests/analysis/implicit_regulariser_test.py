"""Theorem 3.1: every matrix by finite differences, the drift by simulation."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from batch_rl_dr3.analysis import td_theory
from batch_rl_dr3.analysis import td_theory as theorem

NETWORK = theorem.Network(3, 8)
GAMMA = 0.9


def fixed_point(seed=1, step_size=0.05, noise_scale=0.03, permuted=False):
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(4, 3))
  next_inputs = inputs + 0.7 * rng.normal(size=(4, 3))
  if permuted:
    next_inputs = inputs[rng.permutation(4)]
  theta = 0.7 * rng.normal(size=NETWORK.num_parameters)
  problem = theorem.problem_at(NETWORK, theta, inputs, next_inputs, GAMMA)
  return theorem.FixedPoint(problem, theta, step_size, noise_scale)


@pytest.fixture(scope='module')
def point():
  return fixed_point()


def derivative(function, theta, step=1e-5):
  """Returns the derivative by central differences, along the last axis."""
  return np.stack(
    [
      (function(theta + e) - function(theta - e)) / (2 * step)
      for e in step * np.eye(len(theta))
    ],
    axis=-1,
  )


def cosine(a, b):
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def first_term(point):
  """Returns sum_i grad Q_i^T Sigma grad Q_i."""
  return np.sum(point.gradients @ point.covariance * point.gradients)


def test_values_by_hand():
  # One hidden unit: Q = v tanh(w x) with w = (0.5, 0, 0), v = 2, x = (1, 9, 9).
  theta = np.array([0.5, 0.0, 0.0, 2.0])
  values = theorem.Network(3, 1).values(theta, np.array([[1.0, 9.0, 9.0]]))
  np.testing.assert_allclose(values, [2 * np.tanh(0.5)])


def test_gradients_and_hessians_by_finite_differences(point):
  inputs, theta = point.problem.inputs, point.theta
  np.testing.assert_allclose(
    NETWORK.gradients(theta, inputs),
    derivative(lambda t: NETWORK.values(t, inputs), theta),
    atol=1e-9,
  )
  np.testing.assert_allclose(
    NETWORK.hessians(theta, inputs),
    derivative(lambda t: NETWORK.gradients(t, inputs), theta),
    atol=1e-9,
  )


def test_many_parameters_at_once_equal_one_by_one(point):
  thetas = point.theta + 0.1 * np.random.default_rng(0).normal(size=(5, 32))
  np.testing.assert_allclose(
    theorem.pseudo_gradient(point.problem, thetas),
    [theorem.pseudo_gradient(point.problem, theta) for theta in thetas],
  )


def test_the_pseudo_hessian_is_the_pseudo_gradients_derivative(point):
  np.testing.assert_allclose(
    point.pseudo_hessian,
    derivative(
      lambda t: theorem.pseudo_gradient(point.problem, t), point.theta
    ),
    atol=1e-8,
  )
  assert np.abs(point.pseudo_hessian - point.pseudo_hessian.T).max() > 0.1


def test_the_covariance_is_the_fixed_point_of_its_equation(point):
  eta = point.step_size
  step = np.eye(32) - eta * point.pseudo_hessian
  residual = (
    step @ point.covariance @ step.T + eta**2 * point.noise - point.covariance
  )
  assert np.abs(residual).max() < 1e-12 * np.abs(point.covariance).max()
  # And the limit of the recursion, which starts without noise.
  covariance = np.zeros((32, 32))
  for _ in range(4000):
    covariance = step @ covariance @ step.T + eta**2 * point.noise
  np.testing.assert_allclose(
    covariance, point.covariance, atol=1e-6 * np.abs(covariance).max()
  )


def test_the_slowest_rate_is_of_the_nonzero_eigenvalues(point):
  values = np.linalg.eigvals(point.pseudo_hessian)
  nonzero = values[np.abs(values) > 1e-9]
  assert len(nonzero) == 4
  np.testing.assert_allclose(
    point.slowest_rate(), point.step_size * nonzero.real.min()
  )


def test_the_projection_keeps_the_null_space_and_removes_the_gradients(point):
  projection = point.null_projection()
  np.testing.assert_allclose(projection @ projection, projection, atol=1e-9)
  np.testing.assert_allclose(point.pseudo_hessian @ projection, 0, atol=1e-9)
  np.testing.assert_allclose(projection @ point.gradients.T, 0, atol=1e-9)
  assert np.linalg.matrix_rank(projection) == 32 - 4


def test_the_regularisers_gradient_by_finite_differences(point):
  stopped = point.next_gradients

  def regulariser(theta):
    gradients = NETWORK.gradients(theta, point.problem.inputs)
    mixed = gradients @ point.covariance
    return point.step_size * np.sum(mixed * gradients - GAMMA * mixed * stopped)

  np.testing.assert_allclose(regulariser(point.theta), point.regulariser())
  scale = np.abs(point.regulariser_gradient()).max()
  np.testing.assert_allclose(
    point.regulariser_gradient(),
    derivative(regulariser, point.theta),
    atol=1e-7 * scale,
  )


def test_the_field_is_the_second_order_term_by_finite_differences(point):
  # 1/2 sum_bc d^2 g / dtheta_b dtheta_c Sigma_bc, as differences along the
  # square roots of Sigma; only its part in the null space is the field's.
  values, vectors = np.linalg.eigh(point.covariance)
  step = 1e-3
  second = 0.0
  for value, vector in zip(values[-4:], vectors.T[-4:], strict=True):
    up, down = (
      theorem.pseudo_gradient(point.problem, point.theta + sign * step * vector)
      for sign in (1, -1)
    )
    second = second + value * (up + down) / step**2
  projection = point.null_projection()
  expected = projection @ second / 2
  np.testing.assert_allclose(
    projection @ point.field(), expected, atol=1e-5 * np.abs(expected).max()
  )


def test_at_its_own_covariance_the_regulariser_is_positive(point):
  hessian, covariance = point.pseudo_hessian, point.covariance
  np.testing.assert_allclose(
    point.regulariser(),
    point.step_size**2
    * np.trace(hessian @ covariance @ hessian.T + point.noise)
    / 2,
    rtol=1e-9,
  )


@pytest.mark.parametrize('stop_gradient', [True, False])
def test_dr3s_gradient_by_finite_differences(point, stop_gradient):
  def delta(theta):
    gradients = NETWORK.gradients(theta, point.problem.inputs)
    next_gradients = (
      point.next_gradients
      if stop_gradient
      else NETWORK.gradients(theta, point.problem.next_inputs)
    )
    return np.sum(gradients @ point.covariance * next_gradients)

  gradient = point.dr3_gradient(stop_gradient)
  np.testing.assert_allclose(
    gradient,
    derivative(delta, point.theta),
    atol=1e-7 * np.abs(gradient).max(),
  )


def test_dr3_with_stopped_gradient_removes_the_second_term(point):
  np.testing.assert_allclose(
    point.field() + GAMMA * point.dr3_gradient(stop_gradient=True),
    point.first_field(),
    atol=1e-12 * np.abs(point.field()).max(),
  )


def test_what_is_no_fixed_point_is_refused(point):
  with pytest.raises(ValueError, match='no fixed point'):
    theorem.FixedPoint(point.problem, point.theta + 0.1, 0.05)


def test_a_fixed_point_that_td_leaves_is_refused():
  with pytest.raises(ValueError, match='spectral radius'):
    fixed_point(seed=0)  # G has a negative eigenvalue there.


def test_a_covariance_needs_a_contraction():
  with pytest.raises(ValueError, match='spectral radius 1'):
    td_theory.stationary_covariance(np.diag([1.0, 0.0]), np.eye(2), 0.1)
  # s = (1 - 0.5)^2 s + 0.25 * 3: s = 1.
  np.testing.assert_allclose(
    td_theory.stationary_covariance(np.eye(1), np.eye(1) * 3, 0.5), [[1.0]]
  )


@hypothesis.given(st.integers(0, 10_000))
@hypothesis.settings(max_examples=30, deadline=None)
def test_in_sample_backups_bound_the_regulariser_below(seed):
  # G's symmetric part is positive definite: condition (1) always holds.
  point = fixed_point(seed, step_size=0.003, permuted=True)
  floor = point.step_size * (1 - GAMMA) * first_term(point)
  assert point.regulariser() >= floor * (1 - 1e-9) > 0


def test_out_of_sample_backups_fall_below_the_bound():
  # What is backed up from has gradients that are a little larger.
  rng = np.random.default_rng(5)
  inputs = rng.normal(size=(2, 3))
  theta = 0.3 * rng.normal(size=NETWORK.num_parameters)
  problem = theorem.problem_at(NETWORK, theta, inputs, 1.05 * inputs, GAMMA)
  point = theorem.FixedPoint(problem, theta, 0.05)
  floor = point.step_size * (1 - GAMMA) * first_term(point)
  assert 0 < point.regulariser() < 0.8 * floor


def drift_cosines(point, num_chains, seed=0):
  drift = theorem.simulate_drift(point, num_chains, 400, 300, seed)
  projection = point.null_projection()
  predicted = -point.step_size * projection @ point.field()
  printed = -projection @ point.regulariser_gradient()
  return drift, cosine(drift, predicted), cosine(drift, printed)


def test_noisy_td_drifts_as_the_field_says(point):
  drift, by_field, as_printed = drift_cosines(point, 600)
  assert by_field > 0.99
  assert by_field > as_printed
  predicted = point.step_size * point.null_projection() @ point.field()
  np.testing.assert_allclose(
    np.linalg.norm(drift), np.linalg.norm(predicted), rtol=0.1
  )
  # Along it, Eq. 4's regulariser falls.
  assert drift @ point.regulariser_gradient() < 0


def test_with_dr3_it_drifts_as_in_supervised_learning(point):
  extra = GAMMA * point.dr3_gradient(stop_gradient=True)
  drift = theorem.simulate_drift(point, 600, 400, 300, 0, extra)
  supervised = -point.null_projection() @ point.first_field()
  assert cosine(drift, supervised) > 0.99
  plain = theorem.simulate_drift(point, 600, 400, 300, 0)
  assert cosine(plain, supervised) < 0.95


def test_without_noise_nothing_moves():
  point = fixed_point(noise_scale=0.0)
  drift = theorem.simulate_drift(point, 2, 50, 10, 0)
  np.testing.assert_allclose(drift, 0, atol=1e-15)
