import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from batch_rl_dr3.analysis import td_theory

GAMMA = 0.9


def family(ratio, dimension=3, num_rows=7, seed=0):
  """Features whose successors are (ratio / gamma) phi: all of G is known.

  G = sum phi (phi - ratio phi)^T = (1 - ratio) Phi^T Phi, which is positive
  definite below a ratio of 1, zero at 1 and negative definite above.
  """
  phi = np.random.default_rng(seed).normal(size=(num_rows, dimension))
  return td_theory.Features(phi, phi * ratio / GAMMA, np.full(num_rows, GAMMA))


def run(sides, step_size=0.02, num_steps=2000, seed=1):
  rng = np.random.default_rng(seed)
  num_rows, dimension = sides.features.shape
  return td_theory.iterate(
    sides,
    rng.normal(size=num_rows),
    rng.normal(size=dimension),
    step_size,
    num_steps,
  )


def test_ratio_and_matrix_by_hand():
  # phi = (1, 2), (3, 0); phi' = (4, 1), (5, 5); the second ends its episode.
  sides = td_theory.Features(
    np.array([[1.0, 2.0], [3.0, 0.0]]),
    np.array([[4.0, 1.0], [5.0, 5.0]]),
    np.array([0.5, 0.0]),
  )
  # 0.5 (1*4 + 2*1) = 3 over 1 + 4 + 9 = 14.
  assert td_theory.divergence_ratio(sides) == pytest.approx(3 / 14)
  # (1, 2)^T (1 - 2, 2 - 0.5) + (3, 0)^T (3, 0).
  np.testing.assert_allclose(
    td_theory.update_matrix(sides), [[-1 + 9, 1.5], [-2, 3]]
  )
  assert np.trace(td_theory.update_matrix(sides)) == pytest.approx(14 - 3)


@pytest.mark.parametrize(
  ('ratio', 'num_steps'), [(0.0, 400), (0.9, 4000), (0.98, 20_000)]
)
def test_below_the_boundary_the_family_converges(ratio, num_steps):
  sides = family(ratio)
  assert td_theory.divergence_ratio(sides) == pytest.approx(ratio)
  assert td_theory.lowest_real_part(sides) > 0
  weights = run(sides, step_size=0.1, num_steps=num_steps)
  # The fixed point of w = w + eta (b - G w).
  rewards = np.random.default_rng(1).normal(size=len(sides.features))
  fixed_point = np.linalg.solve(
    td_theory.update_matrix(sides), sides.features.T @ rewards
  )
  np.testing.assert_allclose(weights[-1], fixed_point, rtol=1e-4)


@pytest.mark.parametrize(('ratio', 'num_steps'), [(1.01, 20_000), (1.5, 400)])
def test_above_the_boundary_the_family_diverges(ratio, num_steps):
  sides = family(ratio)
  assert td_theory.divergence_ratio(sides) == pytest.approx(ratio)
  assert td_theory.lowest_real_part(sides) < 0
  norms = np.linalg.norm(run(sides, num_steps=num_steps), axis=1)
  assert norms[-1] > 1e3 * norms[0]


def test_at_the_boundary_it_grows_linearly_or_stands_still():
  sides = family(1.0)
  assert td_theory.divergence_ratio(sides) == pytest.approx(1.0)
  start = np.ones(3)
  rewards = np.arange(7.0)
  weights = td_theory.iterate(sides, rewards, start, 0.1, 10)
  drift = 0.1 * sides.features.T @ rewards
  np.testing.assert_allclose(weights[-1], start + 10 * drift, rtol=1e-9)
  still = td_theory.iterate(sides, np.zeros(7), start, 0.1, 10)
  np.testing.assert_allclose(still[-1], start, rtol=1e-9)


def test_a_rotation_at_the_boundary_diverges_at_every_step_size():
  # phi = e_1, e_2 and gamma phi' = (1, 1), (-1, 1): G = [[0, -1], [1, 0]],
  # eigenvalues +-i, |1 - eta i| = sqrt(1 + eta^2).
  sides = td_theory.Features(
    np.eye(2), np.array([[1.0, 1.0], [-1.0, 1.0]]) / GAMMA, np.full(2, GAMMA)
  )
  assert td_theory.divergence_ratio(sides) == pytest.approx(1.0)
  for step_size in (0.01, 0.5):
    weights = td_theory.iterate(sides, np.zeros(2), [1.0, 0.0], step_size, 100)
    np.testing.assert_allclose(
      np.linalg.norm(weights[-1]), (1 + step_size**2) ** 50, rtol=1e-9
    )


def test_the_condition_is_not_necessary():
  # G = diag(10, -1): its trace is 9, and yet the second weight diverges.
  sides = td_theory.Features(
    np.diag([10.0**0.5, 1.0]), np.diag([0.0, 2.0]) / GAMMA, np.full(2, GAMMA)
  )
  assert td_theory.divergence_ratio(sides) == pytest.approx(2 / 11)
  assert td_theory.lowest_real_part(sides) == pytest.approx(-1.0)
  weights = td_theory.iterate(sides, np.zeros(2), [1.0, 1.0], 0.05, 200)
  assert abs(weights[-1, 1]) > 1e3
  assert abs(weights[-1, 0]) < 1e-3


@st.composite
def violating_features(draw):
  """Features that satisfy the condition, with room: ratio in [1.05, 5]."""
  num_rows = draw(st.integers(1, 12))
  dimension = draw(st.integers(1, 6))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  phi = rng.normal(size=(num_rows, dimension))
  # Any successors, moved along phi until the ratio is as drawn.
  successors = draw(st.floats(0, 3)) * rng.normal(size=phi.shape)
  discounts = draw(st.floats(0.5, 0.999)) * rng.integers(0, 2, num_rows)
  discounts[0] = max(discounts[0], 0.5)
  squares = np.sum(phi**2)
  ratio = draw(st.floats(1.05, 5))
  gap = ratio * squares - np.sum(discounts[:, None] * phi * successors)
  successors += gap / np.sum(discounts[:, None] * phi**2) * phi
  return td_theory.Features(phi, successors, discounts), ratio


@hypothesis.given(violating_features(), st.floats(0.01, 1))
@hypothesis.settings(max_examples=100, deadline=None)
def test_linear_td_never_converges_where_the_condition_holds(drawn, relative):
  sides, ratio = drawn
  assert td_theory.divergence_ratio(sides) == pytest.approx(ratio)
  matrix = td_theory.update_matrix(sides)
  # The proof: trace(G) < 0, so that one eigenvalue has a real part of at most
  # trace / D, and |1 - eta lambda| >= 1 + eta |trace| / D > 1 for every eta.
  dimension = len(matrix)
  excess = -np.trace(matrix) / dimension
  assert excess > 0
  assert td_theory.lowest_real_part(sides) <= -excess * (1 - 1e-6)
  step_size = relative / np.linalg.norm(matrix, 2)
  radius = np.abs(np.linalg.eigvals(np.eye(dimension) - step_size * matrix))
  assert radius.max() >= 1 + step_size * excess * (1 - 1e-6)
  # And the iteration itself, for as many steps as must multiply the distance
  # of two starting points by a million, whatever the rewards are.
  num_steps = int(np.ceil(np.log(1e9) / np.log(radius.max())))
  hypothesis.assume(num_steps < 20_000)
  rng = np.random.default_rng(0)
  starts = rng.normal(size=(2, dimension))
  rewards = rng.normal(size=len(sides.features))
  first, second = (
    td_theory.iterate(sides, rewards, start, step_size, num_steps)[[0, -1]]
    for start in starts
  )
  before, after = np.linalg.norm(first - second, axis=1)
  assert after > 1e3 * before


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='one shape'):
    td_theory.divergence_ratio(
      td_theory.Features(np.ones((2, 3)), np.ones((2, 4)), np.ones(2))
    )
  with pytest.raises(ValueError, match='discounts'):
    td_theory.divergence_ratio(
      td_theory.Features(np.ones((2, 3)), np.ones((2, 3)), np.ones(3))
    )


def test_features_of_nothing_are_at_the_boundary():
  zeros = np.zeros((2, 3))
  sides = td_theory.Features(zeros, zeros, np.ones(2))
  assert td_theory.divergence_ratio(sides) == 1.0
