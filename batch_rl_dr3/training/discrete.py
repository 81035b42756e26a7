"""One offline run of a discrete agent.

Weights, optimiser and step number are all the state there is: batches and REM's
mixtures are functions of (seed, step), evaluation of (seed, iteration).
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
from typing import Any, TypeVar

import gin
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from batch_rl_dr3.agents import offline
from batch_rl_dr3.analysis import feature_measures
from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.evaluation import evaluator, pool, scoring
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play
from batch_rl_dr3.replay.log import source_chain, sources
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store import subset as replay_subset
from batch_rl_dr3.runs import place, provenance, run_directory
from batch_rl_dr3.training import loop

_HELD_OUT_RANK = f'{offline.HELD_OUT}effective_rank'
# Keeps the held-out sample's draw apart from that of the training rows.
_HELD_OUT_STREAM = 1

_Batch = Mapping[str, npt.NDArray[Any]]
_T = TypeVar('_T')


class AgentSample:
  """An agent on samples of its store, drawn once a run; see `loop.Sample`.

  Of held-out transitions, where the agent has them, there is a second sample
  of the same size: columns that begin with `held_out_`.
  """

  def __init__(
    self,
    agent: offline.OfflineAgent,
    seed: int,
    num_batches: int,
    effective_rank_num_states: int,
  ):
    self._agent = agent
    replay = agent.replay
    rows = replay.draw(num_batches * replay.batch_size, seed)
    self._batches: list[_Batch] = [
      replay.batch_at(rows[i::num_batches]) for i in range(num_batches)
    ]
    rows = replay.draw(min(effective_rank_num_states, replay.num_valid), seed)
    self._states = replay.batch_at(rows)['state']
    self._held_out: list[_Batch] = []
    if agent.held_out_store is not None:
      rng = np.random.default_rng([seed, _HELD_OUT_STREAM])
      counts = [replay.batch_size] * num_batches + [effective_rank_num_states]
      *self._held_out, larger = (self._draw_held_out(n, rng) for n in counts)
      self._held_out_states = larger['state']
      # An agent that learns from held-out rows is measured on these.
      self._batches = [
        {**batch, **_prefixed(held_out)}
        for batch, held_out in zip(self._batches, self._held_out, strict=True)
      ]
    # Single transitions have no return to regress on.
    bellman = () if agent.is_monte_carlo else ('loss_bellman',)
    held_out_metrics = (*bellman, 'feature_dot_product', 'mean_q')
    self._held_out_metrics = held_out_metrics if self._held_out else ()
    self.columns: Sequence[str] = (
      *agent.metrics,
      *_prefixed(dict.fromkeys(self._held_out_metrics)),
    )
    self.feature_columns: Sequence[str] = (
      *('effective_rank', 'dead_fraction', 'dormant_fraction'),
      *([_HELD_OUT_RANK] if self._held_out else ()),
    )

  def _draw_held_out(self, count: int, rng: np.random.Generator) -> _Batch:
    store, agent = self._agent.held_out_store, self._agent
    assert store is not None
    valid = store.valid_indices(agent.update_horizon)
    rows = rng.choice(valid, count, replace=count > len(valid))
    batch = store.gather(np.sort(rows), agent.update_horizon, agent.gamma)
    return dict(zip(agent.replay.transition, batch, strict=False))

  def measure(self) -> dict[str, float]:  # noqa: D102
    measured = self._agent.measure(self._batches)
    if self._held_out:
      measured |= _prefixed(
        self._agent.measure(self._held_out, self._held_out_metrics)
      )
    return measured

  def measure_features(self) -> dict[str, float]:  # noqa: D102
    features = self._agent.features(self._states)
    measured: dict[str, float] = {
      'effective_rank': feature_measures.effective_rank(features),
      'dead_fraction': feature_measures.dormant_fraction(features, tau=0.0),
      'dormant_fraction': feature_measures.dormant_fraction(features),
    }
    if self._held_out:
      measured[_HELD_OUT_RANK] = feature_measures.effective_rank(
        self._agent.features(self._held_out_states)
      )
    return measured


def _prefixed(values: Mapping[str, _T]) -> dict[str, _T]:
  return {offline.HELD_OUT + name: value for name, value in values.items()}


@gin.configurable(
  denylist=['base_dir', 'replay_dir', 'cache_dir', 'seed', 'overwrite']
)
@ranges.checked
@dataclasses.dataclass(eq=False, repr=False)
class FixedReplayRunner(loop.OfflineRun):
  """Trains an agent on logged replay and evaluates it in its game.

  To build one opens the data and the game, and builds the agent. An evaluation
  of 0 agent steps is none; 0 threads are one per core, and results are
  bit-identical only for the same number of them. `num_held_out` transitions
  of the log, outside the subset, are measured on and never shown to the value
  function; there are none where the subset is the whole log. Their store is
  built from whole files, however few rows the subset takes of them.
  """

  agent: Callable[..., offline.OfflineAgent] = gin.REQUIRED
  create_lanes: Callable[[], lanes_lib.Lanes] = gin.REQUIRED
  subset: replay_subset.Subset = gin.REQUIRED
  num_evaluation_agent_steps: ranges.Natural = 125_000
  max_agent_steps_per_episode: ranges.Count = 27_000
  num_threads: ranges.Natural = 0
  num_held_out: ranges.Natural = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    self._lanes = self.create_lanes()
    game = self._lanes.game
    self._log: str | sources.Source
    if not isinstance(self.replay_dir, int):
      self._log = self.replay_dir
    elif game.suite == 'atari':
      self._log = source_chain.open_run(game.name, self.replay_dir)
    else:
      raise errors.ConfigError(
        f'the DQN Replay data set has no runs of {game.suite}: name the data '
        'with --replay_dir.'
      )
    subset = self.subset.for_run(self.seed)
    store = self._open_store(subset)
    held_out = subset.held_out(self.num_held_out)
    held_out_store = None if held_out is None else self._open_store(held_out)
    self._agent = self._build_agent(store, held_out_store)
    self.learner = self._agent
    self.home = run_directory.Home(self.base_dir, self.cache_dir)
    self.provenance = self.describe(
      self._agent.device,
      suite=game.suite,
      game=game.name,
      run=provenance.run_number(store.manifest['source']),
      data_hash=store.data_hash,
      data=store.manifest,
      protocol={
        **game.protocol,
        'gamma': self._agent.gamma,
        'epsilon_eval': self._agent.epsilon_eval,
        'num_evaluation_agent_steps': self.num_evaluation_agent_steps,
        'max_agent_steps_per_episode': self.max_agent_steps_per_episode,
      },
      rom_md5=game.rom_md5,
      num_threads=self.num_threads,
      compute_dtype=self._agent.compute_dtype,
    )
    if held_out_store is not None:
      self.provenance['held_out_hash'] = held_out_store.data_hash

  def _open_store(self, part: replay_subset.Subset) -> replay_store.ReplayStore:
    game = self._lanes.game
    return replay_store.open_store(
      self._log,
      self.cache_dir,
      subset=part,
      observation_shape=game.observation_shape,
      num_actions=game.num_actions,
      stack_size=game.stack_size,
      observation_dtype=game.observation_dtype,
    )

  def _build_agent(
    self,
    store: replay_store.ReplayStore,
    held_out_store: replay_store.ReplayStore | None,
  ) -> offline.OfflineAgent:
    game = self._lanes.game
    config = tf.compat.v1.ConfigProto(
      allow_soft_placement=True,
      intra_op_parallelism_threads=self.num_threads,
      inter_op_parallelism_threads=self.num_threads,
    )
    config.gpu_options.allow_growth = True
    try:
      return self.agent(
        tf.compat.v1.Session(config=config),
        num_actions=game.num_actions,
        store=store,
        seed=self.seed,
        held_out_store=held_out_store,
        recorded_dtype=self._recorded_dtype(),
        observation_shape=game.observation_shape,
        observation_dtype=tf.as_dtype(game.observation_dtype),
        stack_size=game.stack_size,
      )
    except (TypeError, ValueError) as error:
      # A binding that no class takes, or a value that one refuses.
      raise errors.ConfigError(
        f'cannot build the agent: {error}. Check its gin bindings.'
      ) from error

  def _recorded_dtype(self) -> str | None:
    """Returns the arithmetic that a run began with, which it keeps."""
    # What cannot be read is named when the run is claimed.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      record = place.Place(self.base_dir).read(run_directory.PROVENANCE)
      if record is not None and not self.overwrite:
        return str(json.loads(record)['compute_dtype'])
    return None

  def draw_sample(self) -> AgentSample:  # noqa: D102
    return AgentSample(
      self._agent,
      self.seed,
      self.num_metric_batches,
      self.effective_rank_num_states,
    )

  def create_evaluations(self) -> scoring.Evaluations | None:  # noqa: D102
    if not self.num_evaluation_agent_steps:
      return None
    if self.async_evaluation:
      return self.evaluate_apart(pool.GAMES, self.num_threads)
    rule = play.PlayRule(
      self.num_evaluation_agent_steps,
      self._agent.epsilon_eval,
      self.max_agent_steps_per_episode,
    )
    return scoring.SyncEvaluations(
      evaluator.GameEvaluator(
        self._lanes, self._agent.acting_network, rule, self.num_threads
      ),
      self.stop_request,
    )


def create_evaluator(setup: pool.Setup) -> evaluator.GameEvaluator:
  """Returns what plays checkpoints; with this module, gin knows the runner."""
  return evaluator.create(setup)
