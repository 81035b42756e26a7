"""One offline run: iterations of gradient steps, each followed by evaluation.

The weights and the step number are all the state there is. Batches and REM's
mixtures are functions of (seed, step), evaluation of (seed, iteration), so a
run that was killed at any moment and started again by the same command ends
with the same weights and the same scores, bit for bit (on CPU).
"""

from collections.abc import Callable
import dataclasses

import gin
import tensorflow as tf

from batch_rl_dr3.agents import offline
from batch_rl_dr3.config import errors, ranges
from batch_rl_dr3.evaluation import evaluator, pool, scoring
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play
from batch_rl_dr3.replay.log import source_chain, sources
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store import subset as replay_subset
from batch_rl_dr3.runs import provenance, run_directory
from batch_rl_dr3.training import agent_sample, loop


@gin.configurable(
  denylist=['base_dir', 'replay_dir', 'cache_dir', 'seed', 'overwrite']
)
@ranges.checked
@dataclasses.dataclass(eq=False, repr=False)
class FixedReplayRunner(loop.OfflineRun):
  """Trains an agent on logged replay and evaluates it in its game.

  To build one opens the data and the game, and builds the agent.

  Attributes:
    agent: the agent's class.
    create_lanes: makes the lanes of the game that are evaluated in.
    subset: which part of the data is trained on.
    num_evaluation_agent_steps: agent steps an evaluation; 0 evaluates nothing.
    max_agent_steps_per_episode: an episode is cut there.
    num_threads: CPU threads of the graph; 0 is one per core. Results are
      bit-identical only for the same number.
    num_held_out: transitions of the log, outside the subset, that are kept to
      measure on and never shown to the value function; there are none where
      the subset is the whole log. Their store is built from whole files,
      however few rows the subset takes of them.

  Raises:
    ConfigError: if the configuration does not fit together.
    DataError: if the data cannot be used.
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
    log = self.replay_dir
    self._log = _find_run(game, log) if isinstance(log, int) else log
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
        observation_shape=game.observation_shape,
        observation_dtype=tf.as_dtype(game.observation_dtype),
        stack_size=game.stack_size,
      )
    except (TypeError, ValueError) as error:
      # A binding that no class takes, or a value that one refuses.
      raise errors.ConfigError(
        f'cannot build the agent: {error}. Check its gin bindings.'
      ) from error

  def draw_sample(self) -> agent_sample.AgentSample:  # noqa: D102
    return agent_sample.AgentSample(
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


def _find_run(game: lanes_lib.Game, run: int) -> sources.Source:
  if game.suite != 'atari':
    raise errors.ConfigError(
      f'the DQN Replay data set has no runs of {game.suite}: name the data '
      'with --replay_dir.'
    )
  return source_chain.open_run(game.name, run)
