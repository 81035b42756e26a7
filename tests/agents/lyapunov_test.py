import numpy as np
import pytest
import tensorflow as tf

from batch_rl_dr3.agents.stateful_penalties import lyapunov_fixed_point
from batch_rl_dr3.analysis import td_theory as reference


def solve(session, hessian, noise, step_size, dtype=tf.float64, **kwargs):
  solution = lyapunov_fixed_point(
    tf.constant(hessian, dtype),
    tf.constant(noise, dtype),
    tf.constant(step_size, dtype),
    **kwargs,
  )
  return session.run(solution)


def problem(seed, dimension=12, num_rows=40, gamma=0.9):
  """Features of both sides, damped: G is not symmetric, eigenvalues > 0."""
  rng = np.random.default_rng(seed)
  phi = rng.normal(size=(num_rows, dimension)) @ np.diag(
    np.geomspace(1, 0.03, dimension)
  )
  successors = 0.8 * phi + 0.3 * rng.normal(size=phi.shape) * phi.std(axis=0)
  noise = phi.T @ phi / num_rows
  hessian = phi.T @ (phi - gamma * successors) / num_rows
  return hessian + 1e-4 * np.eye(dimension), noise


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('step_size', [0.5, 0.01])
def test_equals_scipys_solver(session, seed, step_size):
  hessian, noise = problem(seed)
  expected = reference.stationary_covariance(hessian, noise, step_size)
  solution = solve(session, hessian, noise, step_size)
  assert solution.has_converged
  # Slow directions have thousands of rounds to go: 1 - eta * 1e-4.
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    solution.covariance, expected, rtol=1e-5, atol=1e-7 * scale
  )
  np.testing.assert_array_equal(solution.covariance, solution.covariance.T)


def test_by_hand(session):
  # Each direction alone: s = (1 - g)^2 s + m, so m / (1 - (1 - g)^2).
  solution = solve(session, np.diag([0.5, 1.0]), np.diag([3.0, 7.0]), 1.0)
  np.testing.assert_allclose(
    solution.covariance, np.diag([3 / 0.75, 7.0]), rtol=1e-9
  )


def test_single_precision_is_near(session):
  hessian, noise = problem(0)
  expected = reference.stationary_covariance(hessian, noise, 0.5)
  solution = solve(session, hessian, noise, 0.5, tf.float32)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(solution.covariance, expected, atol=1e-2 * scale)


@pytest.mark.parametrize(
  'hessian',
  [
    np.diag([1.0, -0.1]),  # Grows.
    np.diag([1.0, 0.0]),  # Stays: noise adds up there without end.
    np.array([[0.1, -1.0], [1.0, 0.1]]) * 10,  # Too long a step.
  ],
)
def test_without_a_contraction_there_is_no_solution(session, hessian):
  assert not solve(session, hessian, np.eye(2), 0.5).has_converged


def test_too_few_doublings_do_not_converge(session):
  hessian, noise = problem(0)
  assert not solve(session, hessian, noise, 0.5, num_doublings=3).has_converged


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError):
    lyapunov_fixed_point(tf.zeros([2, 3]), tf.zeros([2, 3]), tf.constant(0.1))
  with pytest.raises(ValueError):
    lyapunov_fixed_point(tf.zeros([2, 2]), tf.zeros([3, 3]), tf.constant(0.1))
