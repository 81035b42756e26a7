"""One offline run: iterations of gradient steps, each followed by evaluation.

The weights and the step number are all the state there is. Batches and REM's
mixtures are functions of (seed, step), evaluation of (seed, iteration), so a
run that was killed at any moment and started again by the same command ends
with the same weights and the same scores, bit for bit (on CPU).
"""

from collections.abc import Callable

import gin
import tensorflow as tf

from batch_rl_dr3.agents import offline
from batch_rl_dr3.config import errors, own_code, ranges, signals
from batch_rl_dr3.evaluation import evaluator, pool, scoring
from batch_rl_dr3.games import lanes as lanes_lib
from batch_rl_dr3.games import play
from batch_rl_dr3.replay.log import source_chain, sources
from batch_rl_dr3.replay.store import store as replay_store
from batch_rl_dr3.replay.store import subset as replay_subset
from batch_rl_dr3.runs import home, provenance
from batch_rl_dr3.training import agent_sample, loop


@gin.configurable(
  denylist=['base_dir', 'replay_dir', 'cache_dir', 'seed', 'overwrite']
)
@ranges.checked
class FixedReplayRunner:
  """Trains an agent on logged replay and evaluates it in its game."""

  def __init__(
    self,
    base_dir: str,
    replay_dir: str | int,
    cache_dir: str,
    seed: ranges.Natural = 0,
    overwrite: bool = False,
    agent: Callable[..., offline.OfflineAgent] = gin.REQUIRED,
    create_lanes: Callable[[], lanes_lib.Lanes] = gin.REQUIRED,
    subset: replay_subset.Subset = gin.REQUIRED,
    method: str = gin.REQUIRED,
    dataset: str = gin.REQUIRED,
    num_iterations: ranges.Count = 200,
    num_gradient_steps: ranges.Count = 62_500,
    num_evaluation_agent_steps: ranges.Natural = 125_000,
    max_agent_steps_per_episode: ranges.Count = 27_000,
    log_period: ranges.Count = 2_500,
    num_metric_batches: ranges.Count = 8,
    effective_rank_period: ranges.Count = 62_500,
    effective_rank_num_states: ranges.Count = 2_048,
    keep_last_checkpoints: ranges.Count = 4,
    keep_checkpoint_every: ranges.Count | None = None,
    checkpoint_every_minutes: ranges.Positive | None = None,
    num_threads: ranges.Natural = 0,
    async_evaluation: bool = False,
    num_held_out: ranges.Natural = 0,
  ):
    """Opens the data and the game, and builds or restores the agent.

    Args:
      base_dir: the run directory, or a URL of one, such as gs://.
      replay_dir: the logged data of one run of one game: a folder, a URL, the
        folder of a store, or the run's number in the DQN Replay data set.
      cache_dir: where the extracted subset of the data is kept.
      seed: the run's seed.
      overwrite: start over where base_dir holds a run already.
      agent: the agent's class.
      create_lanes: makes the lanes of the game that are evaluated in.
      subset: which part of the data is trained on.
      method: the method's short name in scores and reports, such as rem_dr3.
      dataset: the subset's, such as 1pct.
      num_iterations: iterations of training and evaluation.
      num_gradient_steps: gradient steps an iteration.
      num_evaluation_agent_steps: agent steps an evaluation; 0 evaluates
        nothing.
      max_agent_steps_per_episode: an episode is cut there.
      log_period: gradient steps between rows of metrics.csv.
      num_metric_batches: batches, drawn once, that a row is measured on.
      effective_rank_period: gradient steps between measurements of the
        effective rank; a multiple of log_period.
      effective_rank_num_states: states, drawn once, it is measured on.
      keep_last_checkpoints: how many of the newest checkpoints are kept.
      keep_checkpoint_every: checkpoints of every so many iterations are kept
        for good.
      checkpoint_every_minutes: checkpoints are also written within an
        iteration, this often, so that a kill costs no more; None leaves it at
        one an iteration, and one at SIGTERM or Ctrl-C.
      num_threads: CPU threads of the graph; 0 is one per core. Results are
        bit-identical only for the same number.
      async_evaluation: play in another process while training goes on. The
        scores are the same; it pays where there are cores to spare.
      num_held_out: transitions of the log, outside the subset, that are kept
        to measure on and never shown to the value function; there are none
        where the subset is the whole log. Their store is built from whole
        files, however few rows the subset takes of them.

    Raises:
      ConfigError: if the configuration does not fit together.
      DataError: if the data cannot be used.
      WriteError: if base_dir or cache_dir cannot be written.
    """
    self._schedule = loop.Schedule(
      num_iterations,
      num_gradient_steps,
      log_period,
      effective_rank_period,
      keep_last_checkpoints,
      keep_checkpoint_every,
      checkpoint_every_minutes,
    )
    self._seed = seed
    self._overwrite = overwrite
    self._num_evaluation_agent_steps = num_evaluation_agent_steps
    self._max_agent_steps_per_episode = max_agent_steps_per_episode
    self._num_metric_batches = num_metric_batches
    self._effective_rank_num_states = effective_rank_num_states
    self._num_threads = num_threads
    self._async_evaluation = async_evaluation
    self._stop_request = signals.StopRequest()

    self._lanes = create_lanes()
    game = self._lanes.game
    log = (
      _find_run(game, replay_dir) if isinstance(replay_dir, int) else replay_dir
    )

    def open_part(part: replay_subset.Subset) -> replay_store.ReplayStore:
      return replay_store.open_store(
        log,
        cache_dir,
        subset=part,
        observation_shape=game.observation_shape,
        num_actions=game.num_actions,
        stack_size=game.stack_size,
      )

    subset = subset.for_run(seed)
    self._store = open_part(subset)
    held_out = subset.held_out(num_held_out)
    self._held_out_store = None
    if held_out is not None:
      self._held_out_store = open_part(held_out)
    self._agent = self._build_agent(agent)
    # After all that may refuse a binding: it makes the folder.
    self._home = home.open_home(base_dir, cache_dir)
    self._provenance = {
      'method': method,
      'suite': game.suite,
      'game': game.name,
      'dataset': dataset,
      'run': provenance.run_number(self._store.manifest['source']),
      'seed': seed,
      'total_gradient_steps': self._schedule.total_gradient_steps,
      'data_hash': self._store.data_hash,
      'data': self._store.manifest,
      'protocol': {
        **game.protocol,
        'gamma': self._agent.gamma,
        'epsilon_eval': self._agent.epsilon_eval,
        'num_evaluation_agent_steps': num_evaluation_agent_steps,
        'max_agent_steps_per_episode': max_agent_steps_per_episode,
      },
      'rom_md5': game.rom_md5,
      'num_threads': num_threads,
      **provenance.of_process(self._agent.device),
    }
    if self._held_out_store is not None:
      self._provenance['held_out_hash'] = self._held_out_store.data_hash

  def _build_agent(
    self, agent: Callable[..., offline.OfflineAgent]
  ) -> offline.OfflineAgent:
    game = self._lanes.game
    config = tf.compat.v1.ConfigProto(
      allow_soft_placement=True,
      intra_op_parallelism_threads=self._num_threads,
      inter_op_parallelism_threads=self._num_threads,
    )
    config.gpu_options.allow_growth = True
    try:
      return agent(
        tf.compat.v1.Session(config=config),
        num_actions=game.num_actions,
        store=self._store,
        seed=self._seed,
        held_out_store=self._held_out_store,
        observation_shape=game.observation_shape,
        stack_size=game.stack_size,
      )
    except (TypeError, ValueError) as error:
      # A binding that no class takes, or a value that one refuses.
      raise errors.ConfigError(
        f'cannot build the agent: {error}. Check its gin bindings.'
      ) from error

  def _draw_sample(self) -> agent_sample.AgentSample:
    return agent_sample.AgentSample(
      self._agent,
      self._seed,
      self._num_metric_batches,
      self._effective_rank_num_states,
    )

  def _create_evaluations(self) -> scoring.Evaluations | None:
    """Returns where and how finished checkpoints are played."""
    if not self._num_evaluation_agent_steps:
      return None
    rule = play.PlayRule(
      self._num_evaluation_agent_steps,
      self._agent.epsilon_eval,
      self._max_agent_steps_per_episode,
    )
    if self._async_evaluation:
      return scoring.AsyncEvaluations(
        pool.Setup(
          gin.operative_config_str(),
          self._provenance['protocol'],
          self._num_threads,
          imports=own_code.loaded(),
        ),
        pool.GAMES,
        self._stop_request,
      )
    return scoring.SyncEvaluations(
      evaluator.GameEvaluator(
        self._lanes, self._agent.acting_network, rule, self._num_threads
      ),
      self._stop_request,
    )

  def run(self) -> None:
    """Trains and evaluates to the end, from wherever the run was left.

    Raises:
      ConfigError: if base_dir holds another run.
      DataError: if the run cannot go on from where it was left.
      DivergedError: if a loss is not finite.
      PreemptedError: on SIGTERM or SIGINT, after a checkpoint was written; if
        another worker is at work on the run, or has taken over.
      WriteError: if the disk refuses.
    """
    loop.execute(
      loop.RunPlan(
        self._schedule,
        self._agent,
        self._draw_sample,
        self._create_evaluations,
        self._provenance,
        self._overwrite,
      ),
      self._home,
      self._stop_request,
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
