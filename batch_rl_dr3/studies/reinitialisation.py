"""How much a checkpoint depends on each of its layers (Figure A.2).

Zhang et al. 2019 (arXiv:1902.01996) set one layer of a trained network back,
to its initial values or to a fresh draw of the same distribution, and look at
what is lost. Kumar et al. 2022 (arXiv:2112.04716) do so with value networks
and say that DR3 makes them behave as in supervised learning. Their protocol is
not known. Here a layer is a kernel with its bias, what is lost is return, by
the run's own rule of play, and predictions are compared on states that the
unchanged checkpoint visits.
"""

from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import pathlib
import tempfile
from typing import NamedTuple

import gin
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorflow as tf

from batch_rl_dr3.agents import checkpoint_weights
from batch_rl_dr3.analysis import diagnosis
from batch_rl_dr3.config import errors, progress
from batch_rl_dr3.evaluation import evaluator as evaluator_lib
from batch_rl_dr3.evaluation import pool, targets
from batch_rl_dr3.games import play
from batch_rl_dr3.reporting import figures, words
from batch_rl_dr3.runs import run_tables
from batch_rl_dr3.training import discrete

INITIAL, FRESH = 'initial', 'fresh'
# Added to the run's seed for the fresh draw.
_FRESH_STREAM = 104_729
_NUM_STATES = 2048
_QUANTITIES = ('return', 'q_change', 'actions_changed')

Weights = list[checkpoint_weights.WeightArray]


class Reset(NamedTuple):
  """A checkpoint with one layer set back to its initial value, or a draw."""

  layer: str
  kind: str
  weights: Weights


def initial_weights(
  evaluator: evaluator_lib.GameEvaluator, like: Weights, seed: int
) -> Weights:
  """Returns the weights that an agent of the configuration begins with.

  They are a function of the seed, as gin, which still holds the evaluator's
  configuration, has the agent's class and network; `like` are such weights.
  """
  game = evaluator.lanes.game
  agent = gin.query_parameter('FixedReplayRunner.agent').configurable.wrapped
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    network = evaluator.network(
      game.num_actions,
      num_atoms=like[-1].size // game.num_actions,
      initialiser=agent.initialiser,
      seed=seed,
      name='Online',
    )
    network.build((None, *game.observation_shape, game.stack_size))
    session.run(tf.compat.v1.global_variables_initializer())
    return session.run(network.weights)


def resets(trained: Weights, initial: Weights, fresh: Weights) -> list[Reset]:
  """Returns every layer set back in both ways, one at a time."""
  found = []
  for i, layer in enumerate(checkpoint_weights.layer_names(trained)):
    for kind, source in ((INITIAL, initial), (FRESH, fresh)):
      weights = list(trained)
      weights[2 * i : 2 * i + 2] = source[2 * i : 2 * i + 2]
      found.append(Reset(layer, kind, weights))
  return found


def measure(folders: Sequence[pathlib.Path]) -> pd.DataFrame:
  """Returns what setting back each layer of runs' last checkpoints does.

  Returns:
    A row a run, layer and kind: suite, game, method, seed, gradient_steps,
    layer, kind; return and return_before (of the unchanged checkpoint);
    q_change and actions_changed, see `diagnosis.compare_outputs`.
  """
  return pd.DataFrame([row for f in folders for row in _measure_run(f)])


def _measure_run(folder: pathlib.Path) -> Iterator[dict[str, object]]:
  target = targets.of_run(folder)
  if not target.checkpoints:
    raise errors.DataError(f'{folder} has no checkpoint.')
  iteration = max(target.checkpoints)
  checkpoint = target.checkpoints[iteration]
  evaluator = discrete.create_evaluator(
    pool.Setup(target.config, target.protocol)
  )
  seed = int(target.provenance['seed'])
  evaluation_seed = play.evaluation_seed(seed, iteration)
  trained = checkpoint_weights.read(checkpoint.prefix)
  states, return_before = _visit(evaluator, checkpoint.prefix, evaluation_seed)
  q_before = evaluator.load(checkpoint.prefix).outputs(states).q_values
  start = None  # The run may have begun with a checkpoint.
  with contextlib.suppress(ValueError):
    start = gin.query_parameter('OfflineAgent.init_checkpoint')
  changes = resets(
    trained,
    initial_weights(evaluator, trained, seed)
    if start is None
    else checkpoint_weights.read(start),
    initial_weights(evaluator, trained, seed + _FRESH_STREAM),
  )
  names = ('suite', 'game', 'method', 'dataset', 'seed')
  with (
    tempfile.TemporaryDirectory() as scratch,
    progress.bar(len(changes), str(folder), 'reset') as bar,
  ):
    for number, change in enumerate(changes):
      changed = f'{scratch}/tf_ckpt-{number}'
      checkpoint_weights.write(changed, change.weights)
      q_values = evaluator.load(changed).outputs(states).q_values
      episodes = evaluator.evaluate(changed, evaluation_seed)
      yield {
        **{name: target.provenance[name] for name in names},
        'gradient_steps': checkpoint.gradient_steps,
        'layer': change.layer,
        'kind': change.kind,
        'return': _mean_return(episodes),
        'return_before': return_before,
        **diagnosis.compare_outputs(q_before, q_values),
      }
      bar.update()


class StateSample:
  """Different states of a stream, the same sample in whatever order they come.

  A state's digest decides whether it is kept. Threads may add at once.
  """

  def __init__(self, stream_length: int):
    self._stride = max(1, stream_length // _NUM_STATES)
    self._kept: dict[int, npt.NDArray[np.uint8]] = {}

  def add(self, states: npt.NDArray[np.uint8]) -> None:
    """Adds states, uint8 [n, ...], which may be changed afterwards."""
    for state in states:
      digest = hashlib.blake2b(state.tobytes(), digest_size=8).digest()
      number = int.from_bytes(digest)
      if number % self._stride == 0:
        self._kept.setdefault(number, state.copy())

  @property
  def states(self) -> npt.NDArray[np.uint8]:
    """What was kept, at most 2,048 states: uint8 [n, ...]."""
    return np.stack([self._kept[n] for n in sorted(self._kept)[:_NUM_STATES]])


def _visit(
  evaluator: evaluator_lib.GameEvaluator, prefix: str, seed: int
) -> tuple[npt.NDArray[np.uint8], float]:
  """Returns states that a checkpoint visits, and its mean return."""
  actor = evaluator.load(prefix)
  sample = StateSample(evaluator.rule.num_agent_steps)

  def policy(states: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    sample.add(states)
    return actor.greedy_actions(states)

  episodes = play.play(evaluator.lanes, policy, evaluator.rule, seed)
  actor.close()
  return sample.states, _mean_return(episodes)


def _mean_return(episodes: Sequence[run_tables.Episode]) -> float:
  return float(np.mean([e.episode_return for e in episodes]))


def draw(measured: pd.DataFrame, narrow: bool = False) -> mpl_figure.Figure:
  """Returns the figure of `measure`: a column a method, layers along x."""
  names = words.ordered(measured['method'])
  width = (2.2 if narrow else 2.9) * len(names) + 0.6
  figure = mpl_figure.Figure((width, 6.8), layout='constrained')
  grid = figure.subplots(
    len(_QUANTITIES), len(names), squeeze=False, sharey='row'
  )
  for row, quantity in zip(grid, _QUANTITIES, strict=True):
    row[0].set_ylabel('\n'.join(words.entries('figure_a2', quantity)))
    shown = [quantity, 'return_before'] if quantity == 'return' else [quantity]
    row[0].set_ylim(0, 1.08 * max(measured[shown].max(axis=None), 1e-9))
    for axes, name in zip(row, names, strict=True):
      _draw_panel(axes, measured[measured['method'] == name], quantity)
  for axes, name in zip(grid[0], names, strict=True):
    axes.set_title(words.display_name(name))
  handles, labels = grid[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=3)
  return figure


def _draw_panel(
  axes: mpl_axes.Axes, chosen: pd.DataFrame, quantity: str
) -> None:
  layers = list(dict.fromkeys(chosen['layer']))
  for kind, side in ((INITIAL, 0), (FRESH, 1)):
    of_kind = chosen[chosen['kind'] == kind]
    places = of_kind['layer'].map(layers.index) + 0.12 * (2 * side - 1)
    label, colour = words.say('figure_a2', kind), figures.PALETTE[side]
    axes.scatter(places, of_kind[quantity], s=20, color=colour, label=label)
  if quantity == 'return':
    for value in chosen['return_before'].unique():
      axes.axhline(value, color='#888888', linestyle=':', label=None)
  axes.set_xticks(range(len(layers)), layers, fontsize=7)
  axes.set_xlim(-0.5, len(layers) - 0.5)
