from matplotlib.backends import backend_agg
import numpy as np

from batch_rl_dr3.studies import theory


def drawn(figure):
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  return figure.axes


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
  for axes in (left, right):
    assert [len(c.get_offsets()) for c in axes.collections[::2]] == [2, 2, 2]
