"""The paper's two theoretical results, measured: no data and no training."""

from collections.abc import Callable, Iterator
import functools
import itertools

from matplotlib import figure as mpl_figure
import numpy as np
import pandas as pd

from batch_rl_dr3.analysis import td_theory
from batch_rl_dr3.config import progress
from batch_rl_dr3.reporting import figures, words

_BLUE, _RED, _GREY = figures.PALETTE[0], figures.PALETTE[1], '#888888'
_GAMMA = 0.9
_Draw = Callable[[pd.DataFrame, bool], mpl_figure.Figure]

# Proposition 3.2.
_RATIOS = (0.9, 0.99, 1.0, 1.01, 1.1)
_NUM_TD_STEPS = 400

# Theorem 3.1: small networks, data sets of 4 transitions.
_NUM_INPUTS, _NUM_HIDDEN, _NUM_DATA = 3, 8, 4
_STEP_SIZE, _NOISE_SCALE = 0.05, 0.005
_NUM_CHAINS, _NUM_STEPS, _BURN_IN = 1000, 400, 400


def _sides(
  phi: td_theory.Array, next_phi: td_theory.Array
) -> td_theory.Features:
  return td_theory.Features(phi, next_phi, np.full(len(phi), _GAMMA))


def feature_sets(num_sets: int, seed: int = 0) -> pd.DataFrame:
  """Returns the proposition's ratio and what linear TD does, a row a set.

  Each is of random features phi [N, D] and random successors, moved along phi
  until the ratio is as drawn between 0 and 2.

  Returns:
    Columns ratio; lowest_real_part of G's eigenvalues, over |G|; diverges.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for _ in range(num_sets):
    phi = rng.normal(size=(20, rng.integers(2, 9)))
    successors = rng.uniform(0, 1) * rng.normal(size=phi.shape)
    squares = np.sum(phi**2)
    gap = rng.uniform(0, 2) * squares - _GAMMA * np.sum(phi * successors)
    sides = _sides(phi, successors + gap / (_GAMMA * squares) * phi)
    lowest = td_theory.lowest_real_part(sides)
    norm = np.linalg.norm(td_theory.update_matrix(sides), 2)
    rows.append((td_theory.divergence_ratio(sides), lowest / norm, lowest < 0))
  return pd.DataFrame(rows, columns=['ratio', 'lowest_real_part', 'diverges'])


def draw_feature_sets(
  sets: pd.DataFrame, narrow: bool = False
) -> mpl_figure.Figure:
  """Returns the figure of `feature_sets`, and of linear TD on one family."""
  figure, (left, right) = figures.pair(narrow)
  for diverges, colour, label in (
    (False, _BLUE, 'converges'),
    (True, _RED, 'diverges'),
  ):
    chosen = sets[sets['diverges'] == diverges]
    places = chosen['ratio'], chosen['lowest_real_part']
    left.scatter(*places, s=9, color=colour, label=label, linewidth=0)
  left.axvline(1.0, color=_GREY, linestyle=':')
  left.axhline(0.0, color=_GREY, linewidth=0.8)
  left.set(
    title='Random features',
    xlabel="Proposition 3.2's ratio",
    ylabel='lowest Re eigenvalue of G, over |G|',
  )
  left.legend()
  phi = np.random.default_rng(0).normal(size=(20, 4))
  shades = np.linspace(0.15, 0.85, len(_RATIOS))
  for ratio, shade in zip(_RATIOS, shades, strict=True):
    sides = _sides(phi, ratio / _GAMMA * phi)
    start = np.zeros(20), np.ones(4)
    weights = td_theory.iterate(sides, *start, 0.02, _NUM_TD_STEPS)
    norms = np.linalg.norm(weights, axis=1)
    right.plot(norms, label=f'{ratio:g}', color=(shade, 0.45, 1 - shade))
  right.set(
    yscale='log',
    title="gamma phi' = ratio * phi, rewards 0",
    xlabel='steps of linear TD',
    ylabel='|w|',
  )
  right.legend(title='ratio')
  return figure


def draw_point(
  seed: int, in_sample: bool = False
) -> td_theory.FixedPoint | None:
  """Returns a fixed point, None where TD leaves it: the theorem is silent.

  In sample the (s', a') are a permutation of the (s, a); else they lie beside.
  """
  network = td_theory.Network(_NUM_INPUTS, _NUM_HIDDEN)
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(_NUM_DATA, _NUM_INPUTS))
  next_inputs = inputs + 0.7 * rng.normal(size=inputs.shape)
  theta = 0.7 * rng.normal(size=network.num_parameters)
  if in_sample:
    next_inputs = inputs[rng.permutation(_NUM_DATA)]
  problem = td_theory.problem_at(network, theta, inputs, next_inputs, _GAMMA)
  try:
    return td_theory.FixedPoint(problem, theta, _STEP_SIZE, _NOISE_SCALE)
  except ValueError:
    return None


def fixed_points(
  num_points: int,
) -> Iterator[tuple[int, td_theory.FixedPoint]]:
  """Yields fixed points that TD does not leave, with the seed of each."""
  drawn = ((seed, draw_point(seed)) for seed in itertools.count())
  stable = ((seed, point) for seed, point in drawn if point is not None)
  return itertools.islice(stable, num_points)


def drifts(num_points: int) -> pd.DataFrame:
  """Returns how noisy TD moves around fixed points, a row a point.

  Returns:
    Columns seed; slowest, `FixedPoint.slowest_rate`: where it is not well above
    1 / burn-in, the covariance has not settled. Cosines of the simulated
    movement along the null space: with what the expansion predicts (`field`)
    and with Eq. 4 as printed (`eq4`). length_ratio, simulated over predicted.
    slope, the cosine of the movement with Eq. 4's gradient, negative where
    R_TD falls. Cosines with the field of supervised learning: of TD (`td`), of
    TD + DR3 with the gradient stopped (`dr3_stopped`) and without (`dr3`), each
    with coefficient gamma. The same by the expansion, for the penalties of
    `simpler_penalties`.
  """
  rows = []
  with progress.bar(num_points, 'theorem31', 'fixed point') as bar:
    for seed, point in fixed_points(num_points):
      drift = functools.partial(
        td_theory.simulate_drift,
        *(point, _NUM_CHAINS, _NUM_STEPS, _BURN_IN, seed),
      )
      projection = point.null_projection()
      moved = drift()
      predicted = -point.step_size * projection @ point.field()
      gradient = point.regulariser_gradient()
      supervised = -projection @ point.first_field()
      stopped, free = (
        drift(_GAMMA * point.dr3_gradient(stop)) for stop in (True, False)
      )
      row = {
        'seed': seed,
        'slowest': point.slowest_rate(),
        'field': _cosine(moved, predicted),
        'eq4': _cosine(moved, -projection @ gradient),
        'length_ratio': np.linalg.norm(moved) / np.linalg.norm(predicted),
        'slope': _cosine(moved, gradient),
        'td': _cosine(moved, supervised),
        'dr3_stopped': _cosine(stopped, supervised),
        'dr3': _cosine(free, supervised),
      }
      rows.append(row | simpler_penalties(point))
      bar.update()
  return pd.DataFrame(rows)


def simpler_penalties(
  point: td_theory.FixedPoint,
) -> dict[str, float]:
  """Returns cosines with supervised learning of DR3 with another Sigma.

  Each is scaled to the trace of the point's own Sigma, which has the rank of
  the data: `identity`, I over all parameters; `last_layer`, I over those of the
  last layer, which is DR3 as it is used; `last_layer_best`, the same with the
  coefficient that is best at this point.
  """
  network = point.problem.network
  projection = point.null_projection()
  supervised = projection @ point.first_field()
  scale = np.trace(point.covariance) / len(point.gradients)
  identity = scale * np.eye(network.num_parameters)
  last_layer = identity.copy()
  last_layer[: -network.num_hidden] = 0.0

  def cosine(covariance: td_theory.Array, times: float) -> float:
    extra = _GAMMA * times * point.dr3_gradient(False, covariance)
    return _cosine(projection @ (point.field() + extra), supervised)

  return {
    'identity': cosine(identity, 1.0),
    'last_layer': cosine(last_layer, 1.0),
    'last_layer_best': max(
      cosine(last_layer, times) for times in (0.0, *np.logspace(-4, 3, 200))
    ),
  }


def _cosine(a: td_theory.Array, b: td_theory.Array) -> float:
  return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def draw_drifts(
  measured: pd.DataFrame, narrow: bool = False
) -> mpl_figure.Figure:
  """Returns the figure of `drifts`: a dot a fixed point, a bar the median."""
  figure, axes = figures.pair(narrow)
  rng = np.random.default_rng(0)
  for panel, part in zip(axes, ('predicted', 'supervised'), strict=True):
    title, *entries = words.entries('theorem31', part)
    labels = dict(entries)
    for place, column in enumerate(labels):
      values = measured[column].to_numpy()
      beside = place + rng.uniform(-0.18, 0.18, len(values))
      panel.scatter(beside, values, s=12, color=_BLUE, alpha=0.6, linewidth=0)
      panel.hlines(np.median(values), place - 0.3, place + 0.3, color=_RED)
    panel.set_xticks(range(len(labels)), list(labels.values()))
    panel.axhline(0.0, color=_GREY, linewidth=0.8)
    panel.set(
      title=title,
      xlim=(-0.5, len(labels) - 0.5),
      ylim=(-1.05, 1.05),
      ylabel='cosine in the null space of G',
    )
  return figure


# What is measured of each study, and how it is drawn.
STUDIES: dict[str, tuple[Callable[[], pd.DataFrame], _Draw]] = {
  'proposition32': (functools.partial(feature_sets, 600), draw_feature_sets),
  'theorem31': (functools.partial(drifts, 20), draw_drifts),
}


def make(study: str) -> tuple[figures.Figure, pd.DataFrame]:
  """Returns the figure and the table of a study."""
  measure, draw = STUDIES[study]
  table = measure()
  return figures.make_named(study, functools.partial(draw, table)), table
