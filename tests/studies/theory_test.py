from matplotlib.backends import backend_agg
import numpy as np
import pandas as pd
import pytest

from batch_rl_dr3.studies import theory


def drawn(figure):
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  return figure.axes


def test_a_study_is_a_figure_and_a_table():
  drawn, table = theory.make('proposition32')
  assert drawn.name == 'proposition32'
  assert drawn.wide.startswith(b'\x89PNG')
  # docs/theory.md states these.
  beyond = table['ratio'] >= 1
  assert (beyond.sum(), table.loc[beyond, 'diverges'].sum()) == (295, 295)
  assert ((~beyond).sum(), table.loc[~beyond, 'diverges'].sum()) == (305, 49)


def test_no_feature_set_beyond_the_boundary_converges():
  sets = theory.feature_sets(60)
  beyond = sets['ratio'] >= 1
  assert 10 < beyond.sum() < 50
  assert sets.loc[beyond, 'diverges'].all()
  assert not sets.loc[~beyond, 'diverges'].all()
  left, right = drawn(theory.draw_feature_sets(sets))
  # Every set is a dot, and each line is of one ratio.
  assert sum(len(c.get_offsets()) for c in left.collections) == 60
  ends = [line.get_ydata()[-1] for line in right.lines]
  assert ends == sorted(ends)
  assert ends[2] == 2.0  # |(1, 1, 1, 1)|, which stands still at ratio 1.


def test_drifts_are_of_fixed_points_that_td_keeps(monkeypatch):
  monkeypatch.setattr(theory, '_NUM_CHAINS', 100)
  monkeypatch.setattr(theory, '_NUM_STEPS', 60)
  monkeypatch.setattr(theory, '_BURN_IN', 60)
  measured = theory.drifts(2)
  assert list(measured['seed']) == [1, 4]  # TD leaves those in between.
  assert (measured['slowest'] > 0).all()
  cosines = measured.drop(columns=['seed', 'slowest', 'length_ratio'])
  assert (np.abs(cosines) <= 1).all(axis=None)
  left, right = drawn(theory.draw_drifts(measured))
  for axes, num_columns in ((left, 3), (right, 5)):
    counts = [len(c.get_offsets()) for c in axes.collections[::2]]
    assert counts == [2] * num_columns


def test_what_is_penalised_and_how_little_of_it_the_last_layer_is():
  points = [point for _, point in theory.fixed_points(20)]
  found = pd.DataFrame([theory.simpler_penalties(p) for p in points])
  # docs/theory.md states these.
  assert found.median().to_dict() == pytest.approx(
    {'identity': 0.95, 'last_layer': 0.50, 'last_layer_best': 0.89}, abs=0.006
  )
  assert found.min().to_dict() == pytest.approx(
    {'identity': 0.27, 'last_layer': -0.13, 'last_layer_best': 0.28}, abs=0.006
  )


def stability(num_points, in_sample):
  """Returns how many points are drawn until so many are stable.

  And at what share of these noise moves the features' dot product upwards.
  """
  stable = drawn = rises = 0
  while stable < num_points:
    point = theory.draw_point(drawn, in_sample)
    drawn += 1
    if point is None:
      continue
    stable += 1
    features = np.eye(point.problem.network.num_parameters)
    features[: -point.problem.network.num_hidden] = 0.0
    moved = -point.null_projection() @ point.field()
    rises += bool(moved @ point.dr3_gradient(False, features) > 0)
  return drawn, rises / stable


def test_backups_in_sample_are_the_stable_ones():
  # docs/theory.md has these of 300 points.
  assert stability(30, in_sample=True)[0] < 40
  assert stability(30, in_sample=False)[0] > 80


def test_in_sample_g_is_bounded_by_the_gradients_along_any_direction():
  # v^T G v >= (1 - gamma) sum (v . grad Q_i)^2: of a = (v . grad Q_i), a' is a
  # permutation, so that a . a' <= a . a.
  rng = np.random.default_rng(0)
  points = [theory.draw_point(seed, in_sample=True) for seed in range(10)]
  for point in filter(None, points):
    for direction in rng.normal(size=(50, 32)):
      along = point.gradients @ direction
      form = direction @ point.pseudo_hessian @ direction
      assert form >= (1 - 0.9) * np.sum(along**2) - 1e-12
